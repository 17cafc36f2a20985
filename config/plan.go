package config

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/tlsfile"
	"github.com/itsmauth/itsmauth/transport"
)

// A plan is a connector that was looked at and not yet made.
type plan struct {
	connectorConfig
	name      string
	path      keyPath
	provider  auth.Provider
	settings  map[string]setting // the provider's own, by their path below the connector
	transport transport.Options
	key       string // the identity's
	leader    *plan  // the first connector of this identity, which may be this one
	session   *auth.Session
}

// plans looks at all connectors, in the order of the file.
func (d *decoder) plans(f file, o *options) (plans []*plan) {
	if f.Connectors.value == nil {
		return nil
	}
	entries, _ := d.entries(f.Connectors)
	if len(entries) == 0 {
		d.refuseKey(keyPath{"connectors"}, "must not be empty")
	}
	leaders := map[string]*plan{}
	for _, at := range entries {
		if d.full() {
			break
		}
		if strings.TrimSpace(at.name) != oneLine(at.name) || at.name == "" {
			d.refuse(at.key, at.path, "a connector needs a name on one line")
			continue
		}
		p := d.plan(at, f.Defaults, o)
		if p == nil {
			continue // whose identity is not known
		}
		d.setIdentity(p)
		if p.leader = leaders[p.key]; p.leader == nil {
			p.leader, leaders[p.key] = p, p
		} else {
			d.checkSharedSettings(p)
		}
		plans = append(plans, p)
	}
	return plans
}

// plan looks at one connector. It goes on after a problem, to find them all, and gives nil only if no
// provider comes of it.
func (d *decoder) plan(at node, base defaults, o *options) *plan {
	d.nodes[at.path.String()] = at
	d.layers[at.path.String()] = keyPath{"defaults"}
	entries, ok := d.entries(at)
	if !ok {
		return nil
	}
	p := &plan{name: at.name, path: at.path, settings: map[string]setting{}}
	p.defaults = base
	d.fill(valueOf(&p.connectorConfig), at, entries)
	if u := p.BaseURL; u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		d.refuseKey(at.path.below("base_url"), "must not have a query or a fragment")
		u.RawQuery, u.ForceQuery, u.Fragment, u.RawFragment = "", false, "", "" // said once is enough
	}
	trimSlashes(p.BaseURL)
	d.options(p, o)
	def, known := o.providers[p.Provider]
	if !known {
		d.refuseKey(at.path.below("provider"), "unknown provider"+suggest(p.Provider, maps.Keys(o.providers)))
		d.plainHTTP(p)
		return nil // whose the other keys are is not known
	}
	settings := d.decodeRest(at, entries, reflect.TypeFor[connectorConfig](), def.Settings())
	for _, s := range d.scalars {
		s.path = s.path[len(at.path):]
		p.settings[s.path.String()] = s
	}
	d.plainHTTP(p)
	var err error
	p.provider, err = def.New(func(into any) error {
		reflect.ValueOf(into).Elem().Set(settings)
		return nil
	}, auth.Env{Name: p.name, BaseURL: p.BaseURL, Logger: o.logger})
	if err == nil && p.provider == nil {
		err = errors.New("the constructor of " + p.Provider + " gave no provider")
	}
	if err != nil {
		d.refuseKeys(at.path, err)
		return nil
	}
	return p
}

// trimSlashes leaves out those at the end of u's path. One that is written %2F is none: it is a part of
// a name.
func trimSlashes(u *url.URL) {
	escaped := u.EscapedPath()
	slashes := len(escaped) - len(strings.TrimRight(escaped, "/"))
	u.Path = u.Path[:len(u.Path)-slashes]
	u.RawPath = u.RawPath[:max(0, len(u.RawPath)-slashes)]
}

// setIdentity asks a session that lives no longer than that for the identity and for the product's
// own limits, which are above the defaults and below what the connector says itself.
func (d *decoder) setIdentity(p *plan) {
	s := auth.New(p.provider, p.sessionOptions())
	p.key = s.Key()
	own := s.Traffic()
	s.Close(context.Background()) // it did nothing to wait for
	if own.Limits != nil && !d.has(p.path.below("transport", "rate_limits")) {
		p.Transport.RateLimits = own.Limits
	}
	if own.Close && !d.has(p.path.below("transport", "connection")) {
		p.transport.Close = true
	}
}

func (p *plan) sessionOptions() *auth.Options {
	o := &auth.Options{Connector: p.name, Provider: p.Provider, Account: p.Account, EarlyRefresh: p.EarlyRefresh}
	for _, key := range slices.Sorted(maps.Keys(p.settings)) {
		if s, ok := p.settings[key].value.(auth.Secret); ok {
			o.Secrets = append(o.Secrets, s)
		}
	}
	return o
}

// checkSharedSettings refuses settings of p that differ from its leader's, whose session p shares.
func (d *decoder) checkSharedSettings(p *plan) {
	ours, theirs := p.sharedSettings(), p.leader.sharedSettings()
	all := maps.Clone(ours)
	maps.Copy(all, theirs)
	for key, s := range all {
		at := p.path.below(s.path...)
		if d.reported(at) || d.reported(p.leader.path.below(s.path...)) {
			continue // the intended value is unknown
		}
		if !equalSetting(ours[key].value, theirs[key].value) {
			d.refuse(d.nodeAt(at), at, "differs from connector "+p.leader.name+", whose token this one shares; give both the same, or one another account")
		}
	}
}

// sharedSettings are the settings that must be equal in all connectors of one identity.
func (p *plan) sharedSettings() map[string]setting {
	shared := map[string]setting{}
	add := func(value any, at ...string) { shared[keyPath(at).String()] = setting{at, value} }
	t := &p.Transport
	add(t.Proxy, "transport", "proxy_url")
	add(slices.Concat(t.RateLimits), "transport", "rate_limits") // nil, if there are none
	add(t.MaxConcurrency, "transport", "max_concurrency")
	add(cmp.Or(p.EarlyRefresh, 5*time.Minute), "early_refresh")
	for _, f := range fields(reflect.TypeFor[tlsfile.Config]()) {
		if v := valueOf(&t.TLS).FieldByIndex(f.Index); !isDefault(v, f) {
			add(v.Interface(), "transport", "tls_config", f.key)
		}
	}
	var scopes []string // their order does not matter (RFC 6749 section 3.3)
	for _, s := range p.settings {
		if s.path[0] == "scopes" && len(s.path) > 1 {
			scopes = append(scopes, fmt.Sprint(s.value))
		} else {
			add(s.value, s.path...)
		}
	}
	if slices.Sort(scopes); scopes != nil {
		add(scopes, "scopes")
	}
	return shared
}

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
