package config

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/config/internal/yamldoc"
	"github.com/itsmauth/itsmauth/transport"
)

// Connectors are products by name: those of a file, and those that were added. It is safe for concurrent use.
type Connectors struct {
	file      string // "" without a file
	fileNames []string
	storeType string
	warnings  []Problem
	opts      *options
	close     func(context.Context) error

	closing context.Context // ends when Shutdown begins
	shut    context.CancelFunc
	life    context.Context // ends when Shutdown stops waiting
	kill    context.CancelFunc

	mu         sync.RWMutex
	store      auth.Store // nil before the first Add without a file
	byName     map[string]*Connector
	identities map[string]*identity // by the keys of their sessions
	removing   sync.WaitGroup       // identities without connectors
	lost       []error              // what their sessions could not save
}

func newConnectors(file string, o *options) *Connectors {
	c := &Connectors{file: file, opts: o, byName: map[string]*Connector{}, identities: map[string]*identity{}}
	c.closing, c.shut = context.WithCancel(context.Background())
	c.life, c.kill = context.WithCancel(context.Background())
	var once sync.Once
	var err error
	c.close = func(ctx context.Context) error {
		once.Do(func() { err = c.shutdown(ctx) })
		return err
	}
	return c
}

// Format prints the file's name, for every verb. Printing fields would race with requests.
func (c *Connectors) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "config.Connectors(%s)", c.file) }

// Get returns the connector called name. The error for an unknown name suggests known ones.
func (c *Connectors) Get(name string) (*Connector, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.getLocked(name)
}

func (c *Connectors) getLocked(name string) (*Connector, error) {
	if conn, ok := c.byName[name]; ok {
		return conn, nil
	}
	if slices.Contains(c.fileNames, name) {
		return nil, fmt.Errorf("%s: connector %q was left out by config.WithOnly", c.file, name)
	}
	known := slices.AppendSeq(slices.Clone(c.fileNames), maps.Keys(c.byName))
	return nil, yamldoc.Advise(fmt.Sprintf("%s has no connector %q", cmp.Or(c.file, "config.Connectors"), name), yamldoc.Suggest(name, slices.Values(known)))
}

// Names lists the connectors in alphabetical order, without those that [WithOnly] leaves out.
func (c *Connectors) Names() []string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return slices.Sorted(maps.Keys(c.byName))
}

// all returns the connectors in alphabetical order.
func (c *Connectors) all() []*Connector {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return slices.SortedFunc(maps.Values(c.byName), func(a, b *Connector) int { return cmp.Compare(a.Name, b.Name) })
}

// Store is the type of the token store in use, such as "memory" or "file".
func (c *Connectors) Store() string { return c.storeType }

// An identity is what connectors with the same credentials share.
type identity struct {
	name      string // of its first connector
	session   *auth.Session
	limiter   *transport.Limiter
	exchanger *http.Client
	secrets   []auth.Secret
	members   int
	calls     sync.WaitGroup // connectors with calls under way, or that may have some
}

// A member is a connector to be made, and what its identity is made of if it is the first.
type member struct {
	conn      *Connector // without client and session
	key       string     // of the identity
	impl      auth.Provider
	session   auth.Options
	limits    []auth.Limit
	limiter   *transport.Limiter // of limits
	transport transport.Options
	exchanges transport.Options // how exchanges are sent
}

// identityOf returns the key of p's identity, and the product's own limits, by a session that is not used.
func identityOf(p auth.Provider, o *auth.Options) (key string, own auth.Traffic) {
	s := auth.New(p, o)
	defer s.Close(context.Background()) // it has nothing to wait for
	return s.Key(), s.Traffic()
}

// joinLocked makes m's connector and, if it is the first of its identity, the session.
func (c *Connectors) joinLocked(m *member) error {
	id := c.identities[m.key]
	if id == nil {
		id = c.newIdentity(m)
	}
	m.transport.Limiter = id.limiter
	session := id.session.For(m.conn.Name)
	client, err := transport.NewClient(session, &m.transport)
	if err != nil {
		if id.members == 0 {
			id.session.Close(c.life) // it has nothing to wait for
		}
		return err
	}
	m.conn.calls = &calls{connector: m.conn, next: client.Transport, ended: make(chan struct{})}
	client.Transport = m.conn.calls
	m.conn.client, m.conn.session = client, session
	id.members++
	id.calls.Add(1)
	c.identities[m.key], c.byName[m.conn.Name] = id, m.conn
	return nil
}

