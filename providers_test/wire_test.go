package providers_test

import (
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/providers/beyondtrust/beyondtrusttest"
	"github.com/itsmauth/itsmauth/providers/remedy/remedytest"
	"github.com/itsmauth/itsmauth/providers/webcommander/webcommandertest"
)

// These tests check the bytes that a product received.

func TestBeyondTrustOnTheWire(t *testing.T) {
	t.Parallel()
	for _, secret := range []string{beyondtrusttest.DefaultClientSecret, "a+b/c=d&e%f", "pä+ß/wörd=&%東京"} {
		for _, p := range bothWays(t, beyondtrust) {
			s := p.handler.(*beyondtrusttest.Server)
			s.SetSecret(secret)
			p.settings["client_secret"] = secret
			c := p.connect(t)
			for range 3 {
				if status, body, err := call(t.Context(), c, "GET", "/api/command?action=get_api_info", ""); err != nil || status != 200 {
					t.Fatalf("%d %s %v", status, body, err)
				}
			}
			raw := string(s.Raw())
			basic := "\r\nAuthorization: Basic " + base64.StdEncoding.EncodeToString([]byte(beyondtrusttest.DefaultClientID+":"+secret)) + "\r\n"
			if strings.Count(raw, basic) != 1 {
				t.Errorf("no %q in\n%s", basic, raw)
			}
			for _, r := range s.Requests() {
				if strings.HasPrefix(r.Path, "/api/") && strings.Count(string(r.Wire), "\r\nConnection: close\r\n") != 1 {
					t.Errorf("no Connection: close in\n%s", r.Wire)
				}
			}
			if n := s.Stats().ReusedConnections; n != 0 {
				t.Errorf("%d connections were used again", n)
			}
		}
	}
}

func TestWebCommanderOnTheWire(t *testing.T) {
	t.Parallel()
	for _, p := range bothWays(t, webcommander) {
		s := p.handler.(*webcommandertest.Server)
		c := p.connect(t)
		for _, set := range []func(http.Header){
			func(http.Header) {},
			func(h http.Header) { h.Set("access_token", "mine") }, // net/http makes it Access_token
			func(h http.Header) {
				h["access_token"] = []string{"mine", "mine"}
				h["ACCESS_TOKEN"] = []string{"mine"}
			},
		} {
			req, err := c.NewRequest(t.Context(), "GET", "/api/v4/products", nil)
			if err != nil {
				t.Fatal(err)
			}
			set(req.Header)
			resp, err := c.Client().Do(req)
			if err != nil || resp.StatusCode != 200 {
				t.Fatal(resp, err)
			}
			resp.Body.Close()
			all := s.Requests()
			wire := string(all[len(all)-1].Wire)
			if strings.Count(strings.ToLower(wire), "access_token") != 1 || !strings.Contains(wire, "\r\naccess_token: ") {
				t.Errorf("on the wire:\n%s", wire)
			}
		}
		token := s.Requests()[0]
		if token.Method != "POST" || token.Query != "" || !strings.HasPrefix(token.Header["Content-Type"][0], "application/json") {
			t.Errorf("the exchange was %s", token.Wire)
		}
	}
}

func TestRemedyOnTheWire(t *testing.T) {
	t.Parallel()
	for _, p := range bothWays(t, remedy) {
		s := p.handler.(*remedytest.Server)
		c := p.connect(t)
		s.RevokeAll()
		if status, body, err := call(t.Context(), c, "GET", p.path, ""); err != nil || status != 200 {
			t.Fatalf("%d %s %v", status, body, err)
		}
		exchanges := 0
		for _, r := range s.Requests() {
			if !strings.HasSuffix(r.Path, "/oauth2/token") {
				continue
			}
			exchanges++
			if r.Method != "POST" || r.Query != "" || r.Header["Content-Type"][0] != "application/x-www-form-urlencoded" {
				t.Errorf("%s %s?%s %v", r.Method, r.Path, r.Query, r.Header)
			}
		}
		if exchanges != 2 {
			t.Errorf("%d exchanges, want the code's and the refresh token's", exchanges)
		}
	}
}

// Redirects to another origin, which may be another port of the same host, carry no token and no secret.
func TestRedirects(t *testing.T) {
	t.Parallel()
	for _, status := range []int{301, 302, 303, 307, 308} {
		for _, from := range []string{"api", "token endpoint"} {
			for _, p := range bothWays(t, beyondtrust, remedy, webcommander) {
				t.Run(strings.Join([]string{p.id(), from, http.StatusText(status)}, " "), func(t *testing.T) {
					t.Parallel()
					var leaked []string
					foreign := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						for k := range r.Header {
							if k != "User-Agent" && k != "Accept-Encoding" && k != "Connection" {
								leaked = append(leaked, k)
							}
						}
						if r.ContentLength != 0 || from != "api" {
							leaked = append(leaked, "the request itself")
						}
					}))
					defer foreign.Close()
					away := func(w http.ResponseWriter, r *http.Request) bool {
						http.Redirect(w, r, foreign.URL+"/", status)
						return true
					}
					c := p.connect(t)
					if from == "api" {
						if _, err := c.Authenticator().Token(t.Context()); err != nil {
							t.Fatal(err)
						}
						p.breakAPI(away)
					} else {
						p.revoke()
						p.breakAuth(away)
					}
					for _, method := range []string{"GET", "POST"} {
						if _, _, err := call(t.Context(), c, method, p.path, map[string]string{"POST": "{}"}[method]); err != nil && from == "api" {
							t.Error(err)
						}
					}
					if len(leaked) > 0 {
						t.Errorf("leaked %v", leaked)
					}
				})
			}
		}
	}
}

// A request to another origin fails before anything is sent.
func TestOtherOrigin(t *testing.T) {
	t.Parallel()
	for _, p := range products(t) {
		c := p.connect(t)
		req, _ := http.NewRequestWithContext(t.Context(), "GET", "https://evil.example.org/?q=secret", nil)
		_, err := c.Client().Do(req)
		if !isInsecure(err) {
			t.Errorf("%s: %v", p.id(), err)
		}
		if _, err = c.Do(req); !isInsecure(err) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", p.id(), err)
		}
		var _ auth.Authenticator = c.Authenticator()
	}
}
