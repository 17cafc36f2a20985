package config

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/config/internal/yamldoc"
	"github.com/itsmauth/itsmauth/internal/endpoint"
	"github.com/itsmauth/itsmauth/transport"
)

// Settings are a connector for [Connectors.Add]. The zero value of each field is its default.
type Settings struct {
	// BaseURL is the URL of the product's API. Credentials are sent to its origin. Required.
	BaseURL *url.URL
	// Provider makes the adapter for the product. Required. For example:
	//
	//	func(env auth.Env) (auth.Provider, error) {
	//		return beyondtrust.New(beyondtrust.Config{ClientID: id, ClientSecret: secret}, env)
	//	}
	Provider func(auth.Env) (auth.Provider, error)
	// Account is a label that separates identities, such as two logins of one client.
	Account string
	// EarlyRefresh (5 min) is how long before its expiry a token is renewed, but at most 20 % of its lifetime.
	EarlyRefresh time.Duration
	// Secrets are the secrets of a provider that has no method Secrets() []auth.Secret. A change of one of them
	// is noticed as [auth.Options.Secrets] says.
	Secrets []auth.Secret
	// Probe is a path of the API that is safe to call.
	Probe string
	// Transport is how requests are sent. Connector and BaseURL are set by Add. Without a Limiter, the product's
	// own limits apply.
	Transport transport.Options
}

// New makes Connectors without a file, for [Connectors.Add]. Tokens are kept in the store of [WithDefaultStore], by
// default in memory. The first Add opens it.
func New(opts ...Option) *Connectors {
	o := newOptions(opts)
	c := newConnectors("", o)
	c.storeType = o.defaultStore
	return c
}

// Add makes a connector at run time, as from a file: connectors with the same credentials share a token and its
// limits, the product's own limits apply, and tokens are kept in the store. Nothing is sent yet. The name must be
// new. An [auth.KeyError] is the provider's; the error of a store that cannot be opened wraps [auth.ErrStore], and
// that of closed Connectors [auth.ErrClosed].
//
// The first connector of some credentials decides how their token requests are sent, and the limits. An Add with
// the same credentials and another secret is refused.
func (c *Connectors) Add(name string, s Settings) (*Connector, error) {
	conn, err := c.add(name, s)
	if err != nil {
		return nil, fmt.Errorf("connector %q: %w", name, err)
	}
	return conn, nil
}

func (c *Connectors) add(name string, s Settings) (*Connector, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if s.BaseURL == nil || s.Provider == nil {
		return nil, errors.New("Settings.BaseURL and Settings.Provider are required")
	}
	base := *s.BaseURL
	if err := checkBaseURL(&base); err != nil {
		return nil, fmt.Errorf("Settings.BaseURL %w", err)
	}
	trimSlashes(&base)
	impl, err := s.Provider(auth.Env{Name: name, BaseURL: &base, Logger: c.opts.logger})
	if err == nil && impl == nil {
		err = errors.New("Settings.Provider returned no provider")
	}
	if err != nil {
		return nil, err
	}
	m := c.member(name, &base, impl, s)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.openLocked(); err != nil {
		return nil, err
	}
	if c.byName[name] != nil || slices.Contains(c.fileNames, name) {
		return nil, errors.New("there is one with this name already")
	}
	if id := c.identities[m.key]; id != nil && !slices.EqualFunc(id.secrets, m.session.Secrets, func(a, b auth.Secret) bool { return equalSetting(a, b) }) {
		return nil, yamldoc.Advise("it conflicts with connector "+id.name+" ("+sharing(impl)+")", "use equal secrets, or set a different Account")
	}
	return m.conn, c.joinLocked(m)
}

func checkBaseURL(u *url.URL) error {
	switch {
	case u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return errors.New("must be an absolute http or https URL")
	case u.User != nil:
		return errors.New("must not hold a user or a password")
	case hasQuery(u):
		return errHasQuery
	}
	return endpoint.Check(u)
}

// member completes the settings, as those of a file are completed.
func (c *Connectors) member(name string, base *url.URL, impl auth.Provider, s Settings) *member {
	t := s.Transport
	t.Connector, t.BaseURL = name, base
	t.UserAgent, t.Logger = cmp.Or(t.UserAgent, userAgent()), cmp.Or(t.Logger, c.opts.logger)
	if wrap, own := c.opts.wrap, t.Wrap; wrap != nil {
		t.Wrap = func(next http.RoundTripper) http.RoundTripper {
			if own != nil {
				next = own(next)
			}
			return wrap(name, next)
		}
	}
	m := &member{impl: impl, conn: &Connector{Name: name, BaseURL: base, Probe: s.Probe, endpoints: []*url.URL{base}}}
	if p, ok := impl.(interface{ Name() string }); ok {
		m.conn.Provider = p.Name()
	}
	m.session = auth.Options{Connector: name, Provider: m.conn.Provider, Account: s.Account, EarlyRefresh: s.EarlyRefresh, Secrets: s.Secrets}
	if p, ok := impl.(interface{ Secrets() []auth.Secret }); ok {
		m.session.Secrets = slices.Concat(p.Secrets(), s.Secrets)
	}
	var own auth.Traffic
	m.key, own = identityOf(impl, &m.session)
	t.Close = t.Close || own.Close
	if m.limiter = t.Limiter; m.limiter == nil {
		m.limits, m.limiter = own.Limits, transport.NewLimiter(own.Limits, 0)
	}
	m.transport, m.exchanges = t, t
	m.exchanges.AttemptTimeout = cmp.Or(t.AttemptTimeout, 30*time.Second)
	m.conn.proxy = m.transport.ProxyFor
	return m
}

// openLocked opens the store, if there is no file that names one.
func (c *Connectors) openLocked() error {
	if c.closing.Err() != nil {
		return auth.ErrClosed
	}
	if c.store != nil {
		return nil
	}
	store, err := c.opts.openWith(c.opts.openDefault, nil, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", auth.ErrStore, err)
	}
	c.store = store
	return nil
}
