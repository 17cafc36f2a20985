package auth

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/internal/follow"
)

// Options are the options of [New]. The zero value of each field is its default.
type Options struct {
	// Connector names the connector in errors and logs.
	Connector string
	// Provider is the adapter's name, part of the identity.
	Provider string
	// Account tells apart identities that are equal otherwise: two logins of one client, for example.
	Account string
	// Store keeps the token after this process ends. nil keeps it in memory. It is not used for a [Static] provider.
	// Sessions of one process that share a store should share one [Monitor] of it.
	Store Store
	// Secrets are the secrets among the settings. nil are those that the provider's method Secrets() []Secret
	// lists, if it has one. While tokens are used, they are read once a second, and if one has changed,
	// [Provider.Header] is called again. After the product refused the credentials, a change of one of them
	// starts another exchange.
	Secrets []Secret
	// EarlyRefresh (5 min) is how long before its expiry a token is replaced in the background: at most
	// a fifth of its lifetime, and up to a fifth less at random.
	EarlyRefresh time.Duration
	// ExchangeTimeout (30 s) is how long an exchange may take, whoever started it, with its retries.
	ExchangeTimeout time.Duration
	// MaxRetryAfter (30 s) is the longest Retry-After, of a 429 or 503 of the token endpoint, for which an
	// exchange waits (RFC 9110 section 10.2.3). It must also fit ExchangeTimeout.
	MaxRetryAfter time.Duration
	// Client sends the exchanges. nil is a client that follows no redirects.
	Client *http.Client
	// Logger gets what goes wrong in the background. nil logs nothing.
	Logger *slog.Logger
}

// exchangeTimeout is the default of [Options.ExchangeTimeout].
const exchangeTimeout = 30 * time.Second

// closeGrace is how long Close still waits for a store lock held by another process, or for a provider
// that ignores its context.
const closeGrace = time.Second

// wallClockEvery is how often Token rereads the wall clock. In between it uses the monotonic clock,
// which is cheaper but stops while the machine is suspended.
const wallClockEvery = 100 * time.Millisecond

// ErrClosed is returned if a closed [Session] would have to obtain a token.
var ErrClosed = errors.New("session is closed")

// A Session keeps one token of a [Provider] fresh: it is the managed [Authenticator].
//
// Token returns a fresh token without a lock. Shortly before it expires one background exchange
// replaces it; an expired or refused one makes callers wait for one exchange, each on its own
// ctx. Failures are remembered, so that a failing product is not hammered.
type Session struct {
	*core
	connector string
}

// Format shows the connector's name for every verb, and nothing of the tokens, which may change
// while it is printed.
func (s *Session) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "auth.Session(%s)", s.connector) }

// core is what the views of a Session share.
type core struct {
	rules
	provider   Provider
	signer     Signer     // provider, or nil: it signs no requests
	challenger Challenged // provider, or nil: no response challenges a request
	opts       Options    // with their defaults
	store      *monitor
	ownStore   bool                    // store was made here, and ends with Close
	follower   *follow.Value[struct{}] // of the secrets in headers, or nil
	key        string
	epoch      time.Time // of the monotonic clock

	credentials        []string    // the settings of a [Static] provider; nil: it has a token endpoint
	credentialsRefused atomic.Bool // since the last read of the secrets began

	current atomic.Pointer[snapshot] // state.current
	next    atomic.Int64             // state.backgroundAfter in ns since epoch, or later while an exchange runs

	closing context.Context // ends when Close begins
	shut    context.CancelFunc
	life    context.Context // ends when Close stops waiting
	kill    context.CancelFunc
	idle    chan struct{} // closed when Close has begun and no work is left

	mu      sync.Mutex
	state   state
	flight  *flight // the one exchange, or nil
	work    int     // running flights, logins and logouts
	watcher *time.Timer
	offerer *time.Timer
	lost    error // a rotated refresh token that Close could not save
}

