package auth_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
)

// signIn is a product with a token for each authorization code in redeem. It can revoke.
type signIn struct {
	*product
	redeem  map[string]*oauth2.Token
	revoked *[]string
}

func (p signIn) CodeFlow() *auth.CodeFlow {
	return &auth.CodeFlow{Redeem: func(_ context.Context, code, _ string) (*oauth2.Token, error) { return p.redeem[code], nil }}
}

func (p signIn) Revoke(_ context.Context, tok *oauth2.Token) error {
	if p.revoked == nil {
		return auth.ErrUnavailable
	}
	*p.revoked = append(*p.revoked, tok.AccessToken+tok.RefreshToken)
	return nil
}

func newSignIn() signIn {
	return signIn{&product{lifetime: time.Hour, refresh: true}, map[string]*oauth2.Token{
		"full":    {AccessToken: "A-full", RefreshToken: "R-full", ExpiresIn: 3600},
		"without": {AccessToken: "A-without", ExpiresIn: 3600},
	}, new([]string)}
}

// A sign-in without a refresh token does not replace a login that has one. Without such a login it is used.
func TestLoginWithoutRefreshToken(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		before      func(t *testing.T, p signIn, s *auth.Session)
		want        string // access token after it
		refreshable bool
		again       bool // the product returns the same access token
	}{
		"first":            {func(*testing.T, signIn, *auth.Session) {}, "A-without", false, false},
		"after a login":    {nil, "A-full", true, false},
		"the same token":   {nil, "A-full", true, true},
		"after its expiry": {func(*testing.T, signIn, *auth.Session) { time.Sleep(2 * time.Hour) }, "T1", true, false},
		"after a logout": {func(t *testing.T, p signIn, s *auth.Session) {
			if err := s.Revoke(t.Context()); err != nil {
				t.Error(err)
			}
			*p.revoked = nil
		}, "A-without", false, false},
		"after a refusal": {func(t *testing.T, p signIn, s *auth.Session) {
			time.Sleep(2 * time.Hour)
			p.setFail(func(int) error { return &auth.Error{Status: 400, Code: "invalid_grant", Err: auth.ErrConsentRequired} })
			if _, err := s.Token(t.Context()); !errors.Is(err, auth.ErrConsentRequired) {
				t.Error(err)
			}
		}, "A-without", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := newSignIn()
				revoked := "A-without"
				if test.again {
					p.redeem["without"].AccessToken, revoked = "A-full", ""
				}
				s := newSession(t, p, &auth.Options{Connector: "remedy"})
				if name != "first" {
					if err := s.Redeem(t.Context(), "full", ""); err != nil {
						t.Fatal(err)
					}
				}
				if test.before != nil {
					test.before(t, p, s)
				}
				err := s.Redeem(t.Context(), "without", "")
				if test.refreshable {
					if !errors.Is(err, auth.ErrNoRefreshToken) || !strings.Contains(err.Error(), "the earlier login stays in force") ||
						!strings.Contains(err.Error(), "offline_access") || !strings.HasSuffix(err.Error(), "itsmauth logout remedy") {
						t.Error(err)
					}
					if got := strings.Join(*p.revoked, " "); got != revoked {
						t.Errorf("%q is revoked, want %q", got, revoked)
					}
				} else if err != nil || len(*p.revoked) > 0 {
					t.Errorf("%v, and %q is revoked", err, *p.revoked)
				}
				if got := get(t, s); got != test.want {
					t.Errorf("the token is %s, want %s", got, test.want)
				}
				if st, err := s.Status(t.Context()); err != nil || st.State != auth.StateFresh || st.Refreshable != test.refreshable {
					t.Errorf("%+v, %v", st, err)
				}
			})
		})
	}
}

// limitedRevoker can revoke if its settings say so.
type limitedRevoker struct {
	signIn
	can bool
}

func (p limitedRevoker) CanRevoke() bool { return p.can }

func TestCanRevoke(t *testing.T) {
	t.Parallel()
	p := newSignIn()
	for provider, want := range map[auth.Provider]bool{
		p.product:                 false,
		&p:                        true,
		&limitedRevoker{p, false}: false,
		&limitedRevoker{p, true}:  true,
	} {
		if got := newSession(t, provider, nil).CanRevoke(); got != want {
			t.Errorf("%T: %v, want %v", provider, got, want)
		}
	}
}

