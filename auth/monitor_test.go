package auth_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
)

// stalling is a Store that can stop answering, or refuse.
type stalling struct {
	auth.Memory
	mu      sync.Mutex
	stalled chan struct{} // nil: it answers
	refuse  error         // nil: it does not refuse
	writes  bool          // it refuses writes alone
	key     string        // it refuses what concerns this record alone; "" is any
	deaf    bool          // and while it stalls, it does not heed ctx
}

func (s *stalling) set(f func()) { s.mu.Lock(); defer s.mu.Unlock(); f() }

func (s *stalling) stall() { s.set(func() { s.stalled = make(chan struct{}) }) }

func (s *stalling) resume() {
	s.set(func() {
		if s.stalled != nil {
			close(s.stalled)
		}
		s.stalled, s.refuse = nil, nil
	})
}

func (s *stalling) answer(ctx context.Context, key string, write bool) error {
	s.mu.Lock()
	stalled, refuse, deaf := s.stalled, s.refuse, s.deaf
	if s.key != "" && s.key != key || s.writes && !write {
		refuse = nil
	}
	s.mu.Unlock()
	if stalled == nil {
		return refuse
	}
	if deaf {
		ctx = context.WithoutCancel(ctx)
	}
	select {
	case <-stalled:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", auth.ErrStore, ctx.Err())
	}
}

func (s *stalling) Load(ctx context.Context, key string) (auth.Record, error) {
	if err := s.answer(ctx, key, false); err != nil {
		return auth.Record{}, err
	}
	return s.Memory.Load(ctx, key)
}

func (s *stalling) Save(ctx context.Context, key string, r auth.Record) error {
	if err := s.answer(ctx, key, true); err != nil {
		return err
	}
	return s.Memory.Save(ctx, key, r)
}

func (s *stalling) Delete(ctx context.Context, key string, version uint64) error {
	if err := s.answer(ctx, key, true); err != nil {
		return err
	}
	return s.Memory.Delete(ctx, key, version)
}

func (s *stalling) Lock(ctx context.Context, key string) (func(), error) {
	if err := s.answer(ctx, key, false); err != nil {
		return nil, err
	}
	return s.Memory.Lock(ctx, key)
}

// stored is the access token in the record, or "".
func (s *stalling) stored(t *testing.T, key string) string {
	t.Helper()
	r, err := s.Memory.Load(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(r.Data), `"access_token":"`)
	tok, _, _ := strings.Cut(after, `"`)
	return tok
}

func monitor(t *testing.T, s auth.Store, o *auth.MonitorOptions) auth.Store {
	t.Helper()
	m := auth.Monitor(s, o)
	t.Cleanup(func() { m.(interface{ Close() error }).Close() })
	return m
}

// A first token waits for a silent store once in a process, and later ones do not wait.
func TestSilenceIsWaitedForOnce(t *testing.T) {
	t.Parallel()
	for name, deaf := range map[string]bool{"heeds ctx": false, "does not": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := &stalling{deaf: deaf}
				var log bytes.Buffer
				logger := slog.New(slog.NewTextHandler(&log, nil))
				m := auth.Monitor(store, &auth.MonitorOptions{Timeout: 3 * time.Second, Logger: logger})
				session := func(name string) *auth.Session {
					return auth.New(&product{lifetime: time.Hour}, &auth.Options{Connector: name, Store: m})
				}
				store.stall()
				start := time.Now()
				a, b := session("a"), session("b")
				get(t, a)
				if took := time.Since(start); took < 3*time.Second || took > 3200*time.Millisecond {
					t.Errorf("the first token took %v, want 3s", took)
				}
				start = time.Now()
				get(t, b)
				a.Rejected(response(401, "token"), must(a.Token(t.Context())))
				get(t, a)
				if took := time.Since(start); took != 0 {
					t.Errorf("later tokens took %v", took)
				}
				time.Sleep(time.Minute)
				store.resume()
				time.Sleep(2 * time.Second)
				for _, s := range []*auth.Session{a, b} {
					if got, want := store.stored(t, s.Key()), get(t, s); got != want {
						t.Errorf("the store has %q, want %q", got, want)
					}
				}
				for text, want := range map[string]int{"token store fails": 1, "works again": 1} {
					if n := strings.Count(log.String(), text); n != want {
						t.Errorf("%d lines say %q, want %d:\n%s", n, text, want, log.String())
					}
				}
				for _, c := range []interface{ Close(context.Context) error }{a, b} {
					if err := c.Close(t.Context()); err != nil {
						t.Error(err)
					}
				}
				m.(interface{ Close() error }).Close()
			})
		})
	}
}

