package config

import (
	"log/slog"
	"net/http"
	"reflect"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/filestore"
	"github.com/itsmauth/itsmauth/providers"
)

// An Option adds to what YAML can name, or to what the clients do.
type Option func(*options)

type options struct {
	stores       map[string]storeType
	defaultStore string
	openDefault  func() (auth.Store, error)
	providers    map[string]providers.Definition
	logger       *slog.Logger
	wrap         func(string, http.RoundTripper) http.RoundTripper
}

// newOptions has the built-in stores and providers beneath opts.
func newOptions(opts []Option) *options {
	o := &options{stores: map[string]storeType{}, providers: map[string]providers.Definition{}}
	WithDefaultStore("memory", func() (auth.Store, error) { return new(auth.Memory), nil })(o)
	WithStore("memory", func(struct{}) (auth.Store, error) { return new(auth.Memory), nil })(o)
	WithStore("file", filestore.Open)(o)
	for _, def := range providers.All() {
		WithProvider(def)(o)
	}
	for _, opt := range opts {
		opt(o)
	}
	return o
}

// WithStore hands in a type of token store, for YAML to name as token_store.type:
//
//	config.Load(path, config.WithStore("redis", redisstore.Open))
//
// C is a struct with yaml and required tags; the keys of token_store are decoded into it strictly,
// but for type, encryption and encryption_keys, which config sees to. open should refuse a key
// with an [auth.KeyError]. A store that is an [io.Closer] is closed by [Connectors.Close].
func WithStore[C any](typ string, open func(C) (auth.Store, error)) Option {
	return func(o *options) {
		o.stores[typ] = storeType{reflect.TypeFor[C](), func(c any) (auth.Store, error) { return open(c.(C)) }}
	}
}

// WithDefaultStore sets the token store for a file that names none; without it that is memory.
// open takes the place of [WithStore]'s for that file only.
func WithDefaultStore(typ string, open func() (auth.Store, error)) Option {
	return func(o *options) { o.defaultStore, o.openDefault = typ, open }
}

// WithProvider hands in a product of your own, for YAML to name as provider. It takes the place
// of a built-in one of the same name.
func WithProvider(d providers.Definition) Option {
	return func(o *options) { o.providers[d.Name()] = d }
}

// WithLogger logs attempts and exchanges. The default logs nothing.
func WithLogger(l *slog.Logger) Option { return func(o *options) { o.logger = l } }

// WithWrap puts wrap around the innermost RoundTripper of each connector, where it sees every
// attempt, exchanges included: for tracing and tests.
func WithWrap(wrap func(connector string, next http.RoundTripper) http.RoundTripper) Option {
	return func(o *options) { o.wrap = wrap }
}
