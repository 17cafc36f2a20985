package auth_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
)

// No process sends a refused refresh token again, not even after a restart. If the product's error code may
// mean something else, it is sent once more after 5 min.
func TestRefusedInOtherWords(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		status int
		code   string
		err    error
		again  bool
	}{
		{400, "invalid_grant", auth.ErrConsentRequired, false},
		{401, "INVALID_GRANT", auth.ErrConsentRequired, false},
		{401, "server_error", auth.ErrConsentRequired, true},
		{200, "bad_refresh_token", auth.ErrConsentRequired, true},
		{403, "", auth.ErrConsentRequired, true},
		{400, "invalid_request", auth.ErrProtocol, true}, // a refresh has worked
	} {
		for _, recovers := range []bool{false, true} {
			t.Run(fmt.Sprint(test.status, test.code, recovers), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					o := &auth.Options{Connector: "remedy", Store: new(auth.Memory)}
					p := consenting{&product{lifetime: time.Hour, refresh: true}}
					command := func(f func(s *auth.Session)) { // a process of its own
						s := auth.New(p, o)
						f(s)
						s.Close(t.Context())
					}
					token := func() (err error) {
						command(func(s *auth.Session) { _, err = s.Token(t.Context()) })
						return err
					}
					command(func(s *auth.Session) {
						if err := s.Redeem(t.Context(), "code", ""); err != nil {
							t.Fatal(err)
						}
					})
					time.Sleep(2 * time.Hour)
					if err := token(); err != nil {
						t.Fatal(err)
					}
					time.Sleep(2 * time.Hour)
					p.setFail(func(int) error {
						return &auth.Error{Status: test.status, Code: test.code, Description: "go away", Err: test.err}
					})
					p.calls.Store(0)
					refused := time.Now()
					err := token()
					if !errors.Is(err, auth.ErrConsentRequired) || !strings.Contains(err.Error(), `the product says "go away"`) || !strings.HasSuffix(err.Error(), "itsmauth login remedy") ||
						strings.Contains(err.Error(), "once more after "+refused.Add(5*time.Minute).Format(time.RFC3339)) != test.again {
						t.Error(err)
					}
					for range 29 {
						if err := token(); !errors.Is(err, auth.ErrConsentRequired) {
							t.Error(err)
						}
						command(func(s *auth.Session) {
							if st, err := s.Status(t.Context()); err != nil || st.State != auth.StateConsentRequired {
								t.Errorf("%+v, %v", st, err)
							}
						})
						time.Sleep(10 * time.Second)
					}
					if n := p.calls.Load(); n != 1 {
						t.Errorf("%d exchanges in 5 min", n)
					}
					if time.Sleep(15 * time.Second); recovers {
						p.setFail(nil)
					}
					want := int64(1)
					if test.again {
						want = 2
					}
					for range 3 {
						err := token()
						if ok := recovers && test.again; ok != (err == nil) || !ok && (!errors.Is(err, auth.ErrConsentRequired) || strings.Contains(err.Error(), "once more")) {
							t.Error(err)
						}
						time.Sleep(10 * time.Minute)
					}
					if n := p.calls.Load(); n != want {
						t.Errorf("%d exchanges, want %d", n, want)
					}
				})
			})
		}
	}
}

// A running process sends it once more by itself.
func TestRefusedInOtherWordsWhileIdle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, p := loggedIn(t, nil)
		time.Sleep(2 * time.Hour)
		p.setFail(func(int) error { return &auth.Error{Status: 401, Code: "server_error", Err: auth.ErrConsentRequired} })
		if _, err := s.Token(t.Context()); !errors.Is(err, auth.ErrConsentRequired) {
			t.Fatal(err)
		}
		p.setFail(nil)
		time.Sleep(5*time.Minute + 11*time.Second)
		if st, err := s.Status(t.Context()); st.State != auth.StateFresh || p.calls.Load() != 2 {
			t.Errorf("%+v, %v after %d exchanges", st, err, p.calls.Load())
		}
	})
}

// After an error that does not refuse the refresh token, it is sent again, less and less often.
func TestNotRefused(t *testing.T) {
	t.Parallel()
	for _, err := range []*auth.Error{
		{Status: 400, Code: "invalid_request", Err: auth.ErrProtocol}, // no refresh has worked before
		{Status: 404, Code: "invalid_request", Err: auth.ErrProtocol},
		{Status: 403, Err: auth.ErrProtocol}, // HTML
		{Status: 400, Code: "invalid_scope", Err: auth.ErrProtocol},
		{Status: 401, Code: "unauthorized_client", Err: auth.ErrCredentials},
	} {
		t.Run(fmt.Sprint(err.Status, err.Code), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s, p := loggedIn(t, nil)
				time.Sleep(2 * time.Hour)
				p.setFail(func(int) error { return err })
				for range 600 {
					if _, got := s.Token(t.Context()); !errors.Is(got, err.Err) {
						t.Fatal(got)
					}
					time.Sleep(time.Second)
				}
				if n := p.calls.Load(); n < 8 || n > 30 {
					t.Errorf("%d exchanges in 10 min", n)
				}
				p.setFail(nil)
				time.Sleep(time.Minute)
				if got := get(t, s); got != "T1" {
					t.Error(got)
				}
			})
		})
	}
}

