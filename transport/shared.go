package transport

import (
	"context"
	"crypto/rand"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

// awayFor is how long the windows of all processes are not asked after they failed.
const awayFor = time.Second

// shared is the part of a [Limiter] that other processes have a part in. A slot is first taken here,
// as if this process were the only one, which keeps the order of the queue, then there.
type shared struct {
	auth.Window
	full      []int         // the windows' own requests
	exchanges chan struct{} // whose turn it is to ask; the others stand behind, first come first served
	calls     chan struct{}

	processes int           // as last heard; under the limiter's mu, as what follows
	away      time.Duration // until when each process keeps to its share
}

// Share holds all processes that have w to the limits together. It is to be called before the
// Limiter is used, with the window of the limits it was made of. If w fails, each process keeps to
// its share: the limits divided by the number of processes last heard of, and at least one request.
func (l *Limiter) Share(w auth.Window) {
	if !l.limited() {
		return
	}
	s := &shared{Window: w, exchanges: make(chan struct{}, 1), calls: make(chan struct{}, 1), processes: 1}
	for _, w := range l.windows {
		s.full = append(s.full, w.requests)
	}
	l.shared = s
}

// acquire is [Limiter.acquireHere], and then the same for all processes.
func (l *Limiter) acquire(ctx context.Context, exchange bool, deadline time.Time) (_ *slot, waited bool, err error) {
	if l == nil || l.shared == nil {
		return l.acquireHere(ctx, exchange, deadline)
	}
	for {
		var s *slot
		if exchange {
			s = l.acquireAhead()
		}
		if s == nil {
			if s, waited, err = l.acquireHere(ctx, exchange, deadline); err != nil {
				return nil, waited, err
			}
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

// acquireAhead lets an exchange pass the calls that have a slot here and wait for one there. It is
// nil while what is here decides.
func (l *Limiter) acquireAhead() *slot {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.advance()
	if now < l.shared.away || now < l.until {
		return nil
	}
	s := &slot{l: l, exchange: true}
	l.grant(s, now)
	return s
}

// acquireThere takes s's slot among all processes. If it is not ok and there is no error, s has to wait
// here: it is more than this process's share, or there is a pause.
func (l *Limiter) acquireThere(ctx context.Context, s *slot, deadline time.Time) (ok bool, err error) {
	w, last := l.shared, never
	if d, ok := ctx.Deadline(); ok {
		last = d.Sub(l.base)
	}
	if !deadline.IsZero() {
		last = min(last, deadline.Sub(l.base))
	}
	late := time.NewTimer(last - time.Since(l.base))
	defer late.Stop()
	enter := func(turn chan struct{}) error {
		select {
		case turn <- struct{}{}:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-late.C:
			return refusal(last, last, last)
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
		if ok, away := l.alone(s); away {
			return ok, nil
		}
		id := rand.Text()
		wait, processes, err := w.Take(ctx, id)
		now := time.Since(l.base)
		switch {
		case err != nil:
			w.Release(id, false)
			if ctx.Err() != nil {
				return false, context.Cause(ctx)
			}
			l.heard(0, now+awayFor)
			continue
		case wait <= 0:
			l.heard(processes, 0)
			return l.settle(s, &sharedSlot{w: w, id: id}), nil
		case now+wait > last:
			return false, refusal(now+wait, last, now)
		}
		l.heard(processes, 0)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}

// settle gives s its counterpart, unless there is a pause by now.
func (l *Limiter) settle(s *slot, there *sharedSlot) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.there = there
	return l.advance() >= l.until
}

// alone reports whether this process is on its own, and whether s is in its share.
func (l *Limiter) alone(s *slot) (ok, away bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.advance()
	if now >= l.shared.away {
		return false, false
	}
	for i := range l.windows {
		if w := &l.windows[i]; l.own(w) > w.requests {
			return false, true
		}
	}
	return true, true
}

// heard notes how many processes there are, or that until away there is no knowing.
func (l *Limiter) heard(processes int, away time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w, now := l.shared, l.advance()
	if processes > 0 {
		w.processes = processes
	}
	if w.away == 0 && away == 0 {
		return
	}
	w.away = away
	for i := range l.windows {
		l.windows[i].requests = w.full[i]
		if away > 0 {
			l.windows[i].requests = max(1, w.full[i]/w.processes)
		}
	}
	l.recheck = true
	l.dispatch(now)
}

// sharedSlot is a slot's counterpart among all processes. The limiter's mu is for it too.
type sharedSlot struct {
	w     auth.Window
	id    string      // "" once it is released
	lapse *time.Timer // oneWay past the writing
}

// wroteThere is [slot.wrote] among all processes.
func (s *slot) wroteThere() {
	there := s.there
	if there == nil {
		return
	}
	if there.lapse != nil { // a second time: that is another slot's worth
		s.overThere(true)
		there.id = rand.Text()
	}
	id := there.id
	there.lapse = time.AfterFunc(oneWay, func() {
		s.l.mu.Lock()
		defer s.l.mu.Unlock()
		if there.id == id {
			s.overThere(true)
		}
	})
}

// overThere releases the slot among all processes, if it is not yet.
func (s *slot) overThere(sent bool) {
	there := s.there
	if there == nil || there.id == "" {
		return
	}
	if there.lapse != nil {
		there.lapse.Stop()
	}
	there.w.Release(there.id, sent)
	there.id = ""
}
