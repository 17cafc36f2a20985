package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// MonitorOptions are the options of [Monitor]. The zero value of each field is its default.
type MonitorOptions struct {
	// Timeout (5 s) is how long an operation waits for an answer of the store. Time in which this process
	// did not run does not count.
	Timeout time.Duration
	// Logger gets one line when the store fails and one when it works again. nil logs nothing.
	Logger *slog.Logger
}

// Monitor wraps s for all sessions of this process, so that only one of them waits when s does not
// answer. An operation without an answer for Timeout fails. Then all operations fail at once, until a
// write in the background, tried once a second, shows that s is back. Then the sessions offer it the
// tokens that they obtained without it.
//
// The result is an [io.Closer], which closes s if s is one, and a [Windower] if s is one. A [Session]
// with a Store that is no Monitor makes one for itself.
func Monitor(s Store, o *MonitorOptions) Store {
	m := newMonitor(s, o)
	if m.windower != nil {
		return windowMonitor{m}
	}
	return m
}

// defaultStoreTimeout is the default of token_store.timeout.
const defaultStoreTimeout = 5 * time.Second

// askEvery is how often a store that failed is tried in the background.
const askEvery = time.Second

// Silence is counted in ticks. A longer tick than tickMost counts as tickMost: the process was not running
// and could not receive an answer.
const (
	tick     = 50 * time.Millisecond
	tickMost = 2 * tick
)

// slowAfter is when the error of a caller who leaves names the store.
const slowAfter = 10 * tick

type monitor struct {
	Store
	bare     Store // without its encryption
	locker   TryLocker
	windower Windower
	timeout  time.Duration
	logger   *slog.Logger
	windows  windowMemory
	slow     atomic.Int32 // operations without an answer for slowAfter

	life    context.Context // ends with Close
	stop    context.CancelFunc
	running sync.WaitGroup

	mu       sync.Mutex
	closed   bool
	health   health
	sessions map[*core]struct{}
}

// health is what a monitor knows about its store.
type health struct {
	answeredAt time.Time     // when an operation was last answered
	writtenAt  time.Time     // when a trial write last succeeded
	failure    error         // why the store cannot be used, or nil
	silent     bool          // it does not answer, so no operation is started
	back       chan struct{} // closed when it can be used again
}

func (m *monitor) now() health {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.health
}

// monitorOf returns s as a monitor, or nil if it is none.
func monitorOf(s Store) *monitor {
	switch m := s.(type) {
	case *monitor:
		return m
	case windowMonitor:
		return m.monitor
	}
	return nil
}

func newMonitor(s Store, o *MonitorOptions) *monitor {
	m := &monitor{Store: s, bare: s, timeout: defaultStoreTimeout, logger: slog.New(slog.DiscardHandler), sessions: map[*core]struct{}{}}
	if o != nil && o.Timeout > 0 {
		m.timeout = o.Timeout
	}
	if o != nil && o.Logger != nil {
		m.logger = o.Logger
	}
	if e, ok := s.(*encrypted); ok {
		m.bare = e.Store
	}
	if _, ok := m.bare.(TryLocker); ok {
		m.locker = s.(TryLocker)
	}
	m.windower, _ = m.bare.(Windower)
	m.life, m.stop = context.WithCancel(context.Background())
	return m
}

// Format shows the store, for every verb.
func (m *monitor) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "auth.Monitor(%v)", m.bare) }

// Close ends the work in the background and closes the store.
func (m *monitor) Close() error { return m.end(m.Store) }

// closeStore closes s if it is an [io.Closer].
func closeStore(s Store) error {
	if c, ok := s.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// end stops the work in the background and closes s, which may end operations that have no answer. It
// waits for operations for at most a second.
func (m *monitor) end(s Store) error {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.stop()
	err := closeStore(s)
	ended := make(chan struct{})
	go func() { m.running.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(closeGrace):
	}
	return err
}

// spawn runs f in a goroutine that end waits for.
func (m *monitor) spawn(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		go f()
		return
	}
	m.running.Go(f)
}

func (m *monitor) Load(ctx context.Context, key string) (Record, error) {
	return ask(ctx, m, func(ctx context.Context) (Record, error) { return m.Store.Load(ctx, key) }, nil)
}

func (m *monitor) Save(ctx context.Context, key string, r Record) error {
	return m.change(ctx, func(ctx context.Context) error { return m.Store.Save(ctx, key, r) })
}

