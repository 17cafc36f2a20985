// Package webcommander is the provider for WebCommander stores: one JSON request carries both the
// client's and the user's credentials, there are refresh tokens, and the token's header is called
// access_token. See https://developers.webcommander.com/webcommander-api-authentication.
//
// nginx drops headers whose names have underscores, unless underscores_in_headers is on.
package webcommander

import (
	"encoding/base64"
	"strings"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/settings"
	"github.com/itsmauth/itsmauth/providers/generic"
)

// Config is an application of a store and a user, given as Username and Password or as AuthString.
type Config struct {
	ClientID     string      `yaml:"client_id" required:"true"`
	ClientSecret auth.Secret `yaml:"client_secret" required:"true"`
	// RedirectURI is a redirect URI registered for the application, exactly as registered.
	RedirectURI string      `yaml:"redirect_uri" required:"true"`
	Username    string      `yaml:"username"`
	Password    auth.Secret `yaml:"password"`
	// AuthString is username:password in base64, in place of Username and Password.
	AuthString auth.Secret `yaml:"auth_string"`
	// TokenHeader is the header that carries the token: access_token, spelled like that on HTTP/1.1,
	// or authorization (with Bearer), which newer stores accept.
	TokenHeader string `yaml:"token_header" enum:"access_token,authorization" default:"access_token"`
}

// New makes the provider for the store at env.BaseURL. Its error joins an [auth.KeyError] for each
// wrong setting.
func New(c Config, env auth.Env) (auth.Provider, error) {
	var errs settings.Errors
	errs.When(env.BaseURL == nil, "base_url", "required")
	errs.Check(&c)
	errs.Add("redirect_uri", generic.CheckRedirectURI(c.RedirectURI))
	user, authString := c.authString(&errs)
	if errs != nil {
		return nil, errs.Err()
	}
	header := generic.Header{Name: "access_token", Template: "{access_token}"}
	if c.TokenHeader == "authorization" {
		header = generic.Header{Name: "Authorization", Template: "Bearer {access_token}"}
	}
	p, err := generic.NewProvider(generic.Config{
		Provider: "webcommander",
		TokenURL: env.BaseURL.JoinPath("api/v4/oauth2/token"),
		ClientID: c.ClientID, ClientSecret: c.ClientSecret,
		RedirectURI:  c.RedirectURI,
		SecretParams: map[string]auth.Secret{"auth_string": authString},
		Encoding:     "json", CredentialsIn: "json",
		Refresh:      generic.Refresh{Fields: []string{"redirect_uri"}},
		TokenHeaders: []generic.Header{header},
		// A 401 that names a field, such as a wrong old_password, is about the request.
		NotRejectedWhen: []generic.Condition{{Status: 401, Pointer: "/errors/*/field"}},
	})
	if err != nil {
		return nil, err
	}
	return provider{p, user}, nil
}

// authString returns the secret auth_string, made of Username and Password if it is not set, and the user
// in it.
func (c Config) authString(errs *settings.Errors) (user string, authString auth.Secret) {
	if c.AuthString.IsZero() {
		errs.When(c.Username == "", "username", "required, or auth_string")
		errs.When(strings.Contains(c.Username, ":"), "username", "must not contain a colon, which ends the name in auth_string")
		errs.When(c.Password.IsZero(), "password", "required, or auth_string")
		return c.Username, auth.SecretFunc(func() (string, error) {
			password, err := c.Password.Value()
			return base64.StdEncoding.EncodeToString([]byte(c.Username + ":" + password)), err
		})
	}
	errs.When(c.Username != "" || !c.Password.IsZero(), "auth_string", "give username and password, or auth_string, not both")
	text, err := c.AuthString.Value()
	errs.When(err != nil, "auth_string", "cannot be read")
	decoded, notBase64 := base64.StdEncoding.DecodeString(text)
	user, _, found := strings.Cut(string(decoded), ":")
	errs.When(err == nil && (notBase64 != nil || !found), "auth_string", "must be base64 of username:password")
	return user, c.AuthString
}

type provider struct {
	*generic.Provider
	user string
}

// Identity adds the user, who is in the secret auth_string for the engine.
func (p provider) Identity() []string {
	return append(p.Provider.Identity(), "username="+p.user)
}
