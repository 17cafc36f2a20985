package auth_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
)

// fallible is a store that can lose its last writes, or be away.
type fallible struct {
	atomic.Pointer[auth.Memory]
	away     atomic.Bool
	lapsed   atomic.Bool   // locks hold nobody off
	onLock   func()        // or nil
	saveFail func() bool   // nil, or tells whether a save that was done seems to have failed
	slow     time.Duration // to say that it is away
}

func newFallible() *fallible {
	f := new(fallible)
	f.Store(new(auth.Memory))
	return f
}

// asStore is f as a Store, whose methods the pointer's hide.
type asStore struct{ f *fallible }

var errAway = errors.New("away")

func (s asStore) Load(ctx context.Context, key string) (auth.Record, error) {
	if s.f.away.Load() {
		time.Sleep(s.f.slow)
		return auth.Record{}, errAway
	}
	return s.f.Pointer.Load().Load(ctx, key)
}

func (s asStore) Save(ctx context.Context, key string, r auth.Record) error {
	if s.f.away.Load() {
		return errAway
	}
	err := s.f.Pointer.Load().Save(ctx, key, r)
	if err == nil && s.f.saveFail != nil && s.f.saveFail() {
		return errAway
	}
	return err
}

func (s asStore) Delete(ctx context.Context, key string, version uint64) error {
	return s.f.Pointer.Load().Delete(ctx, key, version)
}

func (s asStore) Lock(ctx context.Context, key string) (func(), error) {
	if s.f.away.Load() {
		return nil, errAway
	}
	if s.f.onLock != nil {
		s.f.onLock()
	}
	if s.f.lapsed.Load() {
		return func() {}, nil
	}
	return s.f.Pointer.Load().Lock(ctx, key)
}

// rollBack makes r the stored record again; the zero Record is none.
func (f *fallible) rollBack(t *testing.T, key string, r auth.Record) {
	t.Helper()
	older := new(auth.Memory)
	for version := range r.Version {
		if err := older.Save(t.Context(), key, auth.Record{Version: version, Expires: r.Expires, Data: r.Data}); err != nil {
			t.Fatal(err)
		}
	}
	f.Store(older)
}

// A store that loses its last write gets it back from who made it, before anybody spends the refresh
// token that was spent already.
func TestLostWriteIsWrittenBack(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		lose func(t *testing.T, f *fallible, p *rotating, key string, older auth.Record)
	}{
		{"failover", func(t *testing.T, f *fallible, _ *rotating, key string, older auth.Record) {
			f.rollBack(t, key, older)
		}},
		{"flush", func(t *testing.T, f *fallible, _ *rotating, key string, _ auth.Record) {
			f.rollBack(t, key, auth.Record{})
		}},
		{"failover, and somebody met the refusal first", func(t *testing.T, f *fallible, p *rotating, key string, older auth.Record) {
			f.rollBack(t, key, older)
			hasty := newSession(t, p, &auth.Options{Store: asStore{f}})
			if _, err := hasty.Token(t.Context()); !errors.Is(err, auth.ErrConsentRequired) {
				t.Error(err)
			}
		}},
		{"away for a while, then failover", func(t *testing.T, f *fallible, _ *rotating, key string, older auth.Record) {
			f.away.Store(true)
			time.Sleep(20 * time.Minute)
			f.away.Store(false)
			f.rollBack(t, key, older)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f, p := newFallible(), &rotating{current: "R0", lifetime: time.Hour}
				owner := newSession(t, p, &auth.Options{Store: asStore{f}})
				get(t, owner)
				older, _ := f.Pointer.Load().Load(t.Context(), owner.Key())
				time.Sleep(2 * time.Hour)
				get(t, owner)
				newest := p.current
				time.Sleep(59 * time.Minute) // so that the hasty find no valid access token either
				test.lose(t, f, p, owner.Key(), older)

				time.Sleep(10 * time.Second)
				synctest.Wait()
				if r, _ := f.Pointer.Load().Load(t.Context(), owner.Key()); !strings.Contains(string(r.Data), newest) || strings.Contains(string(r.Data), "refused") {
					t.Errorf("not written back: version %d", r.Version)
				}
				other := newSession(t, p, &auth.Options{Store: asStore{f}})
				time.Sleep(2 * time.Hour)
				get(t, other)
			})
		})
	}
}

// rotating refuses a refresh token that was spent.
type rotating struct {
	current  string
	lifetime time.Duration
	product
}

func (p *rotating) Exchange(ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
	if prev == nil || prev.RefreshToken != p.current {
		return nil, &auth.Error{Op: "exchange", Code: "invalid_grant", Err: auth.ErrConsentRequired}
	}
	tok, err := p.product.Exchange(ctx, prev)
	if err == nil {
		p.current = "R-" + tok.AccessToken
		tok.RefreshToken, tok.ExpiresIn = p.current, int64(p.lifetime/time.Second)
	}
	return tok, err
}

func (p *rotating) Refresh() auth.Refresh { return auth.Refresh{Token: auth.SecretString("R0")} }

