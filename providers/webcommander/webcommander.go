// Package webcommander is the provider for WebCommander stores: client credentials and a user in
// one JSON request, refresh tokens, and a header named access_token. See
// https://developers.webcommander.com/webcommander-api-authentication.
//
// nginx drops headers with underscores unless told underscores_in_headers on.
package webcommander

import (
	"cmp"
	"encoding/base64"
	"strings"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/refusals"
	"github.com/itsmauth/itsmauth/providers/generic"
)

// Config is an application of a store, and a user: Username and Password, or AuthString.
type Config struct {
	ClientID     string      `yaml:"client_id" required:"true"`
	ClientSecret auth.Secret `yaml:"client_secret" required:"true"`
	// RedirectURI is one that is registered for the application, exactly.
	RedirectURI string      `yaml:"redirect_uri" required:"true"`
	Username    string      `yaml:"username"`
	Password    auth.Secret `yaml:"password"`
	// AuthString is base64 of username:password.
	AuthString auth.Secret `yaml:"auth_string"`
	// TokenHeader is access_token, the default, spelled so on HTTP/1.1, or authorization, which
	// newer stores take with Bearer.
	TokenHeader string `yaml:"token_header" enum:"access_token,authorization" default:"access_token"`
}

// New makes the provider of the store at env.BaseURL. Its errors are joined [auth.KeyError]s.
func New(c Config, env auth.Env) (auth.Provider, error) {
	var r refusals.List
	r.When(env.BaseURL == nil, "base_url", "required")
	r.When(c.ClientID == "", "client_id", "required")
	r.When(c.ClientSecret.IsZero(), "client_secret", "required")
	r.When(c.RedirectURI == "", "redirect_uri", "required")
	r.Add("redirect_uri", generic.CheckRedirectURI(c.RedirectURI))
	user, authString := c.Username, c.AuthString
	if authString.IsZero() {
		r.When(c.Username == "", "username", "required, or auth_string")
		r.When(strings.Contains(c.Username, ":"), "username", "must not hold a colon, at which auth_string is split")
		r.When(c.Password.IsZero(), "password", "required, or auth_string")
		authString = auth.SecretFunc(func() (string, error) {
			password, err := c.Password.Value()
			return base64.StdEncoding.EncodeToString([]byte(c.Username + ":" + password)), err
		})
	} else {
		r.When(c.Username != "" || !c.Password.IsZero(), "auth_string", "give username and password, or auth_string, not both")
		s, err := authString.Value()
		r.When(err != nil, "auth_string", "cannot be read")
		decoded, bad := base64.StdEncoding.DecodeString(s)
		var split bool
		user, _, split = strings.Cut(string(decoded), ":")
		r.When(err == nil && (bad != nil || !split), "auth_string", "must be base64 of username:password")
	}
	header := generic.Header{Name: "access_token", Template: "{access_token}"}
	if c.TokenHeader == "authorization" {
		header = generic.Header{Name: "Authorization", Template: "Bearer {access_token}"}
	}
	r.Word("token_header", cmp.Or(c.TokenHeader, "access_token"), "access_token", "authorization")
	if r != nil {
		return nil, r.Err()
	}
	p, err := generic.NewProvider(generic.Config{
		Provider: "webcommander",
		TokenURL: env.BaseURL.JoinPath("api/v4/oauth2/token"),
		ClientID: c.ClientID, ClientSecret: c.ClientSecret,
		RedirectURI:  c.RedirectURI,
		SecretParams: map[string]auth.Secret{"auth_string": authString},
		Encoding:     "json",
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

type provider struct {
	*generic.Provider
	user string
}

// Identity has the user too, whom the engine only knows as a secret.
func (p provider) Identity() []string {
	return append(p.Provider.Identity(), "username="+p.user)
}
