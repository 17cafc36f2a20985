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
	open    bool        // without windows and max, only a pause can hold anybody
	paused  atomic.Bool // until is set
	shared  *shared     // the windows of all processes, or nil

	mu        sync.Mutex    // all below; its times are since base, by the monotonic clock
	exchanges slotList      // waiting, first come first served
	calls     slotList      // waiting behind them
	taken     int           // slots neither written nor answered
	sent      slotList      // slots written less than oneWay ago and not answered
	stamps    ring          // slots written or answered, for as long as the longest window
	placed    int           // calls in flight
	until     time.Duration // a pause's end; 0 is none
	soonest   time.Duration // no deadline that is ours to watch ends before; never is none
	recheck   bool          // waiters that fitted may fit no more
	shown     *window       // the one that answers speak of
	timer     *time.Timer   // wakes the head of the queue
	armed     time.Duration // when; never is not at all
}

// NewLimiter makes the limiter of one identity. All limits hold at once; one without requests or
// length is none. maxConcurrency is the number of calls in flight, until their response bodies
// end, exchanges not counted; 0 is any number.
func NewLimiter(limits []auth.Limit, maxConcurrency int) *Limiter {
	l := &Limiter{max: maxConcurrency, base: time.Now(), soonest: never, armed: never}
	for _, limit := range limits {
		if limit.Requests > 0 && limit.Per > 0 {
			l.windows = append(l.windows, window{requests: limit.Requests, per: min(limit.Per, never/4)})
		}
	}
	slices.SortFunc(l.windows, func(a, b window) int { return cmp.Compare(a.per, b.per) })
	if n := len(l.windows); n > 0 {
		l.shown = &l.windows[n-1]
	}
	l.open = len(l.windows) == 0 && l.max <= 0
	return l
}

// limited reports whether there is a window, so that slots need to know when they were written.
func (l *Limiter) limited() bool { return l != nil && len(l.windows) > 0 }

// acquireHere waits for a slot in every window and, unless it is for an exchange, for a place among
// the calls in flight. Exchanges stand before calls. If the slot cannot come before deadline (zero
// is none) or ctx's own, acquireHere returns [auth.ErrRateLimited] at once. If ctx ends, it returns
// the cause and takes nothing. The slot may be nil. waited reports whether there was a wait.
func (l *Limiter) acquireHere(ctx context.Context, exchange bool, deadline time.Time) (_ *slot, waited bool, err error) {
	if l == nil || l.open && !l.paused.Load() {
		return nil, false, nil
	}
	if ctx.Err() != nil {
		return nil, false, context.Cause(ctx)
	}
	s := &slot{l: l, exchange: exchange}
	l.mu.Lock()
	now := l.advance()
	queue, ahead := &l.exchanges, l.exchanges.n
	if !exchange {
		queue, ahead = &l.calls, ahead+l.calls.n
	}
	at := l.earliest(now, ahead)
	if ahead == 0 && at <= now && l.hasPlace(s) {
		l.grant(s, now)
		l.mu.Unlock()
		return s, false, nil
	}

	s.last = never
	if d, ok := ctx.Deadline(); ok {
		s.last = d.Sub(l.base)
	}
	if !deadline.IsZero() && deadline.Sub(l.base) < s.last {
		s.last, s.timed = deadline.Sub(l.base), true
	}
	if s.last < at {
		l.mu.Unlock()
		return nil, false, refusal(at, s.last, now)
	}
	if s.timed {
		l.soonest = min(l.soonest, s.last)
	}
	s.ready = make(chan struct{})
	queue.push(s)
	l.dispatch(now)
	l.mu.Unlock()

	select {
	case <-s.ready:
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		s.abandon(queue)
		return nil, true, context.Cause(ctx)
	}
	if s.err != nil {
		return nil, true, s.err
	}
	return s, true, nil
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
		l.until, l.recheck = t, true
		l.paused.Store(true)
		l.dispatch(now)
	}
}

// learn takes from an answer's X-RateLimit-Limit and X-RateLimit-Remaining how much others use of
// the account. They speak of the window of that limit, or else of the longest.
func (l *Limiter) learn(h http.Header, s *slot) {
	limit, ok := headerCount(h.Get("X-Ratelimit-Limit"))
	remaining, ok2 := headerCount(h.Get("X-Ratelimit-Remaining"))
	if !ok || !ok2 || limit == 0 || remaining > limit {
		return
	}
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
	if s != nil && s.window == w {
		w.observe(remaining, s.own, s.at)
	} else {
		w.observe(remaining, l.own(w), now)
	}
	l.recheck = l.recheck || w.room(now) < room
	l.dispatch(now)
}

