// Package beyondtrust is the provider for BeyondTrust Remote Support: client credentials, one-hour
// tokens, no refresh tokens. See https://docs.beyondtrust.com/rs/docs/api.
//
// An API account has at most 30 valid tokens: the 31st silently invalidates the oldest. A new client
// secret invalidates them all. So all processes that use one account should share a store.
package beyondtrust

import (
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/settings"
	"github.com/itsmauth/itsmauth/providers/generic"
)

// Config is an API account of the appliance (Management > API Configuration).
type Config struct {
	ClientID     string      `yaml:"client_id" required:"true"`
	ClientSecret auth.Secret `yaml:"client_secret" required:"true"`
}

// New makes the provider for the appliance at env.BaseURL. Its error joins an [auth.KeyError] for each
// wrong setting.
func New(c Config, env auth.Env) (auth.Provider, error) {
	var errs settings.Errors
	errs.When(env.BaseURL == nil, "base_url", "required")
	errs.Check(&c)
	if errs != nil {
		return nil, errs.Err()
	}
	p, err := generic.NewProvider(generic.Config{
		Provider: "beyondtrust",
		TokenURL: env.BaseURL.JoinPath("oauth2/token"), // a trailing slash gets a 405
		ClientID: c.ClientID, ClientSecret: c.ClientSecret,
		CredentialsIn: "basic", CredentialsEncoding: "raw", // the appliance does not decode URL-escaped secrets
		// Any other 401 is about the request, such as an unknown parameter.
		RejectedWhen: []generic.Condition{{Status: 401, Pointer: "/error", Equals: "access_denied"}},
	})
	if err != nil {
		return nil, err
	}
	return provider{p}, nil
}

type provider struct{ *generic.Provider }

// Traffic returns the limits that the vendor documents for an API account.
func (provider) Traffic() auth.Traffic {
	return auth.Traffic{
		Limits: []auth.Limit{{Requests: 20, Per: time.Second}, {Requests: 15000, Per: time.Hour}},
		Close:  true,
	}
}