func (m *monitor) Delete(ctx context.Context, key string, version uint64) error {
	return m.change(ctx, func(ctx context.Context) error { return m.Store.Delete(ctx, key, version) })
}

func (m *monitor) change(ctx context.Context, f func(context.Context) error) error {
	_, err := ask(ctx, m, func(ctx context.Context) (struct{}, error) { return struct{}{}, f(ctx) }, nil)
	return err
}

// loadNow is Load even while the store is silent.
func (m *monitor) loadNow(ctx context.Context, key string) (Record, error) {
	return run(ctx, m, m.timeout, func(ctx context.Context) (Record, error) { return m.Store.Load(ctx, key) }, nil, nil)
}

// saveNow is Save even while the store is silent: the last try of a process that ends.
func (m *monitor) saveNow(ctx context.Context, key string, r Record) error {
	return m.runError(ctx, func(ctx context.Context) error { return m.Store.Save(ctx, key, r) })
}

func (m *monitor) runError(ctx context.Context, f func(context.Context) error) error {
	_, err := run(ctx, m, m.timeout, func(ctx context.Context) (struct{}, error) { return struct{}{}, f(ctx) }, nil, nil)
	return err
}

// lockTrial is what TryLock returns.
type lockTrial struct {
	Record
	unlock func()
}

// tryLock is the store's [TryLocker.TryLock].
func (m *monitor) tryLock(ctx context.Context, key string, known uint64) (Record, func(), error) {
	t, err := ask(ctx, m, func(ctx context.Context) (t lockTrial, err error) {
		t.Record, t.unlock, err = m.locker.TryLock(ctx, key, known)
		return t, err
	}, func(t lockTrial) {
		if t.unlock != nil {
			t.unlock()
		}
	})
	return t.Record, t.unlock, err
}

// errSilent is wrapped by the error of an operation that got no answer.
var errSilent = errors.New("no answer")

// ask runs one operation, unless the store is known to be silent, and judges the store by its failure.
// late gets the result of an operation that is answered after its caller has left.
func ask[T any](ctx context.Context, m *monitor, op func(context.Context) (T, error), late func(T)) (T, error) {
	for again := true; ; again = false {
		if err := m.gate(); err != nil {
			return *new(T), err
		}
		began := time.Now()
		v, err := run(ctx, m, m.timeout, op, late, &m.slow)
		if err == nil || errors.Is(err, ErrConflict) {
			m.mu.Lock()
			m.health.answeredAt = time.Now()
			m.mu.Unlock()
			return v, err
		}
		if again && errors.Is(err, errSilent) && ctx.Err() == nil && m.now().answeredAt.After(began) {
			continue // its answer was lost in an outage that is over
		}
		m.judge(ctx, err)
		return v, err
	}
}

// run calls op and waits for its answer until ctx ends or limit is over. Only time in which this process
// could run counts. slow, if not nil, counts op while it has had no answer for slowAfter.
func run[T any](ctx context.Context, m *monitor, limit time.Duration, op func(context.Context) (T, error), late func(T), slow *atomic.Int32) (T, error) {
	opCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers, left := start(opCtx, m, op, late)
	defer close(left)
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	last, silence := time.Now(), time.Duration(0)
	for ctx.Err() == nil && silence < limit {
		select {
		case a := <-answers:
			return a.v, storeError(a.err)
		case <-ticker.C:
			now := time.Now() // the tick may be old
			silence += min(now.Sub(last), tickMost)
			last = now
			if slow != nil && silence >= slowAfter {
				slow.Add(1)
				defer slow.Add(-1)
				slow = nil
			}
		case <-ctx.Done():
		}
	}
	cancel()
	why := ErrStore.Error()
	select {
	case a := <-answers: // its error may tell more
		if a.err == nil || ctx.Err() != nil || errors.Is(a.err, ErrConflict) {
			return a.v, storeError(a.err)
		}
		why = a.err.Error()
	case <-time.After(tick):
	}
	if ctx.Err() != nil {
		return *new(T), fmt.Errorf("%w: %w: %w", ErrStore, errSilent, contextError(ctx))
	}
	why = strings.TrimPrefix(strings.TrimPrefix(why, ErrStore.Error()), ": ")
	if why == "" || strings.Contains(why, context.Canceled.Error()) {
		return *new(T), fmt.Errorf("%w: %w within %s", ErrStore, errSilent, limit)
	}
	return *new(T), &silenceError{fmt.Sprintf("%s: %s; waited %s", ErrStore, why, limit)}
}

type answer[T any] struct {
	v   T
	err error
}