func headerCount(s string) (int, bool) {
	n, err := strconv.ParseUint(s, 10, 31)
	return int(n), err == nil
}

// advance brings the books up to now. Each change of them begins with it, so that stamps are
// pushed in order.
func (l *Limiter) advance() (now time.Duration) {
	now = time.Since(l.base)
	for s := l.sent.front; s != nil && s.at+oneWay <= now; s = l.sent.front {
		l.sent.remove(s)
		l.stamp(s.at + oneWay)
		s.state = slotLapsed
	}
	for i := range l.windows {
		l.windows[i].slide(&l.stamps, now)
		l.stamps.head = l.windows[i].first
	}
	if l.until != 0 && l.until <= now && l.waiting() == 0 {
		l.until = 0
		l.paused.Store(false)
	}
	return now
}

func (l *Limiter) stamp(t time.Duration) {
	if l.limited() {
		l.stamps.push(t)
	}
}

func (l *Limiter) waiting() int { return l.exchanges.n + l.calls.n }

// own is how many slots of ours count in w.
func (l *Limiter) own(w *window) int { return l.taken + l.sent.n + l.stamps.tail - w.first }

func (l *Limiter) hasPlace(s *slot) bool { return s.exchange || l.max <= 0 || l.placed < l.max }

// earliest is when, as far as is known, a request with so many ahead of it may leave. It is never
// too late, and right for the first in the queue once all slots are stamped.
func (l *Limiter) earliest(now time.Duration, ahead int) time.Duration {
	at := max(now, l.until)
	for i := range l.windows {
		w := &l.windows[i]
		at = max(at, l.release(w, w.requests, ahead, now))
		if room := w.room(now); room < w.requests {
			at = max(at, min(l.release(w, room, ahead, now), max(w.seen, w.probed)+probeEvery, w.seen+w.per+1))
		}
	}
	return at
}

// release is when w, with room for so many of ours, lets the next but ahead go.
func (l *Limiter) release(w *window, room, ahead int, now time.Duration) time.Duration {
	// All that have left and all that are ahead stand in one line; the nth must be out of the window.
	own := l.own(w)
	n := own + ahead + 1 - room
	if n <= 0 {
		return now
	}
	if room <= 0 {
		return never
	}
	var late time.Duration
	if n > own { // that one has not left itself: it will not before one of those has, room places earlier
		turns := (n - own + room - 1) / room
		if time.Duration(turns) > never/4/w.per {
			return never
		}
		n, late = n-turns*room, time.Duration(turns)*w.per
	}
	switch stamped := l.stamps.tail - w.first; {
	case n <= 0:
		return now + late
	case n <= stamped:
		return l.stamps.at(w.first+n-1) + w.per + 1 + late
	default: // it may be answered now
		return now + w.per + late
	}
}

// dispatch lets those go who can, refuses those who can no more, and sets the timer for the rest.
// A timer that is early does no harm, so events that only bring a release closer to what earliest
// had promised need not call it.
func (l *Limiter) dispatch(now time.Duration) {
	wake := never
	for l.waiting() > 0 {
		queue := &l.exchanges
		if queue.n == 0 {
			queue = &l.calls
		}
		s := queue.front
		if at := l.earliest(now, 0); at > now {
			wake = at
			break
		}
		if !l.hasPlace(s) {
			break
		}
		queue.remove(s)
		l.grant(s, now)
		close(s.ready)
	}
	if l.recheck || l.soonest <= now {
		l.sweep(now)
	}
	if l.waiting() == 0 {
		wake, l.soonest = never, never
	}
	l.arm(min(wake, l.soonest), now)
}