// New makes the Session of p. nil opts are the defaults. The first Token starts the first exchange.
func New(p Provider, opts *Options) *Session {
	c := &core{epoch: time.Now(), provider: p, idle: make(chan struct{})}
	if opts != nil {
		c.opts = *opts
	}
	c.setSigner(p)
	if st, ok := p.(Static); ok {
		c.credentials = st.StaticCredentials()
	}
	if c.credentials != nil {
		c.opts.Store = nil
	}
	if s, ok := p.(interface{ Secrets() []Secret }); ok && c.opts.Secrets == nil {
		c.opts.Secrets = s.Secrets()
	}
	c.opts.Store = cmp.Or(c.opts.Store, Store(new(Memory)))
	c.opts.Client = cmp.Or(c.opts.Client, &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }})
	c.opts.Logger = cmp.Or(c.opts.Logger, slog.New(slog.DiscardHandler))
	if c.opts.EarlyRefresh <= 0 {
		c.opts.EarlyRefresh = 5 * time.Minute
	}
	c.opts.ExchangeTimeout = cmp.Or(max(c.opts.ExchangeTimeout, 0), exchangeTimeout)
	c.opts.MaxRetryAfter = cmp.Or(c.opts.MaxRetryAfter, 30*time.Second)
	c.rules = rules{owner: rand.Text(), earlyRefresh: c.opts.EarlyRefresh, timeout: c.opts.ExchangeTimeout}
	c.host, _ = os.Hostname() // "" is unknown; in a container it is the container's
	if r, ok := p.(Refresher); ok {
		c.refresh = r.Refresh()
	}
	c.seeded = !c.refresh.Token.IsZero()
	f, ok := p.(Consenter)
	c.person = c.seeded || ok && f.CodeFlow() != nil
	c.key = identity(p, &c.opts)
	if c.store = monitorOf(c.opts.Store); c.store == nil {
		c.store, c.ownStore = newMonitor(c.opts.Store, &MonitorOptions{Logger: c.opts.Logger}), true
	}
	c.watcher, c.offerer = c.stoppedTimer(c.startWatchingLocked), c.stoppedTimer(c.startOfferingLocked)
	c.follower = c.newFollower()
	c.store.subscribe(c)
	c.closing, c.shut = context.WithCancel(context.Background())
	c.life, c.kill = context.WithCancel(context.Background())
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watchLocked()
	return &Session{c, c.opts.Connector}
}

