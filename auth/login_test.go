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

// signIn is a product whose sign-ins give what redeem has for the code, and which can revoke.
type signIn struct {
	*product
	redeem  map[string]*oauth2.Token
	revoked *[]string
}

func (p signIn) CodeFlow() *auth.CodeFlow {
	return &auth.CodeFlow{Redeem: func(_ context.Context, code, _ string) (*oauth2.Token, error) { return p.redeem[code], nil }}
}

func (p signIn) Revoke(_ context.Context, tok *oauth2.Token) error {
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
	}{
		"first":            {func(*testing.T, signIn, *auth.Session) {}, "A-without", false},
		"after a login":    {nil, "A-full", true},
		"after its expiry": {func(*testing.T, signIn, *auth.Session) { time.Sleep(2 * time.Hour) }, "T1", true},
		"after a logout": {func(t *testing.T, p signIn, s *auth.Session) {
			if err := s.Revoke(t.Context()); err != nil {
				t.Error(err)
			}
			*p.revoked = nil
		}, "A-without", false},
		"after a refusal": {func(t *testing.T, p signIn, s *auth.Session) {
			time.Sleep(2 * time.Hour)
			p.setFail(func(int) error { return &auth.Error{Status: 400, Code: "invalid_grant", Err: auth.ErrConsentRequired} })
			if _, err := s.Token(t.Context()); !errors.Is(err, auth.ErrConsentRequired) {
				t.Error(err)
			}
		}, "A-without", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := newSignIn()
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
					if got := strings.Join(*p.revoked, " "); got != "A-without" {
						t.Errorf("%q is revoked", got)
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
