package limit

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// state is how far a slot's request has come. It only increases, except in Resend.
type state uint8

const (
	queued   state = iota // waits in the Queue
	granted               // counts in the windows; not written yet
	written               // on its way; received at arrival, at the latest
	received              // its time in the windows is final
	released              // no longer in flight; nothing changes any more
)

// Slot is one request's share of the limits. The methods of a nil Slot, which has none, do nothing.
type Slot struct {
	q        *Queue
	exchange bool
	state    state
	arrival  time.Duration // once written: when the request has been received, at the latest

	// For Observe: the use that the server can have seen when it handles the request.
	usedAt     time.Duration // when the slot was granted, then when the request was written
	usedWindow *window
	used       int // requests of ours

	sharedID string      // among all processes; "": none
	lapse    *time.Timer // releases sharedID oneWay after the writing

	// While it waits.
	deadline time.Duration // when the wait is refused
	giveUp   time.Duration // when that or ctx's deadline ends the wait
	ready    chan struct{} // closed when the wait is over
	err      error
}

// limitsConcurrency reports whether the request counts against maxConcurrency.
func (s *Slot) limitsConcurrency() bool { return !s.exchange && s.q.max > 0 }

// snapshotUseLocked records how many of our requests the server can have counted when it handles this
// one.
func (s *Slot) snapshotUseLocked(now time.Duration) {
	s.usedAt, s.usedWindow = now, s.q.observed
	s.used = s.q.sentLocked(s.usedWindow)
}

// update runs f with the Queue locked, unless s is nil.
func (s *Slot) update(f func(now time.Duration)) {
	if s == nil {
		return
	}
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	f(s.q.advanceLocked())
}

// Wrote notes that the request was written.
func (s *Slot) Wrote() { s.update(s.writtenLocked) }

func (s *Slot) writtenLocked(now time.Duration) {
	if s.state != granted {
		return
	}
	s.state, s.arrival = written, now+oneWay
	if s.q.Limited() {
		s.q.arrivals.move(never, s.arrival)
		s.snapshotUseLocked(now)
	}
	if release, id := s.q.shared, s.sharedID; id != "" {
		s.lapse = time.AfterFunc(oneWay, func() { release.Release(id, true) })
	}
}

// Resend must be called when net/http is about to send a request, the first time or again. If the server
// may have processed what was written, it may see both: then Resend takes a second slot, ahead of all
// calls. The Slot stands for the latest sending.
func (s *Slot) Resend(ctx context.Context, deadline time.Time, processed bool) (err error) {
	unwritten := false
	s.update(func(now time.Duration) {
		if !processed {
			s.unwriteLocked(now)
		}
		unwritten = s.state == granted
	})
	if unwritten {
		return nil
	}
	s.Failed()
	second, _, err := s.q.Acquire(ctx, true, deadline)
	if err != nil {
		return err
	}
	s.update(func(now time.Duration) {
		if s.state == released { // the call ended meanwhile
			second.cancelLocked(now)
			err = context.Canceled
			return
		}
		s.writtenLocked(now) // a Wrap may send the request several times at once
		s.state, s.sharedID, s.lapse = granted, second.sharedID, nil
		s.snapshotUseLocked(now)
	})
	return err
}

// unwriteLocked takes back that the request was written, unless it has left a window by now.
func (s *Slot) unwriteLocked(now time.Duration) {
	if s.state != written || !s.q.Limited() || now-s.arrival > s.q.windows[0].per || s.lapse != nil && !s.lapse.Stop() {
		return
	}
	s.state, s.lapse = granted, nil
	s.q.arrivals.postpone(s.arrival)
	s.snapshotUseLocked(now)
}

// Failed notes that the attempt failed. The server may still receive the request, so it counts as if it
// arrived oneWay after its writing, or from now on.
func (s *Slot) Failed() {
	s.update(func(now time.Duration) {
		s.writtenLocked(now)
		if s.state == written {
			s.state = received
		}
	})
}

// Received notes that response headers came.
func (s *Slot) Received() { s.update(s.receivedLocked) }

func (s *Slot) receivedLocked(now time.Duration) {
	switch {
	case s.state == granted:
		s.q.arrivals.move(never, now)
	case s.state != written:
		return
	case s.arrival > now:
		s.q.arrivals.move(s.arrival, now)
	}
	s.state = received
	s.releaseSharedLocked(true)
}

// Observe reads from X-RateLimit-Limit and X-RateLimit-Remaining how much of the limit others use. They
// describe the window of that limit, or else the longest, when the request was written.
func (s *Slot) Observe(h http.Header) {
	if s == nil || !s.q.Limited() {
		return
	}
	limit, ok := headerCount(h.Get("X-Ratelimit-Limit"))
	remaining, ok2 := headerCount(h.Get("X-Ratelimit-Remaining"))
	if !ok || !ok2 || limit == 0 || remaining > limit {
		return
	}
	s.update(func(now time.Duration) {
		q := s.q
		w := &q.windows[len(q.windows)-1]
		for i := range q.windows {
			if q.windows[i].requests == limit {
				w = &q.windows[i]
			}
		}
		q.observed = w
		before := w.capacity(now)
		if s.usedWindow == w {
			w.observe(remaining, s.used, s.usedAt)
		} else {
			w.observe(remaining, q.sentLocked(w), now)
		}
		if w.capacity(now) < before {
			q.nextRefusal = 0
		}
		q.dispatchLocked(now)
	})
}

func headerCount(s string) (int, bool) {
	n, err := strconv.ParseUint(s, 10, 31)
	return int(n), err == nil
}

// Done notes that the response body has ended, so that the call is no longer in flight. If headers never
// came, Done is Received too.
func (s *Slot) Done() {
	s.update(func(now time.Duration) {
		if s.state != released {
			s.receivedLocked(now)
			s.releaseLocked(now)
		}
	})
}

// Cancel gives the slot back if its request was not written, also while it waits. Otherwise it is Failed,
// then Done.
func (s *Slot) Cancel() { s.update(s.cancelLocked) }

func (s *Slot) cancelLocked(now time.Duration) {
	switch s.state {
	case released:
		return
	case queued:
		s.q.waiting = slices.DeleteFunc(s.q.waiting, func(waiting *Slot) bool { return waiting == s })
	case granted:
		s.q.arrivals.drop()
		s.releaseSharedLocked(false)
	}
	s.releaseLocked(now)
}

func (s *Slot) releaseLocked(now time.Duration) {
	if s.state != queued && s.limitsConcurrency() {
		s.q.inFlight--
	}
	s.state = released
	s.q.dispatchLocked(now)
}