// A service learns of a logout, and of the next login, from the store.
func TestLogoutElsewhere(t *testing.T) {
	t.Parallel()
	for _, flushed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f, p := newFallible(), consenting{&product{lifetime: time.Hour, refresh: true}}
			service := newSession(t, p, &auth.Options{Store: asStore{f}})
			cli := newSession(t, p, &auth.Options{Store: asStore{f}})
			if err := cli.Redeem(t.Context(), "one", ""); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
			if got := get(t, service); got != "A-one" {
				t.Error(got)
			}
			time.Sleep(time.Minute)
			if flushed {
				f.rollBack(t, cli.Key(), auth.Record{})
			}
			if err := cli.Revoke(t.Context()); err != nil {
				t.Fatal(err)
			}
			at := time.Now().Format(time.RFC3339)
			time.Sleep(10 * time.Second)
			for _, s := range []*auth.Session{service, cli} {
				if _, err := s.Token(t.Context()); !errors.Is(err, auth.ErrConsentRequired) || !strings.Contains(err.Error(), "logged out at "+at) {
					t.Errorf("flushed: %t: %v", flushed, err)
				}
				if st, err := s.Status(t.Context()); st.State != auth.StateConsentRequired || err != nil {
					t.Errorf("flushed: %t: %v, %v", flushed, st, err)
				}
			}
			if r, _ := f.Pointer.Load().Load(t.Context(), cli.Key()); strings.Contains(string(r.Data), "-one") || r.Expires.IsZero() {
				t.Errorf("flushed: %t: what a logout leaves holds a token, or has no end: %s", flushed, r.Expires)
			}
			if err := cli.Redeem(t.Context(), "two", ""); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
			if got := get(t, service); got != "A-two" || p.calls.Load() != 0 {
				t.Errorf("flushed: %t: %s after %d exchanges", flushed, got, p.calls.Load())
			}
		})
	}
}

// With the store away, Status is what the process itself knows.
func TestStatusWithoutStore(t *testing.T) {
	t.Parallel()
	f := newFallible()
	s := newSession(t, &product{lifetime: time.Hour}, &auth.Options{Store: asStore{f}})
	f.away.Store(true)
	if st, err := s.Status(t.Context()); st.State != "" || !errors.Is(err, auth.ErrStore) {
		t.Error(st, err)
	}
	f.away.Store(false)
	get(t, s)
	f.away.Store(true)
	if st, err := s.Status(t.Context()); st.State != auth.StateFresh || st.Expiry.IsZero() || !errors.Is(err, auth.ErrStore) {
		t.Error(st, err)
	}
}

// A process that holds an older record than the one that was lost does not write that back, whatever
// versions the store counts.
func TestOlderRecordIsNotWrittenBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, p := newFallible(), &rotating{current: "R0", lifetime: time.Hour}
		newest := newSession(t, p, &auth.Options{Store: asStore{f}})
		older := newSession(t, p, &auth.Options{Store: asStore{f}})
		get(t, newest)
		get(t, older)
		time.Sleep(59 * time.Minute)
		f.away.Store(true) // so that the older session does not hear of it
		time.Sleep(time.Minute)
		f.away.Store(false)
		get(t, newest)
		f.rollBack(t, newest.Key(), auth.Record{})
		time.Sleep(10 * time.Second)
		newest.Close(t.Context())
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if r, _ := f.Pointer.Load().Load(t.Context(), newest.Key()); !strings.Contains(string(r.Data), p.current) {
			t.Errorf("the store does not have %s", p.current)
		}
	})
}

// A failover between the look and the lock: the older refresh token is not spent.
func TestFailoverBeforeLock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, p := newFallible(), &rotating{current: "R0", lifetime: time.Hour}
		s := newSession(t, p, &auth.Options{Store: asStore{f}})
		get(t, s)
		older, _ := f.Pointer.Load().Load(t.Context(), s.Key())
		time.Sleep(2 * time.Hour)
		get(t, s)
		f.onLock = func() { f.rollBack(t, s.Key(), older) }
		time.Sleep(59 * time.Minute)
		get(t, s) // in the background
		time.Sleep(time.Hour)
		get(t, s)
	})
}

// A save that was done and seems to have failed is tried on. What others saved meanwhile, because the
// lock lapsed, stays: a newer token, or a logout.
func TestLateSave(t *testing.T) {
	t.Parallel()
	for _, logout := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f, p := newFallible(), consenting{&product{lifetime: time.Hour, refresh: true}}
			f.lapsed.Store(true)
			slow := newSession(t, p, &auth.Options{Store: asStore{f}})
			other := newSession(t, p, &auth.Options{Store: asStore{f}})
			if err := slow.Redeem(t.Context(), "one", ""); err != nil {
				t.Fatal(err)
			}
			time.Sleep(90 * time.Minute)
			var saves atomic.Int64
			f.saveFail = func() bool {
				second := saves.Add(1) == 2 // after the mark
				if second {
					f.away.Store(true)
				}
				return second
			}
			if got := get(t, slow); got != "T1" {
				t.Error(got)
			}
			time.Sleep(time.Minute) // its next try is in 5 s at the latest
			f.away.Store(false)
			want := "two"
			if logout {
				want = "logged_out"
				if err := other.Revoke(t.Context()); err != nil {
					t.Fatal(err)
				}
			} else if err := other.Redeem(t.Context(), want, ""); err != nil {
				t.Fatal(err)
			}
			other.Close(t.Context()) // so that it does not mend what is done to it
			time.Sleep(20 * time.Second)
			if r, _ := f.Pointer.Load().Load(t.Context(), slow.Key()); !strings.Contains(string(r.Data), want) {
				t.Errorf("%s was overwritten", want)
			}
			_, err := slow.Token(t.Context())
			if errors.Is(err, auth.ErrConsentRequired) != logout {
				t.Errorf("logout: %t: %v", logout, err)
			}
		})
	}
}

