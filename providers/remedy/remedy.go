// Package remedy is the provider for BMC Remedy: the authorization-code grant of Remedy Single
// Sign-On with refresh tokens that rotate, or the AR System server's own login for accounts that
// need no person. See https://docs.bmc.com, Remedy Single Sign-On, "OAuth 2.0", and AR System,
// "REST API".
package remedy

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/jwt"
	"github.com/itsmauth/itsmauth/internal/refusals"
	"github.com/itsmauth/itsmauth/providers/generic"
)

// Config is a client of Remedy SSO, or a user of AR System. The zero value of each field is its
// default.
type Config struct {
	// Grant is authorization_code, the default, which needs SSOURL, ClientID, ClientSecret and
	// RedirectURI; or ar_jwt, which needs Username and Password.
	Grant string `yaml:"grant" enum:"authorization_code,ar_jwt" default:"authorization_code"`

	// SSOURL is that of Remedy SSO, such as https://sso.example.com/rsso.
	SSOURL       *url.URL    `yaml:"sso_url"`
	ClientID     string      `yaml:"client_id"`
	ClientSecret auth.Secret `yaml:"client_secret"`
	// RedirectURI is one that is registered for the client, exactly.
	RedirectURI string   `yaml:"redirect_uri"`
	Scopes      []string `yaml:"scopes"`
	// RefreshToken starts the chain when none is stored: one obtained elsewhere.
	RefreshToken auth.Secret `yaml:"refresh_token"`
	// RefreshLifetime is that of a refresh token on the server. The default is 60 days.
	RefreshLifetime time.Duration `yaml:"refresh_lifetime" default:"1440h"`
	// PKCE adds S256 (RFC 7636), which BMC does not document.
	PKCE bool `yaml:"pkce"`
	// OAuthVersion is that of the token endpoint: v1, the default, or v1.1.
	OAuthVersion string `yaml:"oauth_version" enum:"v1,v1.1" default:"v1"`
	// CredentialsIn is where the client's credentials go: form, the default, or basic, unescaped.
	CredentialsIn string `yaml:"credentials_in" enum:"form,basic" default:"form"`
	// RefreshParam is the field with the refresh token: refresh_token, or refreshToken as the
	// documentation of 18.08 has it.
	RefreshParam string `yaml:"refresh_param" default:"refresh_token"`

	// Username and Password are an AR System user's.
	Username string      `yaml:"username"`
	Password auth.Secret `yaml:"password"`
}

// rejected is AR System's "Authentication failed".
var rejected = []generic.Condition{{Status: 401, Pointer: "/*/messageNumber", Equals: "623"}}

// New makes the provider of the AR System server at env.BaseURL. Its errors are joined
// [auth.KeyError]s.
func New(c Config, env auth.Env) (auth.Provider, error) {
	var r refusals.List
	build := code
	r.When(env.BaseURL == nil, "base_url", "required")
	switch c.Grant {
	case "", "authorization_code":
		const required = "required for grant authorization_code"
		r.When(c.SSOURL == nil, "sso_url", required)
		r.When(c.ClientID == "", "client_id", required)
		r.When(c.ClientSecret.IsZero(), "client_secret", required)
		r.When(c.RedirectURI == "", "redirect_uri", required)
		r.Word("oauth_version", cmp.Or(c.OAuthVersion, "v1"), "v1", "v1.1")
		r.Word("credentials_in", cmp.Or(c.CredentialsIn, "form"), "form", "basic")
		r.When(c.RefreshLifetime < 0, "refresh_lifetime", "must not be negative")
		r.Add("sso_url", generic.CheckURL(c.SSOURL))
		r.Add("redirect_uri", generic.CheckRedirectURI(c.RedirectURI))
	case "ar_jwt":
		build = login
		const required = "required for grant ar_jwt"
		r.When(c.Username == "", "username", required)
		r.When(c.Password.IsZero(), "password", required)
	default:
		r.When(true, "grant", "must be authorization_code, ar_jwt")
	}
	if r != nil {
		return nil, r.Err()
	}
	return build(c, env)
}

// code is the grant of Remedy SSO.
func code(c Config, env auth.Env) (auth.Provider, error) {
	token := "oauth2/token"
	if c.OAuthVersion == "v1.1" {
		token = "oauth2/v1.1/token"
	}
	return generic.New(generic.Config{
		Provider:  "remedy",
		Grant:     "authorization_code",
		AuthURL:   c.SSOURL.JoinPath("oauth2/authorize"),
		TokenURL:  c.SSOURL.JoinPath(token),
		RevokeURL: c.SSOURL.JoinPath("oauth2/revoke"),
		ClientID:  c.ClientID, ClientSecret: c.ClientSecret,
		CredentialsIn: cmp.Or(c.CredentialsIn, "form"), CredentialsEncoding: "raw",
		RedirectURI: c.RedirectURI, Scopes: c.Scopes, PKCE: c.PKCE,
		RefreshToken: c.RefreshToken, RefreshLifetime: cmp.Or(c.RefreshLifetime, 60*24*time.Hour),
		Refresh:      generic.Refresh{Param: c.RefreshParam},
		RejectedWhen: rejected,
	}, env)
}

// login is the grant of the AR System server itself.
func login(c Config, env auth.Env) (auth.Provider, error) {
	p, err := generic.NewProvider(generic.Config{
		Provider:  "remedy",
		Grant:     "none",
		TokenURL:  env.BaseURL.JoinPath("api/jwt/login"),
		RevokeURL: env.BaseURL.JoinPath("api/jwt/logout"),
		Username:  c.Username, Password: c.Password,
		Response:     generic.Response{Format: "text", Error: "/0/messageNumber"},
		TokenHeaders: []generic.Header{{Name: "Authorization", Template: "AR-JWT {access_token}"}},
		RejectedWhen: rejected,
	})
	if err != nil {
		return nil, err
	}
	return arSystem{p}, nil
}

type arSystem struct{ *generic.Provider }

// Exchange takes nothing for a token but a JWT: the server, or a proxy, may say anything with 200.
func (p arSystem) Exchange(ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
	tok, err := p.Provider.Exchange(ctx, prev)
	if err == nil && !jwt.Valid(tok.AccessToken) {
		err = fmt.Errorf("%w: it is no JWT", auth.ErrProtocol)
		return nil, &auth.Error{Provider: "remedy", Op: "exchange", Status: 200, Err: err}
	}
	return tok, err
}
