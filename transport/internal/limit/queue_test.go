package limit

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"slices"
	"sort"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/itsmauth/itsmauth/auth"
)

// serverLog is when a server received each request.
type serverLog struct {
	mu sync.Mutex
	at []time.Time
}

func (a *serverLog) note() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.at = append(a.at, time.Now())
}

// within counts the requests of the last d, both ends included.
func (a *serverLog) within(d time.Duration) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.at) - sort.Search(len(a.at), func(i int) bool { return time.Since(a.at[i]) <= d })
}

// check fails if a window, both ends included, has more requests than its limit.
func (a *serverLog) check(t *testing.T, limits ...auth.Limit) {
	t.Helper()
	slices.SortFunc(a.at, time.Time.Compare)
	for _, l := range limits {
		for i := l.Requests; i < len(a.at); i++ {
			if d := a.at[i].Sub(a.at[i-l.Requests]); d <= l.Per {
				t.Fatalf("%d requests within %v, with a limit of %d in %v", l.Requests+1, d, l.Requests, l.Per)
			}
		}
	}
}

func perSecond(n int) auth.Limit { return auth.Limit{Requests: n, Per: time.Second} }
func perHour(n int) auth.Limit   { return auth.Limit{Requests: n, Per: time.Hour} }

// take acquires a slot and fails if it has to wait.
func take(t *testing.T, l *Queue, exchange bool) *Slot {
	t.Helper()
	s, waited, err := l.Acquire(t.Context(), exchange, time.Time{})
	if err != nil || waited {
		t.Fatalf("acquire: waited %v, %v", waited, err)
	}
	return s
}

// queue starts an Acquire that is to wait, and returns its result.
func queue(ctx context.Context, l *Queue, exchange bool, deadline time.Time) <-chan result {
	c := make(chan result, 1)
	start := time.Now()
	go func() {
		s, waited, err := l.Acquire(ctx, exchange, deadline)
		c <- result{s, waited, err, time.Since(start)}
	}()
	synctest.Wait()
	return c
}

type result struct {
	slot   *Slot
	waited bool
	err    error
	after  time.Duration
}

func pending(t *testing.T, c <-chan result) {
	t.Helper()
	synctest.Wait()
	select {
	case r := <-c:
		t.Fatalf("acquire returned after %v: %v", r.after, r.err)
	default:
	}
}

func wantLimited(t *testing.T, err error, retryAfter time.Duration) {
	t.Helper()
	var e *auth.Error
	if !errors.Is(err, auth.ErrRateLimited) || !errors.As(err, &e) {
		t.Fatalf("got %v, want ErrRateLimited", err)
	}
	if e.Op != "request" || e.RetryAfter.Round(time.Millisecond) != retryAfter {
		t.Fatalf("got op %q, retry after %v; want request, %v", e.Op, e.RetryAfter, retryAfter)
	}
}

// idle fails if a slot is still taken or a request waits.
func idle(t *testing.T, l *Queue) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	now, open := l.advanceLocked(), 0
	for i := l.arrivals.head; i < l.arrivals.tail(); i++ {
		if l.arrivals.at(i) > now {
			open++
		}
	}
	if timer := l.timer.Stop(); timer || open != 0 || l.inFlight != 0 || len(l.waiting) != 0 {
		t.Errorf("not idle: %d neither answered nor lapsed, %d placed, %d waiting, timer set: %v", open, l.inFlight, len(l.waiting), timer)
	}
}

// A Queue that was never used sets no timer, which would keep it in memory.
func TestUnusedQueue(t *testing.T) {
	t.Parallel()
	idle(t, New([]auth.Limit{perSecond(1)}, 1))
}

