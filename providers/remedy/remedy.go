// Package remedy is the provider for BMC Remedy. People log in through Remedy Single Sign-On, by the
// authorization-code grant with refresh tokens that rotate; accounts of programs use the AR System
// server's own login. See https://docs.bmc.com, Remedy Single Sign-On, "OAuth 2.0", and AR System,
// "REST API".
package remedy

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/jwt"
	"github.com/itsmauth/itsmauth/internal/settings"
	"github.com/itsmauth/itsmauth/providers/generic"
)

// Config is a client of Remedy SSO, or a user of AR System.
type Config struct {
	// Grant is authorization_code, which needs SSOURL, ClientID, ClientSecret and RedirectURI, or
	// ar_jwt, the AR System server's own login, which needs Username and Password.
	Grant string `yaml:"grant" enum:"authorization_code,ar_jwt" default:"authorization_code"`

	// SSOURL is the URL of Remedy SSO, such as https://sso.example.com/rsso.
	SSOURL       *url.URL    `yaml:"sso_url"`
	ClientID     string      `yaml:"client_id"`
	ClientSecret auth.Secret `yaml:"client_secret"`
	// RedirectURI is a redirect URI registered for the client, exactly as registered.
	RedirectURI string   `yaml:"redirect_uri"`
	Scopes      []string `yaml:"scopes"`
	// RefreshToken is a refresh token obtained elsewhere. It is used until the store has one.
	RefreshToken auth.Secret `yaml:"refresh_token"`
	// RefreshLifetime is how long a refresh token is valid, as set on the server.
	RefreshLifetime time.Duration `yaml:"refresh_lifetime" default:"1440h"`
	// PKCE is Proof Key for Code Exchange, with S256 (RFC 7636). BMC does not document it.
	PKCE bool `yaml:"pkce"`
	// OAuthVersion is the version of the token endpoint: v1 or v1.1.
	OAuthVersion string `yaml:"oauth_version" enum:"v1,v1.1" default:"v1"`
	// CredentialsIn is where the client's credentials are sent: in the form, or in a Basic header,
	// unescaped.
	CredentialsIn string `yaml:"credentials_in" enum:"form,basic" default:"form"`
	// RefreshParam is the name of the field for the refresh token. The documentation of 18.08 calls it
	// refreshToken.
	RefreshParam string `yaml:"refresh_param" default:"refresh_token"`

	// Username and Password are the credentials of an AR System user.
	Username string      `yaml:"username"`
	Password auth.Secret `yaml:"password"`
}

// rejectedWhen is AR System's "Authentication failed".
var rejectedWhen = []generic.Condition{{Status: 401, Pointer: "/*/messageNumber", Equals: "623"}}

// New makes the provider for the AR System server at env.BaseURL. Its error joins an [auth.KeyError]
// for each wrong setting.
func New(c Config, env auth.Env) (auth.Provider, error) {
	var errs settings.Errors
	errs.When(env.BaseURL == nil, "base_url", "required")
	errs.Check(&c)
	required := "required for grant " + c.Grant
	switch c.Grant {
	case "authorization_code":
		errs.When(c.SSOURL == nil, "sso_url", required)
		errs.When(c.ClientID == "", "client_id", required)
		errs.When(c.ClientSecret.IsZero(), "client_secret", required)
		errs.When(c.RedirectURI == "", "redirect_uri", required)
		errs.Add("sso_url", generic.CheckURL(c.SSOURL))
		errs.Add("redirect_uri", generic.CheckRedirectURI(c.RedirectURI))
	case "ar_jwt":
		errs.When(c.Username == "", "username", required)
		errs.When(c.Password.IsZero(), "password", required)
	}
	if errs != nil {
		return nil, errs.Err()
	}
	if c.Grant == "ar_jwt" {
		return newARSystem(c, env)
	}
	return newSSO(c, env)
}

// newSSO makes the provider that gets its tokens from Remedy SSO.
func newSSO(c Config, env auth.Env) (auth.Provider, error) {
	tokenPath := "oauth2/token"
	if c.OAuthVersion == "v1.1" {
		tokenPath = "oauth2/v1.1/token"
	}
	return generic.New(generic.Config{
		Provider:  "remedy",
		Grant:     "authorization_code",
		AuthURL:   c.SSOURL.JoinPath("oauth2/authorize"),
		TokenURL:  c.SSOURL.JoinPath(tokenPath),
		RevokeURL: c.SSOURL.JoinPath("oauth2/revoke"),
		ClientID:  c.ClientID, ClientSecret: c.ClientSecret,
		CredentialsIn: c.CredentialsIn, DefaultCredentialsIn: c.CredentialsIn == "form", CredentialsEncoding: "raw",
		RedirectURI: c.RedirectURI, Scopes: c.Scopes, PKCE: &c.PKCE,
		RefreshToken: c.RefreshToken, RefreshLifetime: c.RefreshLifetime,
		Refresh:      generic.Refresh{Param: c.RefreshParam},
		RejectedWhen: rejectedWhen,
	}, env)
}

// newARSystem makes the provider that gets its tokens from the AR System server itself.
func newARSystem(c Config, env auth.Env) (auth.Provider, error) {
	p, err := generic.NewProvider(generic.Config{
		Provider:  "remedy",
		Grant:     "none",
		TokenURL:  env.BaseURL.JoinPath("api/jwt/login"),
		RevokeURL: env.BaseURL.JoinPath("api/jwt/logout"),
		Username:  c.Username, Password: c.Password,
		Response:     generic.Response{Format: "text", Error: "/0/messageNumber"},
		TokenHeaders: []generic.Header{{Name: "Authorization", Template: "AR-JWT {access_token}"}},
		RejectedWhen: rejectedWhen,
	})
	if err != nil {
		return nil, err
	}
	return arSystem{p}, nil
}

type arSystem struct{ *generic.Provider }

// Exchange accepts only a JWT: the server, or a proxy before it, may answer 200 with any text.
func (p arSystem) Exchange(ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
	tok, err := p.Provider.Exchange(ctx, prev)
	if err == nil && !jwt.Valid(tok.AccessToken) {
		err = fmt.Errorf("%w: it is not a JWT", auth.ErrProtocol)
		return nil, &auth.Error{Provider: "remedy", Op: "exchange", Status: 200, Err: err}
	}
	return tok, err
}
