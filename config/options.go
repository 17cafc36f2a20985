package config

import (
	"context"
	"log/slog"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/filestore"
	"github.com/itsmauth/itsmauth/config/internal/yamldoc"
	"github.com/itsmauth/itsmauth/providers"
)

// An Option adds a store or provider for files to use, or changes what the clients do.
type Option func(*options)

type options struct {
	connector     yamldoc.Union // by provider
	providers     map[string]providers.Definition
	tokenStore    yamldoc.Union // by type
	openStore     map[string]func(settings any) (auth.Store, error)
	defaultStore  string
	openDefault   func() (auth.Store, error)
	only          []string // all, if there are none
	secretSources map[string]yamldoc.SecretSource
	logger        *slog.Logger
	wrap          func(string, http.RoundTripper) http.RoundTripper
}

// newOptions applies opts after the built-in stores and providers.
func newOptions(opts []Option) *options {
	o := &options{
		connector:  yamldoc.NewUnion[connectorConfig]("provider"),
		providers:  map[string]providers.Definition{},
		tokenStore: yamldoc.NewUnion[storeConfig]("type"),
		openStore:  map[string]func(any) (auth.Store, error){},

		secretSources: map[string]yamldoc.SecretSource{},
	}
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

// WithStore adds a type of token store, which a file selects with token_store.type:
//
//	config.Load(path, config.WithStore("redis", redisstore.Open))
//
// C is a struct with yaml and required tags. It receives the keys of token_store other than type,
// encryption, encryption_keys and timeout, which this package handles. An unknown key is refused. open
// should refuse a key with an [auth.KeyError]. [Connectors.Close] closes a store that is an [io.Closer].
func WithStore[C any](typ string, open func(C) (auth.Store, error)) Option {
	return func(o *options) {
		o.tokenStore.Kinds[typ] = yamldoc.NewKind(reflect.TypeFor[C]())
		o.openStore[typ] = func(c any) (auth.Store, error) { return open(c.(C)) }
	}
}

// WithDefaultStore sets the token store for a file without token_store. The default is memory.
// A file that has token_store.type: typ uses the store of [WithStore].
func WithDefaultStore(typ string, open func() (auth.Store, error)) Option {
	return func(o *options) { o.defaultStore, o.openDefault = typ, open }
}

// WithProvider adds a provider, which a connector selects with provider. It replaces a built-in
// provider of the same name.
func WithProvider(d providers.Definition) Option {
	return func(o *options) { o.providers[d.Name()], o.connector.Kinds[d.Name()] = d, kind(d) }
}

// WithOnly makes only the connectors of these names, or all if there are none. What the others need, such
// as an environment variable or a file, is not missed, and their settings are not checked.
// [Connectors.Get] refuses them.
func WithOnly(names ...string) Option { return func(o *options) { o.only = names } }

// WithSecretSource reads ${scheme:ref} in secret settings, for example from a vault:
//
//	config.Load(path, config.WithSecretSource("vault", func(ctx context.Context, ref string) (string, error) {
//		return vault.Read(ctx, ref) // of ${vault:kv/itsm#secret}, ref is kv/itsm#secret
//	}))
//
// All references are read when the file is loaded, at the same time; together they have 10 s. Later a value is read
// again when it is used after a minute, and once a second while the product refuses the credentials. If reading fails
// or hangs, the last value is used. read is called once at a time for each reference, with a ctx of 10 s. Its errors
// are shown, so they must not contain the secret. The schemes env and file are built in.
func WithSecretSource(scheme string, read func(ctx context.Context, ref string) (string, error)) Option {
	return func(o *options) {
		if scheme != "env" && scheme != "file" {
			o.secretSources[scheme] = read
		}
	}
}

// WithLogger logs attempts and exchanges. The default logs nothing.
func WithLogger(l *slog.Logger) Option { return func(o *options) { o.logger = l } }

// WithWrap puts wrap around the innermost RoundTripper of each connector, for tracing and tests. There
// it sees every attempt and every exchange. For its errors see [transport.Options.Wrap].
func WithWrap(wrap func(connector string, next http.RoundTripper) http.RoundTripper) Option {
	return func(o *options) { o.wrap = wrap }
}

// suggest says which provider was probably meant, or else which there are.
func (o *options) suggest(name string) string {
	switch strings.NewReplacer("_", "", "-", "").Replace(strings.ToLower(name)) {
	case "basic", "basicauth", "apikey", "key", "bearer", "token", "header", "headers":
		return "for keys and Basic, which need no token endpoint, use provider: static"
	}
	advice := yamldoc.Suggest(name, maps.Keys(o.providers))
	if !strings.HasPrefix(advice, "known") {
		return advice
	}
	var known []string
	for name, d := range o.providers {
		if d.Preset() == nil {
			known = append(known, name)
		}
	}
	return yamldoc.Suggest("", slices.Values(known)) + ", and products that itsmauth providers lists"
}
