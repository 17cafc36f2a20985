package auth

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"golang.org/x/oauth2"
)

// setWall returns t as the clocks show it after the wall clock has been set by d.
func setWall(t time.Time, d time.Duration) time.Time {
	wall := (*uint64)(unsafe.Pointer(&t)) // with a monotonic reading: the seconds since 1885 << 30, and the nanoseconds
	*wall += uint64(d/time.Second) << 30
	return t
}

// In a process the later of the monotonic and the wall clock decides.
func TestClocks(t *testing.T) {
	t.Parallel()
	now := time.Now()
	if moved := setWall(now, time.Hour); moved.Sub(now) != 0 || moved.Round(0).Sub(now.Round(0)) != time.Hour {
		t.Fatal("setWall does not set the wall clock, or not only that")
	}
	hour := &snapshot{expires: now.Add(time.Hour)}
	for _, test := range []struct {
		passed time.Duration // since the token was obtained
		set    time.Duration // how far the wall clock was set
		valid  bool
	}{
		{59 * time.Minute, 0, true},
		{61 * time.Minute, 0, false},
		{61 * time.Minute, -time.Hour, false}, // set back
		{59 * time.Minute, -time.Hour, true},
		{time.Minute, time.Hour, false}, // suspended, or set forward
		{time.Minute, 58 * time.Minute, true},
	} {
		if got := hour.valid(setWall(now.Add(test.passed), test.set)); got != test.valid {
			t.Errorf("%s passed, and the wall clock is set by %s: valid is %v", test.passed, test.set, got)
		}
	}
}

// minter is a product whose tokens live as long as the test says.
type minter struct {
	access, consent time.Duration
	rotates         bool
	exchanges       atomic.Int64
}

func (m *minter) Exchange(context.Context, *oauth2.Token) (*oauth2.Token, error) {
	n := m.exchanges.Add(1)
	tok := &oauth2.Token{AccessToken: "A", Expiry: time.Now().Add(m.access)}
	switch {
	case m.rotates:
		tok.RefreshToken = fmt.Sprint("R", n)
	case m.consent > 0:
		tok.RefreshToken = "R"
	}
	return tok, nil
}

func (*minter) Header(*oauth2.Token) http.Header           { return nil }
func (*minter) Rejects(resp *http.Response, _ []byte) bool { return false }
func (m *minter) Refresh() Refresh                         { return Refresh{Lifetime: m.consent} }

// However short tokens live, there is at most one exchange a second.
func TestShortLives(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		access, consent time.Duration
		rotates, busy   bool
		most            int64 // in 60 s
	}{
		"access token":         {time.Millisecond, 0, false, true, 61},
		"0.9 s":                {900 * time.Millisecond, 0, false, true, 61},
		"1.1 s":                {1100 * time.Millisecond, 0, false, true, 61},
		"both":                 {time.Millisecond, 10 * time.Millisecond, true, true, 61},
		"idle":                 {time.Millisecond, 10 * time.Millisecond, true, false, 13},
		"idle, a longer token": {time.Hour, 10 * time.Millisecond, true, false, 13},
		"idle, no rotation":    {time.Hour, 10 * time.Millisecond, false, false, 61},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := &minter{access: test.access, consent: test.consent, rotates: test.rotates}
				s := New(p, nil)
				defer s.Close(t.Context())
				start := time.Now()
				for first := true; time.Since(start) < time.Minute; first = false {
					if test.busy || first {
						if _, err := s.Token(t.Context()); err != nil {
							t.Fatal(err)
						}
					}
					time.Sleep(10 * time.Millisecond)
				}
				if n := p.exchanges.Load(); n > test.most || n < 2 {
					t.Errorf("%d exchanges in a minute, want at most %d", n, test.most)
				}
			})
		})
	}
}

// If a stored token was obtained in the future, by another host's clock, its lifetime counts from now. If that
// clock is more than 5 min ahead, the token is also replaced.
func TestRecordFromTheFuture(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		ahead    time.Duration
		replaced bool
	}{
		{0, false},
		{4 * time.Minute, false},
		{6 * time.Minute, true},
		{365 * 24 * time.Hour, true},
	} {
		t.Run(test.ahead.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				o, p := &Options{Store: new(Memory)}, &minter{access: time.Hour, consent: 10 * time.Hour}
				s := New(p, o)
				defer s.Close(t.Context())
				at := time.Now().Add(test.ahead)
				r := tokenRecord{Generation: at.UnixMicro(), AccessToken: "A0", RefreshToken: "R0", Obtained: at, Refreshed: at, Lifetime: time.Hour}
				if err := o.Store.Save(t.Context(), s.key, s.refresh.encode(r, 0)); err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				if st, err := s.Status(t.Context()); err != nil || st.Expiry.Sub(start) != time.Hour || st.ConsentExpiry.Sub(start) != 10*time.Hour || (st.State == StateStale) != test.replaced {
					t.Errorf("%+v, %v", st, err)
				}
				want := "A0"
				if test.replaced {
					want = "A"
				}
				tok, err := s.Token(t.Context())
				if err != nil || time.Since(start) > 0 || tok.Expiry.Sub(start) != time.Hour {
					t.Errorf("%v, %v", tok, err)
				}
				synctest.Wait()
				if tok, err = s.Token(t.Context()); err != nil || tok.AccessToken != want {
					t.Errorf("%v, %v", tok, err)
				}
				time.Sleep(61 * time.Minute)
				if tok, err = s.Token(t.Context()); err != nil || tok.AccessToken != "A" {
					t.Errorf("after its life: %v, %v", tok, err)
				}
			})
		})
	}
}
