package generic

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
)

// Exchange obtains a token, and makes the request of Then with it.
func (p *Provider) Exchange(ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
	tok, err := p.obtain(ctx, prev)
	if err != nil || p.c.Then == nil {
		return tok, err
	}
	return p.then(ctx, tok)
}

// obtain refreshes with the refresh token of prev, or else of the settings. Without one, or if it is
// refused, it requests a token by the full grant, if that needs no person.
func (p *Provider) obtain(ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
	c := &p.c
	if prev == nil {
		prev = new(oauth2.Token)
	}
	r, refreshToken := p.request("exchange", c.TokenURL, prev.AccessToken), prev.RefreshToken
	if refreshToken == "" {
		refreshToken = r.readSecret("refresh_token", c.RefreshToken)
	}
	p.bind(ctx, r, prev)
	switch {
	case r.err != nil:
		return nil, r.newError(r.err)
	case refreshToken != "" && c.Method != http.MethodGet:
		tok, err := p.refresh(ctx, r, refreshToken)
		if err == nil || !p.canFallBack(r, err) {
			return tok, err
		}
		key := r.key
		r = p.request("exchange", c.TokenURL, r.secrets...)
		r.key = key
	case c.interactive():
		return nil, r.newError(fmt.Errorf("%w: there is no refresh token", auth.ErrConsentRequired))
	}
	switch c.Grant {
	case "jwt_bearer":
		r.set("grant_type", jwtBearerGrant)
		r.set("assertion", r.assertion(c.grantParty()))
	case "none":
	default:
		r.set("grant_type", c.Grant)
	}
	if c.Grant != "jwt_bearer" {
		r.set("username", c.Username)
		r.set("password", r.readSecret("password", c.Password))
	}
	p.addFields(r, func(string) bool { return true })
	return p.requestToken(ctx, r)
}

// refresh exchanges refreshToken (RFC 6749 section 6).
func (p *Provider) refresh(ctx context.Context, r *request, refreshToken string) (*oauth2.Token, error) {
	r.refresh = true
	r.secrets = append(r.secrets, refreshToken)
	r.set("grant_type", "refresh_token")
	r.set(p.c.Refresh.Param, refreshToken)
	p.addFields(r, func(field string) bool { return slices.Contains(p.c.Refresh.Fields, field) })
	tok, err := p.requestToken(ctx, r)
	if err == nil && tok.RefreshToken == "" {
		tok.RefreshToken = refreshToken // not rotated
	}
	return tok, err
}

// canFallBack reports whether to try the full grant after the refresh r failed with err. Products refuse a
// refresh token with any status and body, so it is false only for redirects, temporary errors and errors about
// the client.
func (p *Provider) canFallBack(r *request, err error) bool {
	elsewhere := !r.mapped && (r.status == 0 || r.status/100 == 3 || r.status == http.StatusProxyAuthRequired)
	client := []string{"invalid_client", "unauthorized_client", "invalid_dpop_proof", useNonce}
	return !p.c.interactive() && !elsewhere && !slices.Contains(client, r.code) &&
		!errors.Is(err, auth.ErrUnavailable) && !errors.Is(err, auth.ErrRateLimited)
}

// addFields adds the settings' fields for which sent is true.
func (p *Provider) addFields(r *request, sent func(field string) bool) {
	for k, v := range p.c.Params {
		if sent(k) {
			text, _ := paramText(v)
			r.fields.Set(k, text)
		}
	}
	for k, s := range p.c.SecretParams {
		if sent(k) {
			r.fields.Set(k, r.readSecret("secret_params."+k, s))
		}
	}
	if sent("redirect_uri") {
		r.set("redirect_uri", p.c.RedirectURI)
	}
	if sent("scope") {
		r.set("scope", strings.Join(p.c.Scopes, p.c.ScopeSeparator))
	}
}

// requestToken sends r and reads the token from the response.
func (p *Provider) requestToken(ctx context.Context, r *request) (*oauth2.Token, error) {
	p.authenticate(r)
	if p.c.Response.Format == "json" {
		r.setDefaultHeader("Accept", "application/json")
	}
	start := time.Now()
	if err := p.send(ctx, r); err != nil {
		return nil, err
	}
	tok, err := p.parseToken(r, start)
	if err != nil {
		return nil, r.newError(err)
	}
	if p.dpop != nil {
		tok = p.dpop.keep(tok, r.key)
	}
	return tok, nil
}