// The server never receives more than a limit permits, and hardly less.
func TestLimiterAsTheServerSeesIt(t *testing.T) {
	t.Parallel()
	perMinute := auth.Limit{Requests: 600, Per: time.Minute}
	for _, tt := range []struct {
		name   string
		limits []auth.Limit
		work   time.Duration // how long the server takes to respond
		header int           // the limit in its headers
	}{
		{"20 a second", []auth.Limit{perSecond(20)}, 5 * time.Millisecond, 0},
		{"20 a second, slow server", []auth.Limit{perSecond(20)}, 2 * time.Second, 0},
		{"20 a second, slow server that shows it", []auth.Limit{perSecond(20)}, 2 * time.Second, 20},
		{"600 a minute", []auth.Limit{perMinute}, 5 * time.Millisecond, 0},
		{"both", []auth.Limit{perMinute, perSecond(20)}, 5 * time.Millisecond, 600},
		{"both, and an hour's", []auth.Limit{perSecond(20), perHour(15000), perMinute}, 5 * time.Millisecond, 15000},
		{"shorter than the way", []auth.Limit{{Requests: 3, Per: 30 * time.Millisecond}}, 5 * time.Millisecond, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				const span = 3 * time.Minute
				l := New(tt.limits, 0)
				var seen serverLog
				var mu sync.Mutex
				var answers int
				var sum time.Duration
				ctx, cancel := context.WithTimeout(t.Context(), span)
				defer cancel()
				var wg sync.WaitGroup
				for i := range 64 {
					r := rand.New(rand.NewPCG(1, uint64(i)))
					way := func() { time.Sleep(time.Duration(r.Int64N(int64(80 * time.Millisecond)))) }
					wg.Go(func() {
						for {
							s, _, err := l.Acquire(ctx, false, time.Time{})
							if err != nil {
								return
							}
							start := time.Now()
							s.Wrote()
							way()
							seen.note()
							h := header(tt.header, tt.header-seen.within(perOf(tt.limits, tt.header)))
							time.Sleep(tt.work)
							way()
							s.Received()
							s.Observe(h)
							s.Done()
							mu.Lock()
							answers++
							sum += min(time.Since(start), oneWay)
							mu.Unlock()
						}
					})
				}
				wg.Wait()
				seen.check(t, tt.limits...)

				// The best rate under each limit alone, with this many callers.
				best := 64 / (tt.work + 80*time.Millisecond).Seconds()
				for _, limit := range tt.limits {
					best = min(best, float64(limit.Requests)/(limit.Per+sum/time.Duration(answers)).Seconds())
				}
				if got := float64(len(seen.at)) / span.Seconds(); got < 0.95*best {
					t.Errorf("%.2f requests a second, want 95 %% of %.2f", got, best)
				}
				time.Sleep(oneWay)
				idle(t, l)
				most := slices.MaxFunc(tt.limits, func(a, b auth.Limit) int { return a.Requests - b.Requests }).Requests
				if n := cap(l.arrivals.times); n > 2*max(4, most) {
					t.Errorf("memory for %d requests, with a limit of %d", n, most)
				}
			})
		})
	}
}

func header(limit, remaining int) http.Header {
	h := http.Header{}
	if limit > 0 {
		h.Set("X-RateLimit-Limit", strconv.Itoa(limit))
		h.Set("X-RateLimit-Remaining", strconv.Itoa(remaining))
	}
	return h
}

func perOf(limits []auth.Limit, requests int) time.Duration {
	for _, l := range limits {
		if l.Requests == requests {
			return l.Per
		}
	}
	return 0
}

