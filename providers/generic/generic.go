// Package generic is an OAuth 2.0 client for any token endpoint, told by a [Config] what is odd
// about it. In YAML it is provider: oauth2; the products are values of the same Config.
//
// The authorization URL, PKCE and the token type are x/oauth2's. The exchange is not, because of
// what x/oauth2 does with servers as they are: it URL-escapes the Basic credentials, posts twice
// to find out where they go, fails on an expires_in of 3600.0 or "", reads text/plain as a form,
// and prints the answer in its errors.
package generic

import (
	"maps"
	"slices"
	"strings"

	"github.com/itsmauth/itsmauth/auth"
)

// Provider is an [auth.Provider] for one token endpoint. It is also an [auth.Identifier], an
// [auth.Consenter], an [auth.Revoker] and an [auth.Refresher].
type Provider struct{ c Config }

var _ interface {
	auth.Provider
	auth.Identifier
	auth.Consenter
	auth.Revoker
	auth.Refresher
} = (*Provider)(nil)

// New makes the provider that the settings describe. Its errors are an [auth.KeyError] for each
// setting at fault, joined.
func New(c Config, _ auth.Env) (auth.Provider, error) {
	p, err := NewProvider(c)
	if err != nil {
		return nil, err
	}
	return p, nil
}

// NewProvider is New for a product that embeds the engine.
func NewProvider(c Config) (*Provider, error) {
	c.fill()
	if err := c.check(); err != nil {
		return nil, err
	}
	return &Provider{c}, nil
}

// Identity lists token URL, client id, grant, user, scopes and the plain parameters.
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
		id = append(id, "params."+k+"="+c.Params[k])
	}
	return id
}

// Refresh says where the chain of refresh tokens starts and what its end means.
func (p *Provider) Refresh() auth.Refresh {
	return auth.Refresh{
		Token:      p.c.RefreshToken,
		Lifetime:   p.c.RefreshLifetime,
		Expendable: !p.c.interactive(),
	}
}
