//go:build soak

package replicas_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/itsmauth/itsmauth/internal/redistest"
	"github.com/itsmauth/itsmauth/providers/beyondtrust/beyondtrusttest"
)

// Eight processes call as fast as they can. The product never sees more than the limit in any second,
// at each round trip to Redis, and with the file store.
func TestSoakLimits(t *testing.T) {
	for _, roundTrip := range []time.Duration{0, 100 * time.Millisecond, 200 * time.Millisecond, 500 * time.Millisecond} {
		t.Run(fmt.Sprintf("redis/%v", roundTrip), func(t *testing.T) {
			url, proxy := proxied(t, redistest.Start(t), roundTrip)
			limited(t, redisStore(url), fmt.Sprintf("8 processes at full speed against 20/s, %v to Redis and back", roundTrip),
				watch(t, proxy.Addr(), max(3*roundTrip, 250*time.Millisecond)))
		})
	}
	t.Run("file", func(t *testing.T) {
		limited(t, fileStore(t), "8 processes at full speed against 20/s, file store", func() []stall { return nil })
	})
}

func fileStore(t *testing.T) string {
	return fmt.Sprintf("{ type: file, path: '%s' }", t.TempDir())
}

// A stall is a time in which Redis did not answer.
type stall struct{ from, to time.Time }

// watch sends PING all the time over one connection, and returns when Redis took longer than long to answer:
// longer than a call waits for its slot. The product promises to keep the limits while Redis answers.
func watch(t *testing.T, addr string, long time.Duration) (stalls func() []stall) {
	t.Helper()
	c := redis.NewClient(&redis.Options{
		Addr: addr, Password: redistest.Password, Protocol: 2, PoolSize: 1, MaxRetries: -1, ReadTimeout: time.Minute,
	})
	if err := c.Ping(t.Context()).Err(); err != nil { // connects
		t.Fatal(err)
	}
	var all []stall
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ; ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
			from := time.Now()
			if c.Ping(context.Background()).Err() != nil || time.Since(from) > long {
				all = append(all, stall{from, time.Now()})
			}
		}
	}()
	t.Cleanup(func() { stop(); <-ended; c.Close() })
	return func() []stall { stop(); <-ended; return all }
}

// undisturbed returns the requests that were not sent in a stall, just before it, or in the five seconds after
// it, in which the processes find out that Redis answers again.
func undisturbed(requests []beyondtrusttest.Request, stalls []stall) []beyondtrusttest.Request {
	return slices.DeleteFunc(requests, func(r beyondtrusttest.Request) bool {
		return slices.ContainsFunc(stalls, func(s stall) bool {
			return r.Time.After(s.from.Add(-time.Second)) && r.Time.Before(s.to.Add(5*time.Second))
		})
	})
}

func limited(t *testing.T, store, what string, stalls func() []stall) {
	const perSecond, d, enough = 20, 15 * time.Second, 100
	s := newBeyondTrust(t, time.Hour)
	secret := secretFile(t)
	all := launch(t, 8, supportJob(1, 0), func(i int) string {
		return configuration(store, beyondtrust(s, secret, fmt.Sprintf("[{ requests: %d, per: 1s }]", perSecond), i))
	})
	begin(t, all)
	before, begun := s.Stats().APICalls, time.Now()
	time.Sleep(d)
	calls, took := s.Stats().APICalls-before, time.Since(begun)
	// On a busy machine this may take longer.
	atLeast(t, "calls", before+enough, func() int { return s.Stats().APICalls })
	sum := finish(t, all)
	most := busiestSecond(t, undisturbed(s.Requests(), stalls()))
	for _, stall := range stalls() {
		t.Logf("Redis did not answer for %v", stall.to.Sub(stall.from))
	}
	summary(t, what, s.Stats().Exchanges, sum.Connectors[support].Failed,
		"at most %d requests in any second, %.0f %% of the limit used", most, 100*float64(calls)/(perSecond*took.Seconds()))
	if most > perSecond {
		t.Errorf("%d requests in a second, want at most %d", most, perSecond)
	}
	if n := s.Stats().Exchanges; n != 1 {
		t.Errorf("%d exchanges, want 1", n)
	}
	wantNoFailures(t, sum, support)
}

// busiestSecond returns the largest number of requests that arrived within one second.
//
// The product promises to keep the limits for requests that arrive within 100 ms. A request that took
// longer, because the machine was busy, counts as if it had arrived 100 ms after it was sent.
func busiestSecond(t *testing.T, requests []beyondtrusttest.Request) (most int) {
	t.Helper()
	var arrivals []time.Time
	late := 0
	for _, r := range requests {
		at := r.Time
		if text := r.Header[sentAt]; text != nil {
			ns, err := strconv.ParseInt(text[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			if latest := time.Unix(0, ns).Add(100 * time.Millisecond); at.After(latest) {
				at = latest
				late++
			}
		} else {
			t.Errorf("%s %s does not say when it was sent", r.Method, r.Path)
		}
		arrivals = append(arrivals, at.Round(0)) // all by the wall clock
	}
	slices.SortFunc(arrivals, time.Time.Compare)
	for i, first := 0, 0; i < len(arrivals); i++ {
		for arrivals[i].Sub(arrivals[first]) > time.Second {
			first++
		}
		most = max(most, i-first+1)
	}
	if late > 0 {
		t.Logf("%d of %d requests were on their way for more than 100 ms", late, len(requests))
	}
	return most
}

// With Redis away each process keeps to its share of the limit.
func TestSoakLimitsWithoutRedis(t *testing.T) {
	const perSecond, processes, d = 24, 8, 10 * time.Second
	s := newBeyondTrust(t, time.Hour)
	server, secret := redistest.Start(t), secretFile(t)
	all := launch(t, processes, supportJob(1, 0), func(i int) string {
		return configuration(redisStore(server.URL()), beyondtrust(s, secret, fmt.Sprintf("[{ requests: %d, per: 1s }]", perSecond), i))
	})
	begin(t, all)
	time.Sleep(2 * time.Second)
	server.Kill()
	time.Sleep(5 * time.Second) // all find out, and what they sent before leaves the window
	from, before := time.Now(), s.Stats().APICalls
	time.Sleep(d)
	calls := s.Stats().APICalls - before
	used := 100 * float64(calls) / (perSecond * time.Since(from).Seconds())
	atLeast(t, "calls", before+processes*3, func() int { return s.Stats().APICalls })
	sum := finish(t, all)
	most := busiestSecond(t, slices.DeleteFunc(s.Requests(), func(r beyondtrusttest.Request) bool { return r.Time.Before(from) }))
	summary(t, fmt.Sprintf("%d processes at full speed against %d/s, Redis away", processes, perSecond), s.Stats().Exchanges, sum.Connectors[support].Failed,
		"at most %d requests in any second, %.0f %% of the limit used", most, used)
	if most > perSecond {
		t.Errorf("%d requests in a second, want at most %d", most, perSecond)
	}
	wantNoFailures(t, sum, support)
}
