// Package static is the provider for products without a token endpoint: each call carries an API key in a header,
// or a user and a password (Basic).
package static

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/endpoint"
	"github.com/itsmauth/itsmauth/internal/jsonbody"
	"github.com/itsmauth/itsmauth/internal/settings"
)

// Config has the credentials that API calls carry: Username and Password, or Headers, or both.
type Config struct {
	// Provider is the provider's name in errors. The default is static.
	Provider string `yaml:"-"`

	// Username and Password are sent in a Basic header (RFC 7617). One of them may be empty or missing: some
	// products take a key as the username and any password.
	Username auth.Secret `yaml:"username" blank:"true" literal:"true"`
	Password auth.Secret `yaml:"password" blank:"true"`
	// Headers are sent with each API call, with names spelled as here on HTTP/1.1. They replace the caller's headers
	// of the same names.
	Headers map[string]auth.Secret `yaml:"headers" literal:"Accept,Accept-Language,User-Agent"`
	// RejectedWhen are the API responses that refuse the credentials: those that match one of these conditions. If
	// a secret has changed since the request was made, the call is sent once more.
	RejectedWhen []Condition `yaml:"rejected_when" default:"[{status: 401}]"`
}

// Condition matches a response that meets all of its fields: Status (the default is any), Pointer (a JSON
// Pointer into the body), Equals (the value there) and BodyContains (a text in the body).
type Condition = jsonbody.Condition

// New makes the provider for the API at env.BaseURL. Its error joins an [auth.KeyError] for each wrong setting.
// The provider is an [auth.Static] and an [auth.Identifier].
func New(c Config, env auth.Env) (auth.Provider, error) {
	var errs settings.Errors
	errs.When(env.BaseURL == nil, "base_url", "required")
	errs.Check(&c)
	c.Provider = cmp.Or(c.Provider, "static")
	if c.RejectedWhen == nil {
		c.RejectedWhen = []Condition{{Status: http.StatusUnauthorized}}
	}
	jsonbody.CheckConditions(&errs, "rejected_when", c.RejectedWhen)
	c.checkNames(&errs)
	for _, setting := range c.settings() {
		value, err := setting.Value()
		errs.AddSecret(setting.key, err)
		if err == nil {
			errs.Add(setting.key, setting.check(value))
		}
	}
	p := &provider{c, env.Name, env.BaseURL}
	basic, err := c.basic()
	credentials := p.StaticCredentials()
	onlyBasic := !slices.ContainsFunc(credentials, func(key string) bool { return key != "username" && key != "password" })
	errs.When(credentials == nil || onlyBasic && basic == "" && err == nil, "username", "required, or password, or headers")
	if errs != nil {
		return nil, errs.Err()
	}
	return p, nil
}

// A setting is one of the secrets.
type setting struct {
	auth.Secret
	key    string
	header string // its header, or "": username or password
}

// settings lists the secrets that are set.
func (c *Config) settings() (list []setting) {
	for _, s := range []setting{{c.Username, "username", ""}, {c.Password, "password", ""}} {
		if !s.IsZero() {
			list = append(list, s)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Headers)) {
		list = append(list, setting{c.Headers[name], "headers." + name, name})
	}
	return list
}

// check returns why the value cannot be sent, or nil.
func (s setting) check(value string) error {
	switch {
	case strings.ContainsAny(value, "\r\n\x00"):
		return errors.New("must not hold a line break")
	case s.key == "username" && strings.Contains(value, ":"):
		return errors.New("must not contain a colon, which ends the username in a Basic header")
	case s.header != "" && value == "":
		return errors.New("must not be empty")
	}
	return nil
}

