package auth_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
)

// unlocked is a store that can be read, but has no lock to give: a replica, or one with a full disk.
type unlocked struct{ auth.Memory }

func (*unlocked) Lock(context.Context, string) (func(), error) { return nil, auth.ErrStore }

// With such a store each process is on its own, and kills the others' tokens: forced exchanges have the
// limits that they always have.
func TestStoreWithoutLock(t *testing.T) {
	t.Parallel()
	for name, accepted := range map[string]bool{"accepted, then killed": true, "never accepted": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := &product{lifetime: time.Hour}
				s := newSession(t, p, &auth.Options{Store: new(unlocked)})
				for range 6000 {
					tok, err := s.Token(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					if accepted {
						s.Rejected(response(200, ""), tok)
					}
					s.Rejected(response(401, "token"), tok)
					time.Sleep(10 * time.Millisecond)
				}
				if n := p.calls.Load(); n > 16 {
					t.Errorf("%d exchanges in a minute", n)
				}
			})
		})
	}
}

// slowUnlock is a store whose locks are slow to give back.
type slowUnlock struct{ auth.Memory }

func (s *slowUnlock) Lock(ctx context.Context, key string) (func(), error) {
	unlock, err := s.Memory.Lock(ctx, key)
	return func() { time.Sleep(5 * time.Second); unlock() }, err
}

func TestAdoptedIsAnsweredBeforeUnlock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := &auth.Options{Store: new(slowUnlock)}
		p := &product{lifetime: time.Hour, delay: time.Second}
		a, b := newSession(t, p, o), newSession(t, p, o)
		go a.Token(t.Context())
		synctest.Wait()
		start := time.Now()
		if get(t, b); time.Since(start) > 2*time.Second { // a's exchange, and b's look once a second
			t.Errorf("after %s", time.Since(start))
		}
	})
}

// A background flight meets a store that is away, slowly, and the token expires meanwhile.
func TestExpiredMeanwhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFallible()
		s := newSession(t, &product{lifetime: time.Hour}, &auth.Options{Store: asStore{f}})
		get(t, s)
		time.Sleep(time.Hour - time.Second)
		f.away.Store(true)
		f.slow = 5 * time.Second
		get(t, s)
		time.Sleep(2 * time.Second)
		if got := get(t, s); got != "T2" {
			t.Error(got)
		}
	})
}

func TestRestartAdopts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var store auth.Memory
		p := &product{lifetime: time.Hour, refresh: true}
		get(t, newSession(t, p, &auth.Options{Store: &store}))
		time.Sleep(30 * time.Minute)
		s := newSession(t, p, &auth.Options{Store: &store})
		if got := get(t, s); got != "T1" || p.calls.Load() != 1 {
			t.Fatalf("%s after %d", got, p.calls.Load())
		}
		time.Sleep(31 * time.Minute)
		if got := get(t, s); got != "T2" || p.prevs[1].RefreshToken != "R1" {
			t.Errorf("%s from %v", got, p.prevs[1])
		}
	})
}

// Each of these processes asks for one token, as a command line does. One that finds it stale renews it
// for the next.
func TestStaleIsRenewedForTheNext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := new(auth.Memory)
		p := &product{lifetime: time.Hour, delay: time.Second}
		once := func() string {
			s := auth.New(p, &auth.Options{Store: store})
			got := get(t, s)
			if err := s.Close(t.Context()); err != nil {
				t.Error(err)
			}
			return got
		}
		once()
		time.Sleep(58 * time.Minute)
		for i, want := range []string{"T1", "T2", "T2"} {
			if got := once(); got != want {
				t.Errorf("process %d: %s, want %s", i, got, want)
			}
		}
		if n := p.calls.Load(); n != 2 {
			t.Errorf("%d exchanges", n)
		}
	})
}

// Of two sessions of one identity, the second adopts what the first obtained after a refusal.
func TestSharedStoreAfterRevocation(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var store auth.Memory
		p := &product{lifetime: time.Hour}
		a := newSession(t, p, &auth.Options{Store: &store})
		b := newSession(t, p, &auth.Options{Store: &store})
		ta, _ := a.Token(t.Context())
		tb, _ := b.Token(t.Context())
		a.Rejected(response(401, "token"), ta)
		b.Rejected(response(401, "token"), tb)
		if get(t, a) != "T2" || get(t, b) != "T2" || p.calls.Load() != 2 {
			t.Errorf("%d exchanges", p.calls.Load())
		}
	})
}

