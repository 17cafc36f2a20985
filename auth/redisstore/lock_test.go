package redisstore

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/redistest"
)

func locked(t *testing.T, server *redistest.Server) bool {
	t.Helper()
	return server.Do(t, "EXISTS itsmauth:{k}:lock").(int64) == 1
}

func TestTryLock(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	a, b := opened(t, server.URL()), opened(t, server.URL())
	try := func(s *store, known, version uint64, data string, taken bool) (unlock func()) {
		t.Helper()
		r, unlock, err := s.TryLock(t.Context(), "k", known)
		if err != nil || r.Version != version || string(r.Data) != data || (unlock != nil) != taken {
			t.Errorf("TryLock with version %d: %v, %q, taken %v, %v; want version %d, %q, taken %v", known, r, r.Data, unlock != nil, err, version, data, taken)
		}
		return unlock
	}
	try(a, 7, 0, "", false) // the record was deleted
	unlock := try(a, 0, 0, "", true)
	try(b, 0, 0, "", false)
	try(a, 0, 0, "", false) // not by the same process either
	expires := time.Now().Add(time.Hour)
	if err := a.Save(t.Context(), "k", auth.Record{Data: []byte("one"), Expires: expires}); err != nil {
		t.Fatal(err)
	}
	try(b, 0, 1, "one", false)
	if r, _, err := b.TryLock(t.Context(), "k", 9); err != nil || !r.Expires.Equal(expires) {
		t.Errorf("expires %v, %v, want %v", r.Expires, err, expires)
	}
	try(b, 1, 1, "", false)
	unlock()
	unlock()
	redistest.Eventually(t, "the unlock", func() bool { return !locked(t, server) })
	try(b, 0, 1, "one", false)
	if locked(t, server) {
		t.Error("a look at a newer record took the lock")
	}
	try(b, 1, 1, "", true)()
}

func TestLockIsHeld(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	a, b := opened(t, server.URL()), opened(t, server.URL())
	unlock, err := a.Lock(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	// Redis loses the lock. It is taken again before it would have expired.
	server.Do(t, "DEL itsmauth:{k}:lock")
	redistest.Eventually(t, "the lock taken again", func() bool { return locked(t, server) })
	ctx, cancel := context.WithTimeout(t.Context(), lockTTL+time.Second)
	defer cancel()
	if _, err := b.Lock(ctx, "k"); !errors.Is(err, auth.ErrStore) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Lock of a lock that is held for longer than lockTTL: %v", err)
	}
	unlock()
	redistest.Eventually(t, "the unlock", func() bool { return !locked(t, server) })
}

// After the first second, a process that waits for a lock sends at most five commands a second.
func TestLockPollsSlowly(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := opened(t, server.URL())
	tr := traced(s)
	server.Do(t, "SET itsmauth:{k}:lock another PX 60000")
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if _, err := s.Lock(ctx, "k"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	all := tr.seen()
	for i := range all {
		if i+5 < len(all) && all[i].start.Sub(all[0].start) > time.Second && all[i+5].start.Sub(all[i].start) < time.Second {
			t.Errorf("six commands from %v to %v after the first", all[i].start.Sub(all[0].start), all[i+5].start.Sub(all[0].start))
		}
	}
	if n := len(all); n < 2 || n > 20 {
		t.Errorf("%d commands in 3 s", n)
	}
}

// Background commands are retried if Redis does not reply, or refuses them.
func TestBackgroundRetries(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	server.Do(t, "ACL SETUSER tickets on ~* +@all", ">"+redistest.Password)
	s := opened(t, strings.Replace(server.URL(), "default:", "tickets:", 1))
	for what, trouble := range map[string]func() (end func()){
		"hung": func() func() {
			server.Signal(t, syscall.SIGSTOP)
			return func() { server.Signal(t, syscall.SIGCONT) }
		},
		"no permission": func() func() {
			server.Do(t, "ACL SETUSER tickets -@scripting")
			return func() { server.Do(t, "ACL SETUSER tickets +@scripting") }
		},
	} {
		unlock, err := s.Lock(t.Context(), "k")
		if err != nil {
			t.Fatal(err)
		}
		w := s.Window("k", []auth.Limit{{Requests: 1, Per: time.Millisecond}}, time.Hour)
		if wait, _, err := w.Take(t.Context(), what); wait != 0 || err != nil {
			t.Fatal(wait, err)
		}
		server.Do(t, "PERSIST itsmauth:{k}:lock") // so that it does not expire
		end := trouble()
		unlock()
		w.Release(what, true)
		time.Sleep(100 * time.Millisecond) // so that the first try fails
		end()
		redistest.Eventually(t, "the unlock, "+what, func() bool { return !locked(t, server) })
		redistest.Eventually(t, "the released slot, "+what, func() bool { wait, _, err := w.Take(t.Context(), "next"); return err == nil && wait == 0 })
		w.Release("next", false)
		waitBackground(s)
	}
}

// A renewal that is running at unlock may take the lock again. It is then unlocked again.
func TestRenewalAfterUnlock(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	p := redistest.Delay(t, server.Addr(), 0)
	s := opened(t, throughProxy(server, p))
	tr := traced(s)
	unlock, err := s.Lock(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	tr.seen()
	p.Hang()
	redistest.Eventually(t, "a renewal", func() bool { return len(tr.seen()) > 0 })
	s.records.mu.Lock()
	pool := s.records.current
	s.records.mu.Unlock()
	unlock()
	// The renewal reaches Redis last.
	server.Do(t, "DEL itsmauth:{k}:lock")
	p.Resume()
	redistest.Eventually(t, "the renewal's end", func() bool {
		s.records.mu.Lock()
		defer s.records.mu.Unlock()
		return pool.attempts == 0
	})
	settled(t, s)
	if locked(t, server) {
		t.Error("the lock was taken again")
	}
	if n := len(tr.seen()); n != 2 {
		t.Errorf("%d commands, want an unlock at once and one when the renewal had ended", n)
	}
}

func TestLockOfDeadProcess(t *testing.T) {
	t.Parallel()
	s := opened(t, redistest.Start(t).URL())
	if taken, err := s.newLease("k").take(t.Context()); !taken || err != nil {
		t.Fatal(taken, err)
	}
	begun := time.Now()
	unlock, err := s.Lock(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	if took := time.Since(begun); took < lockTTL-time.Second {
		t.Errorf("taken after %v, want %v", took, lockTTL)
	}
}

// Close waits for an unlock over a slow network, but not for a Redis that hangs.
func TestCloseAfterUnlock(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	p := redistest.Delay(t, server.Addr(), 500*time.Millisecond)
	s := opened(t, throughProxy(server, p))
	unlock, err := s.Lock(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	s.Close()
	if locked(t, server) {
		t.Error("closed, and the lock is still there")
	}

	p.SetRoundTrip(0)
	s = opened(t, throughProxy(server, p))
	if unlock, err = s.Lock(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	p.Hang()
	begun := time.Now()
	unlock()
	s.Close()
	if took := time.Since(begun); took < closeTimeout || took > attemptTimeout/2 {
		t.Errorf("Close took %v, want %v", took, closeTimeout)
	}
}