// sweep refuses the waiters that do not fit any more.
func (l *Limiter) sweep(now time.Duration) {
	l.soonest, l.recheck = never, false
	ahead := 0
	for _, queue := range [...]*slotList{&l.exchanges, &l.calls} {
		for s, next := queue.front, (*slot)(nil); s != nil; s = next {
			next = s.next
			at := l.earliest(now, ahead)
			// The end of ctx itself is for acquire to see.
			if s.last <= now && s.timed || s.last > now && s.last < at {
				queue.remove(s)
				s.state, s.err = slotOver, refusal(at, s.last, now)
				close(s.ready)
				continue
			}
			if s.timed {
				l.soonest = min(l.soonest, s.last)
			}
			ahead++
		}
	}
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
	s.state = slotTaken
	l.taken++
	l.date(s, now)
	if !s.exchange && l.max > 0 {
		s.placed = true
		l.placed++
	}
}

// date notes what the server may have seen of ours when it sees s.
func (l *Limiter) date(s *slot, now time.Duration) {
	s.at = now
	if s.window = l.shown; s.window != nil {
		s.own = l.own(s.window)
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
	l          *Limiter
	prev, next *slot
	exchange   bool
	placed     bool // counts among the calls in flight
	state      slotState
	at         time.Duration // when it was taken, then when it was written
	window     *window       // the one that answers speak of,
	own        int           // and how many of ours counted there at that time
	there      *sharedSlot   // among all processes

	// While it waits.
	last  time.Duration // when it gives up
	timed bool          // which is not ctx's deadline
	ready chan struct{} // closed when it need not wait any more
	err   error
}

type slotState uint8

const (
	slotWaiting slotState = iota
	slotTaken             // neither written nor answered: it counts until it is
	slotSent              // written
	slotLapsed            // written oneWay ago
	slotOver              // answered, cancelled or refused
)

// wrote notes that the request was written. Once more means that net/http, unasked, has sent it
// again on another connection: the server may have seen both.
func (s *slot) wrote() {
	if s == nil {
		return
	}
	l := s.l
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.advance()
	switch s.state {
	case slotTaken:
		l.taken--
	case slotSent:
		l.sent.remove(s)
		l.stamp(now)
	case slotOver:
		return
	}
	s.state = slotSent
	l.sent.push(s)
	l.date(s, now)
	s.wroteThere()
}

// answered notes that response headers came, or that the attempt failed and may have been sent.
func (s *slot) answered() {
	if s == nil {
		return
	}
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	s.finish(s.l.advance())
}

// observe learns from the answer to this slot's request how much others use of the account: what it
// shows was so when the request was written, however late it comes.
func (s *slot) observe(h http.Header) {
	if s != nil && s.l.limited() {
		s.l.learn(h, s)
	}
}

// done notes that the response body has ended: the call's place is free. It includes answered.
func (s *slot) done() {
	if s != nil {
		s.l.mu.Lock()
		defer s.l.mu.Unlock()
		s.giveBack(true)
	}
}

// cancel notes that the request was never sent: slot and place are free at once.
func (s *slot) cancel() {
	if s != nil {
		s.l.mu.Lock()
		defer s.l.mu.Unlock()
		s.giveBack(false)
	}
}

// abandon is for a slot whose waiter has gone, granted meanwhile or not.
func (s *slot) abandon(queue *slotList) {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	if s.state != slotWaiting {
		s.giveBack(false)
		return
	}
	queue.remove(s)
	s.l.dispatch(s.l.advance())
}

func (s *slot) giveBack(used bool) {
	l := s.l
	if s.state == slotOver && !s.placed {
		return
	}
	now := l.advance()
	if s.state == slotTaken && !used {
		l.taken--
		s.state = slotOver
		s.overThere(false)
	}
	s.finish(now)
	if s.placed {
		s.placed = false
		l.placed--
	}
	l.dispatch(now)
}

func (s *slot) finish(now time.Duration) {
	switch s.state {
	case slotTaken:
		s.l.taken--
		s.l.stamp(now)
	case slotSent:
		s.l.sent.remove(s)
		s.l.stamp(now)
	}
	s.state = slotOver
	s.overThere(true)
}

// slotList is a queue of slots that can be left from anywhere.
type slotList struct {
	front, back *slot
	n           int
}

func (q *slotList) push(s *slot) {
	s.prev, s.next = q.back, nil
	if q.back == nil {
		q.front = s
	} else {
		q.back.next = s
	}
	q.back = s
	q.n++
}

func (q *slotList) remove(s *slot) {
	if s.prev == nil {
		q.front = s.next
	} else {
		s.prev.next = s.next
	}
	if s.next == nil {
		q.back = s.prev
	} else {
		s.next.prev = s.prev
	}
	s.prev, s.next = nil, nil
	q.n--
}