func must(tok *oauth2.Token, err error) *oauth2.Token {
	if err != nil {
		panic(err)
	}
	return tok
}

// A store that answers slowly is no silent store.
func TestSlowStoreIsWaitedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := slowStore{new(auth.Memory), 4 * time.Second}
		p := &product{lifetime: time.Hour}
		for range 3 {
			get(t, newSession(t, p, &auth.Options{Store: store}))
		}
		if n := p.calls.Load(); n != 1 {
			t.Errorf("%d exchanges", n)
		}
	})
}

type slowStore struct {
	auth.Store
	delay time.Duration
}

func (s slowStore) Load(ctx context.Context, key string) (auth.Record, error) {
	time.Sleep(s.delay)
	return s.Store.Load(ctx, key)
}

func (s slowStore) Save(ctx context.Context, key string, r auth.Record) error {
	time.Sleep(s.delay)
	return s.Store.Save(ctx, key, r)
}

// The wait for a lock is no silence: a token endpoint that takes 20 s does not send the others off on
// their own.
func TestSlowEndpointIsOneExchange(t *testing.T) {
	t.Parallel()
	for _, lock := range []string{"Lock", "TryLock"} {
		t.Run(lock, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				counter := &tryLocker{}
				var store auth.Store = &counter.Memory
				if lock == "TryLock" {
					store = counter
				}
				p := &product{lifetime: time.Hour, delay: 20 * time.Second}
				var wg sync.WaitGroup
				for range 20 {
					wg.Go(func() { get(t, newSession(t, p, &auth.Options{Store: store})) })
				}
				wg.Wait()
				if n := p.calls.Load(); n != 1 {
					t.Errorf("%d exchanges", n)
				}
				if n := counter.tries.Load(); lock == "TryLock" && n > 20*(20*5+15) {
					t.Errorf("%d looks by 20 in 20 s, want 5 a second of each", n)
				}
			})
		})
	}
}

// tryLocker is a TryLocker.
type tryLocker struct {
	auth.Memory
	tries atomic.Int64
	mu    sync.Mutex
	held  bool
}

func (l *tryLocker) TryLock(ctx context.Context, key string, known uint64) (auth.Record, func(), error) {
	l.tries.Add(1)
	r, err := l.Load(ctx, key)
	if err != nil || r.Version != known {
		return r, nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held {
		return auth.Record{Version: known}, nil, nil
	}
	l.held = true
	return auth.Record{Version: known}, func() { l.mu.Lock(); defer l.mu.Unlock(); l.held = false }, nil
}

func (l *tryLocker) Lock(context.Context, string) (func(), error) { panic("waits in the store") }

// A waiter adopts what the holder has saved, before the lock is free.
func TestWaiterAdopts(t *testing.T) {
	t.Parallel()
	for _, encrypted := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var store auth.Store = &tryLocker{held: true}
			if encrypted {
				key, err := auth.ParseKey(auth.NewKey())
				if err != nil {
					t.Fatal(err)
				}
				store = auth.Encrypt(store, key)
			}
			p := &product{lifetime: time.Hour}
			waiter := newSession(t, p, &auth.Options{Store: store})
			go func() {
				time.Sleep(10 * time.Second)
				holder := newSession(t, p, nil)
				get(t, holder)
				store.Save(t.Context(), waiter.Key(), auth.Record{Data: fmt.Appendf(nil,
					`{"format":1,"generation":1,"access_token":"THEIRS","obtained":%q,"lifetime":%d}`, time.Now().Format(time.RFC3339), time.Hour)})
			}()
			start := time.Now()
			if got := get(t, waiter); got != "THEIRS" || time.Since(start) > 11*time.Second {
				t.Errorf("%s after %v", got, time.Since(start))
			}
		})
	}
}

