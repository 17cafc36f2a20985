package filestore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

func windowOf(s auth.Store, hold time.Duration, limits ...auth.Limit) auth.Window {
	return s.(auth.Windower).Window("k", limits, hold)
}

// take calls Take and fails the test unless it returns want. It returns the number of processes.
func take(t *testing.T, w auth.Window, id string, want time.Duration) int {
	t.Helper()
	wait, processes, err := w.Take(t.Context(), id)
	if err != nil || wait != want {
		t.Fatalf("%s waits for %v, %v; want %v", id, wait, err, want)
	}
	return processes
}

func TestWindow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		const per, hold, us = 2 * time.Second, time.Second, time.Microsecond
		limits := []auth.Limit{{Requests: 2, Per: per}, {Requests: 3, Per: time.Hour}}
		a, b := windowOf(open(t, dir), hold, limits...), windowOf(open(t, dir), hold, limits...)
		other := open(t, dir).(auth.Windower).Window("other", limits, hold)
		take(t, a, "1", 0)
		take(t, a, "1", 0) // as before
		take(t, b, "2", 0)
		if n := take(t, other, "3", 0); n != 1 {
			t.Errorf("%d processes in another window", n)
		}
		// Requests in flight are received now at the earliest.
		time.Sleep(hold / 2)
		take(t, b, "4", per+us)
		a.Release("1", true)
		take(t, b, "4", per+us)
		b.Release("2", false)
		take(t, b, "4", 0)
		time.Sleep(hold / 4)
		if n := take(t, a, "5", per-hold/4+us); n != 2 {
			t.Errorf("%d processes, want 2", n)
		}
		time.Sleep(per - hold/4)
		take(t, a, "5", us) // a window includes both of its ends
		time.Sleep(us)
		take(t, a, "5", 0)
		// 4 was never released, and counts from the end of its hold.
		take(t, a, "6", time.Hour-per)
		time.Sleep(time.Minute)
		if n := take(t, b, "6", time.Hour-per-time.Minute); n != 1 {
			t.Errorf("%d processes, want 1 after a minute", n)
		}
	})
}

// A slot that is never released counts from the end of its hold.
func TestWindowOfDeadProcess(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := windowOf(open(t, t.TempDir()), time.Second, auth.Limit{Requests: 1, Per: 500 * time.Millisecond})
		take(t, w, "dead", 0)
		time.Sleep(time.Second)
		take(t, w, "next", 500*time.Millisecond+time.Microsecond)
		time.Sleep(500*time.Millisecond + time.Microsecond)
		take(t, w, "next", 0)
		w.Release("dead", true) // received later than assumed
		w.Release("next", false)
		take(t, w, "last", 500*time.Millisecond+time.Microsecond)
	})
}

// If the clock was set back, processes do not wait for the difference.
func TestWindowOfAnotherClock(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const per, hold = time.Minute, time.Second
	limits := []auth.Limit{{Requests: 5, Per: per}}
	synctest.Test(t, func(t *testing.T) {
		w := windowOf(open(t, dir), hold, limits...)
		for i := range 4 {
			if i == 2 {
				time.Sleep(time.Hour)
			}
			take(t, w, strconv.Itoa(i), 0)
			w.Release(strconv.Itoa(i), true)
		}
		take(t, w, "in flight", 0)
	})
	synctest.Test(t, func(t *testing.T) { // starts at the same time
		w := windowOf(open(t, dir), hold, limits...)
		if n := take(t, w, "next", per+time.Microsecond); n != 2 {
			t.Errorf("%d processes, want 2", n)
		}
		time.Sleep(per)
		if n := take(t, w, "next", time.Microsecond); n != 1 {
			t.Errorf("%d processes, want 1 after a minute", n)
		}
		time.Sleep(time.Microsecond)
		for i := range 4 {
			take(t, w, fmt.Sprint("next", i), 0)
		}
		take(t, w, "last", hold) // after the request in flight
	})
}

// A window with a shorter hold does not shorten the hold of other processes' slots.
func TestWindowOfLongerHold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := open(t, t.TempDir())
		limit := auth.Limit{Requests: 1, Per: time.Second}
		long, short := windowOf(s, 2*time.Minute, limit), windowOf(s, time.Second, limit)
		take(t, long, "in flight", 0)
		for range 119 {
			time.Sleep(time.Second)
			take(t, short, "next", time.Second+time.Microsecond)
		}
	})
}