// A slot is free again per after min(received, written + 100 ms). After a failure the request may still be
// on its way.
func TestSlotComesBack(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	type event struct {
		at time.Duration
		do func(*Slot)
	}
	wrote, answered, failed, cancel, done := (*Slot).Wrote, (*Slot).Received, (*Slot).Failed, (*Slot).Cancel, (*Slot).Done
	for _, tt := range []struct {
		name   string
		events []event
		want   []time.Duration // when the next ones are sent
	}{
		{"answered soon", []event{{5 * ms, wrote}, {30 * ms, answered}, {500 * ms, done}}, []time.Duration{1030 * ms}},
		{"answered late", []event{{5 * ms, wrote}, {700 * ms, answered}, {800 * ms, done}}, []time.Duration{1105 * ms}},
		{"answered just so", []event{{5 * ms, wrote}, {105 * ms, answered}, {800 * ms, done}}, []time.Duration{1105 * ms}},
		{"not answered", []event{{5 * ms, wrote}}, []time.Duration{1105 * ms}},
		{"answered without having been written", []event{{40 * ms, answered}}, []time.Duration{1040 * ms}},
		{"failed", []event{{5 * ms, wrote}, {40 * ms, failed}, {50 * ms, done}}, []time.Duration{1105 * ms}},
		{"failed late", []event{{5 * ms, wrote}, {700 * ms, failed}, {700 * ms, done}}, []time.Duration{1105 * ms}},
		{"failed before all was written", []event{{40 * ms, failed}, {50 * ms, done}, {60 * ms, wrote}}, []time.Duration{1140 * ms}},
		{"failed twice", []event{{5 * ms, wrote}, {40 * ms, failed}, {60 * ms, failed}, {70 * ms, cancel}}, []time.Duration{1105 * ms}},
		{"answered before all was written", []event{{40 * ms, answered}, {60 * ms, wrote}}, []time.Duration{1040 * ms}},
		{"answered twice", []event{{5 * ms, wrote}, {40 * ms, answered}, {60 * ms, answered}}, []time.Duration{1040 * ms}},
		{"only done", []event{{40 * ms, done}, {50 * ms, done}}, []time.Duration{1040 * ms}},
		{"written late", []event{{3000 * ms, wrote}, {3010 * ms, answered}}, []time.Duration{4010 * ms}},
		{"neither", nil, []time.Duration{never}},
		{"never sent", []event{{40 * ms, cancel}, {50 * ms, cancel}, {60 * ms, answered}}, []time.Duration{40 * ms}},
		{"cancelled too late", []event{{5 * ms, wrote}, {40 * ms, cancel}}, []time.Duration{1105 * ms}},
		{"cancelled after the answer", []event{{5 * ms, wrote}, {40 * ms, answered}, {50 * ms, cancel}}, []time.Duration{1040 * ms}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := New([]auth.Limit{perSecond(1)}, 0)
				time.Sleep(time.Minute)
				start := time.Now()
				s := take(t, l, false)
				ctx, stop := context.WithTimeout(t.Context(), time.Hour)
				defer stop()
				var got []time.Duration
				finished := make(chan struct{})
				go func() {
					defer close(finished)
					for range tt.want {
						next, _, err := l.Acquire(ctx, false, time.Time{})
						if err != nil {
							got = append(got, never)
							return
						}
						got = append(got, time.Since(start).Truncate(ms))
						next.Wrote()
						next.Received()
					}
				}()
				for _, e := range tt.events {
					time.Sleep(e.at - time.Since(start))
					e.do(s)
				}
				<-finished
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

// A request that is written twice counts twice. Resend of one that was not written takes no second slot.
func TestSlotWrittenTwiceCountsTwice(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	synctest.Test(t, func(t *testing.T) {
		l := New([]auth.Limit{perSecond(2)}, 1)
		start := time.Now()
		at := func(want time.Duration) {
			t.Helper()
			if got := time.Since(start).Truncate(ms); got != want {
				t.Errorf("at %v, want %v", got, want)
			}
		}
		s := take(t, l, false)
		again := func() {
			t.Helper()
			if err := s.Resend(t.Context(), time.Time{}, true); err != nil {
				t.Fatal(err)
			}
		}
		again()
		s.Wrote()
		time.Sleep(50 * ms)
		again()
		at(50 * ms)
		again()
		s.Wrote()
		time.Sleep(500 * ms)
		call := queue(t.Context(), l, false, time.Time{}) // has to wait for s
		again()
		at(1100 * ms) // a second after the first must have arrived
		s.Wrote()
		time.Sleep(10 * ms)
		s.Received()
		pending(t, call)
		s.Done()
		r := <-call
		at(1150 * ms)
		r.slot.Received()
		err := r.slot.Resend(t.Context(), time.Now().Add(900*ms), true)
		wantLimited(t, err, 960*ms)
		r.slot.Done()
		time.Sleep(oneWay)
		idle(t, l)
	})
}

// A resend of what the server has not processed keeps its slot, which counts from the resend. If the slot
// has left a window meanwhile, the resend takes another.
func TestUnprocessedResendKeepsTheSlot(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	for name, tt := range map[string]struct {
		limits      []auth.Limit
		after       time.Duration // from the writing to the resend
		takesSecond bool
	}{
		"at once":                   {[]auth.Limit{perSecond(1)}, 0, false},
		"before it has arrived":     {[]auth.Limit{perSecond(1)}, 50 * ms, false},
		"just in the window":        {[]auth.Limit{perSecond(1)}, 1100 * ms, false},
		"after the window":          {[]auth.Limit{perSecond(1)}, 1101 * ms, true},
		"in both windows":           {[]auth.Limit{perHour(1), perSecond(1)}, 50 * ms, false},
		"in the longer window only": {[]auth.Limit{perHour(2), perSecond(1)}, 2000 * ms, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := New(tt.limits, 1)
				s := take(t, l, false)
				s.Wrote()
				time.Sleep(tt.after)
				resent := time.Now()
				if err := s.Resend(t.Context(), time.Time{}, false); err != nil || time.Now() != resent {
					t.Fatalf("%v after %v", err, time.Since(resent))
				}
				s.Wrote()
				time.Sleep(10 * ms)
				s.Received()
				s.Done()
				l.mu.Lock()
				n := l.sentLocked(&l.windows[len(l.windows)-1])
				l.mu.Unlock()
				if second := n == 2; second != (tt.takesSecond && len(tt.limits) == 2) || n == 0 {
					t.Errorf("%d requests count in the longest window", n)
				}
				if slices.ContainsFunc(tt.limits, func(l auth.Limit) bool { return l.Per > time.Second }) {
					return
				}
				take := <-queue(t.Context(), l, false, time.Time{})
				if got := time.Since(resent).Truncate(ms); take.err != nil || got != 1010*ms {
					t.Errorf("the next one %v after the resend, %v; want 1.01s", got, take.err)
				}
			})
		})
	}
}

// If the call ends while Resend waits, the second slot is given back.
func TestResendAfterTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New([]auth.Limit{perSecond(1)}, 0)
		s := take(t, l, false)
		s.Wrote()
		resent := make(chan error)
		go func() { resent <- s.Resend(t.Context(), time.Time{}, true) }()
		synctest.Wait()
		s.Done()
		if err := <-resent; err != context.Canceled {
			t.Errorf("%v, want context.Canceled", err)
		}
		take(t, l, false).Received()
		idle(t, l)
	})
}

// A window includes both its ends.
func TestWindowIncludesItsEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New([]auth.Limit{perSecond(1)}, 0)
		take(t, l, false).Received()
		time.Sleep(time.Second)
		r := <-queue(t.Context(), l, false, time.Time{})
		if r.err != nil || r.after != 1 {
			t.Errorf("left %v after a second, with %v; want 1ns", r.after, r.err)
		}
	})
	r := rand.New(rand.NewPCG(3, 3))
	w := window{requests: 1000, per: 10}
	var stamps arrivalTimes
	for now := time.Duration(0); now < 10000; now += time.Duration(r.IntN(8)) {
		for range r.IntN(4) {
			stamps.push(now)
		}
		if r.IntN(3) > 0 {
			continue
		}
		w.slide(&stamps, now)
		want := stamps.tail()
		for want > stamps.head && now-stamps.at(want-1) <= w.per {
			want--
		}
		if w.first != want {
			t.Fatalf("at %d: the window begins with %d, want %d", now, w.first, want)
		}
		stamps.forget(w.first)
	}
}

