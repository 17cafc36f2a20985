package filestore

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/itsmauth/itsmauth/auth"
)

// beating opens a store with that beat. With a very long one, its holders look like stopped processes.
func beating(t *testing.T, dir string, every time.Duration) *store {
	t.Helper()
	s := open(t, dir).(*store)
	s.beat = every
	return s
}

// tryLock calls TryLock and fails the test unless the record has the version known.
func tryLock(t *testing.T, s *store, known uint64) (unlock func()) {
	t.Helper()
	r, unlock, err := s.TryLock(t.Context(), "k", known)
	if err != nil || !cmp.Equal(r, auth.Record{Version: known}) {
		t.Fatalf("TryLock: %v, %v", r, err)
	}
	return unlock
}

// lockWithin locks, or fails the test after limit. It returns how long that took.
func lockWithin(t *testing.T, s *store, limit time.Duration) (unlock func(), after time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	begun := time.Now()
	unlock, err := s.Lock(ctx, "k")
	if err != nil {
		t.Fatal(err)
	}
	return unlock, time.Since(begun)
}

// wantHeld fails the test if s gets the lock within limit.
func wantHeld(t *testing.T, s *store, limit time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if unlock, err := s.Lock(ctx, "k"); err == nil {
		unlock()
		t.Fatal("a lock that is held was taken")
	} else if !errors.Is(err, auth.ErrStore) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Lock: %v, want ErrStore and context.DeadlineExceeded", err)
	}
}

// stopped locks a file of k like a stopped process, whose k.alive has that content.
func stopped(t *testing.T, dir, file, alive string) (unlock func()) {
	t.Helper()
	if alive != "" {
		write(t, filepath.Join(dir, "k.alive"), alive)
	}
	unlock, err := beating(t, dir, beat).opened.Load().tryLock(file)
	if unlock == nil {
		t.Fatal("the file is locked already:", err)
	}
	return unlock
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestTryLock(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a, b := beating(t, dir, beat), beating(t, dir, beat)
	unlock := tryLock(t, a, 0)
	if unlock == nil {
		t.Fatal("TryLock does not take a free lock")
	}
	if tryLock(t, b, 0) != nil {
		t.Fatal("TryLock takes a lock that is held")
	}
	save(t, a, "k", 0, "new")
	for _, s := range []*store{a, b} {
		r, u, err := s.TryLock(t.Context(), "k", 0)
		if err != nil || u != nil || r.Version != 1 || string(r.Data) != "new" {
			t.Errorf("TryLock after a save: %v with %q, %v", r, r.Data, err)
		}
	}
	unlock()
	unlock()
	if r, u, err := b.TryLock(t.Context(), "k", 0); err != nil || u != nil || r.Version != 1 {
		t.Errorf("TryLock of a free lock after a save: %v, %v", r, err)
	}
	if unlock = tryLock(t, b, 1); unlock == nil {
		t.Fatal("TryLock does not take a lock that is free again")
	}
	unlock()
	write(t, filepath.Join(dir, "k.json"), "damaged")
	if r, u, err := b.TryLock(t.Context(), "k", 1); !errors.Is(err, auth.ErrStore) || u != nil || !cmp.Equal(r, auth.Record{}) {
		t.Errorf("TryLock of a damaged record: %v, %v", r, err)
	}
}

// TryLock takes the lock only with the newest record, so that no save conflicts.
func TestTryLockHasNewestRecord(t *testing.T) {
	t.Parallel()
	const goroutines, rounds = 4, 10
	dir := t.TempDir()
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			s := open(t, dir).(*store)
			var known uint64
			for done := 0; done < rounds && t.Context().Err() == nil; {
				r, unlock, err := s.TryLock(t.Context(), "k", known)
				if err != nil {
					t.Error(err)
					return
				}
				known = r.Version
				if unlock == nil {
					time.Sleep(rand.N(time.Millisecond))
					continue
				}
				if err := s.Save(t.Context(), "k", auth.Record{Version: known}); err != nil {
					t.Error(err)
				}
				unlock()
				done++
			}
		})
	}
	wg.Wait()
	want(t, open(t, dir), "k", goroutines*rounds, "")
}

func TestHolderIsResponsive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		a, b := beating(t, dir, beat), beating(t, dir, beat)
		unlock, _ := lockWithin(t, a, time.Second)
		last := ""
		for range 10 {
			content, err := os.ReadFile(filepath.Join(dir, "k.alive"))
			if err != nil || string(content) == last {
				t.Errorf("k.alive is %q as before, %v", content, err)
			}
			last = string(content)
			time.Sleep(beat + beat/10)
		}
		wantHeld(t, b, time.Minute)
		unlock()
		if diff := cmp.Diff([]string{"k.lock", "k.next.lock"}, files(t, dir)); diff != "" {
			t.Errorf("after unlock (-want +got)\n%s", diff)
		}
		unlock, _ = lockWithin(t, b, time.Second)
		unlock()
	})
}

