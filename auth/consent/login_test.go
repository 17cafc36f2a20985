package consent_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/consent"
	"github.com/itsmauth/itsmauth/providers/remedy"
)

func TestLogin(t *testing.T) {
	t.Parallel()
	for name, pkce := range map[string]bool{"plain": false, "PKCE": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			uri := freeURI(t)
			s, c := newRemedy(t, uri, pkce)
			var shown string
			err := consent.Login(t.Context(), c, &consent.LoginOptions{
				Show: func(u string) { shown = u },
				Open: func(u string) error {
					if u != shown {
						t.Error("the address shown is not the one opened")
					}
					redirect, err := s.Consent(u)
					if err != nil {
						t.Fatal(err)
					}
					if len(redirect.Query().Get("state")) < 43 {
						t.Error("state has less than 256 bits")
					}
					status, body := get(t, redirect.String())
					if status != 200 || !strings.Contains(body, "tickets is connected") || !strings.Contains(body, "</html>") {
						t.Errorf("page: %d\n%s", status, body)
					}
					return nil
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Session.Token(t.Context()); err != nil {
				t.Error(err)
			}
			if n := s.Stats().Exchanges; n != 1 {
				t.Errorf("%d exchanges", n)
			}
			if _, err := http.Get(uri); err == nil {
				t.Error("the listener is still open")
			}
		})
	}
}

func TestLoginEnds(t *testing.T) {
	t.Parallel()
	const secret = "n0t/to+be=seen&%"
	for name, tt := range map[string]struct {
		answer url.Values // in addition to state
		status int
		page   string
		is     error
		err    string
	}{
		"refused by the person": {
			url.Values{"error": {"access_denied"}, "error_description": {secret}}, 200, "tickets was not connected", auth.ErrConsentRequired,
			"tickets: login: consent required: the person refused access (access_denied); run: itsmauth login tickets",
		},
		"unknown error": {
			url.Values{"error": {"odd_error"}}, 502, "(odd_error)", auth.ErrProtocol,
			"tickets: login: unexpected answer: the authorization request was refused (odd_error); check the URL and the settings against the product's version",
		},
		"error that is no code": {
			url.Values{"error": {"<b>" + secret}}, 502, "could not be connected", auth.ErrProtocol,
			"tickets: login: unexpected answer: the authorization request was refused; check the URL and the settings against the product's version",
		},
		"error and a code": {
			url.Values{"error": {"server_error"}, "code": {secret}}, 502, "could not be reached", auth.ErrUnavailable,
			"tickets: login: unavailable (server_error); try again later; if it lasts, check the URL, the network and the product",
		},
		"no code": {
			nil, 502, "without an authorization code", auth.ErrProtocol,
			"tickets: login: unexpected answer: the browser came back without an authorization code; check the URL and the settings against the product's version",
		},
		"two codes": {
			url.Values{"code": {secret, secret}}, 502, "without an authorization code", auth.ErrProtocol,
			"tickets: login: unexpected answer: the browser came back without an authorization code; check the URL and the settings against the product's version",
		},
		"code refused": {
			url.Values{"code": {secret}}, 502, "did not accept the authorization code", auth.ErrConsentRequired,
			"tickets: login: consent required: the authorization code was refused: expired, used before, or for another redirect_uri; the product says \"Authorization code is invalid or expired\" (HTTP 400, invalid_grant); run: itsmauth login tickets",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			uri := freeURI(t)
			_, c := newRemedy(t, uri, false)
			err := consent.Login(t.Context(), c, &consent.LoginOptions{Open: func(u string) error {
				at, _ := url.Parse(u)
				q := url.Values{"state": {at.Query().Get("state")}}
				for k, v := range tt.answer {
					q[k] = v
				}
				status, body := get(t, uri+"?"+q.Encode())
				if status != tt.status || !strings.Contains(body, tt.page) || !strings.Contains(body, "back to the terminal") {
					t.Errorf("page: %d\n%s", status, body)
				}
				if strings.Contains(body, "n0t/to") {
					t.Error("the page shows what came in the address")
				}
				return nil
			}})
			var e *auth.Error
			if !errors.Is(err, tt.is) || !errors.As(err, &e) || err.Error() != tt.err {
				t.Errorf("error: %v\nwant:  %s", err, tt.err)
			}
		})
	}
}