// identity names the record: a digest of what tells two credentials apart.
func identity(p Provider, o *Options) string {
	id := []string{o.Provider, o.Account}
	if i, ok := p.(Identifier); ok {
		id = append(id, i.Identity()...)
	} else {
		id = append(id, "connector", o.Connector)
	}
	b, _ := json.Marshal(id) // strings always marshal
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

// For returns the same Session for another connector, whose name its errors carry.
func (s *Session) For(connector string) *Session { return &Session{s.core, connector} }

// Key names the session's record in its [Store]. Sessions with equal Keys have the same identity.
func (s *Session) Key() string { return s.key }

// ExchangeTimeout returns how long an exchange may take.
func (s *Session) ExchangeTimeout() time.Duration { return s.timeout }

// CodeFlow returns the provider's authorization-code flow, or nil if it needs no person.
func (s *Session) CodeFlow() *CodeFlow {
	if c, ok := s.provider.(Consenter); ok {
		return c.CodeFlow()
	}
	return nil
}

// Traffic returns the product's own limits, or the zero Traffic.
func (s *Session) Traffic() Traffic {
	if t, ok := s.provider.(Shaped); ok {
		return t.Traffic()
	}
	return Traffic{}
}

// Token implements [Authenticator]. Its error is an [*Error]. After Close it wraps [ErrClosed] if an
// exchange would be needed.
func (s *Session) Token(ctx context.Context) (*oauth2.Token, error) {
	if snap := s.current.Load(); snap != nil {
		if int64(time.Since(s.epoch)) < snap.fresh.Load() {
			return snap.public, nil
		}
		if s.follower != nil && snap.valid(time.Now()) {
			s.follower.Get(ctx) // changes snap's headers, or replaces snap
			snap = cmp.Or(s.current.Load(), snap)
		}
		now := time.Now()
		sinceEpoch := int64(now.Sub(s.epoch))
		if d := left(now, snap.stale); d > 0 {
			snap.fresh.Store(sinceEpoch + int64(min(d, wallClockEvery)))
			return snap.public, nil
		}
		if snap.valid(now) {
			if sinceEpoch >= s.next.Load() {
				s.startBackground()
			}
			return snap.public, nil
		}
	}
	snap, err := s.wait(ctx)
	if err != nil {
		return nil, s.named(err)
	}
	return snap.public, nil
}

// wait is Token for callers who have to wait: it joins the running exchange, or starts one.
func (s *Session) wait(ctx context.Context) (*snapshot, error) {
	for {
		s.mu.Lock()
		if snap := s.current.Load(); snap.valid(time.Now()) {
			s.mu.Unlock()
			return snap, nil
		}
		if ctx.Err() != nil {
			s.mu.Unlock()
			return nil, s.left(ctx)
		}
		s.startLocked(needed)
		f := s.flight
		late := f != nil && f.snap != nil // it has its token, and is still being saved
		s.mu.Unlock()
		if f == nil {
			return nil, &Error{Op: "token", Err: ErrClosed}
		}
		select {
		case <-f.answered:
		case <-ctx.Done():
			return nil, s.left(ctx)
		}
		if f.err != nil {
			if f.reason != needed {
				continue // it may have passed over a token that a caller can use
			}
			return nil, f.err
		}
		// The token of this exchange is the newest there is, however short its life.
		if cur := s.current.Load(); !late && cur == f.snap || cur.valid(time.Now()) {
			return cur, nil
		}
		select { // The token was rejected before we got here. Wait until its exchange is saved.
		case <-f.done:
		case <-f.stuck:
			return nil, f.saving
		case <-ctx.Done():
			return nil, s.left(ctx)
		}
	}
}

// left returns the error of a caller whose ctx ended. It names the store if that was waited for.
func (c *core) left(ctx context.Context) error {
	c.mu.Lock()
	known := c.state.token
	c.mu.Unlock()
	if err := c.store.unusable(); err != nil && c.rules.atStake(known) {
		return &Error{Op: "store", Err: fmt.Errorf("%w: %w", err, contextError(ctx))}
	}
	return &Error{Op: "token", Err: contextError(ctx)}
}

// Header implements [Authenticator].
func (s *Session) Header(tok *oauth2.Token) http.Header {
	if snap := s.current.Load(); snap != nil && (snap.public == tok || s.credentials != nil) {
		return snap.headers.Load().Header
	}
	return s.provider.Header(tok)
}

// Close waits for a running exchange and its save, or until ctx ends. A token that is still valid can
// still be used, but no other is obtained.
func (s *Session) Close(ctx context.Context) error {
	s.mu.Lock()
	if s.closing.Err() == nil {
		s.shut()
		if s.work == 0 {
			close(s.idle)
		}
		s.watcher.Stop()
		s.offerer.Stop()
	}
	busy := s.work > 0
	s.mu.Unlock()
	var err error
	if busy {
		select {
		case <-s.idle:
		case <-ctx.Done():
			err = &Error{Op: "close", Err: contextError(ctx)}
			s.kill()
			select {
			case <-s.idle:
			case <-time.After(closeGrace):
			}
		}
	}
	s.kill()
	s.store.unsubscribe(s.core)
	if s.ownStore {
		s.store.end(nil)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost != nil {
		err = s.lost
	}
	return s.named(err)
}

// startWorkLocked counts one more task for Close to wait for. It returns false after Close was called.
func (c *core) startWorkLocked() bool {
	if c.closing.Err() != nil {
		return false
	}
	c.work++
	return true
}

// finishWork ends what startWorkLocked began.
func (c *core) finishWork() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.work--; c.work == 0 && c.closing.Err() != nil {
		close(c.idle)
	}
}

// contextError returns ctx.Err(), wrapped with context.Cause(ctx) if they differ.
func contextError(ctx context.Context) error {
	if cause := context.Cause(ctx); !errors.Is(cause, ctx.Err()) {
		return fmt.Errorf("%w: %w", ctx.Err(), cause)
	}
	return ctx.Err()
}

// named returns err with the connector's name. nil stays nil.
func (s *Session) named(err error) error {
	if err == nil {
		return nil
	}
	e := asError("exchange", err)
	e.Connector, e.seeded, e.credentials = s.connector, s.CodeFlow() == nil && s.rules.seeded, s.credentials
	e.Provider = cmp.Or(s.opts.Provider, e.Provider)
	return e
}

// jitter takes up to a fifth off d, so that processes do not act in step.
func jitter(d time.Duration) time.Duration {
	return d - time.Duration(mathrand.Int64N(int64(d)/5+1))
}
