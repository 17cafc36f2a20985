package auth_test

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

// A refresh that keeps failing while the token is valid costs callers nothing. It shows in Status,
// and in the log once for each exchange.
func TestBackgroundFailureIsQuiet(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer // written by one exchange at a time, read when there is none
		p := &product{lifetime: time.Hour}
		s := newSession(t, p, &auth.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		get(t, s)
		if st, err := s.Status(t.Context()); err != nil || st.Failure != nil || !st.NextTry.IsZero() {
			t.Errorf("before: %+v, %v", st, err)
		}
		p.setFail(func(int) error { return &auth.Error{Status: 502, Err: auth.ErrProtocol} })
		time.Sleep(55*time.Minute + time.Minute) // surely stale
		p.calls.Store(0)

		var callers sync.WaitGroup
		for range 50 {
			callers.Go(func() {
				for range 2000 { // of 200 s
					start := time.Now()
					if tok, err := s.Token(t.Context()); err != nil || tok.AccessToken != "T1" || time.Since(start) != 0 {
						t.Errorf("after %s: %v, %v", time.Since(start), tok, err)
						return
					}
					time.Sleep(100 * time.Millisecond)
				}
			})
		}
		time.Sleep(50 * time.Millisecond)
		for range 199 {
			synctest.Wait()
			st, err := s.Status(t.Context())
			wait := time.Until(st.NextTry) // a caller comes by every 100 ms
			if err != nil || st.State != auth.StateStale || !errors.Is(st.Failure, auth.ErrProtocol) || wait < -100*time.Millisecond || wait > time.Minute {
				t.Errorf("status: %+v, %v; the next try is in %s", st, err, wait)
				break
			}
			time.Sleep(time.Second)
		}
		callers.Wait()

		// 1 + 2 + 4 + 8 + 16 + 32 + 60 + 60 s, each less up to a fifth.
		n := int(p.calls.Load())
		if n < 8 || n > 10 {
			t.Errorf("%d exchanges in 200 s", n)
		}
		if lines := strings.Count(log.String(), "\n"); lines != n || strings.Count(log.String(), "background exchange failed") != n {
			t.Errorf("%d lines for %d exchanges:\n%s", lines, n, log.String())
		}
		p.setFail(nil)
		time.Sleep(time.Minute) // expired
		tok := get(t, s)
		if st, err := s.Status(t.Context()); tok != "T2" || err != nil || st.State != auth.StateFresh || st.Failure != nil {
			t.Errorf("recovered: %s, %+v, %v", tok, st, err)
		}
	})
}