func TestLoginWaitsOn(t *testing.T) {
	t.Parallel()
	uri := freeURI(t)
	s, c := newRemedy(t, uri, false)
	err := consent.Login(t.Context(), c, &consent.LoginOptions{Open: func(u string) error {
		redirect, err := s.Consent(u)
		if err != nil {
			t.Fatal(err)
		}
		right := redirect.String()
		for name, tt := range map[string]struct {
			method, address, host string
			status                int
		}{
			"wrong state":   {"GET", query(right, "state", "x"), "", 403},
			"no state":      {"GET", query(right, "state", ""), "", 403},
			"two states":    {"GET", right + "&state=x", "", 403},
			"foreign host":  {"GET", right, "evil.example.com:" + redirect.Port(), 421},
			"foreign port":  {"GET", right, "127.0.0.1:1", 421},
			"other path":    {"GET", strings.Replace(right, "/callback", "/favicon.ico", 1), "", 404},
			"a preview":     {"HEAD", right, "", 405},
			"a form's post": {"POST", right, "", 405},
		} {
			if status, body := send(t, tt.method, tt.address, tt.host); status != tt.status {
				t.Errorf("%s: %d\n%s", name, status, body)
			}
		}
		if n := s.Stats().TokenRequests; n != 0 {
			t.Errorf("%d token requests", n)
		}
		if status, _ := get(t, right); status != 200 {
			t.Errorf("the right one: %d", status)
		}
		return nil
	}})
	if err != nil {
		t.Error(err)
	}
}

// A product may have the browser post a form to the redirect URI.
func TestLoginByForm(t *testing.T) {
	t.Parallel()
	uri := freeURI(t)
	s, c := newRemedy(t, uri, true)
	err := consent.Login(t.Context(), c, &consent.LoginOptions{Open: func(u string) error {
		redirect, err := s.Consent(u)
		if err != nil {
			t.Fatal(err)
		}
		wrong, _ := url.Parse(query(redirect.String(), "state", "x"))
		large := redirect.Query()
		large.Set("id_token", strings.Repeat("x", 64<<10))
		for _, tt := range []struct {
			name   string
			form   url.Values
			status int
		}{
			{"empty", url.Values{}, 405}, {"wrong state", wrong.Query(), 405}, {"too large", large, 405},
			{"right", redirect.Query(), 200},
		} {
			resp, err := http.PostForm(uri, tt.form)
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
			} else if resp.Body.Close(); resp.StatusCode != tt.status {
				t.Errorf("%s: %d, want %d", tt.name, resp.StatusCode, tt.status)
			}
		}
		return nil
	}})
	if err != nil {
		t.Error(err)
	}
	if _, err := c.Session.Token(t.Context()); err != nil {
		t.Error(err)
	}
}

// The browser sends the callback again while the code is being redeemed.
func TestLoginCountsOneCallback(t *testing.T) {
	t.Parallel()
	uri := freeURI(t)
	s, c := newRemedy(t, uri, false)
	var right string
	s.BreakToken(func(http.ResponseWriter, *http.Request) bool {
		if status, body := get(t, right); status != 410 || !strings.Contains(body, "This sign-in is over") {
			t.Errorf("page: %d\n%s", status, body)
		}
		return false
	})
	err := consent.Login(t.Context(), c, &consent.LoginOptions{Open: func(u string) error {
		redirect, err := s.Consent(u)
		if err != nil {
			t.Fatal(err)
		}
		right = redirect.String()
		get(t, right)
		return nil
	}})
	if n := s.Stats().TokenRequests; err != nil || n != 1 {
		t.Errorf("%v, %d token requests", err, n)
	}
}

