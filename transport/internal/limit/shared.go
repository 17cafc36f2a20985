package limit

import (
	"context"
	"crypto/rand"
	"slices"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

// retryShared is how long the shared windows are not asked after they failed.
const retryShared = time.Second

// shared is what a Queue needs to share its windows with other processes. A slot is taken from the Queue
// first, which keeps its order, then from the shared windows.
type shared struct {
	auth.Window
	exchangeTurn chan struct{} // held by the exchange that asks; the others wait in order
	callTurn     chan struct{}

	processes int           // as last reported; protected by Queue.mu, like downUntil
	downUntil time.Duration // until then each process keeps to its share; 0: the shared windows work
}

// Share makes all processes that have w keep the limits together. It must be called before the Queue is
// used. If w fails, each process keeps to its share: the limits divided by the number of processes last
// reported, and at least one request.
func (q *Queue) Share(w auth.Window) {
	if q.Limited() {
		q.shared = &shared{Window: w, exchangeTurn: make(chan struct{}, 1), callTurn: make(chan struct{}, 1), processes: 1}
	}
}

// sharedDecidesLocked reports whether an exchange may skip the local queue: it would wait there behind
// calls that have a local slot and wait for a shared one.
func (q *Queue) sharedDecidesLocked(now time.Duration) bool {
	return q.shared != nil && now >= max(q.shared.downUntil, q.pauseEnd)
}

// acquireShared takes s's slot from the shared windows. If ok is false without an error, s has to wait in
// the local queue: it exceeds this process's share, or there is a pause.
func (q *Queue) acquireShared(ctx context.Context, s *Slot, deadline time.Time) (ok bool, err error) {
	w := q.shared
	byDeadline, byEither := q.waitLimits(ctx, deadline)
	late := time.NewTimer(byDeadline - time.Since(q.base))
	defer late.Stop()
	enter := func(turn chan struct{}) error {
		select {
		case turn <- struct{}{}:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-late.C:
			return refusal(byDeadline, byDeadline, byDeadline)
		}
	}
	turn := w.callTurn
	if s.exchange {
		turn = w.exchangeTurn
	}
	if err := enter(turn); err != nil {
		return false, err
	}
	defer func() { <-turn }()
	for {
		if !s.exchange { // let exchanges ask first
			if err := enter(w.exchangeTurn); err != nil {
				return false, err
			}
			<-w.exchangeTurn
		}
		if ok, down := q.withinShare(); down {
			return ok, nil
		}
		id := rand.Text()
		wait, processes, err := w.Take(ctx, id)
		if err != nil {
			w.Release(id, false)
			if ctx.Err() != nil {
				return false, context.Cause(ctx)
			}
		}
		unpaused := q.onTake(processes, err)
		switch now := time.Since(q.base); {
		case err != nil:
			continue
		case wait <= 0:
			s.sharedID = id
			return unpaused, nil
		case now+wait > byEither:
			return false, refusal(now+wait, byEither, now)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}

// withinShare reports whether the shared windows are down, and then whether this process keeps to its
// share.
func (q *Queue) withinShare() (ok, down bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	down = q.advanceLocked() < q.shared.downUntil
	return down && !slices.ContainsFunc(q.windows, func(w window) bool { return q.sentLocked(&w) > w.share }), down
}

// onTake updates this process's share after a response of the shared windows, or their failure. It
// reports whether no pause is in force.
func (q *Queue) onTake(processes int, err error) (unpaused bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	w, now := q.shared, q.advanceLocked()
	among, downUntil := w.processes, now+retryShared
	if err == nil {
		w.processes = max(1, processes)
		among, downUntil = 1, 0
	}
	if w.downUntil != 0 || downUntil != 0 {
		w.downUntil = downUntil
		for i := range q.windows {
			q.windows[i].share = max(1, q.windows[i].requests/among)
		}
		q.nextRefusal = 0
		q.dispatchLocked(now)
	}
	return now >= q.pauseEnd
}

// releaseSharedLocked releases the shared slot, unless lapse has done so.
func (s *Slot) releaseSharedLocked(sent bool) {
	if s.sharedID != "" && (s.lapse == nil || s.lapse.Stop()) {
		s.q.shared.Release(s.sharedID, sent)
	}
}
