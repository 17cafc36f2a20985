package config

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/config/internal/yamldoc"
	"github.com/itsmauth/itsmauth/providers"
)

// secret is every secret in these tests. No message may contain it.
const secret = "s3cr+t/=&%"

func TestMain(m *testing.M) {
	for name, value := range map[string]string{
		"CFG_ID": "client-7", "CFG_SECRET": secret, "CFG_EMPTY": "", "CFG_HOME": "$HOME", "CFG_NEWLINE": secret + "\r\n", "CFG_TRUE": "true", "CFG_YES": "yes",
		"CFG_SECONDS": "45s", "CFG_SEVEN": "7", "CFG_URL": "https://acme.example/api/", "CFG_WORD": secret,
	} {
		os.Setenv(name, value)
	}
	os.Exit(m.Run())
}

// acme are the settings of a provider, with one of each type.
type acme struct {
	SSOURL      *url.URL          `yaml:"sso_url"`
	ClientID    string            `yaml:"client_id" required:"true"`
	Secret      auth.Secret       `yaml:"client_secret" required:"true"`
	Password    auth.Secret       `yaml:"password"`
	RedirectURI string            `yaml:"redirect_uri"`
	Grant       string            `yaml:"grant" enum:"client_credentials,code"`
	Scopes      []string          `yaml:"scopes"`
	Params      map[string]string `yaml:"params"`
	Values      map[string]any    `yaml:"values"`
	Headers     map[string]auth.Secret
	Conditions  []acmeCondition `yaml:"conditions"`
	Lifetime    time.Duration   `yaml:"lifetime"`
	Level       int             `yaml:"level"`
	Port        uint16          `yaml:"port"`
	Ratio       float64         `yaml:"ratio"`
	Debug       *bool           `yaml:"debug"`
	Nested      *struct {
		Size yamldoc.Size `yaml:"size"`
	} `yaml:"nested"`
	acmeMore `yaml:",inline"`
}

type acmeCondition struct {
	Status int `yaml:"status" required:"true"`
}

type acmeMore struct {
	Extra string `yaml:"extra"`
}

func newAcme(c acme, env auth.Env) (auth.Provider, error) {
	var errs []error
	if c.Level > 9 {
		errs = append(errs, &auth.KeyError{Key: "level", Err: errors.New("must be at most 9")})
	}
	if c.Grant == "code" && c.RedirectURI == "" {
		errs = append(errs, &auth.KeyError{Key: "redirect_uri", Err: errors.New("required for grant code")})
	}
	for i, s := range c.Conditions {
		if s.Status > 599 {
			errs = append(errs, &auth.KeyError{Key: fmt.Sprintf("conditions.%d.status", i), Err: errors.New("must be a status")})
		}
	}
	if c.Extra == "refused" {
		errs = append(errs, errors.New("acme takes\nno extra; leave\nit out"))
	}
	_ = env.BaseURL.String() + "/token"
	return acmeProvider{c}, errors.Join(errs...)
}

type acmeProvider struct{ acme }

func (p acmeProvider) Exchange(context.Context, *oauth2.Token) (*oauth2.Token, error) {
	s, err := p.Secret.Value()
	if err != nil {
		return nil, err
	}
	return &oauth2.Token{AccessToken: "token of " + p.ClientID + s, ExpiresIn: 3600}, nil
}

func (acmeProvider) Header(tok *oauth2.Token) http.Header {
	return http.Header{"Authorization": {"Bearer " + tok.AccessToken}}
}

func (acmeProvider) Rejects(r *http.Response, _ []byte) bool { return r.StatusCode == 401 }

func (p acmeProvider) Identity() []string { return []string{p.ClientID} }

func (p acmeProvider) Traffic() auth.Traffic {
	return auth.Traffic{Limits: []auth.Limit{{Requests: 20, Per: time.Second}}, Close: true}
}

// diskConfig are the settings of a store that WithStore adds.
type diskConfig struct {
	Path string `yaml:"path" required:"true" path:"true"`
}

func openDisk(c diskConfig) (auth.Store, error) {
	if c.Path == "/full" {
		return nil, &auth.KeyError{Key: "path", Err: errors.New("the disk is full")}
	}
	return new(auth.Memory), nil
}

func testOptions() []Option {
	return []Option{WithProvider(providers.Define("acme", newAcme)), WithStore("disk", openDisk)}
}

// parse1 parses a file with the connector a, to which lines are added.
func parse1(t *testing.T, lines string, opts ...Option) (*Connectors, error) {
	t.Helper()
	return Parse("t.yaml", []byte("version: 1\nconnectors:\n  a:\n    provider: acme\n    base_url: https://acme.example/api/\n"+
		"    client_id: id\n    client_secret: "+secret+"\n"+lines), append(testOptions(), opts...)...)
}
