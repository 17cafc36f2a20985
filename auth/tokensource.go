package auth

import (
	"context"
	"net/http"

	"golang.org/x/oauth2"
)

// TokenSource makes an [oauth2.TokenSource] of a. Its tokens are copies, because x/oauth2 writes into
// the tokens it is given. ctx applies to each call.
func TokenSource(ctx context.Context, a Authenticator) oauth2.TokenSource {
	return source(func() (*oauth2.Token, error) {
		tok, err := a.Token(ctx)
		if err != nil {
			return nil, err
		}
		c := *tok
		return &c, nil
	})
}

// source is a function, because nothing can print what a function holds.
type source func() (*oauth2.Token, error)

func (s source) Token() (*oauth2.Token, error) { return s() }

// FromTokenSource makes a Provider of an [oauth2.TokenSource]. Its tokens are sent as
// `Authorization: Bearer` (RFC 6750), and a 401 rejects them. src should not cache tokens beyond their
// expiry. A call that takes longer than an exchange may is abandoned. The identity is the connector's name.
// src is not printed, because it may hold a token.
func FromTokenSource(src oauth2.TokenSource) Provider {
	return sourced{func() (*oauth2.Token, error) { return src.Token() }}
}

type sourced struct{ src source }

func (s sourced) Exchange(ctx context.Context, _ *oauth2.Token) (*oauth2.Token, error) {
	var tok *oauth2.Token
	var err error
	done := make(chan struct{})
	go func() { defer close(done); tok, err = s.src() }() // it takes no ctx
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