func (c *Connectors) newIdentity(m *member) *identity {
	if w, ok := c.store.(auth.Windower); ok && len(m.limits) > 0 {
		m.limiter.Share(w.Window(m.key, m.limits, m.exchanges.AttemptTimeout))
	}
	m.session.ExchangeTimeout, m.session.MaxRetryAfter = max(m.exchanges.AttemptTimeout, 30*time.Second), m.exchanges.Retry.MaxRetryAfter
	m.exchanges.Limiter = m.limiter
	m.exchanges.Timeout = m.session.ExchangeTimeout // the session's own limit comes first
	exchanger := transport.NewExchanger(&m.exchanges)
	m.session.Store, m.session.Client, m.session.Logger = c.store, exchanger, c.opts.logger
	return &identity{name: m.conn.Name, session: auth.New(m.impl, &m.session), limiter: m.limiter, exchanger: exchanger, secrets: m.session.Secrets}
}

// Remove removes a connector. Its new calls fail with [auth.ErrClosed], calls under way finish, and the stored
// token stays. Other connectors with the same credentials are unaffected. If there are none, a token request
// under way ends in the background, and [Connectors.Shutdown] waits for it. The error is that of an unknown
// name.
func (c *Connectors) Remove(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	conn, err := c.getLocked(name)
	if err != nil {
		return err
	}
	conn.calls.end()
	if c.closing.Err() != nil {
		return nil // Shutdown does the rest
	}
	delete(c.byName, name)
	c.fileNames = slices.DeleteFunc(c.fileNames, func(n string) bool { return n == name })
	key := conn.session.Key()
	id := c.identities[key]
	if id.members--; id.members == 0 {
		delete(c.identities, key)
	}
	last := id.members == 0
	c.removing.Go(func() {
		select {
		case <-conn.calls.ended:
		case <-c.closing.Done():
		}
		conn.client.CloseIdleConnections()
		id.calls.Done()
		if !last {
			return
		}
		id.calls.Wait()
		err := id.session.Close(c.life)
		id.exchanger.CloseIdleConnections()
		if err != nil {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.lost = append(c.lost, err)
		}
	})
	return nil
}

// closeTimeout is enough for a running exchange, which may take 30 s, and its save.
const closeTimeout = 35 * time.Second

// Close is [Connectors.Shutdown] with 35 s. Later calls return the same.
func (c *Connectors) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	return c.Shutdown(ctx)
}

// Shutdown waits for running exchanges and their saves, at most until ctx ends, and closes the store and idle
// connections. It does not wait for calls; those without a valid token then fail with [auth.ErrClosed]. Its error
// says which logins were lost, because a new refresh token could not be saved. Later calls return the same. A nil
// *Connectors can be closed.
func (c *Connectors) Shutdown(ctx context.Context) error {
	if c == nil {
		return nil
	}
	return c.close(ctx)
}

func (c *Connectors) shutdown(ctx context.Context) error {
	c.mu.Lock()
	c.shut() // from here on, nothing is added
	identities, conns := slices.Collect(maps.Values(c.identities)), slices.Collect(maps.Values(c.byName))
	c.mu.Unlock()
	stop := context.AfterFunc(ctx, c.kill)
	defer stop()
	defer c.kill()
	errs := make([]error, len(identities))
	var closing sync.WaitGroup
	for i, id := range identities {
		closing.Go(func() {
			errs[i] = id.session.Close(ctx)
			id.exchanger.CloseIdleConnections()
		})
	}
	closing.Wait()
	c.removing.Wait()
	for _, conn := range conns {
		conn.client.CloseIdleConnections()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if closer, ok := c.store.(io.Closer); ok {
		errs = append(errs, closer.Close())
	}
	return errors.Join(append(c.lost, errs...)...)
}