// renewing is a product whose full grant replaces its refresh tokens.
type renewing struct {
	*product
	refreshes, grants *int
	refuse            func() error // a refresh
}

func (p renewing) Refresh() auth.Refresh { return auth.Refresh{Expendable: true} }

func (p renewing) Exchange(ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
	if prev == nil || prev.RefreshToken == "" {
		*p.grants++
		return p.product.Exchange(ctx, nil)
	}
	*p.refreshes++
	if err := p.refuse(); err != nil {
		return nil, err
	}
	return p.product.Exchange(ctx, prev)
}

// If all refreshes with an expendable refresh token fail for a minute because the product is unavailable, the
// full grant replaces it, also if several processes made the refreshes.
func TestExpendableGivesWay(t *testing.T) {
	t.Parallel()
	for _, restarts := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			o := &auth.Options{Store: new(auth.Memory)}
			p := renewing{&product{lifetime: time.Hour, refresh: true}, new(int), new(int), nil}
			s := newSession(t, p, o)
			get(t, s)
			failure := &auth.Error{Status: 500, Err: auth.ErrUnavailable}
			p.refuse = func() error { return failure }
			s = newSession(t, p, o)
			time.Sleep(2 * time.Hour)
			try := func() error {
				if restarts {
					s = newSession(t, p, o)
				}
				_, err := s.Token(t.Context())
				return err
			}
			start := time.Now()
			for time.Since(start) < time.Minute {
				if err := try(); !errors.Is(err, auth.ErrUnavailable) {
					t.Errorf("%v after %s", err, time.Since(start))
				}
				time.Sleep(5 * time.Second)
			}
			time.Sleep(30 * time.Second)
			if err := try(); err != nil || *p.grants != 2 {
				t.Errorf("%v after %d full grants and %d refreshes", err, *p.grants, *p.refreshes)
			}

			// After another failure in between, the minute starts again.
			time.Sleep(2 * time.Hour)
			for range 3 {
				failure = &auth.Error{Status: 500, Err: auth.ErrUnavailable}
				if err := try(); !errors.Is(err, auth.ErrUnavailable) {
					t.Error(err)
				}
				time.Sleep(40 * time.Second)
				failure = &auth.Error{Status: 404, Err: auth.ErrProtocol}
				if err := try(); !errors.Is(err, auth.ErrProtocol) {
					t.Error(err)
				}
				time.Sleep(40 * time.Second)
			}
			if *p.grants != 2 {
				t.Errorf("%d full grants", *p.grants)
			}
		})
	}
}

// After a refused refresh, all processes still use the valid access token, and none refreshes again. If the
// product rejected the access token, no other process uses it.
func TestRefusedBeforeExpiry(t *testing.T) {
	t.Parallel()
	for name, rejected := range map[string]bool{"in the background": false, "after the token was rejected": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				o := &auth.Options{Store: new(auth.Memory)}
				s, p := loggedIn(t, o)
				p.setFail(func(int) error { return &auth.Error{Status: 400, Code: "invalid_grant", Err: auth.ErrConsentRequired} })
				if rejected {
					tok, _ := s.Token(t.Context())
					s.Rejected(response(401, "token"), tok)
				} else {
					time.Sleep(57 * time.Minute)
				}
				if _, err := s.Token(t.Context()); errors.Is(err, auth.ErrConsentRequired) != rejected {
					t.Error(err)
				}
				synctest.Wait()
				for range 3 {
					for _, s := range []*auth.Session{s, newSession(t, p, o)} {
						tok, err := s.Token(t.Context())
						if rejected && !errors.Is(err, auth.ErrConsentRequired) || !rejected && (err != nil || tok.AccessToken != "A-code") {
							t.Errorf("%v, %v", tok, err)
						}
						synctest.Wait()
						if st, err := s.Status(t.Context()); st.State != auth.StateConsentRequired || err != nil {
							t.Errorf("%+v, %v", st, err)
						}
					}
					time.Sleep(30 * time.Second)
				}
				time.Sleep(2 * time.Minute)
				for _, s := range []*auth.Session{s, newSession(t, p, o)} {
					if _, err := s.Token(t.Context()); !errors.Is(err, auth.ErrConsentRequired) {
						t.Errorf("after its expiry: %v", err)
					}
				}
				if n := p.calls.Load(); n != 1 {
					t.Errorf("%d exchanges", n)
				}
			})
		})
	}
}
