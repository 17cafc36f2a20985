// Package transport carries authenticated requests.
package transport

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

const (
	// oneWay is how long a request may be on its way to the server, for the windows to be exact.
	oneWay = 100 * time.Millisecond
	// probeEvery is how often a request leaves to look whether others have left room again.
	probeEvery = 10 * time.Second

	never = time.Duration(math.MaxInt64)
)

// Limiter holds one identity to its limits. Its connectors and its exchanges share it, in
// [Options].Limiter. It is safe for concurrent use; a nil Limiter is without limits.
//
// In no window of a limit's length does the server see more requests than the limit allows, as
// long as a request is less than 100 ms on its way: a request counts until one length after its
// response's headers came, or after 100 ms past its writing, whichever is first.
type Limiter struct {
	windows []window // by length
	max     int      // calls in flight; 0 is any number
	base    time.Time
	paused  atomic.Bool // until is set
	shared  *shared     // the windows of all processes, or nil

	mu      sync.Mutex    // all below; its times are since base, by the monotonic clock
	queue   []*slot       // waiting: exchanges, then calls, each first come first served
	stamps  ring          // a stamp for each slot, for as long as the longest window
	placed  int           // calls in flight
	until   time.Duration // a pause's end; 0 is none
	soonest time.Duration // no waiter is to be refused before; never is none, 0 is to look at once
	shown   *window       // the one that answers speak of
	timer   *time.Timer   // wakes the head of the queue
	armed   time.Duration // when; never is not at all
}

// NewLimiter makes the limiter of one identity. All limits hold at once; one without requests or
// length is none. maxConcurrency is the number of calls in flight, until their response bodies
// end, exchanges not counted; 0 is any number.
func NewLimiter(limits []auth.Limit, maxConcurrency int) *Limiter {
	l := &Limiter{max: maxConcurrency, base: time.Now(), soonest: never, armed: never}
	for _, limit := range limits {
		if limit.Requests > 0 && limit.Per > 0 {
			l.windows = append(l.windows, window{requests: limit.Requests, ours: limit.Requests, per: min(limit.Per, never/4)})
		}
	}
	slices.SortFunc(l.windows, func(a, b window) int { return cmp.Compare(a.per, b.per) })
	if n := len(l.windows); n > 0 {
		l.shown = &l.windows[n-1]
	}
	return l
}

// limited reports whether there is a window, so that slots need to know when they were written.
func (l *Limiter) limited() bool { return l != nil && len(l.windows) > 0 }

// acquireHere waits for a slot in every window and, unless it is for an exchange, for a place among
// the calls in flight. Exchanges stand before calls. If the slot cannot come before deadline (zero
// is none) or ctx's own, acquireHere returns [auth.ErrRateLimited] at once. If ctx ends, it returns
// the cause and takes nothing. The slot may be nil. waited reports whether there was a wait.
func (l *Limiter) acquireHere(ctx context.Context, exchange bool, deadline time.Time) (_ *slot, waited bool, err error) {
	if l == nil || len(l.windows) == 0 && l.max <= 0 && !l.paused.Load() {
		return nil, false, nil
	}
	if ctx.Err() != nil {
		return nil, false, context.Cause(ctx)
	}
	s := &slot{l: l, exchange: exchange}
	l.mu.Lock()
	now := l.advance()
	ahead := l.ahead(exchange)
	at := l.earliest(now, ahead)
	if ahead == 0 && at <= now && l.hasPlace(s) || exchange && l.decidedThere(now) {
		l.grant(s, now)
		l.mu.Unlock()
		return s, false, nil
	}
	s.due, s.last = l.ends(ctx, deadline)
	if s.last < at {
		l.mu.Unlock()
		return nil, false, refusal(at, s.last, now)
	}
	l.soonest = min(l.soonest, s.due)
	s.ready = make(chan struct{})
	l.queue = slices.Insert(l.queue, ahead, s)
	l.dispatch(now)
	l.mu.Unlock()

	select {
	case <-s.ready:
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		s.cancel()
		return nil, true, context.Cause(ctx)
	}
	if s.err != nil {
		return nil, true, s.err
	}
	return s, true, nil
}

// ends gives when a wait ends by deadline, and when by that or by ctx's own, whichever is first.
func (l *Limiter) ends(ctx context.Context, deadline time.Time) (due, last time.Duration) {
	due, last = never, never
	if !deadline.IsZero() {
		due = deadline.Sub(l.base)
	}
	if d, ok := ctx.Deadline(); ok {
		last = d.Sub(l.base)
	}
	return due, min(due, last)
}

// wait is how long, as far as is known, one that came now would wait for its slot.
func (l *Limiter) wait(exchange bool) time.Duration {
	if l == nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.advance()
	return l.earliest(now, l.ahead(exchange)) - now
}

