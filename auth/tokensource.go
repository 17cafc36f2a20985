package auth

import (
	"context"
	"net/http"

	"golang.org/x/oauth2"
)

// TokenSource makes an [oauth2.TokenSource] of a. Its tokens are copies, because x/oauth2 writes into
// the tokens it is given. ctx applies to each call.
func TokenSource(ctx context.Context, a Authenticator) oauth2.TokenSource { return source{ctx, a} }

type source struct {
	ctx context.Context
	a   Authenticator
}

func (s source) Token() (*oauth2.Token, error) {
	tok, err := s.a.Token(s.ctx)
	if err != nil {
		return nil, err
	}
	c := *tok
	return &c, nil
}

// FromTokenSource makes a Provider of an [oauth2.TokenSource]. Its tokens are sent as
// `Authorization: Bearer` (RFC 6750), and a 401 rejects them. src should not cache tokens beyond their
// expiry. A call that takes longer than an exchange may is abandoned. The identity is the connector's name.
func FromTokenSource(src oauth2.TokenSource) Provider { return sourced{src} }

type sourced struct{ src oauth2.TokenSource }

func (s sourced) Exchange(ctx context.Context, _ *oauth2.Token) (*oauth2.Token, error) {
	var tok *oauth2.Token
	var err error
	done := make(chan struct{})
	go func() { defer close(done); tok, err = s.src.Token() }() // it takes no ctx
	select {
	case <-done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err != nil || tok == nil {
		return nil, err
	}
	// Without its refresh token, which the source spends itself.
	own := &oauth2.Token{AccessToken: tok.AccessToken, TokenType: tok.TokenType, Expiry: tok.Expiry}
	if tok.Expiry.IsZero() {
		own.ExpiresIn = tok.ExpiresIn // else it counts from when the source got the token, maybe long ago
	}
	return own, nil
}

func (sourced) Header(tok *oauth2.Token) http.Header {
	return http.Header{"Authorization": {tok.Type() + " " + tok.AccessToken}}
}

func (sourced) Rejects(resp *http.Response, _ []byte) bool {
	return resp.StatusCode == http.StatusUnauthorized
}
