package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/filestore"
	"github.com/itsmauth/itsmauth/auth/redisstore"
	"github.com/itsmauth/itsmauth/config"
)

// path returns the path of the configuration.
func (a *app) path() string {
	return cmp.Or(a.file, os.Getenv("ITSMAUTH_CONFIG"), "itsmauth.yaml")
}

// load reads the configuration: only the connectors of these names, or all if there are none. Its error is
// a usage error, or ctx's.
func (a *app) load(ctx context.Context, only ...string) (*config.Connectors, error) {
	return a.loadWith(ctx, filestore.Open, only...)
}

// loadWithoutStore is load for commands that need no tokens. It checks an existing directory of the
// file store, but creates none.
func (a *app) loadWithoutStore(ctx context.Context) (*config.Connectors, error) {
	return a.loadWith(ctx, func(c filestore.Config) (auth.Store, error) {
		if _, err := os.Stat(c.Path); err != nil {
			return new(auth.Memory), nil
		}
		return filestore.Open(c)
	})
}

func (a *app) loadWith(ctx context.Context, openFiles func(filestore.Config) (auth.Store, error), only ...string) (*config.Connectors, error) {
	var defaultErr error
	openDefault := func() (auth.Store, error) {
		store, err := openFiles(filestore.Config{Path: defaultPath()})
		if k := (*auth.KeyError)(nil); errors.As(err, &k) { // its key is not in the configuration
			defaultErr = fmt.Errorf("%w; set $XDG_STATE_HOME, or token_store in %s", k.Err, a.path())
			return new(auth.Memory), nil
		}
		return store, err
	}
	conns, err := await(ctx, func() (*config.Connectors, error) {
		return config.Load(a.path(), config.WithDefaultStore("file", openDefault), config.WithStore("file", openFiles),
			config.WithStore("redis", redisstore.Open), config.WithOnly(only...), config.WithLogger(a.logger()), config.WithWrap(a.network.wrap))
	})
	if err != nil && ctx.Err() != nil {
		return nil, err
	}
	if errors.Is(err, fs.ErrNotExist) && !errors.As(err, new(config.Problems)) {
		err = fmt.Errorf("there is no %s; name a file with --config or $ITSMAUTH_CONFIG", a.path())
	}
	if err == nil && defaultErr != nil {
		conns.Close() // nothing was used, so nothing can fail
		err = defaultErr
	}
	if err != nil {
		return nil, usage(err)
	}
	return conns, nil
}

func (a *app) logger() *slog.Logger {
	if a.verbose {
		return slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(storeWarnings{Handler: slog.DiscardHandler, w: a.stderr})
}

// storeWarnings prints store failures that do not fail the command. Otherwise a broken store goes
// unnoticed, and every command requests a new token. It also prints what is wrong with a setting of the
// store. It skips other records without a connector: these repeat failures that are also logged with one.
type storeWarnings struct {
	slog.Handler
	w     io.Writer
	attrs []slog.Attr
}

func (storeWarnings) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }

func (h storeWarnings) WithAttrs(attrs []slog.Attr) slog.Handler {
	h.attrs = slices.Concat(h.attrs, attrs)
	return h
}

func (h storeWarnings) Handle(_ context.Context, r slog.Record) error {
	attrs := map[string]any{}
	r.AddAttrs(h.attrs...)
	r.Attrs(func(a slog.Attr) bool {
		attrs[a.Key] = a.Value.Any()
		return true
	})
	err, _ := attrs["error"].(error)
	isStore := errors.Is(err, auth.ErrStore) || errors.Is(err, auth.ErrConflict)
	from := attrs["connector"]
	if k := (*auth.KeyError)(nil); errors.As(err, &k) { // of a setting, which is no connector's
		from, err = "token_store", k.Err
	}
	if !isStore || from == nil || r.Message == "exchange failed" { // a failed exchange is the command's own error
		return nil
	}
	text := fmt.Sprintf("itsmauth: %s: %s: %s", from, r.Message, strings.TrimPrefix(err.Error(), auth.ErrStore.Error()+": "))
	_, err = fmt.Fprintln(h.w, visible(strings.Join(strings.Fields(text), " ")))
	return err
}