// broken is a Store that fails where told.
type brokenStore struct {
	auth.Memory
	load, save atomic.Bool
	saves      atomic.Int64
}

func (b *brokenStore) Load(ctx context.Context, key string) (auth.Record, error) {
	if b.load.Load() {
		return auth.Record{}, auth.ErrStore
	}
	return b.Memory.Load(ctx, key)
}

func (b *brokenStore) Save(ctx context.Context, key string, r auth.Record) error {
	b.saves.Add(1)
	if b.save.Load() {
		return errors.New("disk full")
	}
	return b.Memory.Save(ctx, key, r)
}

func TestNothingIsSpentWithoutStore(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"load", "save"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var store brokenStore
				p := &product{lifetime: time.Hour, refresh: true}
				s := newSession(t, p, &auth.Options{Store: &store})
				get(t, s)
				(map[string]*atomic.Bool{"load": &store.load, "save": &store.save})[name].Store(true)
				time.Sleep(2 * time.Hour)
				if _, err := s.Token(t.Context()); !errors.Is(err, auth.ErrStore) || p.calls.Load() != 1 {
					t.Errorf("%v after %d exchanges", err, p.calls.Load())
				}
				store.load.Store(false)
				store.save.Store(false)
				time.Sleep(time.Second)
				if got := get(t, s); got != "T2" {
					t.Error(got)
				}
			})
		})
	}
}

func TestStoreFailsWithNothingAtStake(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var store brokenStore
		store.load.Store(true)
		s := newSession(t, &product{lifetime: time.Hour}, &auth.Options{Store: &store})
		if got := get(t, s); got != "T1" {
			t.Error(got)
		}
	})
}

// What was obtained beside the store is not replaced by something older that is in it: refused
// together, the older one would be refused again.
func TestOlderTokenIsNotAdopted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var store brokenStore
		p := &product{lifetime: time.Hour}
		others, ours := newSession(t, p, &auth.Options{Store: &store}), newSession(t, p, &auth.Options{Store: &store})
		get(t, others)
		time.Sleep(time.Second)
		store.load.Store(true)
		tok, err := ours.Token(t.Context())
		if err != nil || tok.AccessToken != "T2" {
			t.Fatal(tok, err)
		}
		store.load.Store(false)
		time.Sleep(time.Second)
		ours.Invalidate(tok)
		if got := get(t, ours); got != "T3" {
			t.Errorf("%s in place of T2", got)
		}
		synctest.Wait()
		if r, _ := store.Load(t.Context(), ours.Key()); !strings.Contains(string(r.Data), `"T3"`) {
			t.Error("T3 is not for the others")
		}
	})
}

// What refused tokens forced while the store was away, each process for itself and to the harm of the
// others, does not keep one from exchanging for all when it is back.
func TestStoreIsBackAfterRefusals(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var store brokenStore
		p := &product{lifetime: time.Hour}
		s := newSession(t, p, &auth.Options{Store: &store})
		refused := func() {
			tok, err := s.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			s.Rejected(response(401, "token"), tok)
		}
		get(t, s)
		store.load.Store(true)
		for range 100 {
			refused()
			time.Sleep(100 * time.Millisecond)
		}
		store.load.Store(false)
		before := p.calls.Load()
		refused() // and looks
		synctest.Wait()
		refused()
		if get(t, s); p.calls.Load() != before+1 {
			t.Errorf("%d exchanges with the store back", p.calls.Load()-before)
		}
	})
}

func TestRecordsEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tokens := &product{lifetime: time.Hour}
		refreshed := &product{lifetime: time.Hour, refresh: true}
		for name, test := range map[string]struct {
			p    auth.Provider
			ends time.Duration // 0: it is not known when
		}{
			"client credentials": {tokens, time.Hour},
			"refresh token":      {refreshed, 0},
			"consent":            {consenting{refreshed}, consentLife},
			"expendable":         {expendable{refreshed}, time.Hour},
		} {
			store := new(auth.Memory)
			s := newSession(t, test.p, &auth.Options{Store: store})
			if s.CodeFlow() == nil {
				get(t, s)
			} else if err := s.Redeem(t.Context(), "code", ""); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			r, err := store.Load(t.Context(), s.Key())
			if err != nil || r.Version == 0 || r.Expires.IsZero() != (test.ends == 0) || test.ends != 0 && time.Until(r.Expires) != test.ends {
				t.Errorf("%s: %v, %v; want an end in %s", name, r, err, test.ends)
			}
		}
	})
}

// A token that is still valid is no reason to exchange beside the store: others would do the same.
// One that is not, is.
func TestStoreFailsInTheBackground(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var store brokenStore
		p := &product{lifetime: time.Hour}
		s := newSession(t, p, &auth.Options{Store: &store})
		get(t, s)
		store.load.Store(true)
		time.Sleep(59 * time.Minute)
		for range 20 {
			if got := get(t, s); got != "T1" || p.calls.Load() != 1 {
				t.Errorf("%s after %d exchanges", got, p.calls.Load())
			}
			time.Sleep(time.Second)
		}
		time.Sleep(time.Minute)
		if got := get(t, s); got != "T2" {
			t.Errorf("%s once the token has expired", got)
		}
	})
}

// A rotated refresh token is saved however long that takes; callers do not wait for it, Close does.
func TestSaveIsRepeated(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var store brokenStore
		p := &product{lifetime: time.Hour, refresh: true}
		s := auth.New(p, &auth.Options{Store: &store})
		p.answer = func(int) *oauth2.Token {
			store.save.Store(true)
			return &oauth2.Token{AccessToken: "A", RefreshToken: "R", ExpiresIn: 3600}
		}
		if got := get(t, s); got != "A" {
			t.Fatal(got)
		}
		time.Sleep(time.Minute)
		store.save.Store(false)
		time.Sleep(10 * time.Second)
		if r, _ := store.Load(t.Context(), s.Key()); r.Version == 0 || !strings.Contains(string(r.Data), `"R"`) {
			t.Errorf("not saved: version %d", r.Version)
		}
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// A token that cannot be saved is still not handed out past its end; callers learn why at once.
func TestExpiredWhileSaving(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var store brokenStore
		p := &product{answer: func(int) *oauth2.Token {
			store.save.Store(true)
			return &oauth2.Token{AccessToken: "A", RefreshToken: "R", ExpiresIn: 600}
		}}
		s := newSession(t, p, &auth.Options{Store: &store})
		get(t, s)
		time.Sleep(11 * time.Minute)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if tok, err := s.Token(ctx); !errors.Is(err, auth.ErrStore) || time.Since(start) != 0 {
			t.Errorf("%v, %v after %s", tok, err, time.Since(start))
		}
		p.mu.Lock()
		p.answer = func(int) *oauth2.Token { return &oauth2.Token{AccessToken: "B", ExpiresIn: 600} }
		p.mu.Unlock()
		store.save.Store(false)
		time.Sleep(3 * time.Second)
		if got := get(t, s); got != "B" {
			t.Error(got)
		}
	})
}

// Somebody else's pending mark: wait until their exchange must be over, try once, and say so.
func TestInterruptedExchange(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var store auth.Memory
		p := &product{lifetime: time.Hour, refresh: true}
		dying := auth.New(p, &auth.Options{Store: &store, Connector: "remedy"})
		get(t, dying)
		time.Sleep(2 * time.Hour)
		p.delay = time.Hour // until it is killed
		ctx, kill := context.WithTimeout(t.Context(), time.Second)
		defer kill()
		dying.Token(ctx)
		dying.Close(ctx)
		marked := time.Now().Add(-time.Second)

		p.delay = 0
		p.setFail(func(int) error {
			return &auth.Error{Op: "exchange", Code: "invalid_grant", Err: auth.ErrConsentRequired}
		})
		s := newSession(t, p, &auth.Options{Store: &store, Connector: "remedy"})
		_, err := s.Token(t.Context())
		if !errors.Is(err, auth.ErrConsentRequired) || !strings.Contains(fmt.Sprint(err), "interrupted at "+marked.Format(time.RFC3339)) ||
			!strings.Contains(fmt.Sprint(err), "itsmauth login remedy") {
			t.Error(err)
		}
		if got := time.Since(marked); got < 30*time.Second {
			t.Errorf("tried %s after the mark", got)
		}
		// It is in the record: nobody tries again.
		calls := p.calls.Load()
		other := newSession(t, p, &auth.Options{Store: &store, Connector: "remedy"})
		if _, err := other.Token(t.Context()); !errors.Is(err, auth.ErrConsentRequired) || p.calls.Load() != calls {
			t.Errorf("%v after %d exchanges", err, p.calls.Load()-calls)
		}
		if st, err := other.Status(t.Context()); err != nil || st.State != auth.StateConsentRequired {
			t.Errorf("%+v %v", st, err)
		}
	})
}