func TestTakeover(t *testing.T) {
	t.Parallel()
	const soon = takeoverBeats*beat + beat/2
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		a, b, c := beating(t, dir, time.Hour), beating(t, dir, beat), beating(t, dir, beat)
		unlockA, _ := lockWithin(t, a, time.Second)
		unlockB, after := lockWithin(t, b, soon)
		if after < takeoverBeats*beat {
			t.Errorf("an unresponsive holder was taken over after %v", after)
		}
		wantHeld(t, c, time.Minute) // b is responsive
		unlockB()

		// a is still unresponsive.
		unlockC, after := lockWithin(t, c, soon)
		if after < takeoverBeats*beat {
			t.Errorf("an unresponsive holder was taken over again after %v", after)
		}
		wantHeld(t, b, time.Minute)

		// a continues, and does not touch c's lock and k.alive.
		time.Sleep(beat / 2)
		alive, err := os.ReadFile(filepath.Join(dir, "k.alive"))
		if err != nil {
			t.Fatal(err)
		}
		unlockA()
		if now, err := os.ReadFile(filepath.Join(dir, "k.alive")); string(now) != string(alive) {
			t.Errorf("k.alive changed from %q to %q, %v", alive, now, err)
		}
		if free, err := a.opened.Load().tryLock("k.lock"); free == nil {
			t.Fatal("k.lock is not free: ", err)
		} else {
			free()
		}
		wantHeld(t, b, time.Minute)
		unlockC()
		unlockB, _ = lockWithin(t, b, time.Second)
		unlockB()
		if diff := cmp.Diff([]string{"k.lock", "k.next.lock"}, files(t, dir)); diff != "" {
			t.Errorf("at the end (-want +got)\n%s", diff)
		}
	})
}

// A process that took over may be stopped too, after the first one has ended.
func TestTakeoverFromNextHolder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		free := stopped(t, dir, "k.next.lock", "of the stopped")
		s := beating(t, dir, beat)
		for range 2 {
			unlock, after := lockWithin(t, s, takeoverBeats*beat+beat/2)
			if after < takeoverBeats*beat {
				t.Errorf("it was taken over after %v", after)
			}
			wantHeld(t, beating(t, dir, beat), time.Minute)
			unlock()
		}
		free()
		unlock, _ := lockWithin(t, s, time.Second)
		unlock()
	})
}

// If the holders of both files are stopped, no process takes over.
func TestBothHoldersStopped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		defer stopped(t, dir, "k.lock", "of the stopped")()
		free := stopped(t, dir, "k.next.lock", "of the stopped")
		s := beating(t, dir, beat)
		wantHeld(t, s, time.Minute)
		free()
		unlock, _ := lockWithin(t, s, time.Second)
		unlock()
	})
}

func TestHolderOfOlderVersion(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		free := stopped(t, dir, "k.lock", "")
		wantHeld(t, beating(t, dir, beat), 2*time.Minute)
		free()
	})
}

// A waiter that looks too seldom does not take over.
func TestWaiterThatSeldomLooks(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		gap   time.Duration
		looks int // until it takes over; 0 is never
	}{
		{500 * time.Millisecond, 11},
		{900 * time.Millisecond, 7},
		{1900 * time.Millisecond, 6},
		{2100 * time.Millisecond, 0},
	} {
		t.Run(tt.gap.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				defer stopped(t, dir, "k.lock", "of the stopped")()
				s := beating(t, dir, beat)
				looks := 0
				for n := range 100 {
					if unlock := tryLock(t, s, 0); unlock != nil {
						unlock()
						looks = n + 1
						break
					}
					time.Sleep(tt.gap)
				}
				if looks != tt.looks {
					t.Errorf("it took over at look %d, want %d", looks, tt.looks)
				}
			})
		})
	}
}

// However often holders are stopped, there is at most one responsive holder.
func TestOneResponsiveHolder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		var wg sync.WaitGroup
		var holders, locks, stops atomic.Int64
		for range 4 {
			s := beating(t, dir, beat)
			wg.Go(func() {
				for {
					unlock, err := s.Lock(ctx, "k")
					if err != nil {
						return
					}
					if n := holders.Add(1); n > 1 {
						t.Errorf("%d processes hold the lock", n)
					}
					time.Sleep(rand.N(2 * beat))
					holders.Add(-1)
					unlock()
					locks.Add(1)
					time.Sleep(rand.N(beat / 10))
				}
			})
		}
		for range 2 {
			s := beating(t, dir, time.Hour)
			wg.Go(func() {
				for ctx.Err() == nil {
					time.Sleep(rand.N(beat / 10))
					if unlock := tryLock(t, s, 0); unlock != nil {
						stops.Add(1)
						time.Sleep(rand.N(15 * beat))
						unlock()
						time.Sleep(rand.N(5 * beat))
					}
				}
			})
		}
		wg.Wait()
		t.Log(locks.Load(), "locks,", stops.Load(), "stops")
		if locks.Load() == 0 || stops.Load() == 0 {
			t.Error("no lock was taken, or no holder stopped")
		}
	})
}