// ahead is how many in the queue stand before one that comes.
func (l *Limiter) ahead(exchange bool) int {
	n := len(l.queue)
	for exchange && n > 0 && !l.queue[n-1].exchange {
		n--
	}
	return n
}

// pause lets nobody leave before until. It extends an earlier pause and never shortens it.
func (l *Limiter) pause(until time.Time) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.advance()
	if t := until.Sub(l.base); t > max(now, l.until) {
		l.until, l.soonest = t, 0
		l.paused.Store(true)
		l.dispatch(now)
	}
}

// advance brings the books up to now.
func (l *Limiter) advance() (now time.Duration) {
	now = time.Since(l.base)
	for i := range l.windows {
		l.windows[i].slide(&l.stamps, now)
		l.stamps.head = l.windows[i].first
	}
	if l.until != 0 && l.until <= now && len(l.queue) == 0 {
		l.until = 0
		l.paused.Store(false)
	}
	return now
}

// own is how many slots of ours count in w.
func (l *Limiter) own(w *window) int { return l.stamps.tail - w.first }

func (l *Limiter) hasPlace(s *slot) bool { return s.exchange || l.max <= 0 || l.placed < l.max }

// earliest is when, as far as is known, a request with so many ahead of it may leave. It is never
// too late, and right for the first in the queue once all requests have been received.
func (l *Limiter) earliest(now time.Duration, ahead int) time.Duration {
	at := max(now, l.until)
	for i := range l.windows {
		w := &l.windows[i]
		at = max(at, l.release(w, w.ours, ahead, now))
		if room := w.room(now); room < w.ours {
			at = max(at, min(l.release(w, room, ahead, now), max(w.seen, w.probed)+probeEvery, w.seen+w.per+1))
		}
	}
	return at
}

// release is when w, with room for so many of ours, lets the next but ahead go: all that have left
// and all that are ahead stand in one line, and room places before it one must be out of the window.
func (l *Limiter) release(w *window, room, ahead int, now time.Duration) time.Duration {
	if room <= 0 || time.Duration(ahead/room) > never/4/w.per {
		return never
	}
	// As many as there is room for leave at a time, the last of them before one that has left.
	late := time.Duration(ahead/room) * w.per
	n := l.own(w) + ahead%room + 1 - room
	if n <= 0 {
		return now + late
	}
	// What is not received yet may be now.
	return min(now, l.stamps.at(w.first+n-1)) + w.per + 1 + late
}

// dispatch lets those go who can, refuses those who can no more, and sets the timer for the rest.
// A timer that is early does no harm, so events that only bring a release closer to what earliest
// had promised need not call it.
func (l *Limiter) dispatch(now time.Duration) {
	wake, granted := never, 0
	for _, s := range l.queue {
		if at := l.earliest(now, 0); at > now {
			wake = at
			break
		}
		if !l.hasPlace(s) {
			break
		}
		l.grant(s, now)
		close(s.ready)
		granted++
	}
	l.queue = slices.Delete(l.queue, 0, granted)
	if l.soonest <= now {
		l.sweep(now)
	}
	if len(l.queue) == 0 {
		wake, l.soonest = never, never
	}
	l.arm(min(wake, l.soonest), now)
}

// sweep refuses the waiters that do not fit any more.
func (l *Limiter) sweep(now time.Duration) {
	l.soonest = never
	ahead := 0
	l.queue = slices.DeleteFunc(l.queue, func(s *slot) bool {
		at := l.earliest(now, ahead)
		// The end of ctx itself is for acquireHere to see.
		if s.due <= now || s.last > now && s.last < at {
			s.err = refusal(at, s.last, now)
			close(s.ready)
			return true
		}
		l.soonest = min(l.soonest, s.due)
		ahead++
		return false
	})
}

func (l *Limiter) arm(wake, now time.Duration) {
	switch {
	case wake == never && l.armed != never:
		l.timer.Stop()
	case wake >= l.armed:
		return
	case l.timer == nil:
		l.timer = time.AfterFunc(wake-now, l.tick)
	default:
		l.timer.Reset(wake - now)
	}
	l.armed = wake
}

func (l *Limiter) tick() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.armed = never
	l.dispatch(l.advance())
}

func (l *Limiter) grant(s *slot, now time.Duration) {
	for i := range l.windows {
		if w := &l.windows[i]; l.own(w) >= w.room(now) {
			w.probed = now
		}
	}
	if l.limited() {
		l.stamps.push(never)
		s.stamp = never
		s.date(now)
	}
	if !s.exchange && l.max > 0 {
		s.placed = true
		l.placed++
	}
}

func refusal(at, last, now time.Duration) error {
	err := fmt.Errorf("%w: the wait for a slot would outlast the deadline", auth.ErrRateLimited)
	if last <= now {
		err = fmt.Errorf("%w: no slot before the deadline: %w", auth.ErrRateLimited, context.DeadlineExceeded)
	}
	return &auth.Error{Op: "request", RetryAfter: at - now, Err: err}
}

