package limit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

// common is an [auth.Window] for Queues of this process.
type common struct {
	limits    []auth.Limit
	processes int
	latency   time.Duration

	mu       sync.Mutex
	err      error
	asked    int
	received map[string]time.Time // zero until released
	released []string
}

func (c *common) Take(ctx context.Context, id string) (time.Duration, int, error) {
	select {
	case <-time.After(c.latency):
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	if c.err != nil {
		return 0, 0, c.err
	}
	now := time.Now()
	var counted []time.Time
	for _, t := range c.received {
		if t.IsZero() {
			t = now
		}
		counted = append(counted, t)
	}
	slices.SortFunc(counted, time.Time.Compare)
	var wait time.Duration
	for _, l := range c.limits {
		if len(counted) >= l.Requests {
			wait = max(wait, counted[len(counted)-l.Requests].Add(l.Per+1).Sub(now))
		}
	}
	if wait <= 0 {
		if c.received == nil {
			c.received = map[string]time.Time{}
		}
		c.received[id] = time.Time{}
	}
	return max(wait, 0), c.processes, nil
}

func (c *common) Release(id string, sent bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.released = append(c.released, fmt.Sprint(sent))
	if sent {
		c.received[id] = time.Now()
	} else {
		delete(c.received, id)
	}
}

func (c *common) set(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
}

func sharing(c *common, limits ...auth.Limit) *Queue {
	if c.limits == nil {
		c.limits = limits
	}
	if c.processes == 0 {
		c.processes = 1
	}
	l := New(limits, 0)
	l.Share(c)
	return l
}

// acquired returns a slot that is free, if not at once then within a millisecond.
func acquired(t *testing.T, l *Queue, exchange bool) *Slot {
	t.Helper()
	s, _, err := l.Acquire(t.Context(), exchange, time.Now().Add(time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Four Queues share their windows, like four processes.
func TestSharedAsTheServerSeesIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		limits := []auth.Limit{perSecond(10), {Requests: 60, Per: 10 * time.Second}}
		c := &common{latency: time.Millisecond}
		var server serverLog
		var wg sync.WaitGroup
		const d = 60 * time.Second
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		for range 4 {
			l := sharing(c, limits...)
			for range 8 {
				wg.Go(func() {
					for {
						s, _, err := l.Acquire(ctx, rand.IntN(8) == 0, time.Time{})
						if err != nil {
							return
						}
						if rand.IntN(10) == 0 {
							s.Cancel()
							continue
						}
						time.Sleep(rand.N(20 * time.Millisecond))
						s.Wrote()
						time.Sleep(rand.N(oneWay))
						server.note()
						time.Sleep(rand.N(300 * time.Millisecond))
						s.Done()
					}
				})
			}
		}
		wg.Wait()
		server.check(t, limits...)
		// A slot of the longer window is taken for up to 220 ms more than its length.
		if n, want := server.within(d), 60*6; n < want*9/10 {
			t.Errorf("%d requests in %v, of %d allowed", n, d, want)
		}
	})
}

func TestSharedRelease(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		use  func(s *Slot)
		at   time.Duration // when the last slot is released
		want []string
	}{
		"answered":          {func(s *Slot) { s.Wrote(); time.Sleep(30 * time.Millisecond); s.Received(); s.Done() }, 30 * time.Millisecond, []string{"true"}},
		"answered late":     {func(s *Slot) { s.Wrote(); time.Sleep(time.Second); s.Received(); s.Done() }, oneWay, []string{"true"}},
		"answered early":    {func(s *Slot) { s.Received(); s.Done() }, 0, []string{"true"}},
		"never sent":        {func(s *Slot) { s.Cancel(); s.Done() }, 0, []string{"false"}},
		"failed":            {func(s *Slot) { s.Wrote(); s.Failed(); s.Done() }, oneWay, []string{"true"}},
		"failed unwritten":  {func(s *Slot) { s.Failed(); s.Done() }, oneWay, []string{"true"}},
		"sent, then failed": {func(s *Slot) { s.Wrote(); s.Cancel() }, oneWay, []string{"true"}},
		"written twice": {func(s *Slot) {
			s.Wrote()
			time.Sleep(20 * time.Millisecond)
			s.Resend(context.Background(), time.Time{}, true)
			s.Wrote()
			time.Sleep(20 * time.Millisecond)
			s.Received()
		}, oneWay, []string{"true", "true"}},
		"written twice, processed once": {func(s *Slot) {
			s.Wrote()
			time.Sleep(20 * time.Millisecond)
			s.Resend(context.Background(), time.Time{}, false)
			s.Wrote()
			time.Sleep(20 * time.Millisecond)
			s.Received()
		}, 40 * time.Millisecond, []string{"true"}},
		"written twice, far apart, processed once": {func(s *Slot) {
			s.Wrote()
			time.Sleep(time.Second)
			s.Resend(context.Background(), time.Time{}, false)
			s.Wrote()
			time.Sleep(time.Second)
			s.Done()
		}, time.Second + oneWay, []string{"true", "true"}},
		"written twice, far apart": {func(s *Slot) {
			s.Wrote()
			time.Sleep(time.Second)
			s.Resend(context.Background(), time.Time{}, true)
			s.Wrote()
			time.Sleep(time.Second)
			s.Done()
		}, time.Second + oneWay, []string{"true", "true"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := &common{}
				l := sharing(c, perSecond(5))
				begun := time.Now()
				tt.use(acquired(t, l, false))
				time.Sleep(5 * time.Second)
				synctest.Wait()
				if !slices.Equal(c.released, tt.want) {
					t.Errorf("released %v, want %v", c.released, tt.want)
				}
				if n := len(tt.want); tt.want[0] == "true" && len(c.received) != n {
					t.Errorf("%d slots, want %d", len(c.received), n)
				}
				var last time.Time
				for _, at := range c.received {
					if at.After(last) {
						last = at
					}
				}
				if len(c.received) > 0 && last.Sub(begun) != tt.at {
					t.Errorf("released after %v, want %v", last.Sub(begun), tt.at)
				}
			})
		})
	}
}

