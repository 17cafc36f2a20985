package auth_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
)

func TestCloseTellsWhatIsLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var store brokenStore
		p := &product{answer: func(int) *oauth2.Token {
			store.save.Store(true)
			return &oauth2.Token{AccessToken: "A", RefreshToken: "R", ExpiresIn: 3600}
		}}
		s := auth.New(p, &auth.Options{Store: &store})
		get(t, s)
		if err := s.Close(t.Context()); !errors.Is(err, auth.ErrStore) {
			t.Error(err)
		}
	})
}

// A save that fails while Close waits is made once more, when a store that was silent may answer again.
func TestCloseSavesOnceMore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var store brokenStore
		p := &product{delay: time.Second, answer: func(int) *oauth2.Token {
			store.save.Store(true)
			time.AfterFunc(250*time.Millisecond, func() { store.save.Store(false) })
			return &oauth2.Token{AccessToken: "A", RefreshToken: "R", ExpiresIn: 3600}
		}}
		s := auth.New(p, &auth.Options{Store: &store})
		go s.Token(t.Context())
		synctest.Wait()
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if r, _ := store.Load(t.Context(), s.Key()); !strings.Contains(string(r.Data), `"R"`) {
			t.Error("not saved")
		}
	})
}

func TestCloseWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &product{lifetime: time.Hour, delay: 10 * time.Second}
		s := auth.New(p, nil)
		ctx, cancel := context.WithCancel(t.Context())
		go s.Token(ctx)
		synctest.Wait()
		cancel()
		start := time.Now()
		if err := s.Close(t.Context()); err != nil || time.Since(start) != p.delay {
			t.Errorf("%v after %s", err, time.Since(start))
		}
		if got := get(t, s); got != "T1" {
			t.Error(got)
		}
		time.Sleep(2 * time.Hour)
		if _, err := s.Token(t.Context()); !errors.Is(err, auth.ErrClosed) {
			t.Error(err)
		}
	})
}

// Close does not wait for a lock that somebody else holds on to.
func TestCloseBeforeExchange(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := new(auth.Memory)
		p := &product{lifetime: time.Hour}
		s := auth.New(p, &auth.Options{Store: store})
		unlock, err := store.Lock(t.Context(), s.Key())
		if err != nil {
			t.Fatal(err)
		}
		waiting := make(chan error)
		go func() { _, err := s.Token(t.Context()); waiting <- err }()
		synctest.Wait()
		closed := make(chan error)
		start := time.Now()
		go func() { closed <- s.Close(t.Context()) }()
		if err := <-waiting; !errors.Is(err, auth.ErrClosed) {
			t.Errorf("who waits gets %v", err)
		}
		if err := <-closed; err != nil || time.Since(start) != time.Second {
			t.Errorf("Close: %v after %s", err, time.Since(start))
		}
		unlock()
		if n := p.calls.Load(); n != 0 {
			t.Errorf("%d exchanges", n)
		}
	})
}

// With nothing to wait for, Close succeeds also where ctx has ended.
func TestCloseIdle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		for range 100 { // it was a matter of luck
			s := auth.New(&product{lifetime: time.Hour}, nil)
			get(t, s)
			synctest.Wait()
			for range 2 {
				if err := s.Close(ended); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}
