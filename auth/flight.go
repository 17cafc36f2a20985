package auth

import (
	"context"
	"errors"
	"math"
	"time"
)

// flight is the one exchange of a session: whoever needs its outcome waits for it.
type flight struct {
	kind     flightKind
	held     error     // a remembered failure: look at the store, but do not exchange
	last     *snapshot // what is to be replaced
	forced   bool      // because last was refused
	version  uint64    // of the record as last seen
	next     int64     // what the session's next was before
	answered chan struct{}
	done     chan struct{} // its save is finished as well

	// What came of it, to be read once answered is closed.
	snap *snapshot
	err  error
}

type flightKind int

const (
	foreground flightKind = iota // somebody waits
	background                   // the current token is stale
	idling                       // the refresh token is halfway through its life
	looking                      // the token is refused, but another exchange would do no good
)

// join returns the running flight, or starts one for a caller who waits. c.mu is held.
func (c *core) join() (*flight, error) {
	if c.flight != nil {
		return c.flight, nil
	}
	if c.closed {
		return nil, &Error{Op: "token", Err: ErrClosed}
	}
	return c.start(foreground), nil
}

// startBackground starts an exchange that nobody waits for, unless there is one.
func (c *core) startBackground() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flight == nil && !c.closed && time.Now().UnixNano() >= c.next.Load() {
		c.start(background)
	}
}

// start begins a flight. c.mu is held, and there is none.
func (c *core) start(kind flightKind) *flight {
	f := &flight{kind: kind, last: c.last, answered: make(chan struct{}), done: make(chan struct{})}
	f.forced = c.last != nil && c.current.Load() == nil
	switch kind {
	case foreground:
		f.held = c.failure.holds()
	case looking:
		f.held = errNotDue
	}
	c.flight = f
	f.next = c.next.Swap(math.MaxInt64)
	c.running.Add(1)
	go c.run(f)
	return f
}

func (c *core) run(f *flight) {
	defer c.running.Done()
	err := c.obtain(c.life, f)

	c.mu.Lock()
	defer c.mu.Unlock()
	c.flight = nil
	if f.snap == nil {
		f.err = err
		c.failed(f)
		close(f.answered)
	}
	close(f.done)
}

// publish answers the flight with r, makes it the current token, and forgets failures.
func (c *core) publish(f *flight, r tokenRecord, version uint64) *snapshot {
	snap := c.snapshot(r, version)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.set(snap, f.forced)
	if f.forced && f.last != nil && f.last.record.AccessToken == r.AccessToken {
		c.forced.fail()
		snap.forced = false // and is counted
	}
	f.snap = snap
	close(f.answered)
	return snap
}

// set makes snap the current token. c.mu is held.
func (c *core) set(snap *snapshot, forced bool) {
	snap.forced = forced
	c.failure = failure{}
	c.last = snap
	c.current.Store(snap)
	// Not sooner, whatever the lifetime: an endpoint that hands out the same token until its end
	// would be asked ever faster.
	c.next.Store(time.Now().Add(min(time.Second, snap.record.Lifetime/5)).UnixNano())
	c.scheduleIdle(snap.record)
}

// Idle consents: a refresh token that nobody uses is renewed halfway through its life.

// idleLook is when a session that nobody has used first looks for a consent to keep alive. Short
// commands are over by then.
const idleLook = time.Minute

var errNotDue = errors.New("not due")

// scheduleIdle sets the timer for r's refresh token. c.mu is held.
func (c *core) scheduleIdle(r tokenRecord) {
	if c.closed || r.RefreshToken == "" || c.refresh.Expendable {
		return
	}
	ends := c.consentExpiry(r)
	if ends.IsZero() {
		return
	}
	life := ends.Sub(r.Refreshed)
	// A refresh token that does not rotate stays past its half: not again at once.
	at := max(time.Until(r.Refreshed.Add(life/2)), life/10)
	if c.idle == nil {
		c.idle = time.AfterFunc(at, c.keepAlive)
		return
	}
	c.idle.Reset(at)
}

func (c *core) keepAlive() {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
	case c.flight != nil:
		c.idle.Reset(idleLook)
	default:
		c.start(idling)
	}
}

// due reports whether r's refresh token is halfway through its life.
func (c *core) due(r tokenRecord) bool {
	ends := c.consentExpiry(r)
	return !ends.IsZero() && time.Since(r.Refreshed) >= ends.Sub(r.Refreshed)/2
}

// bounded gives ctx a limit for one operation of the store.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, storeTimeout)
}
