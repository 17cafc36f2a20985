// Package config makes authenticated clients of one YAML file.
//
//	conns, err := config.Load("itsmauth.yaml")
//	if err != nil { ... } // every problem of the file, each with its line and column
//	defer conns.Close()
//	support, err := conns.Get("support")
//	resp, err := support.Client().Do(req)
package config

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

// file is what a configuration holds. Keys that begin with x- are free, for anchors.
type file struct {
	// Version of the format: 1.
	Version int `yaml:"version" required:"true"`
	// TokenStore keeps the tokens. The library's default is memory, the CLI's is files.
	TokenStore node `yaml:"token_store"`
	// Defaults are under the settings of every connector.
	Defaults defaults `yaml:"defaults"`
	// Connectors, by the names to get them by.
	Connectors node `yaml:"connectors" required:"true"`
}

// Connectors are the products of one file, by name. It is safe for concurrent use.
type Connectors struct {
	file      string
	byName    map[string]*Connector
	store     auth.Store
	storeType string
	sessions  []*auth.Session
	clients   []*http.Client
	close     func() error
}

// Format shows the file's name, for every verb, and nothing of what changes while it is printed.
func (c *Connectors) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "config.Connectors(%s)", c.file) }

// Load reads the file at path and makes its connectors. If the file is at fault the error is
// [Problems], all there are. Nothing is sent yet.
func Load(path string, opts ...Option) (*Connectors, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	return Parse(path, data, opts...)
}

// Parse is [Load] for data at hand. filename is for the problems, and its directory is what
// relative paths in ${file:PATH} are relative to.
func Parse(filename string, data []byte, opts ...Option) (*Connectors, error) {
	d := newDecoder(filename)
	if c := d.connectors(data, newOptions(opts)); c != nil {
		return c, nil
	}
	return nil, d.problems.sorted()
}

// connectors makes them all, or none of a file that it refuses.
func (d *decoder) connectors(data []byte, o *options) *Connectors {
	f, ok := d.root(data)
	if !ok {
		return nil
	}
	store := d.store(f.TokenStore, o)
	plans := d.plans(f, o)
	c := &Connectors{file: d.file, byName: map[string]*Connector{}, storeType: store.typ}
	c.close = sync.OnceValue(c.shutdown)
	if store.open != nil {
		opened, err := store.open()
		if err == nil && opened == nil {
			err = errors.New("opening it gave no store")
		}
		if err != nil {
			d.refuseKeys(keyPath{"token_store"}, err)
		} else {
			if store.keys != nil {
				opened = auth.Encrypt(opened, store.keys...)
			}
			c.store = auth.Monitor(opened, &auth.MonitorOptions{Timeout: store.timeout, Logger: o.logger})
		}
	}
	if len(d.problems) > 0 {
		c.Close()
		return nil
	}
	for _, p := range plans {
		if err := c.add(p, o); err != nil {
			d.refuseKeys(p.path, err)
			c.Close() // nothing was used, so there is nothing to lose
			return nil
		}
	}
	return c
}

// root decodes the file but for its connectors and its store.
func (d *decoder) root(data []byte) (f file, ok bool) {
	root, problem := parse(data)
	if problem != nil {
		problem.File = d.file
		d.problems = Problems{*problem}
	}
	if root == nil {
		return f, false
	}
	at := node{key: root, value: root}
	d.nodes[at.path.String()] = at
	entries, ok := d.entries(at)
	if !ok {
		return f, false
	}
	entries = slices.DeleteFunc(entries, func(e node) bool { return strings.HasPrefix(e.name, "x-") })
	d.fill(valueOf(&f), at, entries)
	d.strict(at, entries, reflect.TypeFor[file]())
	if f.Version != 1 {
		d.refuseKey(keyPath{"version"}, "must be 1, the one version there is")
	}
	return f, true
}

// Get gives the connector of that name. The error for an unknown one says which there are.
func (c *Connectors) Get(name string) (*Connector, error) {
	if conn, ok := c.byName[name]; ok {
		return conn, nil
	}
	return nil, fmt.Errorf("%s has no connector %q%s", c.file, name, suggest(name, maps.Keys(c.byName)))
}

// Names lists the connectors in alphabetical order.
func (c *Connectors) Names() []string { return slices.Sorted(maps.Keys(c.byName)) }

// Store is the type of the token store in use, such as "memory" or "file".
func (c *Connectors) Store() string { return c.storeType }

// closeTimeout leaves a running exchange its 30 s, and its save a little.
const closeTimeout = 35 * time.Second

// Close waits up to 35 s for exchanges that are running and their saves, then closes the store
// and idle connections. Further calls return the same.
func (c *Connectors) Close() error { return c.close() }

func (c *Connectors) shutdown() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	errs := make([]error, len(c.sessions), len(c.sessions)+1)
	var wg sync.WaitGroup
	for i, s := range c.sessions {
		wg.Go(func() { errs[i] = s.Close(ctx) })
	}
	wg.Wait()
	if closer, ok := c.store.(io.Closer); ok {
		errs = append(errs, closer.Close())
	}
	for _, client := range c.clients {
		client.CloseIdleConnections()
	}
	return errors.Join(errs...)
}
