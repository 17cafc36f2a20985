// Package beyondtrust is the provider for BeyondTrust Remote Support: client credentials, one-hour
// tokens, no refresh tokens. See https://docs.beyondtrust.com/rs/docs/api.
//
// An API account has at most 30 valid tokens; the 31st silently kills the oldest, and a new secret
// kills all. So an exchange too many breaks somebody else: processes of one account share a store.
package beyondtrust

import (
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/refusals"
	"github.com/itsmauth/itsmauth/providers/generic"
)

// Config is an API account of the appliance (Management > API Configuration).
type Config struct {
	ClientID     string      `yaml:"client_id" required:"true"`
	ClientSecret auth.Secret `yaml:"client_secret" required:"true"`
}

// New makes the provider of the appliance at env.BaseURL. Its errors are joined [auth.KeyError]s.
func New(c Config, env auth.Env) (auth.Provider, error) {
	var r refusals.List
	r.When(env.BaseURL == nil, "base_url", "required")
	r.When(c.ClientID == "", "client_id", "required")
	r.When(c.ClientSecret.IsZero(), "client_secret", "required")
	if r != nil {
		return nil, r.Err()
	}
	p, err := generic.NewProvider(generic.Config{
		Provider: "beyondtrust",
		TokenURL: env.BaseURL.JoinPath("oauth2/token"), // with a slash at its end it is a 405
		ClientID: c.ClientID, ClientSecret: c.ClientSecret,
		CredentialsEncoding: "raw", // secrets hold + and /, and are compared as they are
		// A 401 without this is about the request, such as an unknown parameter.
		RejectedWhen: []generic.Condition{{Status: 401, Pointer: "/error", Equals: "access_denied"}},
	})
	if err != nil {
		return nil, err
	}
	return provider{p}, nil
}

type provider struct{ *generic.Provider }

// Traffic is what the vendor documents for an API account.
func (provider) Traffic() auth.Traffic {
	return auth.Traffic{
		Limits: []auth.Limit{{Requests: 20, Per: time.Second}, {Requests: 15000, Per: time.Hour}},
		Close:  true,
	}
}
