package config

import (
	"context"
	"errors"
	"maps"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/tlsfile"
	"github.com/itsmauth/itsmauth/transport"
)

// A plan is a connector that was looked at and not yet made.
type plan struct {
	connectorConfig
	name, path string
	provider   auth.Provider
	settings   map[string]any // the provider's own scalars, by path below the connector
	secrets    []auth.Secret
	transport  transport.Options
	key        string // the identity
	first      *plan  // the first connector of this identity, itself perhaps
	session    *auth.Session
}

// plans looks at all connectors, in the order of the file.
func (d *decoder) plans(f file, o *options) []*plan {
	if f.Connectors.value == nil {
		return nil
	}
	entries := d.entries(f.Connectors)
	if len(entries) == 0 && !d.refused["connectors"] {
		d.refuse(f.Connectors.value, "connectors", "must not be empty")
	}
	var plans []*plan
	first := map[string]*plan{}
	for _, e := range entries {
		if d.full() {
			break
		}
		at := f.Connectors.child(e.name, e.key, e.value)
		if strings.TrimSpace(e.name) != oneLine(e.name) || e.name == "" {
			d.refuse(e.key, at.path, "a connector needs a name on one line")
			continue
		}
		p := d.plan(e.name, at, f.Defaults, o)
		if p == nil {
			continue
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

// plan looks at one connector. It goes on after a problem, to find them all, but then gives nil.
func (d *decoder) plan(name string, at place, base defaults, o *options) *plan {
	p := &plan{path: at.path, name: name}
	p.defaults = base
	d.places[at.path] = at
	clear(d.leaves)
	clear(d.urls)
	entries, common := d.entries(at), valueOf(&p.connectorConfig)
	if !isNull(at.value) && target(at.value).Kind != yaml.MappingNode {
		return nil
	}
	def, known := o.providers[d.peek(entries, "provider")]
	if !known {
		// Whose the other keys are is not known.
		names := fields(common.Type())
		entries = slices.DeleteFunc(entries, func(e entry) bool {
			return !slices.ContainsFunc(names, func(f field) bool { return f.name == e.name })
		})
		d.structs(at, entries, common)
		if path := at.path + ".provider"; p.Provider != "" && !d.refused[path] {
			d.refuse(d.nearest(path), path, "unknown provider"+suggest(p.Provider, slices.Collect(maps.Keys(o.providers))))
		}
	}
	settings := reflect.Value{}
	if known {
		settings = reflect.New(def.Settings()).Elem()
		d.structs(at, entries, common, settings)
	}
	if u := p.BaseURL; u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		d.refuse(d.nearest(at.path+".base_url"), at.path+".base_url", "must not have a query or a fragment")
	}
	p.BaseURL.Path, p.BaseURL.RawPath = strings.TrimRight(p.BaseURL.Path, "/"), strings.TrimRight(p.BaseURL.RawPath, "/")
	d.plainHTTP(p)
	d.options(p, o)
	if !known {
		return nil
	}
	provider, err := def.New(func(into any) error {
		reflect.ValueOf(into).Elem().Set(settings)
		return nil
	}, auth.Env{Name: p.name, BaseURL: p.BaseURL, Logger: o.logger})
	if err != nil {
		d.refuseKeys(at.path, err)
	}
	if d.refused[at.path] {
		return nil
	}
	p.provider = provider
	d.own(p, settings.Type())
	return p
}

// own collects the provider's scalars, and the secrets among them.
func (d *decoder) own(p *plan, settings reflect.Type) {
	p.settings = map[string]any{}
	names := fields(settings)
	for path, v := range d.leaves {
		key, ok := strings.CutPrefix(path, p.path+".")
		name, _, _ := strings.Cut(key, ".")
		name, _, _ = strings.Cut(name, "[")
		if ok && slices.ContainsFunc(names, func(f field) bool { return f.name == name }) {
			p.settings[key] = v
		}
	}
	for _, key := range slices.Sorted(maps.Keys(p.settings)) {
		if s, ok := p.settings[key].(auth.Secret); ok {
			p.secrets = append(p.secrets, s)
		}
	}
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
	return &auth.Options{Connector: p.name, Provider: p.Provider, Account: p.Account, Secrets: p.secrets, EarlyRefresh: p.EarlyRefresh}
}

// compare refuses what p has of its own and cannot have, since it shares first's session.
func (d *decoder) compare(first, p *plan) {
	differs := func(key string) {
		d.refuse(d.nearest(p.path+"."+key), p.path+"."+key,
			"differs from connector "+first.name+", whose token this one shares; give both the same, or one another account")
	}
	keys := maps.Clone(p.settings)
	maps.Copy(keys, first.settings)
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if !same(p.settings[key], first.settings[key]) {
			differs(key)
		}
	}
	a, b := &first.Transport, &p.Transport
	ta, tb := valueOf(&a.TLS), valueOf(&b.TLS)
	for _, f := range fields(reflect.TypeFor[tlsfile.Config]()) {
		if ta.FieldByIndex(f.index).Interface() != tb.FieldByIndex(f.index).Interface() {
			differs("transport.tls_config." + f.name)
		}
	}
	for key, equal := range map[string]bool{
		"transport.proxy_url":       same(a.Proxy, b.Proxy),
		"transport.rate_limits":     slices.Equal(a.RateLimits, b.RateLimits),
		"transport.max_concurrency": a.MaxConcurrency == b.MaxConcurrency,
		"early_refresh":             first.EarlyRefresh == p.EarlyRefresh,
	} {
		if !equal {
			differs(key)
		}
	}
}

func same(a, b any) bool {
	switch a := a.(type) {
	case auth.Secret:
		b, ok := b.(auth.Secret)
		if !ok || a.IsZero() != b.IsZero() {
			return false
		}
		va, errA := a.Value()
		vb, errB := b.Value()
		return va == vb && errA == nil && errB == nil
	case *url.URL:
		b, ok := b.(*url.URL)
		return ok && a.String() == b.String()
	}
	return a == b
}

var index = regexp.MustCompile(`\.(\d+)\b`)

// refuseKeys puts each [auth.KeyError] in err at its key, unless that was refused already, and any
// other error at path itself.
func (d *decoder) refuseKeys(path string, err error) {
	var k *auth.KeyError
	joined, ok := err.(interface{ Unwrap() []error })
	if ok && errors.As(err, &k) { // several at fault; without a key, it is one error with two causes
		for _, err := range joined.Unwrap() {
			d.refuseKeys(path, err)
		}
		return
	}
	if errors.As(err, &k) {
		d.refuseKeys(path+"."+index.ReplaceAllString(k.Key, "[$1]"), k.Err)
		return
	}
	at, path := d.where(path)
	if !d.refused[path] {
		d.wrap(at, path, err.Error(), err)
	}
}

// nearest finds the value at path; failing that, the nearest key above.
func (d *decoder) nearest(path string) *yaml.Node {
	if p, ok := d.places[path]; ok {
		return p.value
	}
	for path != "" {
		path = above(path)
		if p, ok := d.places[path]; ok {
			return p.key
		}
	}
	return nil
}

// where is nearest, but the default's where a connector has it from there.
func (d *decoder) where(path string) (at *yaml.Node, as string) {
	_, own := d.places[path]
	if i := strings.Index(path, ".transport."); !own && i > 0 {
		as := "defaults" + path[i:]
		if p, ok := d.places[as]; ok {
			return p.value, as
		}
	}
	return d.nearest(path), path
}

// given reports whether the connector or the defaults say key.
func (d *decoder) given(p *plan, key string) bool {
	_, own := d.places[p.path+"."+key]
	_, base := d.places["defaults."+key]
	return own || base
}

// peek reads the string at a key that says how to read the others. What is wrong with it is found
// when they are read.
func (d *decoder) peek(entries []entry, key string) string {
	for _, e := range entries {
		if n := target(e.value); e.name == key && n.Kind == yaml.ScalarNode && !isNull(n) {
			text, _, _ := expand(n.Value, d.dir)
			return text
		}
	}
	return ""
}

func valueOf[T any](p *T) reflect.Value { return reflect.ValueOf(p).Elem() }
