package transport

import (
	"context"
	"crypto/rand"
	"slices"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

// awayFor is how long the windows of all processes are not asked after they failed.
const awayFor = time.Second

// shared is the part of a [Limiter] that other processes have a part in. A slot is first taken here,
// as if this process were the only one, which keeps the order of the queue, then there.
type shared struct {
	auth.Window
	exchanges chan struct{} // whose turn it is to ask; the others stand behind, first come first served
	calls     chan struct{}

	processes int           // as last heard; under the limiter's mu, as what follows
	away      time.Duration // until when each process keeps to its share; 0 is while all are heard of
}

// Share holds all processes that have w to the limits together. It is to be called before the
// Limiter is used, with the window of the limits it was made of. If w fails, each process keeps to
// its share: the limits divided by the number of processes last heard of, and at least one request.
func (l *Limiter) Share(w auth.Window) {
	if l.limited() {
		l.shared = &shared{Window: w, exchanges: make(chan struct{}, 1), calls: make(chan struct{}, 1), processes: 1}
	}
}

// acquire is [Limiter.acquireHere], and then the same for all processes.
func (l *Limiter) acquire(ctx context.Context, exchange bool, deadline time.Time) (s *slot, waited bool, err error) {
	for {
		s, waited, err = l.acquireHere(ctx, exchange, deadline)
		if s == nil || l.shared == nil {
			return s, waited, err
		}
		ok, err := l.acquireThere(ctx, s, deadline)
		if ok {
			return s, true, nil
		}
		s.cancel()
		if err != nil {
			return nil, true, err
		}
	}
}

// decidedThere reports whether an exchange need not wait here, where it would stand behind calls that
// have their slot here and wait for one there.
func (l *Limiter) decidedThere(now time.Duration) bool {
	return l.shared != nil && now >= max(l.shared.away, l.until)
}

// acquireThere takes s's slot among all processes. If it is not ok and there is no error, s has to wait
// here: it is more than this process's share, or there is a pause.
func (l *Limiter) acquireThere(ctx context.Context, s *slot, deadline time.Time) (ok bool, err error) {
	w := l.shared
	due, last := l.ends(ctx, deadline)
	late := time.NewTimer(due - time.Since(l.base))
	defer late.Stop()
	enter := func(turn chan struct{}) error {
		select {
		case turn <- struct{}{}:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-late.C:
			return refusal(due, due, due)
		}
	}
	turn := w.calls
	if s.exchange {
		turn = w.exchanges
	}
	if err := enter(turn); err != nil {
		return false, err
	}
	defer func() { <-turn }()
	for {
		if !s.exchange { // not while an exchange asks
			if err := enter(w.exchanges); err != nil {
				return false, err
			}
			<-w.exchanges
		}
		if ok, away := l.alone(); away {
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
		unpaused := l.heard(processes, err)
		switch now := time.Since(l.base); {
		case err != nil:
			continue
		case wait <= 0:
			s.id = id
			return unpaused, nil
		case now+wait > last:
			return false, refusal(now+wait, last, now)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}

// alone reports whether this process is on its own, and then whether it is within its share.
func (l *Limiter) alone() (ok, away bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	away = l.advance() < l.shared.away
	return away && !slices.ContainsFunc(l.windows, func(w window) bool { return l.own(&w) > w.ours }), away
}

// heard notes how many processes there are, or that there is no knowing. It reports whether there is
// no pause.
func (l *Limiter) heard(processes int, err error) (unpaused bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w, now := l.shared, l.advance()
	among, away := w.processes, now+awayFor
	if err == nil {
		w.processes = max(1, processes)
		among, away = 1, 0
	}
	if w.away != 0 || away != 0 {
		w.away = away
		for i := range l.windows {
			l.windows[i].ours = max(1, l.windows[i].requests/among)
		}
		l.soonest = 0
		l.dispatch(now)
	}
	return now >= l.until
}

// wroteThere is [slot.wrote] among all processes.
func (s *slot) wroteThere() {
	if s.id == "" {
		return
	}
	release, id := s.l.shared.Release, s.id
	s.lapse = time.AfterFunc(oneWay, func() { release(id, true) })
}

// overThere releases the slot among all processes, unless lapse has.
func (s *slot) overThere(sent bool) {
	if s.id != "" && (s.lapse == nil || s.lapse.Stop()) {
		s.l.shared.Release(s.id, sent)
	}
}