// readOnly is a store that can no longer be written, nor be locked if noLock is set.
type readOnly struct {
	auth.Memory
	now, noLock bool
}

func (s *readOnly) Save(ctx context.Context, key string, r auth.Record) error {
	if s.now {
		return fmt.Errorf("%w: read-only", auth.ErrStore)
	}
	return s.Memory.Save(ctx, key, r)
}

func (s *readOnly) Lock(ctx context.Context, key string) (func(), error) {
	if s.now && s.noLock {
		return nil, fmt.Errorf("%w: read-only", auth.ErrStore)
	}
	return s.Memory.Lock(ctx, key)
}

// If the store cannot forget a logout's tokens, the error says whether the product has revoked them.
func TestLogoutOnReadOnlyStore(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		can, fails bool
		want       string
	}{
		{true, false, "the product has revoked the tokens, but the store still has them"},
		{true, true, "the store still has the tokens, and the product has not revoked them: unavailable"},
		{false, false, "the store still has the tokens, and the product was not told"},
	} {
		for _, noLock := range []bool{false, true} {
			t.Run(fmt.Sprint(test.want, noLock), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					store := &readOnly{noLock: noLock}
					p := limitedRevoker{newSignIn(), test.can}
					if test.fails {
						p.revoked = nil
					}
					login := newSession(t, p, &auth.Options{Store: store})
					if err := login.Redeem(t.Context(), "full", ""); err != nil {
						t.Fatal(err)
					}
					store.now = true
					err := newSession(t, p, &auth.Options{Store: store}).Revoke(t.Context())
					if !errors.Is(err, auth.ErrStore) || !strings.Contains(fmt.Sprint(err), test.want) {
						t.Errorf("%v, want %q", err, test.want)
					}
					if !test.fails && (len(*p.revoked) == 1) != test.can {
						t.Errorf("%q is revoked", *p.revoked)
					}
				})
			})
		}
	}
}

// A login waits if the product asks for it. A code is not sent again after another failure, nor after the
// caller has left for good.
func TestThrottledLogin(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		err      error
		patience time.Duration
		sent     int
		ok       bool
	}{
		"429":      {&auth.Error{Status: 429, RetryAfter: 5 * time.Second, Err: auth.ErrRateLimited}, time.Minute, 2, true},
		"503":      {&auth.Error{Status: 503, Err: auth.ErrUnavailable}, time.Minute, 1, false},
		"too long": {&auth.Error{Status: 429, RetryAfter: 20 * time.Second, Err: auth.ErrRateLimited}, time.Second, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				sent := 0
				p := redeeming{newSignIn(), func(code string) (*oauth2.Token, error) {
					if sent++; sent == 1 {
						return nil, test.err
					}
					return &oauth2.Token{AccessToken: "A", RefreshToken: "R", ExpiresIn: 3600}, nil
				}}
				ctx, cancel := context.WithTimeout(t.Context(), test.patience)
				defer cancel()
				s := newSession(t, p, nil)
				err := s.Redeem(ctx, "code", "")
				time.Sleep(time.Minute)
				if (err == nil) != test.ok || sent != test.sent {
					t.Errorf("%v after the code was sent %d times", err, sent)
				}
			})
		})
	}
}

// If the product refuses the code, another login is needed. Other refusals are about the client.
func TestRefusedCode(t *testing.T) {
	t.Parallel()
	for code, want := range map[string]error{
		"invalid_grant":  auth.ErrConsentRequired,
		"INVALID_GRANT":  auth.ErrConsentRequired,
		"invalid_client": auth.ErrCredentials,
		"server_error":   auth.ErrCredentials,
	} {
		failed := &oauth2.RetrieveError{Response: &http.Response{StatusCode: 401}, ErrorCode: code}
		err := newSession(t, redeeming{newSignIn(), func(string) (*oauth2.Token, error) { return nil, failed }}, nil).Redeem(t.Context(), "code", "")
		if !errors.Is(err, want) {
			t.Errorf("%s: %v", code, err)
		}
	}
}

// redeeming is a product whose sign-in can be replaced.
type redeeming struct {
	signIn
	redeem func(code string) (*oauth2.Token, error)
}

func (p redeeming) CodeFlow() *auth.CodeFlow {
	return &auth.CodeFlow{Redeem: func(_ context.Context, code, _ string) (*oauth2.Token, error) { return p.redeem(code) }}
}