// A model is a window in memory that does what [auth.Windower] promises.
type model struct {
	inFlight map[string]time.Time // deadlines
	received []time.Time
}

func (m *model) lapse(now time.Time) {
	for id, deadline := range m.inFlight {
		if !deadline.After(now) {
			m.received = append(m.received, deadline)
			delete(m.inFlight, id)
		}
	}
}

func (m *model) take(id string, limits []auth.Limit, hold time.Duration) (wait time.Duration) {
	now := time.Now()
	m.lapse(now)
	if !m.inFlight[id].IsZero() {
		return 0
	}
	times := slices.Clone(m.received)
	for range m.inFlight {
		times = append(times, now)
	}
	slices.SortFunc(times, time.Time.Compare)
	for _, l := range limits {
		if first := len(times) - l.Requests; first >= 0 {
			wait = max(wait, times[first].Add(l.Per+time.Microsecond).Sub(now))
		}
	}
	if wait == 0 {
		m.inFlight[id] = now.Add(hold)
	}
	return wait
}

func (m *model) release(id string, sent bool) {
	m.lapse(time.Now())
	delete(m.inFlight, id)
	if sent {
		m.received = append(m.received, time.Now())
	}
}

// A window behaves like its model, whatever processes with different limits and holds do.
func TestWindowModel(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := rand.New(rand.NewPCG(seed, 0))
				dir, m := t.TempDir(), model{inFlight: map[string]time.Time{}}
				var ids []string
				var windows []auth.Window
				var limits [][]auth.Limit
				var holds []time.Duration
				for step := range 1000 {
					if step%250 == 0 { // a process that needs more stamps than those before
						per := time.Duration(1+r.IntN(10)) * time.Second
						limits = append(limits, []auth.Limit{{Requests: step/5 + 1 + r.IntN(5), Per: per}, {Requests: step/3 + 10 + r.IntN(5), Per: 10 * per}})
						holds = append(holds, time.Duration(1+r.IntN(5))*time.Second)
						windows = append(windows, windowOf(open(t, dir), holds[len(holds)-1], limits[len(limits)-1]...))
						time.Sleep(time.Hour) // until the requests that no file has kept do not count any more
					}
					p := r.IntN(len(windows))
					id := strconv.Itoa(step)
					if r.IntN(3) > 0 || len(ids) == 0 {
						want := m.take(id, limits[p], holds[p])
						take(t, windows[p], id, want)
						if want == 0 {
							ids = append(ids, id)
						}
					} else {
						i := r.IntN(len(ids))
						sent := r.IntN(4) > 0
						m.release(ids[i], sent)
						windows[p].Release(ids[i], sent)
						ids = slices.Delete(ids, i, i+1)
					}
					time.Sleep(time.Duration(r.IntN(100)) * time.Millisecond)
				}
			})
		})
	}
}

// The ring grows for a process that needs more stamps, and keeps the old ones.
func TestWindowGrows(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		short := windowOf(open(t, dir), time.Minute, auth.Limit{Requests: 3, Per: time.Second})
		for i := range 10 { // the ring is full, and starts in its middle
			time.Sleep(time.Second)
			take(t, short, strconv.Itoa(i), 0)
			short.Release(strconv.Itoa(i), true)
		}
		info, err := os.Stat(filepath.Join(dir, "k.window"))
		if size := int64(slotsAt + minSlots*slotSize + 3*stampSize); err != nil || info.Size() != size {
			t.Errorf("the file has %d bytes, want %d; %v", info.Size(), size, err)
		}
		take(t, short, "in flight", 0)
		// The file has 4 of 5: 7, 8 and 9, received 2, 1 and 0 seconds ago, and one in flight.
		long := windowOf(open(t, dir), time.Minute, auth.Limit{Requests: 5, Per: time.Hour}, auth.Limit{Requests: 4, Per: time.Minute})
		take(t, long, "a", 58*time.Second+time.Microsecond)
		time.Sleep(58*time.Second + time.Microsecond)
		take(t, long, "a", 0)
		take(t, short, "b", 0)
		take(t, long, "c", time.Hour-59*time.Second) // after 8

		// There may be more requests in flight than a new file has space for.
		many := windowOf(open(t, t.TempDir()), time.Minute, auth.Limit{Requests: 200, Per: time.Second})
		for i := range 200 {
			take(t, many, strconv.Itoa(i), 0)
		}
		take(t, many, "over", time.Second+time.Microsecond)
		for i := range 200 {
			many.Release(strconv.Itoa(i), i%2 == 0)
			time.Sleep(time.Millisecond)
		}
		for i := range 100 {
			take(t, many, strconv.Itoa(i), 0)
		}
		take(t, many, "over", 800*time.Millisecond+time.Microsecond)
	})
}