func TestLimiterFirstComeFirstServed(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		limits []auth.Limit
		max    int
	}{
		{"window", []auth.Limit{{Requests: 1, Per: 10 * time.Millisecond}}, 0},
		{"concurrency", nil, 1},
		{"both", []auth.Limit{{Requests: 3, Per: 10 * time.Millisecond}}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := New(tt.limits, tt.max)
				first := take(t, l, false)
				var mu sync.Mutex
				var got, want []int
				var wg sync.WaitGroup
				for i := range 50 {
					want = append(want, i)
					wg.Go(func() {
						s, waited, err := l.Acquire(t.Context(), false, time.Now().Add(time.Hour))
						if err != nil || !waited {
							t.Error(waited, err)
						}
						mu.Lock()
						got = append(got, i)
						mu.Unlock()
						s.Wrote()
						time.Sleep(time.Millisecond)
						s.Done()
					})
					synctest.Wait()
				}
				first.Done()
				wg.Wait()
				if diff := cmp.Diff(want, got); diff != "" {
					t.Error(diff)
				}
				idle(t, l)
			})
		})
	}
}

func TestLimiterContextEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New([]auth.Limit{perSecond(1)}, 0)
		take(t, l, false).Received()
		cause := errors.New("had enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		leaving := queue(ctx, l, false, time.Time{})
		staying := queue(t.Context(), l, false, time.Time{})
		time.Sleep(300 * time.Millisecond)
		cancel(cause)
		if r := <-leaving; r.err != cause || !r.waited || r.slot != nil || r.after != 300*time.Millisecond {
			t.Errorf("left with %+v, want the cause at once", r)
		}
		// It took no slot, so the next one is sent at the same time.
		if r := <-staying; r.err != nil || r.after.Truncate(time.Millisecond) != time.Second {
			t.Errorf("next: %+v", r)
		} else {
			r.slot.Wrote() // without a response, so the slot is free again at 2.1 s
		}

		ending, stop2 := context.WithTimeoutCause(t.Context(), 1050*time.Millisecond, cause)
		defer stop2()
		if r := <-queue(ending, l, false, time.Time{}); r.err != cause || r.after != 1050*time.Millisecond {
			t.Errorf("deadline that passes in the queue: %+v", r)
		}
		if _, _, err := l.Acquire(ending, false, time.Time{}); err != cause {
			t.Errorf("ended before: %v", err)
		}
		time.Sleep(time.Second)
		take(t, l, false).Cancel()
		idle(t, l)
	})
}

// If ctx ends at the moment of the grant, no slot is lost, whatever Acquire returns.
func TestLimiterContextEndsWithTheWait(t *testing.T) {
	t.Parallel()
	for range 50 {
		synctest.Test(t, func(t *testing.T) {
			l := New(nil, 1)
			first := take(t, l, false)
			ctx, cancel := context.WithCancel(t.Context())
			c := queue(ctx, l, false, time.Time{})
			first.Done()
			cancel()
			if r := <-c; r.err == nil {
				r.slot.Done()
			}
			take(t, l, false).Done()
			idle(t, l)
		})
	}
}

func TestLimiterExchangesFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New([]auth.Limit{perSecond(1)}, 1)
		first := take(t, l, false)
		first.Received()
		call := queue(t.Context(), l, false, time.Time{})
		exchanges := []<-chan result{queue(t.Context(), l, true, time.Time{}), queue(t.Context(), l, true, time.Time{})}
		for i, c := range exchanges {
			r := <-c
			if r.err != nil || r.after.Truncate(time.Millisecond) != time.Duration(i+1)*time.Second {
				t.Fatalf("exchange %d: %+v", i, r)
			}
			r.slot.Received()
		}
		// The call could have a slot, but maxConcurrency holds it back: the slot goes to an exchange.
		time.Sleep(2 * time.Second)
		pending(t, call)
		take(t, l, true).Received()
		time.Sleep(2 * time.Second)
		first.Done()
		r := <-call
		if r.err != nil || r.after.Truncate(time.Millisecond) != 6*time.Second {
			t.Fatalf("call: %+v", r)
		}
		r.slot.Done()
		idle(t, l)
	})
}

