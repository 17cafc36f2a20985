package auth

import (
	"context"
	"net/http"

	"golang.org/x/oauth2"
)

// TokenSource gives a's tokens to code that wants an [oauth2.TokenSource]. Each is a copy, since
// x/oauth2 writes into what it is given. ctx bounds each call.
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

// FromTokenSource makes a Provider of an [oauth2.TokenSource], for a [Session] to manage: its
// tokens travel as `Authorization: Bearer` (RFC 6750) and are refused by a 401. src should not
// cache beyond the token's expiry, and is left behind if it takes longer than an exchange may; its
// identity is the connector's name.
func FromTokenSource(src oauth2.TokenSource) Provider { return sourced{src} }

type sourced struct{ src oauth2.TokenSource }

func (s sourced) Exchange(ctx context.Context, _ *oauth2.Token) (*oauth2.Token, error) {
	var tok *oauth2.Token
	var err error
	done := make(chan struct{})
	go func() { defer close(done); tok, err = s.src.Token() }() // which knows no ctx
	select {
	case <-done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err != nil || tok == nil {
		return nil, err
	}
	// The source keeps its refresh token to itself: it is not ours to spend.
	own := &oauth2.Token{AccessToken: tok.AccessToken, TokenType: tok.TokenType, Expiry: tok.Expiry}
	if tok.Expiry.IsZero() {
		own.ExpiresIn = tok.ExpiresIn // else it is of when the source got it, maybe long ago
	}
	return own, nil
}

func (sourced) Header(tok *oauth2.Token) http.Header {
	return http.Header{"Authorization": {tok.Type() + " " + tok.AccessToken}}
}

func (sourced) Rejects(resp *http.Response, _ []byte) bool {
	return resp.StatusCode == http.StatusUnauthorized
}