// defaultPath returns the directory for tokens if the configuration names none (XDG Base Directory
// Specification), or "" if there is no home directory.
func defaultPath() string {
	dir, err := os.Getenv("XDG_STATE_HOME"), error(nil)
	switch {
	case filepath.IsAbs(dir):
	case runtime.GOOS == "windows" || runtime.GOOS == "darwin":
		dir, err = os.UserConfigDir()
	default:
		dir, err = os.UserHomeDir()
		dir = filepath.Join(dir, ".local", "state")
	}
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "itsmauth")
}

// withConnectors loads the connectors of these names, or all if there are none, runs f and closes the
// connectors, which saves their tokens.
func (a *app) withConnectors(ctx context.Context, f func(*config.Connectors) error, only ...string) error {
	conns, err := a.load(ctx, only...)
	if err != nil {
		return err
	}
	err = f(conns)
	if closed := a.finish(ctx, conns.Close); closed != errNothingSent {
		err = errors.Join(err, closed)
	}
	return err
}

// withConnector is withConnectors for one connector.
func (a *app) withConnector(ctx context.Context, name string, f func(*config.Connectors, *config.Connector) error) error {
	return a.withConnectors(ctx, func(conns *config.Connectors) error {
		conn, err := conns.Get(name)
		if err != nil {
			return usage(err)
		}
		return f(conns, conn)
	}, name)
}

var errNothingSent = errors.New("interrupted")

// finish runs f, which may end a token request and save its token. After an interrupt it waits for f
// only if something was sent; otherwise it returns errNothingSent.
func (a *app) finish(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return err
	case <-time.After(2 * sameSignal): // from now on, another signal kills the process
	}
	if a.network.sent.CompareAndSwap(0, math.MinInt64) { // from now on, nothing is sent
		return errNothingSent
	}
	fmt.Fprintln(a.stderr, "itsmauth: finishing a token request; press Ctrl-C again to quit now and lose its token")
	return <-done
}

// network counts the requests of all connectors, token requests included.
type network struct {
	sent       atomic.Int64                 // negative: send nothing
	transports map[string]http.RoundTripper // each connector's first
}

// wrap is for [config.WithWrap].
func (n *network) wrap(connector string, next http.RoundTripper) http.RoundTripper {
	if n.transports == nil {
		n.transports = map[string]http.RoundTripper{}
	}
	t := roundTripper(func(req *http.Request) (*http.Response, error) {
		if n.sent.Add(1) < 0 {
			return nil, errNothingSent
		}
		return next.RoundTrip(req)
	})
	if n.transports[connector] == nil {
		n.transports[connector] = t
	}
	return t
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// await returns f's result, or earlier ctx's error: a read from a terminal or a pipe cannot be
// interrupted.
func await[T any](ctx context.Context, f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := f()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return *new(T), context.Cause(ctx)
	}
}

// all returns the connectors in alphabetical order.
func all(conns *config.Connectors) []*config.Connector {
	var list []*config.Connector
	for _, name := range conns.Names() {
		conn, _ := conns.Get(name)
		list = append(list, conn)
	}
	return list
}

// completeName completes the argument NAME in a shell. It works although the file has faults.
func (a *app) completeName(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	if len(args) == 0 {
		// The shell prints the names, and what begins with cobra's marker as a message. The file may be somebody else's.
		names = slices.DeleteFunc(connectorNames(a.text()), func(name string) bool {
			return visible(name) != name || strings.ContainsAny(name, "\n") || strings.HasPrefix(name, "_activeHelp_")
		})
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// connectorNames returns the names in a configuration, or none if it cannot be read.
func connectorNames(data []byte) (names []string) {
	defer func() { _ = recover() }() // yaml.v3 panics on some input
	var doc yaml.Node                // into a map, yaml.v3 compares each key with all others
	if yaml.Unmarshal(data, &doc) != nil || len(doc.Content) == 0 {
		return nil
	}
	for entry := range slices.Chunk(doc.Content[0].Content, 2) {
		if entry[0].Value == "connectors" && entry[1].Kind == yaml.MappingNode {
			for connector := range slices.Chunk(entry[1].Content, 2) {
				names = append(names, connector[0].Value)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