// slot is one request's share of the limits. A nil slot is one without limits.
type slot struct {
	l        *Limiter
	exchange bool
	placed   bool          // counts among the calls in flight
	stamp    time.Duration // of its place in the windows: never until written; 0: none that may still change
	at       time.Duration // when it was taken, then when it was written
	window   *window       // the one that answers speak of,
	own      int           // and how many of ours counted there at that time

	// Among all processes.
	id    string      // "" is none
	lapse *time.Timer // releases it, oneWay past the writing

	// While it waits.
	due   time.Duration // when it gives up
	last  time.Duration // when that or ctx's deadline ends the wait
	ready chan struct{} // closed when it need not wait any more
	err   error
}

// date notes what the server may have seen of ours when it sees s.
func (s *slot) date(now time.Duration) {
	s.at, s.window = now, s.l.shown
	s.own = s.l.own(s.window)
}

// wrote notes that the request was written.
func (s *slot) wrote() {
	if s == nil {
		return
	}
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	if s.stamp == never {
		s.leaves(s.l.advance())
	}
}

// leaves stamps a request that is on its way from now on.
func (s *slot) leaves(now time.Duration) {
	s.stamp = now + oneWay
	s.l.stamps.move(never, s.stamp)
	s.date(now)
	s.wroteThere()
}

// again waits for another slot of the windows, at the head of the queue, if the request was written:
// net/http, unasked, is about to send it once more, and the server may see both. s is that slot then.
func (s *slot) again(ctx context.Context, deadline time.Time) error {
	l := s.l
	l.mu.Lock()
	written := s.stamp != never
	l.mu.Unlock()
	if !written {
		return nil
	}
	s.failed()
	other, _, err := l.acquire(ctx, true, deadline)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.stamp == never { // a Wrap sends it several times at once
		s.leaves(l.advance())
	}
	s.stamp, s.id, s.lapse = other.stamp, other.id, nil
	s.date(l.advance())
	return nil
}

// failed notes that the attempt failed. What of it was sent may be on its way all the same, and what
// was not may be about to be.
func (s *slot) failed() {
	if s == nil {
		return
	}
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	if s.stamp == never {
		s.leaves(s.l.advance())
	}
	s.stamp = 0
}

// answered notes that response headers came.
func (s *slot) answered() {
	if s == nil {
		return
	}
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	s.finish(s.l.advance())
}

// observe takes from an answer's X-RateLimit-Limit and X-RateLimit-Remaining how much others use of
// the account. They speak of the window of that limit, or else of the longest, and of the time when
// the request was written, however late they come.
func (s *slot) observe(h http.Header) {
	if s == nil || !s.l.limited() {
		return
	}
	limit, ok := headerCount(h.Get("X-Ratelimit-Limit"))
	remaining, ok2 := headerCount(h.Get("X-Ratelimit-Remaining"))
	if !ok || !ok2 || limit == 0 || remaining > limit {
		return
	}
	l := s.l
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.advance()
	w := &l.windows[len(l.windows)-1]
	for i := range l.windows {
		if l.windows[i].requests == limit {
			w = &l.windows[i]
		}
	}
	l.shown = w
	room := w.room(now)
	if s.window == w {
		w.observe(remaining, s.own, s.at)
	} else {
		w.observe(remaining, l.own(w), now)
	}
	if w.room(now) < room {
		l.soonest = 0
	}
	l.dispatch(now)
}

func headerCount(s string) (int, bool) {
	n, err := strconv.ParseUint(s, 10, 31)
	return int(n), err == nil
}

// done notes that the response body has ended: the call's place is free. It includes answered.
func (s *slot) done() { s.leave(true) }

// cancel notes that the request was never sent, or that nobody waits for the slot any more: slot and
// place are free at once. What was written nevertheless has failed.
func (s *slot) cancel() { s.leave(false) }

func (s *slot) leave(sent bool) {
	if s == nil {
		return
	}
	l := s.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if sent && s.stamp == 0 && !s.placed {
		return
	}
	now := l.advance()
	if !sent {
		l.queue = slices.DeleteFunc(l.queue, func(waiting *slot) bool { return waiting == s })
		if s.stamp == never {
			l.stamps.tail--
			s.overThere(false)
		}
		s.stamp = 0
	}
	s.finish(now)
	if s.placed {
		s.placed = false
		l.placed--
	}
	l.dispatch(now)
}

// finish stamps the slot for good: by now the request has been received.
func (s *slot) finish(now time.Duration) {
	if s.stamp == 0 {
		return
	}
	if s.stamp > now {
		s.l.stamps.move(s.stamp, now)
	}
	s.stamp = 0
	s.overThere(true)
}