func TestLimiterRefusesAtOnce(t *testing.T) {
	t.Parallel()
	in := func(d time.Duration) time.Time { return time.Now().Add(d) }
	refused := func(t *testing.T, l *Queue, exchange bool, d, retryAfter time.Duration) {
		t.Helper()
		s, waited, err := l.Acquire(t.Context(), exchange, in(d))
		if s != nil || waited {
			t.Fatalf("slot %v, waited %v", s, waited)
		}
		wantLimited(t, err, retryAfter)
		if errors.Is(err, context.DeadlineExceeded) {
			t.Error("a refusal before the deadline is no timeout")
		}
	}
	const ms = time.Millisecond

	t.Run("window", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			l := New([]auth.Limit{perSecond(2), perHour(3)}, 0)
			take(t, l, false).Received()
			time.Sleep(300 * ms)
			s := take(t, l, false)
			refused(t, l, false, 699*ms, 700*ms)
			s.Wrote()
			refused(t, l, true, 699*ms, 700*ms)
			s.Received()
			ctx, cancel := context.WithTimeout(t.Context(), 699*ms)
			defer cancel()
			_, _, err := l.Acquire(ctx, false, in(time.Minute))
			wantLimited(t, err, 700*ms)
			r := <-queue(t.Context(), l, false, in(701*ms))
			if r.err != nil {
				t.Fatal(r.err)
			}
			r.slot.Received()
			refused(t, l, false, time.Minute, time.Hour-time.Second)
		})
	})
	t.Run("queue", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			l := New([]auth.Limit{perSecond(2)}, 0)
			take(t, l, false).Received()
			take(t, l, false)
			ctx, cancel := context.WithCancel(t.Context())
			for range 5 {
				queue(ctx, l, false, time.Time{})
			}
			// Of those ahead, two are sent after 1 s, two after 2 s, and so on.
			refused(t, l, false, 2900*ms, 3*time.Second)
			refused(t, l, true, 900*ms, time.Second)
			refused(t, l, false, 2900*ms, 3*time.Second)
			last := queue(ctx, l, false, in(3001*ms))
			pending(t, last)
			queue(ctx, l, true, time.Time{})
			queue(ctx, l, true, time.Time{})
			refused(t, l, false, 4900*ms, 5*time.Second)
			cancel()
			<-last

			l = New([]auth.Limit{perSecond(2)}, 0)
			l.Pause(in(100 * ms))
			ctx, cancel = context.WithCancel(t.Context())
			for range 4 {
				queue(ctx, l, false, time.Time{})
			}
			refused(t, l, false, 1900*ms, 2*time.Second)
			cancel()
		})
	})
	t.Run("absurd", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			l := New([]auth.Limit{{Requests: 1, Per: 1<<63 - 1}, {}, {Requests: -1, Per: 1}, {Requests: 1}}, -1)
			if len(l.windows) != 1 {
				t.Fatalf("windows: %v", l.windows)
			}
			take(t, l, false).Received()
			ctx, cancel := context.WithCancel(t.Context())
			for range 9 {
				_, waited, err := l.Acquire(t.Context(), false, in(time.Hour))
				if !errors.Is(err, auth.ErrRateLimited) || waited {
					t.Error(waited, err)
				}
				queue(ctx, l, false, time.Time{})
			}
			cancel()
			synctest.Wait()
			idle(t, l)
		})
	})
	t.Run("deadline that passes in the queue", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			l := New(nil, 1)
			first := take(t, l, false)
			later := queue(t.Context(), l, false, in(3*time.Second))
			sooner := queue(t.Context(), l, false, in(2*time.Second))
			none := queue(t.Context(), l, false, time.Time{})
			for _, c := range []<-chan result{sooner, later} {
				r := <-c
				if !errors.Is(r.err, auth.ErrRateLimited) || !errors.Is(r.err, context.DeadlineExceeded) || !r.waited {
					t.Errorf("got %+v, want both ErrRateLimited and DeadlineExceeded", r)
				}
				if want := map[<-chan result]time.Duration{sooner: 2 * time.Second, later: 3 * time.Second}[c]; r.after != want {
					t.Errorf("after %v, want %v", r.after, want)
				}
			}
			pending(t, none)
			first.Done()
			(<-none).slot.Done()
			idle(t, l)
		})
	})
	t.Run("leaves at its deadline", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			l := New(nil, 0)
			l.Pause(in(time.Second))
			if r := <-queue(t.Context(), l, false, in(time.Second)); r.err != nil || r.after != time.Second {
				t.Errorf("%+v", r)
			}
			refused(t, func() *Queue { l.Pause(in(time.Second)); return l }(), false, time.Second-1, time.Second)
		})
	})
}

func TestLimiterPause(t *testing.T) {
	t.Parallel()
	for name, make := range map[string]func() *Queue{
		"without limits": func() *Queue { return New(nil, 0) },
		"with a window":  func() *Queue { return New([]auth.Limit{perSecond(20)}, 0) },
		"concurrency":    func() *Queue { return New(nil, 5) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := make()
				in := func(d time.Duration) time.Time { return time.Now().Add(d) }
				take(t, l, false).Done()
				l.Pause(in(-time.Second))
				take(t, l, false).Done()

				l.Pause(in(2 * time.Second))
				call := queue(t.Context(), l, false, time.Time{})
				exchange := queue(t.Context(), l, true, in(9*time.Second))
				short := queue(t.Context(), l, false, in(3*time.Second))
				ctx, cancel := context.WithTimeout(t.Context(), 3500*time.Millisecond)
				defer cancel()
				byCtx := queue(ctx, l, false, time.Time{})
				pending(t, short)
				time.Sleep(500 * time.Millisecond)
				l.Pause(in(time.Millisecond)) // shortens nothing
				time.Sleep(500 * time.Millisecond)
				pending(t, call)
				l.Pause(in(4 * time.Second))
				for _, c := range []<-chan result{short, byCtx} {
					r := <-c
					if r.after != time.Second || !r.waited {
						t.Errorf("refused after %v, want at once", r.after)
					}
					wantLimited(t, r.err, 4*time.Second)
				}
				for _, c := range []<-chan result{call, exchange} {
					r := <-c
					if r.err != nil || !r.waited || r.after != 5*time.Second {
						t.Errorf("%+v, want to leave after 5s", r)
					}
					r.slot.Done()
				}
				take(t, l, false).Done()
				if l.paused.Load() {
					t.Error("still marked as paused: no way back to the fast path")
				}
				idle(t, l)
			})
		})
	}
}