func TestWindowOfManyProcesses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for i := range 150 {
		w := windowOf(open(t, dir), time.Minute, auth.Limit{Requests: 1000, Per: time.Second})
		if n := take(t, w, strconv.Itoa(i), 0); n != min(i+1, 128) {
			t.Errorf("%d processes, want %d", n, i+1)
		}
	}
}

func TestWindowFile(t *testing.T) {
	t.Parallel()
	limit := auth.Limit{Requests: 2, Per: time.Hour}
	good := func() string {
		dir := t.TempDir()
		w := windowOf(open(t, dir), time.Hour, limit)
		take(t, w, "1", 0)
		w.Release("1", true)
		take(t, w, "2", 0)
		b, err := os.ReadFile(filepath.Join(dir, "k.window"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}()
	for name, tt := range map[string]struct{ content, want string }{
		"empty":           {"", ""},
		"zeros":           {strings.Repeat("\x00", 5000), ""},
		"foreign":         {strings.Repeat("foreign ", 1000), "was not written by itsmauth; move it away"},
		"short":           {"foreign", "was not written by itsmauth; move it away"},
		"newer":           {windowFormat[:15] + "\x02" + good[16:], "was written by a newer itsmauth; upgrade"},
		"half a header":   {good[:40], "is damaged; remove it"},
		"without slots":   {good[:slotsAt], "is damaged; remove it"},
		"another format":  {"i" + good[1:15] + "\x00" + good[16:], "is damaged; remove it"},
		"another header":  {good[:20] + "\x01" + good[21:], "is damaged; remove it"},
		"other last word": {good[:processesAt-1] + "\x01" + good[processesAt:], "is damaged; remove it"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := filepath.Join(dir, "k.window")
			write(t, path, tt.content)
			w := windowOf(open(t, dir), time.Hour, limit)
			wait, processes, err := w.Take(t.Context(), "new")
			if tt.want == "" {
				if wait != 0 || processes != 1 || err != nil {
					t.Errorf("Take: %v, %d, %v", wait, processes, err)
				}
				return
			}
			if !errors.Is(err, auth.ErrStore) || !strings.Contains(err.Error(), path+" "+tt.want) || wait != 0 || processes != 0 {
				t.Errorf("Take: %v, %d, %v; want ErrStore with the path and %q", wait, processes, err, tt.want)
			}
			w.Release("new", true)
			if b, err := os.ReadFile(path); err != nil || string(b) != tt.content {
				t.Errorf("the file has changed: %q, %v", b, err)
			}
		})
	}
}

// If the file at the path is removed or replaced, the window uses the new one.
func TestWindowReplaced(t *testing.T) {
	t.Parallel()
	for name, replace := range map[string]func(path string) error{
		"removed":    os.Remove,
		"moved away": func(path string) error { return os.Rename(path, path+".old") },
		"replaced": func(path string) error {
			if err := os.WriteFile(path+".other", nil, 0o600); err != nil {
				return err
			}
			return os.Rename(path+".other", path)
		},
		"emptied": func(path string) error { return os.Truncate(path, 0) },
		"directory removed": func(path string) error {
			return errors.Join(os.RemoveAll(filepath.Dir(path)), os.Mkdir(filepath.Dir(path), 0o700))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "d")
			limit := auth.Limit{Requests: 1, Per: time.Hour}
			a, b := windowOf(open(t, dir), time.Hour, limit), windowOf(open(t, dir), time.Hour, limit)
			take(t, a, "1", 0)
			take(t, b, "2", time.Hour+time.Microsecond)
			if err := replace(filepath.Join(dir, "k.window")); err != nil {
				t.Fatal(err)
			}
			take(t, b, "2", 0)
			if wait, processes, err := a.Take(t.Context(), "3"); wait == 0 || processes != 2 || err != nil {
				t.Errorf("Take: %v, %d, %v; want a wait for the other of 2 processes", wait, processes, err)
			}
			a.Release("3", false)
			b.Release("2", false)
			take(t, a, "3", 0)
		})
	}
}

