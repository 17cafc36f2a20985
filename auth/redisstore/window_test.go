package redisstore

import (
	"context"
	"crypto/rand"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/redistest"
)

func TestWindow(t *testing.T) {
	t.Parallel()
	url := redistest.Start(t).URL()
	const per = time.Second
	limits := []auth.Limit{{Requests: 2, Per: per}, {Requests: 3, Per: time.Hour}}
	a, b := opened(t, url).Window("k", limits, time.Hour), opened(t, url).Window("k", limits, time.Hour)
	other := opened(t, url).Window("other", limits, time.Hour)
	take := func(w auth.Window, id string, low, high time.Duration) {
		t.Helper()
		if wait, _, err := w.Take(t.Context(), id); err != nil || wait < low || wait > high {
			t.Errorf("%s waits for %v, want %v to %v; %v", id, wait, low, high, err)
		}
	}
	eventually := func(w auth.Window, id string) {
		t.Helper()
		redistest.Eventually(t, "a slot for "+id, func() bool {
			wait, processes, err := w.Take(t.Context(), id)
			if processes != 2 || err != nil {
				t.Fatalf("%s is among %d processes, want 2; %v", id, processes, err)
			}
			return wait == 0
		})
	}
	take(a, "1", 0, 0)
	take(b, "2", 0, 0)
	take(other, "3", 0, 0)
	// Slots that are not released were received now at the earliest.
	take(b, "4", per, per+time.Millisecond)
	begun := time.Now()
	a.Release("1", true)
	b.Release("2", false)
	eventually(b, "4") // 2 was not sent
	eventually(a, "5") // 1 was received
	if took := time.Since(begun); took < per {
		t.Errorf("the slot of 1 came back %v after it was received, want %v", took, per)
	}
	take(a, "6", 50*time.Minute, time.Hour)
}

func TestWindowOfDeadProcess(t *testing.T) {
	t.Parallel()
	limits := []auth.Limit{{Requests: 1, Per: 500 * time.Millisecond}}
	w := opened(t, redistest.Start(t).URL()).Window("k", limits, time.Second)
	begun := time.Now()
	if wait, _, err := w.Take(t.Context(), "dead"); wait != 0 || err != nil {
		t.Fatal(wait, err)
	}
	redistest.Eventually(t, "the slot of the dead process", func() bool {
		wait, _, err := w.Take(t.Context(), "next")
		return err == nil && wait == 0
	})
	if d := time.Since(begun); d < 1500*time.Millisecond {
		t.Errorf("its slot came back after %v, want 1.5 s", d)
	}
}

// If a new master's clock is behind the old one's, processes do not wait for the difference.
func TestWindowOfAnotherClock(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	w := opened(t, server.URL()).Window("k", []auth.Limit{{Requests: 1, Per: 100 * time.Millisecond}}, time.Second)
	server.Do(t, "ZADD itsmauth:{k}:window", time.Now().Add(10*time.Minute).UnixMicro(), "early")
	begun := time.Now()
	redistest.Eventually(t, "a slot", func() bool { wait, _, err := w.Take(t.Context(), "id"); return err == nil && wait == 0 })
	if took := time.Since(begun); took < 100*time.Millisecond {
		t.Errorf("it came after %v: the early one must count for the window's length", took)
	}
}

// A window with a shorter hold does not shorten the hold of other processes' slots.
func TestWindowOfLongerHold(t *testing.T) {
	t.Parallel()
	s := opened(t, redistest.Start(t).URL())
	limits := []auth.Limit{{Requests: 1, Per: 100 * time.Millisecond}}
	long, short := s.Window("k", limits, 2*time.Minute), s.Window("k", limits, time.Minute)
	if wait, _, err := long.Take(t.Context(), "in flight"); wait != 0 || err != nil {
		t.Fatal(wait, err)
	}
	for range 5 {
		if wait, _, err := short.Take(t.Context(), "next"); wait == 0 || err != nil {
			t.Fatalf("there was no room: %v, %v", wait, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// An attempt of Take that reaches Redis after Release does not hold the slot.
func TestTakeAfterRelease(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := opened(t, server.URL())
	w := s.Window("k", []auth.Limit{{Requests: 1, Per: time.Hour}}, time.Hour).(*window)
	take := func() {
		t.Helper()
		if wait, _, err := w.Take(t.Context(), "id"); wait != 0 || err != nil {
			t.Errorf("%v, %v", wait, err)
		}
	}
	take()
	late := new(acquisition) // of a second attempt
	late.attemptStarted()
	w.late.Store("id", late)
	w.Release("id", false)
	waitBackground(s)
	take()
	late.attemptEnded(nil)
	waitBackground(s)
	if n := server.Do(t, "ZCARD itsmauth:{k}:window").(int64); n != 0 {
		t.Errorf("%d slots are held", n)
	}
	if s.records.current != nil {
		t.Error("a window uses the connections of the records")
	}
}

// Several processes together never send more than the limit in any window.
func TestWindowUnderLoad(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	limit := auth.Limit{Requests: 10, Per: 300 * time.Millisecond}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	const enough = 60
	var mu sync.Mutex
	var sent []time.Time
	var wg sync.WaitGroup
	for range 4 {
		s := opened(t, server.URL())
		w := s.Window("k", []auth.Limit{limit}, time.Minute)
		for range 4 {
			wg.Go(func() {
				for ctx.Err() == nil {
					id := rand.Text()
					wait, _, err := w.Take(ctx, id)
					if err != nil {
						return
					}
					if wait > 0 {
						time.Sleep(wait)
						continue
					}
					mu.Lock()
					if sent = append(sent, time.Now()); len(sent) == enough {
						cancel()
					}
					mu.Unlock()
					w.Release(id, true)
				}
			})
		}
	}
	wg.Wait()
	slices.SortFunc(sent, time.Time.Compare)
	for i := limit.Requests; i < len(sent); i++ {
		if d := sent[i].Sub(sent[i-limit.Requests]); d <= limit.Per {
			t.Errorf("%d requests within %v", limit.Requests+1, d)
		}
	}
	if n := server.Do(t, "ZCARD itsmauth:{k}:window").(int64); n > int64(limit.Requests) {
		t.Errorf("%d slots kept", n)
	}
}
