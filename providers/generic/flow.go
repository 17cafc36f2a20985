package generic

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
)

// CodeFlow returns the authorization-code flow, or nil for other grants.
func (p *Provider) CodeFlow() *auth.CodeFlow {
	c := &p.c
	if c.Grant != "authorization_code" {
		return nil
	}
	return &auth.CodeFlow{RedirectURI: c.RedirectURI, Redeem: p.redeem, URL: func(state, verifier string) string {
		var opts []oauth2.AuthCodeOption
		if p.dpop != nil {
			var key *proofKey
			if key, verifier, _ = p.dpop.loginKey(verifier); key != nil { // else redeem says why
				opts = append(opts, oauth2.SetAuthURLParam("dpop_jkt", key.thumbprint)) // RFC 9449 section 10
			}
		}
		if c.usesPKCE() {
			opts = append(opts, oauth2.S256ChallengeOption(verifier))
		}
		if len(c.Scopes) > 0 {
			opts = append(opts, oauth2.SetAuthURLParam("scope", strings.Join(c.Scopes, c.ScopeSeparator)))
		}
		o := oauth2.Config{ClientID: c.ClientID, RedirectURL: c.RedirectURI, Endpoint: oauth2.Endpoint{AuthURL: c.AuthURL.String()}}
		return o.AuthCodeURL(state, opts...)
	}}
}

// redeem exchanges a code (RFC 6749 section 4.1.3).
func (p *Provider) redeem(ctx context.Context, code, verifier string) (*oauth2.Token, error) {
	r := p.request("login", p.c.TokenURL, code, verifier)
	if p.dpop != nil {
		key, sent, err := p.dpop.loginKey(verifier)
		r.useKey(key, err)
		verifier, r.secrets = sent, append(r.secrets, sent)
	}
	p.addFields(r, func(field string) bool { return field != "scope" || slices.Contains(p.c.CodeFields, field) })
	r.set("grant_type", "authorization_code")
	r.set("code", code)
	if p.c.usesPKCE() {
		r.set("code_verifier", verifier)
	}
	return p.requestToken(ctx, r)
}

// CanRevoke reports whether there is a RevokeURL.
func (p *Provider) CanRevoke() bool { return p.c.RevokeURL != nil }

// Revoke revokes tok's refresh token and access token. Without RevokeURL it does nothing. A token that
// is already invalid counts as revoked (RFC 7009 section 2.2).
func (p *Provider) Revoke(ctx context.Context, tok *oauth2.Token) error {
	if p.c.RevokeURL == nil || tok == nil {
		return nil
	}
	if p.c.Grant == "none" {
		r := p.request("revoke", p.c.RevokeURL, tok.AccessToken, tok.RefreshToken)
		r.method, r.header = http.MethodPost, p.Header(tok)
		r.proves = tok.AccessToken
		p.bind(ctx, r, tok)
		err := p.send(ctx, r)
		if p.Rejects(&http.Response{StatusCode: r.status}, r.body) {
			return nil
		}
		return err
	}
	var errs []error
	for _, t := range []struct{ token, hint string }{{tok.RefreshToken, "refresh_token"}, {tok.AccessToken, "access_token"}} {
		if t.token == "" {
			continue
		}
		r := p.request("revoke", p.c.RevokeURL, tok.AccessToken, tok.RefreshToken)
		r.method = http.MethodPost
		r.set("token", t.token)
		r.set("token_type_hint", t.hint)
		p.authenticate(r)
		p.bind(ctx, r, tok)
		err := p.send(ctx, r)
		// A token of an unsupported type is revoked together with the other one (RFC 7009 section 2.2.1).
		if r.code != "invalid_token" && r.code != "unsupported_token_type" {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
