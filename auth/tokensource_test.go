package auth_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
)

type tokenSource func() (*oauth2.Token, error)

func (f tokenSource) Token() (*oauth2.Token, error) { return f() }

// A source that knows no context holds an exchange up no longer than its deadline.
func TestTokenSourceHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		defer close(hang)
		var calls atomic.Int64
		s := newSession(t, auth.FromTokenSource(tokenSource(func() (*oauth2.Token, error) {
			if calls.Add(1) == 1 {
				<-hang
			}
			return &oauth2.Token{AccessToken: "T"}, nil
		})), nil)
		begun := time.Now()
		if _, err := s.Token(t.Context()); !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != 30*time.Second {
			t.Errorf("after %s: %v", time.Since(begun), err)
		}
		time.Sleep(2 * time.Second)
		if got := get(t, s); got != "T" {
			t.Error(got)
		}
	})
}

// A source that caches gives tokens whose expires_in was true when it got them.
func TestTokenSourceCaches(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := 0
		s := newSession(t, auth.FromTokenSource(oauth2.ReuseTokenSource(nil, tokenSource(func() (*oauth2.Token, error) {
			n++
			return &oauth2.Token{AccessToken: fmt.Sprintf("T%d", n), ExpiresIn: 3600, Expiry: time.Now().Add(time.Hour)}, nil
		}))), nil)
		for begun := time.Now(); time.Since(begun) < 3*time.Hour; time.Sleep(10 * time.Second) {
			if got, age := get(t, s), time.Since(begun); got == "T1" && age > time.Hour {
				t.Fatalf("%s after %s", got, age)
			}
		}
	})
}

func TestTokenSourceWithoutToken(t *testing.T) {
	t.Parallel()
	s := newSession(t, auth.FromTokenSource(tokenSource(func() (*oauth2.Token, error) { return nil, nil })), nil)
	if _, err := s.Token(t.Context()); !errors.Is(err, auth.ErrProtocol) {
		t.Error(err)
	}
}
