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
	name, path string
	provider   auth.Provider
	settings   map[string]any // the provider's own scalars, by key
	transport  transport.Options
	key        string // the identity
	first      *plan  // the first connector of this identity, itself perhaps
	session    *auth.Session
}

// plans looks at all connectors, in the order of the file.
func (d *decoder) plans(f file, o *options) (plans []*plan) {
	if f.Connectors.value == nil {
		return nil
	}
	entries, _ := d.entries(f.Connectors)
	if len(entries) == 0 {
		d.refuseKey("connectors", "must not be empty")
	}
	first := map[string]*plan{}
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
		d.identify(p)
		if p.first = first[p.key]; p.first == nil {
			p.first, first[p.key] = p, p
		} else {
			d.compare(p.first, p)
		}
		plans = append(plans, p)
	}
	return plans
}

// plan looks at one connector. It goes on after a problem, to find them all, and gives nil only if no
// provider comes of it.
func (d *decoder) plan(at place, base defaults, o *options) *plan {
	d.places[at.path] = at
	entries, ok := d.entries(at)
	if !ok {
		return nil
	}
	p := &plan{name: at.name, path: at.path, settings: map[string]any{}}
	p.defaults = base
	d.fill(valueOf(&p.connectorConfig), at, entries)
	if u := p.BaseURL; u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		d.refuseKey(at.path+".base_url", "must not have a query or a fragment")
		u.RawQuery, u.ForceQuery, u.Fragment, u.RawFragment = "", false, "", "" // said once is enough
	}
	trimSlashes(p.BaseURL)
	d.options(p, o)
	def, known := o.providers[p.Provider]
	if !known {
		d.refuseKey(at.path+".provider", "unknown provider"+suggest(p.Provider, maps.Keys(o.providers)))
		d.plainHTTP(p)
		return nil // whose the other keys are is not known
	}
	settings := d.own(at, entries, reflect.TypeFor[connectorConfig](), def.Settings())
	for path, v := range d.leaves {
		p.settings[path[len(at.path)+len("."):]] = v
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

// identify asks a session that lives no longer than that for the identity and for the product's
// own limits, which are above the defaults and below what the connector says itself.
func (d *decoder) identify(p *plan) {
	s := auth.New(p.provider, p.sessionOptions())
	p.key = s.Key()
	own := s.Traffic()
	s.Close(context.Background()) // it did nothing to wait for
	if _, said := d.places[p.path+".transport.rate_limits"]; !said && own.Limits != nil {
		p.Transport.RateLimits = own.Limits
	}
	if _, said := d.places[p.path+".transport.connection"]; !said && own.Close {
		p.transport.Close = true
	}
}

func (p *plan) sessionOptions() *auth.Options {
	o := &auth.Options{Connector: p.name, Provider: p.Provider, Account: p.Account, EarlyRefresh: p.EarlyRefresh}
	for _, key := range slices.Sorted(maps.Keys(p.settings)) {
		if s, ok := p.settings[key].(auth.Secret); ok {
			o.Secrets = append(o.Secrets, s)
		}
	}
	return o
}

// compare refuses what p has of its own and cannot have, since it shares first's session.
func (d *decoder) compare(first, p *plan) {
	ours, theirs := p.shared(), first.shared()
	keys := maps.Clone(ours)
	maps.Copy(keys, theirs)
	for key := range keys {
		path := p.path + "." + key
		if d.settled(path) || d.settled(first.path+"."+key) {
			continue // what it is to be is not known
		}
		if !same(ours[key], theirs[key]) {
			d.refuse(d.nearest(path), path,
				"differs from connector "+first.name+", whose token this one shares; give both the same, or one another account")
		}
	}
}

// shared are the settings that all connectors of one identity have alike, by key.
func (p *plan) shared() map[string]any {
	t := &p.Transport
	shared := map[string]any{
		"transport.proxy_url":       t.Proxy,
		"transport.rate_limits":     slices.Concat(t.RateLimits), // nil, if there are none
		"transport.max_concurrency": t.MaxConcurrency,
		"early_refresh":             cmp.Or(p.EarlyRefresh, 5*time.Minute),
	}
	for _, f := range fields(reflect.TypeFor[tlsfile.Config]()) {
		if v := valueOf(&t.TLS).FieldByIndex(f.Index); !isDefault(v, f) {
			shared["transport.tls_config."+f.key] = v.Interface()
		}
	}
	var scopes []string // whose order does not matter (RFC 6749 section 3.3)
	for key, v := range p.settings {
		if strings.HasPrefix(key, "scopes[") {
			scopes = append(scopes, fmt.Sprint(v))
		} else {
			shared[key] = v
		}
	}
	if slices.Sort(scopes); scopes != nil {
		shared["scopes"] = scopes
	}
	return shared
}

func same(a, b any) bool {
	s, ok := a.(auth.Secret)
	t, both := b.(auth.Secret)
	if !ok || !both {
		return reflect.DeepEqual(a, b)
	}
	value, err := s.Value()
	other, otherErr := t.Value()
	return s.IsZero() == t.IsZero() && value == other && err == nil && otherErr == nil
}