// ofMessage are headers that describe the message or the connection (RFC 9110 section 7.6.1), which net/http or the
// caller sets.
var ofMessage = []string{"Connection", "Content-Length", "Content-Type", "Expect", "Host", "Keep-Alive", "Proxy-Authenticate",
	"Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}

func (c *Config) checkNames(errs *settings.Errors) {
	basic, names := !c.Username.IsZero() || !c.Password.IsZero(), map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(c.Headers)) {
		key, canonical := "headers."+name, http.CanonicalHeaderKey(name)
		errs.When(!settings.IsHeaderName(name), key, "is not a header name")
		errs.When(names[canonical], key, "appears twice")
		errs.When(basic && canonical == "Authorization", key, "is the header of username and password")
		errs.When(slices.Contains(ofMessage, canonical), key, "cannot be set: it describes the message or the connection, not the caller")
		errs.When(canonical == "User-Agent" && name != canonical, key, "must be spelled User-Agent") // net/http adds its own to others
		names[canonical] = true
	}
}

// basic returns the value of the Authorization header, or "" if username and password are empty.
func (c *Config) basic() (string, error) {
	username, err := c.Username.Value()
	password, failed := c.Password.Value()
	if err = errors.Join(err, failed); err != nil || username+password == "" {
		return "", err
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(username+":"+password)), nil
}

type provider struct {
	c       Config
	name    string
	baseURL *url.URL
}

// Name is the provider's name.
func (p *provider) Name() string { return p.c.Provider }

// Exchange checks that the secrets can be read and sent. Its token is an opaque value: the credentials are in
// Header.
func (p *provider) Exchange(context.Context, *oauth2.Token) (*oauth2.Token, error) {
	for _, s := range p.c.settings() {
		value, err := s.Value()
		if err == nil {
			err = s.check(value)
		}
		if err != nil {
			return nil, p.unusable(fmt.Errorf("%s cannot be used: %w", s.key, err))
		}
	}
	if basic, err := p.c.basic(); basic == "" && len(p.c.Headers) == 0 {
		return nil, p.unusable(cmp.Or(err, errors.New("username and password are empty")))
	}
	return &oauth2.Token{AccessToken: rand.Text()}, nil
}

func (p *provider) unusable(err error) error {
	return &auth.Error{Connector: p.name, Provider: p.c.Provider, Op: "token", Err: fmt.Errorf("%w: %w", auth.ErrUnavailable, err)}
}

// Header returns the credentials as they are now, whatever the token, or nil if one cannot be read.
func (p *provider) Header(*oauth2.Token) http.Header {
	h := http.Header{}
	for name, s := range p.c.Headers {
		value, err := s.Value()
		if err != nil {
			return nil
		}
		h[name] = []string{value}
	}
	basic, err := p.c.basic()
	if err != nil {
		return nil
	}
	if basic != "" {
		h["Authorization"] = []string{basic}
	}
	return h
}

// Rejects reports whether resp refuses the credentials, by RejectedWhen.
func (p *provider) Rejects(resp *http.Response, body []byte) bool {
	return slices.ContainsFunc(p.c.RejectedWhen, func(c Condition) bool { return c.Matches(resp.StatusCode, body) })
}

// Identity lists the origin of the API and the names of the headers.
func (p *provider) Identity() []string {
	id := []string{"origin=" + endpoint.Origin(p.baseURL)}
	for name := range p.c.Headers {
		id = append(id, "header="+strings.ToLower(name))
	}
	if !p.c.Username.IsZero() || !p.c.Password.IsZero() {
		id = append(id, "header=authorization")
	}
	slices.Sort(id[1:])
	return id
}

// public are headers that hold no credentials. The tag of [Config.Headers] lists them too.
var public = []string{"Accept", "Accept-Language", "User-Agent"}

// StaticCredentials implements [auth.Static].
func (p *provider) StaticCredentials() (keys []string) {
	for _, s := range p.c.settings() {
		if !slices.Contains(public, http.CanonicalHeaderKey(s.header)) {
			keys = append(keys, s.key)
		}
	}
	return keys
}

// Secrets lists the settings' secrets, for [auth.Options].
func (p *provider) Secrets() []auth.Secret { return settings.Secrets(p.c) }