func TestLimiterConcurrency(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New([]auth.Limit{perHour(10)}, 2)
		a, b := take(t, l, false), take(t, l, false)
		take(t, l, true).Done()
		c, d := queue(t.Context(), l, false, time.Time{}), queue(t.Context(), l, false, time.Time{})
		a.Wrote()
		a.Received()
		pending(t, c)
		a.Done()
		a.Done() // frees one place, not two
		rc := <-c
		pending(t, d)
		if own := l.sentLocked(&l.windows[0]); own != 4 {
			t.Errorf("%d slots taken, want 4: a call held back by maxConcurrency takes none", own)
		}
		b.Cancel()
		rd := <-d
		if own := l.sentLocked(&l.windows[0]); own != 4 {
			t.Errorf("%d slots taken after a cancel and a call, want 4", own)
		}
		rc.slot.Done()
		rd.slot.Done()
		idle(t, l)
	})
}

func TestLimiterOthersUse(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name             string
		own              int // ours before the response
		limit, remaining string
		want             int // how many may be sent at once after it
	}{
		{"nobody else", 4, "20", "16", 16},
		{"others", 4, "20", "6", 6},
		{"others take all", 4, "20", "0", 0},
		{"not all of ours were seen", 4, "20", "19", 16},
		{"the server's limit is smaller", 4, "15", "11", 11},
		{"the server's limit is greater", 4, "1000", "900", 16},
		{"the server's limit is greater, others", 4, "1000", "5", 5},
		{"a shorter window of the server's", 10, "5", "4", 4},
		{"none", 4, "", "", 16},
		{"negative", 4, "20", "-1", 16},
		{"signed", 4, "20", "+3", 16},
		{"fraction", 4, "20", "3.5", 16},
		{"list", 4, "20, 20;w=1", "3", 16},
		{"huge", 4, "20", "99999999999999999999", 16},
		{"more left than there is", 4, "5", "8", 16},
		{"no limit at all", 4, "0", "0", 16},
		{"half", 4, "20", "", 16},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				for _, observe := range []func(*Queue, *Slot, http.Header){
					func(l *Queue, _ *Slot, h http.Header) { (&Slot{q: l}).Observe(h) },
					func(_ *Queue, s *Slot, h http.Header) { s.Observe(h) },
				} {
					l := New([]auth.Limit{perHour(20), perSecond(1000)}, 0)
					var s *Slot
					for range tt.own {
						s = take(t, l, false)
						s.Wrote()
						s.Received()
					}
					observe(l, s, http.Header{"X-Ratelimit-Limit": {tt.limit}, "X-Ratelimit-Remaining": {tt.remaining}})
					got := 0
					for ; got < 100; got++ {
						s, _, err := l.Acquire(t.Context(), false, time.Now().Add(time.Second))
						if err != nil {
							break
						}
						s.Received()
					}
					if got != tt.want {
						t.Errorf("%d may leave, want %d", got, tt.want)
					}
				}
			})
		})
	}
}

func TestLimiterObservesTheRightWindow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New([]auth.Limit{perSecond(20), perHour(100), {Requests: 20, Per: time.Minute}}, 0)
		for _, tt := range []struct{ limit, window int }{{20, 1}, {100, 2}, {7, 2}} {
			s := take(t, l, false)
			s.Received()
			s.Observe(header(tt.limit, 0))
			s.Observe(header(tt.limit, 0))
			now := time.Since(l.base)
			for i := range l.windows {
				if w := &l.windows[i]; (w.capacity(now) < w.requests) != (i == tt.window) {
					t.Errorf("limit %d, window %v: room %d", tt.limit, w.per, w.capacity(now))
				}
				l.windows[i].usedByOthers = 0
			}
		}
	})
}

// If others use the whole limit, one request in ten seconds finds out whether they still do.
func TestLimiterProbes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New([]auth.Limit{perHour(20)}, 0)
		s := take(t, l, false)
		s.Received()
		waiting := queue(t.Context(), l, false, time.Time{})
		(<-waiting).slot.Received()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		s.Observe(header(20, 0))
		start := time.Now()
		patient, impatient := queue(ctx, l, false, time.Time{}), queue(ctx, l, false, time.Now().Add(9*time.Second))
		wantLimited(t, (<-impatient).err, 10*time.Second)
		second, third := queue(ctx, l, true, time.Time{}), queue(ctx, l, false, time.Time{})

		at := func(c <-chan result, want time.Duration) *Slot {
			t.Helper()
			r := <-c
			if got := time.Since(start); r.err != nil || got != want {
				t.Fatalf("left at %v with %v, want %v", got, r.err, want)
			}
			return r.slot
		}
		at(second, 10*time.Second).Received() // an exchange, whose response has no such headers
		s = at(patient, 20*time.Second)
		pending(t, third)
		time.Sleep(50 * time.Millisecond)
		s.Received()
		s.Observe(header(20, 9))
		s = at(third, 20*time.Second+50*time.Millisecond)
		for range 8 {
			take(t, l, false).Received()
		}
		_, _, err := l.Acquire(ctx, false, time.Now().Add(time.Second))
		if !errors.Is(err, auth.ErrRateLimited) {
			t.Errorf("a tenth left: %v", err)
		}
		s.Cancel()
	})
}

