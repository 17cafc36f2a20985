// Package limit makes the requests of one identity wait until the rate limits permit them.
package limit

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

const (
	// oneWay is how long a request may travel to the server, for the windows to be exact.
	oneWay = 100 * time.Millisecond
	// probeEvery is how often one request is sent to see whether others still use the whole limit.
	probeEvery = 10 * time.Second

	never = time.Duration(math.MaxInt64)
)

// Queue grants slots to requests, exchanges first, each in order of arrival. It is safe for concurrent
// use; a nil Queue has no limits.
type Queue struct {
	windows []window // sorted by length
	max     int      // calls in flight; 0: any number
	base    time.Time
	paused  atomic.Bool // pauseEnd is set
	shared  *shared     // the windows of all processes, or nil

	mu          sync.Mutex    // protects what follows; times are since base, by the monotonic clock
	waiting     []*Slot       // exchanges, then calls
	arrivals    arrivalTimes  // of the slots that count in the longest window
	inFlight    int           // calls
	pauseEnd    time.Duration // 0: no pause
	nextRefusal time.Duration // earliest deadline of a waiter; 0: check now; never: no waiter
	observed    *window       // that the server's headers describe
	timer       *time.Timer   // wakes the first waiter
}

// New returns a Queue for limits, which hold together, and for maxConcurrency calls in flight; 0 is any
// number. A limit without requests or length is ignored.
func New(limits []auth.Limit, maxConcurrency int) *Queue {
	q := &Queue{max: maxConcurrency, base: time.Now(), nextRefusal: never}
	q.timer = time.AfterFunc(never, q.tick)
	q.timer.Stop() // a running timer would keep q in memory
	for _, l := range limits {
		if l.Requests > 0 && l.Per > 0 {
			q.windows = append(q.windows, window{requests: l.Requests, share: l.Requests, per: min(l.Per, never/4)})
		}
	}
	slices.SortFunc(q.windows, func(a, b window) int { return cmp.Compare(a.per, b.per) })
	if n := len(q.windows); n > 0 {
		q.observed = &q.windows[n-1]
	}
	return q
}

// Limited reports whether there is a window, so that a Slot must know when its request is written.
func (q *Queue) Limited() bool { return q != nil && len(q.windows) > 0 }

// Acquire waits for a slot in every window and, unless for an exchange, until fewer than maxConcurrency
// calls are in flight. It returns [auth.ErrRateLimited] at once if the slot cannot come before deadline
// (zero: none) or ctx's own, and the cause if ctx ends. The Slot may be nil. waited reports whether
// Acquire had to wait.
func (q *Queue) Acquire(ctx context.Context, exchange bool, deadline time.Time) (s *Slot, waited bool, err error) {
	for {
		s, waited, err = q.acquireLocal(ctx, exchange, deadline)
		if s == nil || q.shared == nil {
			return s, waited, err
		}
		ok, err := q.acquireShared(ctx, s, deadline)
		if ok {
			return s, true, nil
		}
		s.Cancel()
		if err != nil {
			return nil, true, err
		}
	}
}

// acquireLocal is Acquire as if this process were the only one.
func (q *Queue) acquireLocal(ctx context.Context, exchange bool, deadline time.Time) (_ *Slot, waited bool, err error) {
	if q == nil || len(q.windows) == 0 && q.max <= 0 && !q.paused.Load() {
		return nil, false, nil
	}
	if ctx.Err() != nil {
		return nil, false, context.Cause(ctx)
	}
	s := &Slot{q: q, exchange: exchange}
	q.mu.Lock()
	now := q.advanceLocked()
	ahead := q.aheadLocked(exchange)
	at := q.earliestLocked(now, ahead)
	if ahead == 0 && at <= now && q.mayStartLocked(s) || exchange && q.sharedDecidesLocked(now) {
		q.grantLocked(s, now)
		q.mu.Unlock()
		return s, false, nil
	}
	s.deadline, s.giveUp = q.waitLimits(ctx, deadline)
	if s.giveUp < at {
		q.mu.Unlock()
		return nil, false, refusal(at, s.giveUp, now)
	}
	q.nextRefusal = min(q.nextRefusal, s.deadline)
	s.ready = make(chan struct{})
	q.waiting = slices.Insert(q.waiting, ahead, s)
	q.dispatchLocked(now)
	q.mu.Unlock()

	select {
	case <-s.ready:
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		s.Cancel()
		return nil, true, context.Cause(ctx)
	}
	if s.err != nil {
		return nil, true, s.err
	}
	return s, true, nil
}

// waitLimits returns when deadline ends a wait, and when deadline or ctx's own does.
func (q *Queue) waitLimits(ctx context.Context, deadline time.Time) (byDeadline, byEither time.Duration) {
	byDeadline, byEither = never, never
	if !deadline.IsZero() {
		byDeadline = deadline.Sub(q.base)
	}
	if d, ok := ctx.Deadline(); ok {
		byEither = d.Sub(q.base)
	}
	return byDeadline, min(byDeadline, byEither)
}

