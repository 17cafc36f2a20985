package auth_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

// If the token endpoint asks to wait, the exchange waits, if there is time.
func TestThrottledExchange(t *testing.T) {
	t.Parallel()
	limited := func(after time.Duration) error {
		return &auth.Error{Status: 429, RetryAfter: after, Err: auth.ErrRateLimited}
	}
	busy := func(after time.Duration) error {
		return &auth.Error{Status: 503, RetryAfter: after, Err: auth.ErrUnavailable}
	}
	for name, test := range map[string]struct {
		err       error
		failures  int
		exchanges int64         // in all
		takes     time.Duration // at most; 0 is the limit of an exchange
		fails     bool
		o         auth.Options
	}{
		"429":                    {limited(time.Second), 1, 2, 1250 * time.Millisecond, false, auth.Options{}},
		"429, four times":        {limited(time.Second), 4, 5, 5 * time.Second, false, auth.Options{}},
		"429 without a time":     {limited(0), 1, 2, 1250 * time.Millisecond, false, auth.Options{}},
		"429, for ever":          {limited(11 * time.Second), 99, 3, 0, true, auth.Options{}},
		"429, too long":          {limited(31 * time.Second), 1, 1, 1, true, auth.Options{ExchangeTimeout: time.Minute}},
		"429, max_retry_after":   {limited(40 * time.Second), 1, 2, 50 * time.Second, false, auth.Options{ExchangeTimeout: time.Minute, MaxRetryAfter: time.Minute}},
		"429, just in the limit": {limited(29 * time.Second), 1, 2, 30 * time.Second, false, auth.Options{}},
		"429, not in the limit":  {limited(30 * time.Second), 1, 1, 1, true, auth.Options{}},
		"503":                    {busy(2 * time.Second), 4, 5, 10 * time.Second, false, auth.Options{}},
		"503, too long":          {busy(31 * time.Second), 1, 1, 1, true, auth.Options{ExchangeTimeout: time.Minute}},
		"503, max_retry_after 1": {busy(2 * time.Second), 1, 1, 1, true, auth.Options{MaxRetryAfter: time.Second}},
	} {
		for _, refresh := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					p := &product{lifetime: time.Hour, refresh: refresh}
					o := test.o
					s := newSession(t, p, &o)
					get(t, s)
					time.Sleep(2 * time.Hour)
					p.calls.Store(0)
					p.setFail(func(n int) error {
						if n <= test.failures {
							return test.err
						}
						return nil
					})
					start := time.Now()
					_, err := s.Token(t.Context())
					most := test.takes
					if most == 0 {
						most = 30 * time.Second
					}
					if failed := err != nil; failed != test.fails || p.calls.Load() != test.exchanges || time.Since(start) > most {
						t.Errorf("refresh token: %v: %v after %s and %d exchanges", refresh, err, time.Since(start), p.calls.Load())
					}
				})
			})
		}
	}
}

// While an exchange waits, each caller leaves in its own time, and a valid token is used.
func TestThrottledExchangeHoldsNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &product{lifetime: time.Hour}
		s := newSession(t, p, nil)
		get(t, s)
		p.setFail(func(n int) error {
			if n < 4 {
				return &auth.Error{Status: 429, RetryAfter: 6 * time.Second, Err: auth.ErrRateLimited}
			}
			return nil
		})
		time.Sleep(58 * time.Minute)
		for range 60 {
			start := time.Now()
			if get(t, s); time.Since(start) > 0 {
				t.Fatalf("a valid token after %s", time.Since(start))
			}
			time.Sleep(time.Second)
		}
		time.Sleep(2 * time.Hour)
		p.calls.Store(0)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		start := time.Now()
		if _, err := s.Token(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 2*time.Second {
			t.Errorf("%v after %s", err, time.Since(start))
		}
		if got := get(t, s); got != "T3" {
			t.Error(got)
		}
	})
}