// The one try after an interrupted exchange may meet an outage: the interruption is told all the same.
func TestInterruptionIsNotForgotten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := &auth.Options{Store: new(auth.Memory)}
		p := &product{lifetime: time.Hour, refresh: true}
		dying := auth.New(p, o)
		get(t, dying)
		time.Sleep(2 * time.Hour)
		p.delay = time.Hour // until it is killed
		marked := time.Now()
		ctx, kill := context.WithTimeout(t.Context(), time.Second)
		defer kill()
		dying.Token(ctx)
		dying.Close(ctx)

		p.delay = 0
		s := newSession(t, p, o)
		for _, err := range []*auth.Error{
			{Status: 503, Err: auth.ErrUnavailable},
			{Status: 401, Code: "invalid_client", Err: auth.ErrCredentials},
			{Status: 400, Code: "invalid_grant", Err: auth.ErrConsentRequired},
		} {
			p.setFail(func(int) error { return err })
			_, got := s.Token(t.Context())
			if !errors.Is(got, err.Err) {
				t.Fatalf("%v, want %v", got, err.Err)
			}
			if told := strings.Contains(got.Error(), "interrupted at "+marked.Format(time.RFC3339)); told != (err.Status == 400) {
				t.Errorf("%v", got)
			}
			time.Sleep(2 * time.Minute)
		}
	})
}

// After an exchange that was answered, or never sent, no other process waits, whatever became of the refresh
// token. Other processes wait for an exchange that the product may still be processing.
func TestRefusalLeavesNoMark(t *testing.T) {
	t.Parallel()
	unavailable := func(cause error) error { return &auth.Error{Err: fmt.Errorf("%w: %w", auth.ErrUnavailable, cause)} }
	for name, test := range map[string]struct {
		err   error
		waits time.Duration
	}{
		"429":                  {&auth.Error{Status: 429, Err: auth.ErrRateLimited}, 0},
		"no room in our limit": {&auth.Error{Err: auth.ErrRateLimited}, 0},
		"credentials":          {auth.ErrCredentials, 0},
		"foreign certificate":  {&auth.Error{Err: auth.ErrInsecure}, 0},
		"connection refused":   {unavailable(&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}), 0},
		"proxy refuses":        {unavailable(&net.OpError{Op: "proxyconnect", Err: syscall.ECONNREFUSED}), 0},
		"reset":                {unavailable(&net.OpError{Op: "read", Err: syscall.ECONNRESET}), 29 * time.Second},
		"503":                  {&auth.Error{Status: 503, Err: auth.ErrUnavailable}, 0},
		"redirected":           {&auth.Error{Status: 302, Err: auth.ErrInsecure}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				o := &auth.Options{Store: new(auth.Memory)}
				p := &product{lifetime: time.Hour, refresh: true}
				a, b := newSession(t, p, o), newSession(t, p, o)
				get(t, a)
				time.Sleep(2 * time.Hour)
				p.setFail(func(int) error { return test.err })
				if _, err := a.Token(t.Context()); err == nil {
					t.Fatal("no error")
				}
				time.Sleep(time.Second)
				p.setFail(nil)
				start := time.Now()
				if got := get(t, b); got != "T2" || time.Since(start) != test.waits {
					t.Errorf("%s after %s, want T2 after %s", got, time.Since(start), test.waits)
				}
			})
		})
	}
}