// Wait returns how long, as far as is known, a request that came now would wait for its slot.
func (q *Queue) Wait(exchange bool) time.Duration {
	if q == nil {
		return 0
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.advanceLocked()
	return q.earliestLocked(now, q.aheadLocked(exchange)) - now
}

// aheadLocked returns how many waiters a new one has in front.
func (q *Queue) aheadLocked(exchange bool) int {
	n := len(q.waiting)
	for exchange && n > 0 && !q.waiting[n-1].exchange {
		n--
	}
	return n
}

// Pause grants no slot before until. It extends an earlier pause and never shortens it.
func (q *Queue) Pause(until time.Time) {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.advanceLocked()
	if t := until.Sub(q.base); t > max(now, q.pauseEnd) {
		q.pauseEnd, q.nextRefusal = t, 0
		q.paused.Store(true)
		q.dispatchLocked(now)
	}
}

// advanceLocked returns the time, after dropping what has left the windows and a pause that is over.
func (q *Queue) advanceLocked() (now time.Duration) {
	now = time.Since(q.base)
	for i := range q.windows {
		q.windows[i].slide(&q.arrivals, now)
	}
	if q.Limited() {
		q.arrivals.forget(q.windows[len(q.windows)-1].first)
	}
	if q.pauseEnd != 0 && q.pauseEnd <= now && len(q.waiting) == 0 {
		q.pauseEnd = 0
		q.paused.Store(false)
	}
	return now
}

// sentLocked returns how many of our requests count in w.
func (q *Queue) sentLocked(w *window) int { return q.arrivals.tail() - w.first }

// mayStartLocked reports whether s keeps to maxConcurrency.
func (q *Queue) mayStartLocked(s *Slot) bool { return !s.limitsConcurrency() || q.inFlight < q.max }

// earliestLocked returns when, as far as is known, a request with so many waiters ahead can be sent. It
// is never too late, and exact for the first waiter once all requests have been received.
func (q *Queue) earliestLocked(now time.Duration, ahead int) time.Duration {
	at := max(now, q.pauseEnd)
	for i := range q.windows {
		w := &q.windows[i]
		at = max(at, q.freeAtLocked(w, w.share, ahead, now))
		if n := w.capacity(now); n < w.share {
			at = max(at, min(q.freeAtLocked(w, n, ahead, now), max(w.observedAt, w.probedAt)+probeEvery, w.observedAt+w.per+1))
		}
	}
	return at
}

// freeAtLocked returns when w, holding at most capacity of our requests, can take one more after ahead
// waiters. Sent requests and waiters form one sequence: the entry capacity places earlier must have left.
func (q *Queue) freeAtLocked(w *window, capacity, ahead int, now time.Duration) time.Duration {
	if capacity <= 0 || time.Duration(ahead/capacity) > never/4/w.per {
		return never
	}
	fullWindows := time.Duration(ahead/capacity) * w.per
	n := q.sentLocked(w) + ahead%capacity + 1 - capacity
	if n <= 0 {
		return now + fullWindows
	}
	// A request that is still on its way may arrive now.
	return min(now, q.arrivals.at(w.first+n-1)) + w.per + 1 + fullWindows
}

// dispatchLocked grants the slots that are due, refuses waiters that no longer fit, and sets the timer.
// It need not be called when a slot becomes free sooner than expected: an early timer does no harm.
func (q *Queue) dispatchLocked(now time.Duration) {
	wake, grants := never, 0
	for _, s := range q.waiting {
		if at := q.earliestLocked(now, 0); at > now {
			wake = at
			break
		}
		if !q.mayStartLocked(s) {
			break
		}
		q.grantLocked(s, now)
		close(s.ready)
		grants++
	}
	q.waiting = slices.Delete(q.waiting, 0, grants)
	if q.nextRefusal <= now {
		q.refuseLocked(now)
	}
	if len(q.waiting) == 0 {
		wake, q.nextRefusal = never, never
	}
	if wake = min(wake, q.nextRefusal); wake == never {
		q.timer.Stop()
	} else {
		q.timer.Reset(wake - now)
	}
}

// refuseLocked refuses the waiters that no longer fit their deadlines.
func (q *Queue) refuseLocked(now time.Duration) {
	q.nextRefusal = never
	ahead := 0
	q.waiting = slices.DeleteFunc(q.waiting, func(s *Slot) bool {
		at := q.earliestLocked(now, ahead)
		// If ctx itself has ended, acquireLocal notices.
		if s.deadline <= now || s.giveUp > now && s.giveUp < at {
			s.state, s.err = released, refusal(at, s.giveUp, now)
			close(s.ready)
			return true
		}
		q.nextRefusal = min(q.nextRefusal, s.deadline)
		ahead++
		return false
	})
}

func (q *Queue) tick() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.dispatchLocked(q.advanceLocked())
}

func (q *Queue) grantLocked(s *Slot, now time.Duration) {
	for i := range q.windows {
		if w := &q.windows[i]; q.sentLocked(w) >= w.capacity(now) {
			w.probedAt = now
		}
	}
	s.state = granted
	if q.Limited() {
		q.arrivals.push(never)
		s.snapshotUseLocked(now)
	}
	if s.limitsConcurrency() {
		q.inFlight++
	}
}

func refusal(at, giveUp, now time.Duration) error {
	err := fmt.Errorf("%w: the wait for a slot would outlast the deadline", auth.ErrRateLimited)
	if giveUp <= now {
		err = fmt.Errorf("%w: no slot before the deadline: %w", auth.ErrRateLimited, context.DeadlineExceeded)
	}
	return &auth.Error{Op: "request", RetryAfter: at - now, Err: err}
}
