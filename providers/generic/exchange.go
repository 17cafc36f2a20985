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

// Exchange refreshes if there is a refresh token, in prev or else in the settings, and makes the
// full grant if there is none or, where the grant needs no person, if it is refused.
func (p *Provider) Exchange(ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
	c := &p.c
	if prev == nil {
		prev = new(oauth2.Token)
	}
	r, spend := p.request("exchange", c.TokenURL, prev.AccessToken), prev.RefreshToken
	if spend == "" {
		spend = r.read("refresh_token", c.RefreshToken)
	}
	switch {
	case r.err != nil:
		return nil, r.fail(r.err)
	case spend != "" && c.Method != http.MethodGet:
		tok, err := p.refresh(ctx, r, spend)
		if err == nil || !p.mends(r, err) {
			return tok, err
		}
		r = p.request("exchange", c.TokenURL, r.secrets...)
	case c.interactive():
		return nil, r.fail(fmt.Errorf("%w: there is no refresh token", auth.ErrConsentRequired))
	}
	if c.Grant != "none" {
		r.set("grant_type", c.Grant)
	}
	r.set("username", c.Username)
	r.set("password", r.read("password", c.Password))
	p.add(r, func(string) bool { return true })
	return p.obtain(ctx, r)
}

// refresh exchanges the refresh token spend (RFC 6749 section 6).
func (p *Provider) refresh(ctx context.Context, r *request, spend string) (*oauth2.Token, error) {
	r.refresh = true
	r.secrets = append(r.secrets, spend)
	r.set("grant_type", "refresh_token")
	r.set(p.c.Refresh.Param, spend)
	p.add(r, func(field string) bool { return slices.Contains(p.c.Refresh.Fields, field) })
	tok, err := p.obtain(ctx, r)
	if err == nil && tok.RefreshToken == "" {
		tok.RefreshToken = spend // not rotated
	}
	return tok, err
}

// mends reports whether the full grant may succeed where the refresh r failed with err: whatever
// the product has against it, but for the client itself and what passes by waiting. Products refuse
// a refresh token in many words and by any status.
func (p *Provider) mends(r *request, err error) bool {
	return !p.c.interactive() && r.refused && r.status/100 != 3 && r.status != http.StatusProxyAuthRequired && r.code != "invalid_client" &&
		!errors.Is(err, auth.ErrUnavailable) && !errors.Is(err, auth.ErrRateLimited)
}

// add adds those of the fields that the settings have for every grant which are sent in this one.
func (p *Provider) add(r *request, sent func(field string) bool) {
	for k, v := range p.c.Params {
		if sent(k) {
			r.fields[k] = v
		}
	}
	for k, s := range p.c.SecretParams {
		if sent(k) {
			r.fields[k] = r.read("secret_params."+k, s)
		}
	}
	if sent("redirect_uri") {
		r.set("redirect_uri", p.c.RedirectURI)
	}
	if sent("scope") {
		r.set("scope", strings.Join(p.c.Scopes, " "))
	}
}

// obtain exchanges r for a token.
func (p *Provider) obtain(ctx context.Context, r *request) (*oauth2.Token, error) {
	p.authenticate(r)
	if p.c.Response.Format == "json" {
		r.says("Accept", "application/json")
	}
	start := time.Now()
	if err := p.send(ctx, r); err != nil {
		return nil, err
	}
	tok, err := p.token(r, start)
	if err != nil {
		return nil, r.fail(err)
	}
	return tok, nil
}
