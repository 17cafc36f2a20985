package servers

import (
	"testing"

	oauthserver "github.com/go-oauth2/oauth2/v4/server"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/config"
)

// A registration is a client at a server, and what it is configured with.
type registration struct {
	s        *server
	id       string
	settings []string
}

// connect makes a connector for people.
func (r registration) connect(t *testing.T) *config.Connector {
	t.Helper()
	return r.s.connect(t, r.s.codeFlow(r.id, r.settings...)...)
}

// mustRefuse checks that the server refuses a refresh token, which is sent by a connector that has nothing else.
func (r registration) mustRefuse(t *testing.T, refreshToken string) {
	t.Helper()
	c := r.s.connect(t, append(r.settings, "grant: refresh_token", setting("client_id", r.id), setting("refresh_token", refreshToken))...)
	refused{auth.ErrConsentRequired, "invalid_grant", "the refresh token was refused"}.check(t, call(c))
}

// registrations are all kinds of clients that people can log in to, each at a server of its own.
func registrations(t *testing.T) map[string]registration {
	withSecret := setting("client_secret", secret)
	return map[string]registration{
		"fosite":               {newFosite(t).server, clientID, []string{withSecret}},
		"fosite, no secret":    {newFosite(t).server, publicID, nil},
		"go-oauth2":            {newGoOAuth2(t, oauthserver.ClientBasicHandler), clientID, []string{withSecret, "credentials_encoding: raw"}},
		"go-oauth2, in a form": {newGoOAuth2(t, oauthserver.ClientFormHandler), clientID, []string{withSecret, "credentials_in: form"}},
		"go-oauth2, no secret": {newGoOAuth2(t, oauthserver.ClientFormHandler), publicID, nil},
	}
}

// A person logs in with PKCE, which both servers enforce; the refresh token rotates; and a logout ends at the server
// what the person allowed.
func TestLogin(t *testing.T) {
	t.Parallel()
	for name, tc := range registrations(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := tc.connect(t)
			refused{auth.ErrConsentRequired, "", "no refresh token"}.check(t, call(c))

			code, verifier := browse(t, c)
			err := c.Session().Redeem(t.Context(), code, verifier[1:]+"x")
			refused{auth.ErrConsentRequired, "invalid_grant", "authorization code"}.check(t, err)

			login(t, c)
			mustCall(t, c)
			token := tc.s.mustRenew(t, c)
			if err := c.Session().Revoke(t.Context()); err != nil {
				t.Error(err)
			}
			if tc.s.accepts(token) {
				t.Error("the access token is still valid")
			}
			tc.mustRefuse(t, tc.s.newestRefreshToken())
			refused{auth.ErrConsentRequired, "", ""}.check(t, call(c))

			login(t, c)
			mustCall(t, c)
		})
	}
}

// A code is redeemed once. Fosite ends what the code gave if it comes again.
func TestCodeTwice(t *testing.T) {
	t.Parallel()
	for name, tc := range registrations(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := tc.connect(t)
			code, verifier := browse(t, c)
			if err := c.Session().Redeem(t.Context(), code, verifier); err != nil {
				t.Fatal(err)
			}
			token := mustToken(t, c)
			err := c.Session().Redeem(t.Context(), code, verifier)
			refused{auth.ErrConsentRequired, "invalid_grant", "authorization code"}.check(t, err)
			if tc.s.accepts(token) == tc.s.endsFamilies {
				t.Error("the server has changed: does it still end what the code gave?")
			}
		})
	}
}

// No refresh token is sent twice. When a thief sends one that was spent, fosite ends all that came of the login, and
// go-oauth2 only refuses it. The connector then asks for a login, after one token request.
func TestSpentRefreshToken(t *testing.T) {
	t.Parallel()
	for name, tc := range registrations(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := tc.connect(t)
			login(t, c)
			first := tc.s.newestRefreshToken()
			for range 2 { // a third at once is the last that a session makes
				mustCall(t, c)
				tc.s.revokeAll()
			}
			mustCall(t, c)
			if exchanges, refreshes, reused := tc.s.counts(); exchanges != 3 || refreshes != 2 || reused != 0 {
				t.Errorf("%d token requests with %d refresh tokens, %d of them twice", exchanges, refreshes, reused)
			}
			tc.mustRefuse(t, first)
			if tc.s.endsFamilies {
				before, _, _ := tc.s.counts()
				if err := call(c); err == nil || err.Error() != "401 Unauthorized" {
					t.Errorf("%v, want the product's response", err)
				}
				for range 3 {
					refused{auth.ErrConsentRequired, "invalid_grant", "the refresh token was refused"}.check(t, call(c))
				}
				if after, _, _ := tc.s.counts(); after != before+1 {
					t.Errorf("%d token requests with a dead refresh token", after-before)
				}
				login(t, c)
			}
			mustCall(t, c)
		})
	}
}