func TestSharedRefusesAndLeaves(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := &common{}
		a, b := sharing(c, perSecond(1)), sharing(c, perSecond(1))
		held := acquired(t, a, false)
		_, _, err := b.Acquire(t.Context(), false, time.Now().Add(500*time.Millisecond))
		wantLimited(t, err, time.Second)

		ctx, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("cause")
		first := queue(ctx, b, false, time.Time{})
		behind := queue(t.Context(), b, false, time.Now().Add(100*time.Millisecond))
		pending(t, first)
		time.Sleep(200 * time.Millisecond)
		if r := <-behind; !errors.Is(r.err, auth.ErrRateLimited) {
			t.Errorf("behind a waiter: %v, want ErrRateLimited", r.err)
		}
		cancel(cause)
		if r := <-first; r.err != cause {
			t.Errorf("after its context ended: %v", r.err)
		}
		held.Cancel()
		acquired(t, b, false).Cancel()
		idle(t, a)
		idle(t, b)
		if n := len(c.received); n != 0 {
			t.Errorf("%d slots are still taken", n)
		}
	})
}

// Calls hold all local slots and wait for a shared one; an exchange does not wait behind them.
func TestSharedExchangesFirst(t *testing.T) {
	t.Parallel()
	for range 20 { // which of them asks first is random
		synctest.Test(t, exchangeFirst)
	}
}

func exchangeFirst(t *testing.T) {
	c := &common{}
	a, b := sharing(c, perSecond(2)), sharing(c, perSecond(2))
	acquired(t, a, false).Received()
	acquired(t, a, false).Received()
	var calls []<-chan result
	for range 6 {
		calls = append(calls, queue(t.Context(), b, false, time.Time{}))
		pending(t, calls[len(calls)-1])
	}
	exchange := queue(t.Context(), b, true, time.Time{})
	time.Sleep(time.Second + time.Millisecond)
	select {
	case r := <-exchange:
		r.slot.Received()
	default:
		t.Error("the exchange waits behind calls")
	}
	for _, call := range calls {
		(<-call).slot.Received()
	}
}

func TestSharedPause(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := &common{}
		a, b := sharing(c, perSecond(1)), sharing(c, perSecond(1))
		acquired(t, a, false).Received()
		call := queue(t.Context(), b, false, time.Time{})
		pending(t, call)
		begun := time.Now()
		b.Pause(begun.Add(5 * time.Second))
		r := <-call
		if d := time.Since(begun); r.err != nil || d < 5*time.Second {
			t.Errorf("left %v into a pause of 5 s, %v", d, r.err)
		}
		r.slot.Done()
	})
}

// If the shared windows fail, each process keeps to its share and asks again once a second.
func TestSharedAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := &common{processes: 4}
		l := sharing(c, perSecond(20))
		use := func() (n int) {
			for begun := time.Now(); time.Since(begun) < 10*time.Second; n++ {
				s, _, err := l.Acquire(t.Context(), false, time.Time{})
				if err != nil {
					t.Fatal(err)
				}
				s.Wrote()
				s.Received()
				s.Done()
			}
			return n
		}
		if n := use(); n < 190 || n > 220 {
			t.Errorf("%d requests in 10 s, alone with 20 a second", n)
		}
		c.set(auth.ErrStore)
		c.asked = 0
		time.Sleep(time.Second)
		if n := use(); n < 45 || n > 55 {
			t.Errorf("%d requests in 10 s without the window, want a fourth of 200", n)
		}
		if c.asked > 12 {
			t.Errorf("asked %d times in 11 s", c.asked)
		}
		c.set(nil)
		time.Sleep(2 * time.Second)
		if n := use(); n < 190 || n > 220 {
			t.Errorf("%d requests in 10 s with the window back", n)
		}
	})
}

func TestShareWithoutLimits(t *testing.T) {
	t.Parallel()
	c := &common{}
	l := New(nil, 0)
	l.Share(c)
	if s, _, err := l.Acquire(t.Context(), false, time.Time{}); s != nil || err != nil || c.asked != 0 {
		t.Errorf("%v, %v, asked %d times", s, err, c.asked)
	}
}

// The observed use by other processes does not also reduce the share of this one.
func TestSharedAwayAfterOthersUse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := &common{processes: 4}
		l := sharing(c, perHour(20))
		s := acquired(t, l, false)
		s.Received()
		s.Observe(header(20, 4))
		c.set(auth.ErrStore)
		for range 4 {
			acquired(t, l, false).Received()
		}
		if _, _, err := l.Acquire(t.Context(), false, time.Now().Add(time.Second)); !errors.Is(err, auth.ErrRateLimited) {
			t.Errorf("a sixth of a share of 5: %v", err)
		}
	})
}
