// Package generic is an OAuth 2.0 client for any token endpoint. A [Config] says how the endpoint
// differs from the RFCs. In YAML this is provider: oauth2; the other providers are built on it.
//
// x/oauth2 makes the authorization URL, PKCE and the token type. It does not send the token requests,
// because real servers need something else: it URL-escapes the Basic credentials, posts twice to find
// out where they go, fails on an expires_in of 3600.0 or "", parses text/plain as a form, and prints
// the response in its errors.
package generic

import (
	"maps"
	"slices"
	"strings"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/settings"
)

// Provider is an [auth.Provider] for one token endpoint. It is also an [auth.Identifier], an
// [auth.Consenter], an [auth.Revoker], an [auth.Refresher], and for DPoP an [auth.Signer] and [auth.Challenged].
type Provider struct {
	c    Config
	dpop *dpop // nil: tokens are not bound to a key
}

// New makes a provider. Its error joins an [auth.KeyError] for each wrong setting.
func New(c Config, _ auth.Env) (auth.Provider, error) {
	p, err := NewProvider(c)
	if err != nil {
		return nil, err
	}
	return p, nil
}

// NewProvider is [New] for a provider that embeds this one.
func NewProvider(c Config) (*Provider, error) {
	c.fillDefaults()
	if err := c.check(); err != nil {
		return nil, err
	}
	return &Provider{c, newDPoP(c.DPoP)}, nil
}

// Identity lists the token URL, client id, grant, user, scopes and Params, and of an Assertion issuer, subject,
// audience, key id and claims.
func (p *Provider) Identity() []string {
	c := &p.c
	id := []string{
		"token_url=" + c.TokenURL.String(),
		"client_id=" + c.ClientID,
		"grant=" + c.Grant,
		"username=" + c.Username,
		"scope=" + strings.Join(slices.Sorted(slices.Values(c.Scopes)), " "),
	}
	for _, k := range slices.Sorted(maps.Keys(c.Params)) {
		text, _ := paramText(c.Params[k])
		id = append(id, "params."+k+"="+text)
	}
	for _, s := range c.assertionSettings() {
		id = append(id, "assertion."+s[0]+"="+s[1])
	}
	switch {
	case c.DPoP == nil:
	case c.DPoP.PrivateKey.IsZero():
		id = append(id, "dpop=true")
	default: // the token store has no key
		id = append(id, "dpop=private_key")
	}
	return id
}

// Name is the provider's name, such as oauth2.
func (p *Provider) Name() string { return p.c.Provider }

// Secrets are the secrets among the settings.
func (p *Provider) Secrets() []auth.Secret { return settings.Secrets(p.c) }

// Refresh returns what the settings say of refresh tokens.
func (p *Provider) Refresh() auth.Refresh {
	return auth.Refresh{
		Token:      p.c.RefreshToken,
		Lifetime:   p.c.RefreshLifetime,
		Expendable: !p.c.interactive(),
	}
}