// An exchange that spends a refresh token waits for the store, and its callers as long as their ctx
// lasts. Their error says that it was the store.
func TestRefreshTokenWaitsForStore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := new(stalling)
		p := &rotating{current: "R0", lifetime: time.Hour}
		p.product.lifetime = time.Hour
		s := newSession(t, p, &auth.Options{Store: monitor(t, store, nil)})
		get(t, s)
		time.Sleep(2 * time.Hour)
		store.stall()
		for _, patience := range []time.Duration{time.Second, 10 * time.Second} {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			start := time.Now()
			_, err := s.Token(ctx)
			cancel()
			if !errors.Is(err, auth.ErrStore) || !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != patience {
				t.Errorf("after %v: %v", time.Since(start), err)
			}
		}
		time.AfterFunc(15*time.Second, store.resume)
		start := time.Now()
		if got := get(t, s); got != "T2" || time.Since(start) > 17*time.Second {
			t.Errorf("%s after %v", got, time.Since(start))
		}
		time.Sleep(2 * time.Hour)
		store.stall()
		start = time.Now()
		_, err := s.Token(t.Context())
		if took := time.Since(start); !errors.Is(err, auth.ErrStore) || took < 30*time.Second || took > 36*time.Second {
			t.Errorf("%v after %v, want ErrStore at the exchange's own limit", err, took)
		}
		if n := p.calls.Load(); n != 2 {
			t.Errorf("%d exchanges", n)
		}
		store.resume()
	})
}

// What is said of a store that refuses is said once, and an exchange does not wait for it.
func TestRefusingStore(t *testing.T) {
	t.Parallel()
	dial := &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	for _, tt := range []struct {
		name     string
		store    *stalling
		fails    int // lines of a store that fails
		fromHere int // exchanges of a second process: 0 if it can still read
	}{
		{"no connection", &stalling{refuse: fmt.Errorf("%w: %w", auth.ErrStore, dial)}, 1, 1},
		{"full", &stalling{refuse: errors.New("disk full"), writes: true}, 1, 1},
		{"one damaged record", &stalling{refuse: errors.New("damaged"), key: "its own"}, 0, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				logger := slog.New(slog.NewTextHandler(&log, nil))
				p := &product{lifetime: time.Minute}
				m := auth.Monitor(tt.store, &auth.MonitorOptions{Logger: logger})
				s := auth.New(p, &auth.Options{Store: m, Logger: logger})
				if tt.store.key != "" {
					tt.store.key = s.Key()
				}
				start := time.Now()
				get(t, s)
				if took := time.Since(start); took != 0 {
					t.Errorf("took %v", took)
				}
				for range 20 {
					time.Sleep(time.Minute)
					get(t, s)
				}
				if n := p.calls.Load(); n != 21 {
					t.Errorf("%d exchanges", n)
				}
				if n := strings.Count(log.String(), "token store fails"); n != tt.fails {
					t.Errorf("%d lines of a store that fails, want %d:\n%s", n, tt.fails, log.String())
				}
				if n := strings.Count(log.String(), "level=WARN"); n > tt.fails+1 {
					t.Errorf("%d warnings:\n%s", n, log.String())
				}
				time.Sleep(time.Second / 2)
				tt.store.resume()
				time.Sleep(30 * time.Second)
				if got, want := tt.store.stored(t, s.Key()), get(t, s); got != want {
					t.Errorf("the store has %q, want %q", got, want)
				}
				s.Close(t.Context())
				m.(interface{ Close() error }).Close()
			})
		})
	}
}

func TestCheckStore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := new(stalling)
		s := newSession(t, consenting{&product{lifetime: time.Hour}}, &auth.Options{Store: store})
		if err := s.CheckStore(t.Context()); err != nil {
			t.Error(err)
		}
		if r, err := store.Memory.Load(t.Context(), "trial"); err != nil || r.Version != 0 {
			t.Errorf("the trial record stays: %v, %v", r, err)
		}
		store.set(func() { store.refuse, store.writes = errors.New("disk full"), true })
		var e *auth.Error
		if err := s.CheckStore(t.Context()); !errors.Is(err, auth.ErrStore) || !errors.As(err, &e) || !strings.Contains(err.Error(), "disk full") {
			t.Error(err)
		}
		store.resume()
		store.stall()
		start := time.Now()
		if err := s.CheckStore(t.Context()); !errors.Is(err, auth.ErrStore) || time.Since(start) > 6*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		store.resume()
	})
}

