package config

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/config/internal/yamldoc"
	"github.com/itsmauth/itsmauth/internal/endpoint"
	"github.com/itsmauth/itsmauth/transport"
)

// A plan is a connector that was checked and is not yet built.
type plan struct {
	connectorConfig
	name      string
	path      yamldoc.Path
	provider  auth.Provider
	settings  map[string]yamldoc.Setting // the provider's own, by their path below the connector
	transport transport.Options
	key       string // the identity's
	leader    *plan  // the first connector of this identity, which may be this one
	session   *auth.Session

	// The most of all connectors of the identity, in the leader: for what they share.
	attemptTimeout, maxRetryAfter time.Duration
}

// plans checks the connectors that are wanted, in the order of the file.
func (l *loader) plans(f file) (plans []*plan) {
	entries, _ := l.doc.Entries(f.Connectors)
	if len(entries) == 0 {
		l.doc.Refuse(f.Connectors.Path, errors.New("must not be empty"))
	}
	leaders := map[string]*plan{}
	for _, at := range entries {
		l.names = append(l.names, at.Name)
		if l.doc.Full() || l.leftOut(at.Name) {
			continue
		}
		if err := checkName(at.Name); err != nil {
			l.doc.RefuseName(at, err)
			continue
		}
		p := l.plan(at, f.Defaults)
		if p == nil {
			continue // its identity is not known
		}
		l.setIdentity(p)
		if p.leader = leaders[p.key]; p.leader == nil {
			p.leader, leaders[p.key] = p, p
		} else {
			l.checkSharedSettings(p)
		}
		p.leader.attemptTimeout = max(p.leader.attemptTimeout, cmp.Or(p.Transport.AttemptTimeout, 30*time.Second))
		p.leader.maxRetryAfter = max(p.leader.maxRetryAfter, cmp.Or(p.Transport.Retry.MaxRetryAfter, 30*time.Second))
		plans = append(plans, p)
	}
	return plans
}

func checkName(name string) error {
	switch {
	case name == "" || strings.TrimSpace(name) != name || strings.ContainsFunc(name, unicode.IsControl):
		return errors.New("a connector needs a name on one line")
	case utf8.RuneCountInString(name) > 200: // it is in the path of everything below
		return errors.New("a connector's name must have at most 200 characters")
	}
	return nil
}

// plan checks one connector. It continues after a fault, to find them all, and returns nil only if
// there is no provider.
func (l *loader) plan(at yamldoc.Node, base defaults) *plan {
	l.doc.Layer(at, yamldoc.Path{"defaults"})
	entries, ok := l.doc.Entries(at)
	if !ok {
		return nil
	}
	p := &plan{name: at.Name, path: at.Path, settings: map[string]yamldoc.Setting{}}
	p.defaults = base
	entries = l.withPreset(at, entries)
	l.doc.Fill(&p.connectorConfig, at, entries)
	if u := p.BaseURL; hasQuery(u) {
		l.doc.Refuse(at.Path.Below("base_url"), errHasQuery)
		u.RawQuery, u.ForceQuery, u.Fragment, u.RawFragment = "", false, "", "" // or the constructor reports it too
	}
	trimSlashes(p.BaseURL)
	l.transport(p)
	def, known := l.opts.providers[p.Provider]
	if !known {
		l.doc.Refuse(at.Path.Below("provider"), yamldoc.Advise("unknown provider", l.opts.suggest(p.Provider)))
		l.plainHTTP(p)
		return nil // it is not known which other keys are right
	}
	settings, scalars := l.doc.Rest(at, entries, l.opts.connector, p.Provider)
	for _, s := range scalars {
		s.Path = s.Path[len(at.Path):]
		p.settings[s.Path.String()] = s
	}
	l.plainHTTP(p)
	var err error
	p.provider, err = def.New(func(into any) error {
		reflect.ValueOf(into).Elem().Set(settings)
		return nil
	}, auth.Env{Name: p.name, BaseURL: p.BaseURL, Logger: l.opts.logger})
	if err == nil && p.provider == nil {
		err = errors.New("the constructor of " + p.Provider + " returned no provider")
	}
	if err != nil {
		l.doc.RefuseKeys(at.Path, err)
		return nil
	}
	return p
}

var errHasQuery = errors.New("must not have a query or a fragment")

func hasQuery(u *url.URL) bool { return u.RawQuery != "" || u.ForceQuery || u.Fragment != "" }

// trimSlashes removes the slashes at the end of u's path. %2F stays: it is a part of a name.
func trimSlashes(u *url.URL) {
	escaped := u.EscapedPath()
	slashes := len(escaped) - len(strings.TrimRight(escaped, "/"))
	u.Path = u.Path[:len(u.Path)-slashes]
	u.RawPath = u.RawPath[:max(0, len(u.RawPath)-slashes)]
}