// start calls op in the background. late, if not nil, gets its result if left is closed by then.
func start[T any](ctx context.Context, m *monitor, op func(context.Context) (T, error), late func(T)) (answers chan answer[T], left chan struct{}) {
	answers, left = make(chan answer[T]), make(chan struct{})
	m.spawn(func() {
		v, err := op(ctx)
		select {
		case answers <- answer[T]{v, err}:
		case <-left:
			if err == nil && late != nil {
				late(v)
			}
		}
	})
	return answers, left
}

// silenceError says in the store's words what was waited for.
type silenceError struct{ text string }

func (e *silenceError) Error() string   { return e.text }
func (e *silenceError) Unwrap() []error { return []error{ErrStore, errSilent} }

// gate returns the error of each operation while the store is silent.
func (m *monitor) gate() error {
	if h := m.now(); h.silent {
		return h.failure
	}
	return nil
}

// unusable returns why the store cannot be used, or nil.
func (m *monitor) unusable() error {
	h := m.now()
	if h.failure == nil && m.slow.Load() > 0 {
		return fmt.Errorf("%w: %w yet", ErrStore, errSilent)
	}
	return h.failure
}

// silence returns a channel that is closed when a silent store is back, or nil if it is not silent.
func (m *monitor) silence() <-chan struct{} {
	if h := m.now(); h.silent {
		return h.back
	}
	return nil
}

// judge decides whether a failed operation means that the store cannot be used. An error reply may
// concern that record alone. A write to another record shows that.
func (m *monitor) judge(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	silent := unanswered(err)
	if !silent && m.works(ctx) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	h := &m.health
	news := h.failure == nil
	if m.closed || !news && !silent {
		return
	}
	if h.failure, h.silent = err, h.silent || silent; news {
		h.back = make(chan struct{})
		m.running.Go(func() { m.await(err) })
	}
}

// unanswered reports whether err means that the store did not answer at all.
func unanswered(err error) bool {
	var dial *net.OpError
	return errors.Is(err, errSilent) || errors.As(err, &dial) && dial.Op == "dial"
}

// works reports whether the store can be written. It tries once in askEvery at most.
func (m *monitor) works(ctx context.Context) bool {
	if time.Since(m.now().writtenAt) < askEvery {
		return true
	}
	if m.check(ctx) != nil {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.health.writtenAt = time.Now()
	return true
}

// await tries until the store can be written, and tells the sessions. It tries again even while an
// earlier try has no answer.
func (m *monitor) await(failure error) {
	m.logger.Warn("the token store fails; it is asked again every second", "error", failure)
	works := make(chan struct{}, 1)
	ask := func() {
		if m.check(m.life) == nil {
			select {
			case works <- struct{}{}:
			default:
			}
		}
	}
	for waiting := true; waiting; {
		select {
		case <-time.After(jitter(askEvery)):
			m.spawn(ask)
		case <-works:
			waiting = false
		case <-m.life.Done():
			return
		}
	}
	m.mu.Lock()
	close(m.health.back)
	m.health = health{answeredAt: time.Now(), writtenAt: m.health.writtenAt}
	sessions := slices.Collect(maps.Keys(m.sessions))
	m.mu.Unlock()
	m.logger.Info("the token store works again")
	for _, c := range sessions {
		c.storeBack()
	}
}

// trialKey names the record that check writes, and trialData is its content.
const trialKey = "trial"

var trialData = []byte("itsmauth: a trial write")

// check writes a record and removes it. It is no failure if another process does so at the same time.
func (m *monitor) check(ctx context.Context) error {
	r, err := run(ctx, m, m.timeout, func(ctx context.Context) (Record, error) { return m.bare.Load(ctx, trialKey) }, nil, nil)
	if err != nil || r.Version != 0 && !bytes.Equal(r.Data, trialData) {
		return err
	}
	written := Record{Version: r.Version, Expires: time.Now().Add(time.Minute), Data: trialData}
	for _, f := range []func(context.Context) error{
		func(ctx context.Context) error { return m.bare.Save(ctx, trialKey, written) },
		func(ctx context.Context) error { return m.bare.Delete(ctx, trialKey, written.Version+1) },
	} {
		if err := m.runError(ctx, f); err != nil && !errors.Is(err, ErrConflict) {
			return err
		}
	}
	return nil
}

func (m *monitor) subscribe(c *core) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sessions[c] = struct{}{}
}

func (m *monitor) unsubscribe(c *core) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.sessions, c)
}