// Take and Release do not hang while another process uses the file, and no release is lost.
func TestWindowOfStoppedProcess(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := open(t, dir).(*store)
		w := windowOf(s, time.Hour, auth.Limit{Requests: 2, Per: time.Minute})
		take(t, w, "1", 0)
		take(t, w, "2", 0)
		free := stopped(t, dir, "k.window", "")
		begun := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for range 2 { // the second time, ctx has ended
			if wait, processes, err := w.Take(ctx, "3"); !errors.Is(err, auth.ErrStore) || !errors.Is(err, context.DeadlineExceeded) || wait != 0 || processes != 0 {
				t.Errorf("Take: %v, %d, %v; want ErrStore and context.DeadlineExceeded", wait, processes, err)
			}
		}
		w.Release("1", true)
		w.Release("2", false)
		if took := time.Since(begun); took != time.Second {
			t.Errorf("that took %v, want a second, of Take", took)
		}
		free()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		take(t, w, "3", 0)
		take(t, w, "4", time.Minute+time.Microsecond)
	})
}

// Close waits for slots that are being released, but at most a second.
func TestCloseReleases(t *testing.T) {
	t.Parallel()
	for _, stop := range []time.Duration{500 * time.Millisecond, time.Minute} {
		t.Run(stop.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				limit := auth.Limit{Requests: 1, Per: time.Hour}
				s := open(t, dir).(*store)
				w := windowOf(s, time.Hour, limit)
				take(t, w, "1", 0)
				free := stopped(t, dir, "k.window", "")
				time.AfterFunc(stop, free)
				begun := time.Now()
				w.Release("1", false)
				for range 2 {
					if err := s.Close(); err != nil {
						t.Error(err)
					}
				}
				want, wait := stop, time.Duration(0)
				if stop > time.Second {
					want, wait = time.Second, time.Hour+time.Microsecond
				}
				if took := time.Since(begun); took < want || took > want+20*time.Millisecond {
					t.Errorf("Close took %v, want %v", took, want)
				}
				w.Release("1", false) // no effect after Close
				time.Sleep(time.Until(begun.Add(stop)))
				take(t, windowOf(open(t, dir), time.Hour, limit), "2", wait)
			})
		})
	}
}

// Processes at full speed use the whole limit and no more.
func TestWindowUnderLoad(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		limit := auth.Limit{Requests: 20, Per: time.Second}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var mu sync.Mutex
		var sent []time.Time
		var wg sync.WaitGroup
		for p := range 8 {
			w := windowOf(open(t, dir), time.Second, limit)
			for worker := range 2 {
				wg.Go(func() {
					for n := 0; ctx.Err() == nil; n++ {
						id := fmt.Sprint(p, worker, n)
						wait, _, err := w.Take(t.Context(), id)
						if err != nil {
							t.Error(err)
							return
						}
						if wait > 0 {
							time.Sleep(wait)
							continue
						}
						mu.Lock()
						sent = append(sent, time.Now())
						mu.Unlock()
						time.Sleep(rand.N(20 * time.Millisecond)) // the time until the response
						w.Release(id, true)
					}
				})
			}
		}
		wg.Wait()
		checkLimit(t, sent, limit)
		if len(sent) < 20*20*9/10 {
			t.Errorf("%d requests in 20 s, want 90 %% of 400", len(sent))
		}
	})
}

// checkLimit fails the test if a window, both ends included, has more requests than limit allows.
func checkLimit(t *testing.T, sent []time.Time, limit auth.Limit) {
	t.Helper()
	slices.SortFunc(sent, time.Time.Compare)
	for i := limit.Requests; i < len(sent); i++ {
		if d := sent[i].Sub(sent[i-limit.Requests]); d <= limit.Per {
			t.Errorf("%d requests within %v", limit.Requests+1, d)
		}
	}
}

// BenchmarkWindow measures Take and Release for the largest limit that a product has.
func BenchmarkWindow(b *testing.B) {
	s, err := Open(Config{Path: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	w := windowOf(s, 30*time.Second, auth.Limit{Requests: 20, Per: time.Microsecond}, auth.Limit{Requests: 15000, Per: 2 * time.Microsecond})
	n := 0
	for b.Loop() {
		n++
		id := strconv.Itoa(n)
		if wait, _, err := w.Take(b.Context(), id); wait != 0 || err != nil {
			b.Fatal(wait, err)
		}
		w.Release(id, true)
	}
}