// A login that cannot be saved ends 10 s after its caller's time.
func TestLoginIsLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := new(stalling)
		process := func() *auth.Session {
			return newSession(t, consenting{&product{lifetime: time.Hour}}, &auth.Options{Store: store})
		}
		s := process()
		store.set(func() { store.refuse, store.writes = errors.New("disk full"), true })
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		err := s.Redeem(ctx, "code", "")
		if took := time.Since(start); !errors.Is(err, auth.ErrStore) || took != 70*time.Second || !strings.Contains(err.Error(), "the login could not be saved and is lost: log in again") {
			t.Errorf("%v after %v", err, took)
		}

		ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		time.AfterFunc(65*time.Second, store.resume)
		s.Close(t.Context()) // or it would save its own in the end
		s = process()
		if err := s.Redeem(ctx, "second", ""); err != nil {
			t.Errorf("with the store back within 10 s: %v", err)
		}
		if got := store.stored(t, s.Key()); got != "A-second" {
			t.Errorf("the store has %q", got)
		}

		// The product does not answer.
		hung := newSession(t, hangingLogin{}, &auth.Options{Store: store})
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start = time.Now()
		if err := hung.Redeem(ctx, "code", ""); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 11100*time.Millisecond {
			t.Errorf("a product that hangs: %v after %v", err, time.Since(start))
		}

		// Nothing was begun, so nothing is waited for.
		unlock, err := store.Lock(t.Context(), s.Key())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start = time.Now()
		if err := s.Redeem(ctx, "third", ""); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 1100*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		unlock()
	})
}

// hangingLogin is a product that does not answer.
type hangingLogin struct{ consenting }

func (hangingLogin) CodeFlow() *auth.CodeFlow {
	return &auth.CodeFlow{Redeem: func(ctx context.Context, _, _ string) (*oauth2.Token, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}
}

// A login without a refresh token that cannot be saved is lost as well, and says so.
func TestLoginWithoutRefreshTokenIsLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := &stalling{refuse: errors.New("disk full"), writes: true}
		s := newSession(t, shortLogin{}, &auth.Options{Store: store})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.Redeem(ctx, "code", ""); !errors.Is(err, auth.ErrStore) {
			t.Errorf("Redeem: %v", err)
		}
	})
}

// shortLogin is a product that gives no refresh token.
type shortLogin struct{ consenting }

func (shortLogin) CodeFlow() *auth.CodeFlow {
	return &auth.CodeFlow{Redeem: func(context.Context, string, string) (*oauth2.Token, error) {
		return &oauth2.Token{AccessToken: "A", ExpiresIn: 3600}, nil
	}}
}

// conflicting is a Store in which another process saves just before the next save.
type conflicting struct {
	auth.Memory
	conflicts atomic.Int64
}

func (c *conflicting) Save(ctx context.Context, key string, r auth.Record) error {
	if c.conflicts.Add(-1) >= 0 {
		return auth.ErrConflict
	}
	return c.Memory.Save(ctx, key, r)
}

// A mark that meets another version has spent nothing, so the exchange begins again.
func TestConflictBeforeExchange(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, p := new(conflicting), &rotating{current: "R0", lifetime: time.Hour}
		s := newSession(t, p, &auth.Options{Store: store})
		get(t, s)
		time.Sleep(2 * time.Hour)
		store.conflicts.Store(1)
		if got := get(t, s); got != "T2" {
			t.Error(got)
		}
	})
}

// slowSaves is a store that takes 3 s to save.
type slowSaves struct {
	auth.Memory
	saved atomic.Int64
}

func (s *slowSaves) Save(ctx context.Context, key string, r auth.Record) error {
	time.Sleep(3 * time.Second)
	defer s.saved.Add(1)
	return s.Memory.Save(ctx, key, r)
}

// A caller waits for the save of a token only if its loss costs a login.
func TestTokenBeforeItsSave(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		provider auth.Provider
		saves    int64 // that are over when the caller has the token
	}{
		"no refresh token":         {&product{lifetime: time.Hour}, 0},
		"expendable refresh token": {expendable{&product{lifetime: time.Hour, refresh: true}}, 0},
		"rotated refresh token":    {&rotating{current: "R0", lifetime: time.Hour}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				store := new(slowSaves)
				s := newSession(t, tc.provider, &auth.Options{Store: store})
				get(t, s)
				time.Sleep(2 * time.Hour)
				store.saved.Store(0)
				get(t, s)
				if n := store.saved.Load(); n != tc.saves {
					t.Errorf("the caller has waited for %d saves", n)
				}
			})
		})
	}
}