// setIdentity sets the identity and the product's own limits. These override the defaults but not the
// connector's settings.
func (l *loader) setIdentity(p *plan) {
	var own auth.Traffic
	p.key, own = identityOf(p.provider, p.sessionOptions())
	if own.Limits != nil && !l.doc.Has(p.path.Below("transport", "rate_limits")) {
		p.Transport.RateLimits = own.Limits
	}
	if own.Close && !l.doc.Has(p.path.Below("transport", "connection")) {
		p.transport.Close = true
	}
}

// build makes the connector of p.
func (l *loader) build(c *Connectors, p *plan) {
	conn := &Connector{Name: p.name, Provider: p.Provider, BaseURL: p.BaseURL, Probe: p.Probe, endpoints: []*url.URL{p.BaseURL}, proxy: p.transport.ProxyFor}
	for _, key := range slices.Sorted(maps.Keys(p.settings)) {
		u, ok := p.settings[key].Value.(*url.URL)
		if ok && !slices.ContainsFunc(conn.endpoints, func(o *url.URL) bool { return endpoint.Origin(o) == endpoint.Origin(u) }) {
			conn.endpoints = append(conn.endpoints, u)
		}
	}
	exchanges := p.transport
	exchanges.AttemptTimeout, exchanges.Retry.MaxRetryAfter = p.leader.attemptTimeout, p.leader.maxRetryAfter
	limits := p.Transport.RateLimits
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.joinLocked(&member{conn, p.key, p.provider, *p.sessionOptions(), limits, transport.NewLimiter(limits, p.Transport.MaxConcurrency), p.transport, exchanges}); err != nil {
		l.doc.RefuseKeys(p.path, err)
		return
	}
	p.session = conn.session
}

func (p *plan) sessionOptions() *auth.Options {
	o := &auth.Options{Connector: p.name, Provider: p.Provider, Account: p.Account, EarlyRefresh: p.EarlyRefresh}
	for _, key := range slices.Sorted(maps.Keys(p.settings)) {
		if s, ok := p.settings[key].Value.(auth.Secret); ok {
			o.Secrets = append(o.Secrets, s)
		}
	}
	return o
}

// checkSharedSettings refuses settings of p that differ from its leader's, whose session p shares.
func (l *loader) checkSharedSettings(p *plan) {
	ours, theirs := p.sharedSettings(), p.leader.sharedSettings()
	all := maps.Clone(ours)
	maps.Copy(all, theirs)
	for key, s := range all {
		at := p.path.Below(s.Path...)
		if l.doc.Reported(at) || l.doc.Reported(p.leader.path.Below(s.Path...)) {
			continue // the intended value is unknown
		}
		if !equalSetting(ours[key].Value, theirs[key].Value) {
			l.doc.RefuseHere(at, yamldoc.Advise("conflicts with connector "+p.leader.name+" ("+sharing(p.provider)+")", "use equal values, or set a different account"))
		}
	}
}

// sharing says what connectors with equal identities have in common.
func sharing(p auth.Provider) string {
	if s, ok := p.(auth.Static); ok && s.StaticCredentials() != nil {
		return "same origin and headers, so the same account of the product"
	}
	return "same credentials, shared token"
}

// sharedSettings are the settings that must be equal in all connectors of one identity.
func (p *plan) sharedSettings() map[string]yamldoc.Setting {
	shared := map[string]yamldoc.Setting{}
	add := func(value any, at ...string) {
		shared[yamldoc.Path(at).String()] = yamldoc.Setting{Path: at, Value: value}
	}
	t := &p.Transport
	add(t.Proxy, "transport", "proxy_url")
	add(t.NoProxy, "transport", "no_proxy")
	add(slices.Concat(t.RateLimits), "transport", "rate_limits") // nil, if there are none
	add(t.MaxConcurrency, "transport", "max_concurrency")
	add(cmp.Or(p.EarlyRefresh, 5*time.Minute), "early_refresh")
	for key, value := range yamldoc.NonDefaults(t.TLS) {
		add(value, "transport", "tls_config", key)
	}
	var scopes []string // their order does not matter (RFC 6749 section 3.3)
	for _, s := range p.settings {
		if s.Path[0] == "scopes" && len(s.Path) > 1 {
			scopes = append(scopes, fmt.Sprint(s.Value))
		} else {
			add(s.Value, s.Path...)
		}
	}
	if slices.Sort(scopes); scopes != nil {
		add(scopes, "scopes")
	}
	return shared
}

// equalSetting compares secrets by what they are now. Secrets that cannot be read differ.
func equalSetting(a, b any) bool {
	s, ok := a.(auth.Secret)
	t, both := b.(auth.Secret)
	if !ok || !both {
		return reflect.DeepEqual(a, b)
	}
	value, err := s.Value()
	other, otherErr := t.Value()
	return s.IsZero() == t.IsZero() && value == other && err == nil && otherErr == nil
}