// A waiter is refused as soon as the use by others leaves it no slot in time.
func TestLimiterObservationRefuses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New([]auth.Limit{perSecond(1), perHour(20)}, 0)
		s := take(t, l, false)
		s.Received()
		c := queue(t.Context(), l, false, time.Now().Add(9*time.Second))
		pending(t, c)
		s.Observe(header(20, 0))
		r := <-c
		wantLimited(t, r.err, 10*time.Second)
		if r.after != 0 {
			t.Errorf("refused after %v", r.after)
		}
	})
}

// An observation counts for one length of the window, even without a later one.
func TestLimiterObservationExpires(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New([]auth.Limit{{Requests: 5, Per: 4 * time.Second}}, 0)
		(&Slot{q: l}).Observe(header(5, 0))
		for range 5 {
			c := queue(t.Context(), l, false, time.Time{})
			r := <-c
			if got := time.Since(l.base).Truncate(time.Millisecond); r.err != nil || got != 4*time.Second {
				t.Fatalf("left at %v, %v; want 4s", got, r.err)
			}
			r.slot.Received()
		}
	})
}

// Late and overtaken answers do not distort what is known of the use by others.
func TestLimiterLateAnswers(t *testing.T) {
	t.Parallel()
	room := func(l *Queue) int { return l.windows[0].capacity(time.Since(l.base)) }
	t.Run("overtaken", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			l := New([]auth.Limit{perHour(100)}, 0)
			old := take(t, l, false)
			old.Wrote()
			time.Sleep(20 * time.Second)
			s := take(t, l, false)
			s.Wrote()
			s.Received()
			s.Observe(header(100, 58))
			for _, remaining := range []int{99, 0} {
				old.Observe(header(100, remaining))
				if got := room(l); got != 60 {
					t.Errorf("room for %d after a late %d, want 60", got, remaining)
				}
			}
		})
	})
	t.Run("slow server", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			l := New([]auth.Limit{perSecond(10)}, 0)
			var all []*Slot
			for range 10 {
				all = append(all, take(t, l, false))
				all[len(all)-1].Wrote()
			}
			time.Sleep(3 * time.Second)
			for i, s := range all { // we count none of them any more, but it was all our own use
				s.Received()
				s.Observe(header(10, 9-i))
			}
			if got := room(l); got != 10 {
				t.Errorf("room for %d, want 10", got)
			}

			l = New([]auth.Limit{{Requests: 10, Per: 10 * time.Second}}, 0)
			for range 5 {
				take(t, l, false).Received()
			}
			time.Sleep(9 * time.Second)
			for range 4 {
				take(t, l, false).Received()
			}
			s := take(t, l, false)
			s.Wrote()
			time.Sleep(3 * time.Second)
			s.Received()
			s.Observe(header(10, 0)) // true when it was sent; five of ours have left the window since
			if got := room(l); got != 10 {
				t.Errorf("room for %d, want 10", got)
			}
		})
	})
	t.Run("unknown departure", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			l := New([]auth.Limit{perHour(100)}, 0)
			(&Slot{q: l}).Observe(header(100, 60))
			(&Slot{q: l}).Observe(header(100, 99))
			if got := room(l); got != 60 {
				t.Errorf("room for %d, want 60: a smaller figure may be a late one", got)
			}
			time.Sleep(probeEvery)
			(&Slot{q: l}).Observe(header(100, 99))
			if got := room(l); got != 99 {
				t.Errorf("room for %d, want 99", got)
			}
		})
	})
}

func TestNoLimiter(t *testing.T) {
	t.Parallel()
	var l *Queue
	l.Pause(time.Now().Add(time.Hour))
	if l.Limited() || New(nil, 3).Limited() || !New([]auth.Limit{perHour(1)}, 0).Limited() {
		t.Error("Limited does not tell whether there is a window")
	}
	for _, l := range []*Queue{nil, New(nil, 0)} {
		s := take(t, l, false)
		s.Wrote()
		s.Received()
		s.Observe(header(20, 0))
		s.Cancel()
		s.Done()
	}
}

