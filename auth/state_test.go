package auth

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

// TestStateFailed tests what a failed exchange changes, and what is logged of it.
func TestStateFailed(t *testing.T) {
	t.Parallel()
	down := &Error{Err: ErrUnavailable}
	silent := &Error{Op: "store", Err: fmt.Errorf("%w: no answer", ErrStore)}
	refused := &Error{Err: ErrConsentRequired}
	now := time.Now()
	valid := &snapshot{record: tokenRecord{AccessToken: "AT"}, expires: now.Add(time.Hour)}
	const failed, stays = "exchange failed", "background exchange failed; the current token stays"
	for name, tc := range map[string]struct {
		token   *snapshot
		before  error // the failure before
		reason  reason
		nothing bool
		err     error

		warning    string
		nextTry    bool // is logged
		foreground bool // a caller who waits starts no exchange now
		background bool // nor does a stale token
	}{
		"needed":                            {reason: needed, err: down, warning: failed, nextTry: true, foreground: true, background: true},
		"needed again":                      {reason: needed, before: down, err: down, warning: failed, nextTry: true, foreground: true, background: true},
		"needed, and the store fails":       {reason: needed, err: silent, warning: failed, foreground: true, background: true},
		"needed, and the store fails again": {reason: needed, before: silent, err: silent, foreground: true, background: true},
		"the store, then the product":       {reason: needed, before: silent, err: down, warning: failed, nextTry: true, foreground: true, background: true},
		"the product, then the store":       {reason: needed, before: down, err: silent, warning: failed, foreground: true, background: true},
		"a person must log in":              {reason: needed, err: refused, warning: failed, foreground: true, background: true},
		"stale":                             {token: valid, reason: stale, err: down, warning: stays, nextTry: true, background: true},
		"stale, and the store fails":        {token: valid, reason: stale, err: silent, warning: stays, background: true},
		"watch without a token":             {reason: watch, err: silent, warning: stays, background: true},
		"watch, and the product fails":      {reason: watch, err: down, warning: failed, nextTry: true, foreground: true, background: true},
		"stale, not tried":                  {token: valid, reason: stale, nothing: true, err: down, background: true},
		"needed, not tried":                 {reason: needed, nothing: true, err: down},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &state{token: tc.token, failure: failure{err: tc.before}}
			warning, attrs := s.failed(now, &protocol{task: task{reason: tc.reason}, nothing: tc.nothing, err: tc.err})
			nextTry := len(attrs) == 4
			if warning != tc.warning || nextTry != tc.nextTry {
				t.Errorf("logs %q, %v", warning, attrs)
			}
			if got := now.Before(s.failure.foregroundAfter); got != tc.foreground {
				t.Errorf("foreground exchange held back: %v", got)
			}
			if got := now.Before(s.backgroundAfter); got != tc.background {
				t.Errorf("background exchange held back: %v", got)
			}
			if !tc.nothing && !errors.Is(s.failure.err, tc.err) {
				t.Errorf("remembers %v", s.failure.err)
			}
		})
	}
}

// TestStateStoreRead tests that only a store that can be read again ends the back-off of refused tokens.
func TestStateStoreRead(t *testing.T) {
	t.Parallel()
	s := &state{forcing: forcing{fails: 3}}
	for i, step := range []struct {
		read  bool
		fails int
	}{{true, 3}, {false, 3}, {false, 3}, {true, 0}} {
		if s.storeRead(step.read); s.forcing.fails != step.fails {
			t.Errorf("step %d: %d refused tokens count", i, s.forcing.fails)
		}
	}
}

// TestStateStoreBack tests that a store that works again ends only the memory of its own failure.
func TestStateStoreBack(t *testing.T) {
	t.Parallel()
	for _, cause := range []error{ErrStore, ErrUnavailable} {
		later := time.Now().Add(time.Minute)
		s := &state{failure: failure{err: &Error{Err: cause}, foregroundAfter: later}, backgroundAfter: later}
		s.storeBack()
		ended := errors.Is(cause, ErrStore)
		if (s.failure.err == nil) != ended || s.backgroundAfter.IsZero() != ended {
			t.Errorf("%v: %+v", cause, s)
		}
	}
}
