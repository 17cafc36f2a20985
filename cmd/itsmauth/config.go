package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/filestore"
	"github.com/itsmauth/itsmauth/auth/redisstore"
	"github.com/itsmauth/itsmauth/config"
)

// path is that of the configuration.
func (a *app) path() string {
	return cmp.Or(a.file, os.Getenv("ITSMAUTH_CONFIG"), "itsmauth.yaml")
}

// load makes the connectors; opts come after the CLI's own. Its error is a usage error, or the end of ctx.
func (a *app) load(ctx context.Context, opts ...config.Option) (*config.Connectors, error) {
	return a.loadOver(ctx, filestore.Open, opts...)
}

// look is load for what needs no tokens: it makes no directory, but looks at one that there is.
func (a *app) look(ctx context.Context) (*config.Connectors, error) {
	return a.loadOver(ctx, func(c filestore.Config) (auth.Store, error) {
		if _, err := os.Stat(c.Path); err != nil {
			return new(auth.Memory), nil
		}
		return filestore.Open(c)
	})
}

// loadOver is load with what opens a store of files.
func (a *app) loadOver(ctx context.Context, files func(filestore.Config) (auth.Store, error), opts ...config.Option) (*config.Connectors, error) {
	var unopened error
	byDefault := func() (auth.Store, error) {
		store, err := files(filestore.Config{Path: defaultPath()})
		if k := (*auth.KeyError)(nil); errors.As(err, &k) { // whose key is nowhere in the file
			unopened = fmt.Errorf("%w; set $XDG_STATE_HOME, or token_store in %s", k.Err, a.path())
			return new(auth.Memory), nil
		}
		return store, err
	}
	own := []config.Option{
		config.WithDefaultStore("file", byDefault), config.WithStore("file", files), config.WithStore("redis", redisstore.Open),
		config.WithLogger(a.logger()),
	}
	conns, err := await(ctx, func() (*config.Connectors, error) { return config.Load(a.path(), append(own, opts...)...) })
	if err != nil && ctx.Err() != nil {
		return nil, err
	}
	if errors.Is(err, fs.ErrNotExist) && !errors.As(err, new(config.Problems)) {
		err = fmt.Errorf("there is no %s; name a file with --config or $ITSMAUTH_CONFIG", a.path())
	}
	if err == nil && unopened != nil {
		conns.Close() // nothing was used, so there is nothing to lose
		err = unopened
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
	return slog.New(storeTrouble{slog.DiscardHandler, a.stderr})
}

// storeTrouble prints that the token store failed where the command goes on without it, since each such
// command requests a token of its own. What the record says of the store alone, without a connector, is
// left out: the same trouble comes with the connector and what it means there.
type storeTrouble struct {
	slog.Handler
	w io.Writer
}

func (storeTrouble) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }

func (h storeTrouble) Handle(_ context.Context, r slog.Record) error {
	said := map[string]any{}
	r.Attrs(func(a slog.Attr) bool {
		said[a.Key] = a.Value.Any()
		return true
	})
	err, _ := said["error"].(error)
	if said["connector"] == nil || r.Message == "exchange failed" || !errors.Is(err, auth.ErrStore) && !errors.Is(err, auth.ErrConflict) {
		return nil // the command's own error says it, or it is no trouble of the store's
	}
	text := fmt.Sprintf("itsmauth: %s: %s: %s", said["connector"], r.Message, strings.TrimPrefix(err.Error(), auth.ErrStore.Error()+": "))
	_, err = fmt.Fprintln(h.w, strings.Join(strings.Fields(text), " "))
	return err
}

// defaultPath is where tokens are kept if the file does not say, or "" if this machine does not either.
func defaultPath() string {
	dir, err := stateDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "itsmauth")
}

// stateDir is where programs keep what is theirs alone (XDG Base Directory Specification).
func stateDir() (string, error) {
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return dir, nil
	}
	if runtime.GOOS == "windows" || runtime.GOOS == "darwin" {
		return os.UserConfigDir()
	}
	home, err := os.UserHomeDir()
	return filepath.Join(home, ".local", "state"), err
}

// connectors runs f with all connectors. It does not return before what they are saving is saved.
func (a *app) connectors(ctx context.Context, f func(*config.Connectors) error) error {
	conns, err := a.load(ctx)
	if err != nil {
		return err
	}
	return errors.Join(f(conns), a.finishing(ctx, conns.Close))
}

// finishing runs f, which finishes an exchange. If that outlasts ctx, it says what the wait is for.
func (a *app) finishing(ctx context.Context, f func() error) error {
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
	case <-time.After(2 * grace): // when the next signal does what is said of it
		fmt.Fprintln(a.stderr, "itsmauth: finishing an exchange that has begun; another ^C ends it, and the token that it brings is lost")
		return <-done
	}
}

// await is f, or the end of ctx: nothing but the end of the process ends a read from a terminal or a
// pipe.
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

// all are the connectors in alphabetical order.
func all(conns *config.Connectors) []*config.Connector {
	var list []*config.Connector
	for _, name := range conns.Names() {
		conn, _ := conns.Get(name) // which Names has
		list = append(list, conn)
	}
	return list
}

// connector is connectors for the one of that name.
func (a *app) connector(ctx context.Context, name string, f func(*config.Connectors, *config.Connector) error) error {
	return a.connectors(ctx, func(conns *config.Connectors) error {
		conn, err := conns.Get(name)
		if err != nil {
			return usage(err)
		}
		return f(conns, conn)
	})
}

// session is conn's: what config makes is always one.
func session(conn *config.Connector) *auth.Session { return conn.Authenticator().(*auth.Session) }

// names completes a connector's name, once.
func (a *app) names(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	conns, err := a.look(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer conns.Close()
	return conns.Names(), cobra.ShellCompDirectiveNoFileComp
}