// A logout, or a login, that the store lost is written back too.
func TestLostLogout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, p := newFallible(), consenting{&product{lifetime: time.Hour, refresh: true}}
		s := newSession(t, p, &auth.Options{Store: asStore{f}})
		stored := func() auth.Record {
			r, _ := f.Pointer.Load().Load(t.Context(), s.Key())
			return r
		}
		if err := s.Redeem(t.Context(), "one", ""); err != nil {
			t.Fatal(err)
		}
		login := stored()
		if err := s.Revoke(t.Context()); err != nil {
			t.Fatal(err)
		}
		logout := stored()
		f.rollBack(t, s.Key(), login)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if _, err := s.Token(t.Context()); !errors.Is(err, auth.ErrConsentRequired) || strings.Contains(string(stored().Data), "-one") {
			t.Errorf("the login that was ended is back: %v", err)
		}
		if err := s.Redeem(t.Context(), "two", ""); err != nil {
			t.Fatal(err)
		}
		f.rollBack(t, s.Key(), logout)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if !strings.Contains(string(stored().Data), "-two") {
			t.Error("the login is lost")
		}
	})
}

// The store is away from the middle of an exchange on, for longer than its mark holds the others off, and
// has lost the lock. The one whose exchange it was saves before another spends the refresh token again.
func TestOutageDuringExchange(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFallible()
		p := &product{lifetime: time.Hour, refresh: true, delay: time.Second}
		o := &auth.Options{Store: asStore{f}}
		a, b := newSession(t, p, o), newSession(t, p, o)
		get(t, a)
		get(t, b)
		time.Sleep(2 * time.Hour)
		go a.Token(t.Context())
		time.Sleep(500 * time.Millisecond)
		f.away.Store(true)
		f.lapsed.Store(true)
		time.Sleep(time.Minute + 100*time.Millisecond)
		f.away.Store(false)
		if got := get(t, b); got != "T2" || p.calls.Load() != 2 {
			t.Errorf("%s after %d exchanges", got, p.calls.Load())
		}
	})
}

// Whoever waits for a lock in vain looks once more.
func TestSavedBeforeLockTimesOut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFallible()
		p := &product{lifetime: time.Hour}
		o := &auth.Options{Store: asStore{f}}
		a, b := newSession(t, p, o), newSession(t, p, o)
		unlock, err := f.Pointer.Load().Lock(t.Context(), a.Key()) // by one that hangs
		if err != nil {
			t.Fatal(err)
		}
		defer unlock()
		waiting := make(chan string)
		go func() { waiting <- get(t, a) }()
		synctest.Wait()
		f.lapsed.Store(true)
		get(t, b)
		if got := <-waiting; got != "T1" || p.calls.Load() != 1 {
			t.Errorf("%s after %d exchanges", got, p.calls.Load())
		}
	})
}

// A rotated refresh token is saved also if the store was away for long, and its version moved on.
func TestSaveAfterLongOutage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, p := newFallible(), consenting{&product{lifetime: time.Hour, refresh: true}}
		s := newSession(t, p, &auth.Options{Store: asStore{f}})
		if err := s.Redeem(t.Context(), "one", ""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(90 * time.Minute)
		p.setFail(func(int) error { f.away.Store(true); return nil })
		get(t, s)
		time.Sleep(10 * time.Minute)
		memory := f.Pointer.Load()
		marked, _ := memory.Load(t.Context(), s.Key())
		if err := memory.Save(t.Context(), s.Key(), marked); err != nil {
			t.Fatal(err)
		}
		f.away.Store(false)
		time.Sleep(10 * time.Second)
		if r, _ := memory.Load(t.Context(), s.Key()); !strings.Contains(string(r.Data), "R1") {
			t.Error("not saved")
		}
	})
}

// Nobody need consent here, and still what was revoked elsewhere is not written back.
func TestRevokedElsewhere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &product{lifetime: time.Hour, refresh: true}
		var store auth.Memory
		a, b := newSession(t, p, &auth.Options{Store: &store}), newSession(t, p, &auth.Options{Store: &store})
		get(t, a)
		get(t, b)
		if err := a.Revoke(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if st, err := a.Status(t.Context()); st.State != auth.StateNone {
			t.Errorf("%s, %v", st.State, err)
		}
		if got := get(t, a); got != "T2" {
			t.Error(got)
		}
	})
}