// Who needs another token while a rotated refresh token is being saved waits for that.
func TestSaveOfRefreshTokenIsWaitedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, p := new(stalling), &rotating{current: "R0", lifetime: time.Hour}
		s := newSession(t, p, &auth.Options{Store: store})
		get(t, s)
		time.Sleep(2 * time.Hour)
		p.product.delay = time.Second
		time.AfterFunc(500*time.Millisecond, func() { // between the mark and the save
			store.set(func() { store.refuse, store.writes = errors.New("broken"), true })
		})
		time.AfterFunc(5*time.Second, store.resume)
		tok, err := s.Token(t.Context())
		if err != nil || tok.AccessToken != "T2" {
			t.Fatal(tok, err)
		}
		s.Invalidate(tok)
		if got := get(t, s); got != "T3" {
			t.Error(got)
		}
	})
}

// losing is a Store that never answers some loads.
type losing struct {
	auth.Memory
	lost    sync.Map // keys whose next load has no answer
	trials  atomic.Int32
	damaged atomic.Bool // loads fail, except of the trial record
}

func (s *losing) Load(ctx context.Context, key string) (auth.Record, error) {
	if _, ok := s.lost.LoadAndDelete(key); ok {
		<-ctx.Done()
		return auth.Record{}, fmt.Errorf("%w: %w", auth.ErrStore, ctx.Err())
	}
	if s.damaged.Load() && key != "trial" {
		return auth.Record{}, errors.New("damaged")
	}
	return s.Memory.Load(ctx, key)
}

func (s *losing) Save(ctx context.Context, key string, r auth.Record) error {
	if key == "trial" {
		s.trials.Add(1)
	}
	return s.Memory.Save(ctx, key, r)
}

// If an answer is lost while the store answers other operations, the operation is tried once more.
func TestLostOperationIsRepeated(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, p := new(losing), &product{lifetime: time.Hour}
		var log bytes.Buffer
		m := monitor(t, store, &auth.MonitorOptions{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		other := newSession(t, &product{lifetime: time.Hour}, &auth.Options{Connector: "other", Store: m})
		s := newSession(t, p, &auth.Options{Store: m})
		store.lost.Store(s.Key(), nil)
		time.AfterFunc(time.Second, func() { other.Token(t.Context()) })
		tok := get(t, s)
		if log.Len() > 0 {
			t.Error(log.String())
		}
		if again := get(t, newSession(t, p, &auth.Options{Store: store})); again != tok {
			t.Errorf("another process has %s, want %s", again, tok)
		}
	})
}

// Many records that cannot be read are no reason to write many times on trial.
func TestTrialWritesAreFew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := new(losing)
		store.damaged.Store(true)
		m := monitor(t, store, nil)
		for i := range 20 {
			get(t, newSession(t, &product{lifetime: time.Hour}, &auth.Options{Connector: fmt.Sprint(i), Store: m}))
		}
		if n := store.trials.Load(); n != 1 {
			t.Errorf("%d trial writes", n)
		}
	})
}

// A record that cannot be read may be of a newer version, or encrypted. It is not overwritten.
func TestUnreadableRecordStays(t *testing.T) {
	t.Parallel()
	for name, data := range map[string]string{
		"damaged":   "{",
		"newer":     `{"format":9,"refresh_token":"R"}`,
		"encrypted": "\x00itsmauth sealed 1\x00 and so on",
	} {
		for _, consent := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " ", consent), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					store := &tryLocker{}
					var p auth.Provider = &product{lifetime: time.Hour}
					if consent {
						p = consenting{&product{lifetime: time.Hour}}
					}
					s := newSession(t, p, &auth.Options{Store: store})
					if err := store.Save(t.Context(), s.Key(), auth.Record{Data: []byte(data)}); err != nil {
						t.Fatal(err)
					}
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					defer cancel()
					if _, err := s.Token(ctx); consent && !errors.Is(err, auth.ErrStore) || !consent && err != nil {
						t.Error(err)
					}
					time.Sleep(time.Minute)
					if r, _ := store.Load(t.Context(), s.Key()); string(r.Data) != data {
						t.Errorf("the record is now %q", r.Data)
					}
				})
			})
		}
	}
}