func TestLoginCannotBegin(t *testing.T) {
	t.Parallel()
	held, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	_, port, _ := net.SplitHostPort(held.Addr().String())
	for uri, want := range map[string]string{
		"https://itsm.example.com/callback?a=b": "redirect_uri https://itsm.example.com/callback is not on this machine: log in on the connections page of the service at that address, or register and set one such as http://127.0.0.1:8400/callback",
		"http://10.0.0.1:8400/callback":         "redirect_uri http://10.0.0.1:8400/callback is not on this machine",
		"https://127.0.0.1:8400/callback":       "redirect_uri https://127.0.0.1:8400/callback is not http",
		"http://127.0.0.1/callback":             "redirect_uri http://127.0.0.1/callback has no port",
		"http://localhost:0/callback":           "redirect_uri http://localhost:0/callback has no port",
		"http://127.0.0.1:" + port + "/cb":      "cannot listen on 127.0.0.1:" + port + ": bind: address already in use; stop the program that uses this port, or register and set a redirect_uri",
		"http://localhost:" + port + "/cb":      "cannot listen on localhost:" + port + ": bind: address already in use; stop the program that uses this port, or register and set a redirect_uri",
		"":                                      "this grant needs no login",
	} {
		c := newConnector(t, &stub{flow: auth.CodeFlow{RedirectURI: uri}})
		err := consent.Login(t.Context(), c, &consent.LoginOptions{Open: func(string) error {
			t.Error("a browser was opened")
			return nil
		}})
		var e *auth.Error
		if !errors.As(err, &e) || e.Connector != "tickets" || !strings.HasPrefix(err.Error(), "tickets: login: "+want) {
			t.Errorf("%s\n got: %v\nwant: %s", uri, err, want)
		}
	}

	s, _ := newRemedy(t, "http://127.0.0.1:8400/callback", false)
	c := connect(t, s, remedy.Config{Grant: "ar_jwt"})
	if err := consent.Login(t.Context(), c, nil); err == nil || !strings.Contains(err.Error(), "needs no login") {
		t.Error(err)
	}
}

// A program that listens only on ::1 could receive the code instead of us.
func TestLoginTakesAllOfLocalhost(t *testing.T) {
	t.Parallel()
	held, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Log("this machine has no IPv6 loopback address")
		return
	}
	defer held.Close()
	_, port, _ := net.SplitHostPort(held.Addr().String())
	c := newConnector(t, &stub{flow: auth.CodeFlow{RedirectURI: "http://localhost:" + port + "/cb"}})
	err = consent.Login(t.Context(), c, &consent.LoginOptions{Open: func(string) error { return nil }})
	if err == nil || !strings.Contains(err.Error(), "cannot listen on localhost:"+port) {
		t.Error(err)
	}
}

func TestLoginLate(t *testing.T) {
	t.Parallel()
	noBrowser := func(string) error { return errors.New("no browser here") }
	c := newConnector(t, &stub{flow: auth.CodeFlow{RedirectURI: freeURI(t)}})
	err := consent.Login(t.Context(), c, &consent.LoginOptions{Open: noBrowser, Timeout: 10 * time.Millisecond})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "timed out after 10ms waiting for the browser sign-in") {
		t.Error(err)
	}

	c = newConnector(t, &stub{flow: auth.CodeFlow{RedirectURI: freeURI(t)}})
	ctx, cancel := context.WithCancelCause(t.Context())
	interrupted := errors.New("interrupted")
	err = consent.Login(ctx, c, &consent.LoginOptions{Open: noBrowser, Show: func(string) { cancel(interrupted) }})
	var e *auth.Error
	if !errors.Is(err, interrupted) || !errors.As(err, &e) {
		t.Error(err)
	}
}