// With real goroutines and a real clock, no slot is lost and the limit holds.
func TestLimiterUnderLoad(t *testing.T) {
	t.Parallel()
	limits := []auth.Limit{{Requests: 40, Per: 2 * time.Millisecond}, {Requests: 300, Per: 20 * time.Millisecond}}
	l := New(limits, 10)
	var seen serverLog
	var wg sync.WaitGroup
	for i := range 32 {
		r := rand.New(rand.NewPCG(2, uint64(i)))
		wg.Go(func() {
			for range 60 {
				ctx, cancel := context.WithCancel(t.Context())
				if r.IntN(4) == 0 {
					time.AfterFunc(time.Duration(r.IntN(2_000_000)), cancel)
				}
				var deadline time.Time
				if r.IntN(4) == 0 {
					deadline = time.Now().Add(time.Duration(r.IntN(3_000_000)))
				}
				s, _, err := l.Acquire(ctx, r.IntN(8) == 0, deadline)
				switch {
				case err != nil:
					if !errors.Is(err, context.Canceled) && !errors.Is(err, auth.ErrRateLimited) {
						t.Error(err)
					}
				case r.IntN(8) == 0:
					s.Cancel()
				default:
					seen.note()
					wrote := make(chan struct{})
					go func() { defer close(wrote); s.Wrote() }()
					s.Received()
					s.Observe(header(300, 250+r.IntN(50)))
					if r.IntN(50) == 0 {
						l.Pause(time.Now().Add(time.Millisecond))
					}
					s.Done()
					<-wrote
				}
				cancel()
			}
		})
	}
	wg.Wait()
	seen.check(t, limits...)
	idle(t, l)
	l.mu.Lock() // a last tick may be running
	defer l.mu.Unlock()
	for i := l.arrivals.head + 1; i < l.arrivals.tail(); i++ {
		if l.arrivals.at(i) < l.arrivals.at(i-1) {
			t.Fatal("stamps out of order")
		}
	}
}

// Setting the wall clock has no effect.
func TestLimiterClock(t *testing.T) {
	t.Parallel()
	if l := New(nil, 0); l.base == l.base.Round(0) { // Round strips the monotonic reading
		t.Error("the limiter counts from an instant of the wall clock")
	}
}

func FuzzLimiterObserve(f *testing.F) {
	for _, h := range [][2]string{{"20", "3"}, {"20", "0"}, {"100", "100"}, {"-1", "5"}, {"9223372036854775807", "1"}, {"2147483647", "2147483647"}, {"20", "1e1"}, {" 20", "٣"}} {
		f.Add(h[0], h[1], "100", "7", uint8(5))
	}
	f.Fuzz(func(t *testing.T, limit1, remaining1, limit2, remaining2 string, own uint8) {
		synctest.Test(t, func(t *testing.T) {
			l := New([]auth.Limit{perSecond(20), perHour(100)}, 0)
			var s *Slot
			for range own % 20 {
				s = take(t, l, false)
				s.Received()
			}
			for _, h := range [][2]string{{limit1, remaining1}, {limit2, remaining2}} {
				h := http.Header{"X-Ratelimit-Limit": {h[0]}, "X-Ratelimit-Remaining": {h[1]}}
				s.Observe(h)
				(&Slot{q: l}).Observe(h)
			}
			for i := range l.windows {
				if w := &l.windows[i]; w.capacity(time.Since(l.base)) < 0 || w.capacity(time.Since(l.base)) > w.requests {
					t.Fatalf("room for %d of %d", w.capacity(time.Since(l.base)), w.requests)
				}
			}
			// Whatever the server sends, no request waits longer than probeEvery.
			r := <-queue(t.Context(), l, false, time.Now().Add(probeEvery))
			if r.err != nil {
				t.Fatal(r.err)
			}
			r.slot.Done()
		})
	})
}

func TestLimiterAllocs(t *testing.T) {
	for _, b := range limiterBenchmarks {
		call := b.call(b.limiter())
		if n := testing.AllocsPerRun(2000, call); n > b.allocs {
			t.Errorf("%s: %v allocations a call, want at most %v", b.name, n, b.allocs)
		}
	}
}

func BenchmarkLimiter(b *testing.B) {
	for _, bb := range limiterBenchmarks {
		b.Run(bb.name, func(b *testing.B) {
			call := bb.call(bb.limiter())
			b.ReportAllocs()
			for b.Loop() {
				call()
			}
		})
		b.Run(bb.name+"/parallel", func(b *testing.B) {
			call := bb.call(bb.limiter())
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					call()
				}
			})
		})
	}
}

var limiterBenchmarks = []struct {
	name    string
	limiter func() *Queue
	allocs  float64
	call    func(*Queue) func()
}{
	{"nil", func() *Queue { return nil }, 0, wholeCall},
	{"no limits", func() *Queue { return New(nil, 0) }, 0, wholeCall},
	{"windows", func() *Queue {
		return New([]auth.Limit{{Requests: 1 << 30, Per: time.Millisecond}, {Requests: 1 << 30, Per: 10 * time.Millisecond}}, 0)
	}, 1, wholeCall},
	{"windows and concurrency", func() *Queue {
		return New([]auth.Limit{{Requests: 1 << 30, Per: time.Millisecond}}, 1<<20)
	}, 1, wholeCall},
}

func wholeCall(l *Queue) func() {
	ctx := context.Background()
	return func() {
		s, _, err := l.Acquire(ctx, false, time.Time{})
		if err != nil {
			panic(err)
		}
		s.Wrote()
		s.Received()
		s.Done()
	}
}
