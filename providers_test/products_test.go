// Package providers_test tests the products from outside: through YAML, against their emulators and
// against other servers.
package providers_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/config"
	"github.com/itsmauth/itsmauth/providers/beyondtrust/beyondtrusttest"
	"github.com/itsmauth/itsmauth/providers/remedy/remedytest"
	"github.com/itsmauth/itsmauth/providers/webcommander/webcommandertest"
)

// A product is an emulator and the settings of a connector to it.
type product struct {
	name      string
	url       string
	settings  map[string]string // YAML keys other than provider and base_url
	secrets   []string
	path      string // a harmless GET
	revoke    func() // revokes all access tokens
	exchanges func() int
	calls     func() int
	handler   http.Handler
	breakAPI  func(func(http.ResponseWriter, *http.Request) bool)
	breakAuth func(func(http.ResponseWriter, *http.Request) bool)
}

// products starts an emulator of each product.
func products(t *testing.T) []*product {
	return []*product{beyondtrust(t), remedy(t), arJWT(t), webcommander(t)}
}

func beyondtrust(t *testing.T) *product  { return beyondtrustAt(t, nil) }
func remedy(t *testing.T) *product       { return remedyAt(t, nil) }
func arJWT(t *testing.T) *product        { return arJWTAt(t, nil) }
func webcommander(t *testing.T) *product { return webcommanderAt(t, nil) }

// The listener may be in memory, for a synctest bubble; nil is a socket.

func beyondtrustAt(t *testing.T, l net.Listener) *product {
	s := beyondtrusttest.NewServer(&beyondtrusttest.Options{PerSecond: -1, PerHour: -1, Listener: l})
	t.Cleanup(s.Close)
	return &product{
		name: "beyondtrust", url: s.URL, handler: s,
		settings:  map[string]string{"client_id": beyondtrusttest.DefaultClientID, "client_secret": beyondtrusttest.DefaultClientSecret},
		secrets:   []string{beyondtrusttest.DefaultClientSecret},
		path:      "/api/command?action=get_api_info",
		revoke:    s.RevokeAll,
		exchanges: func() int { return s.Stats().Exchanges },
		calls:     func() int { return s.Stats().APICalls },
		breakAPI:  s.Break, breakAuth: s.BreakToken,
	}
}

func remedyAt(t *testing.T, l net.Listener) *product {
	s := remedytest.NewServer(&remedytest.Options{Listener: l})
	t.Cleanup(s.Close)
	return &product{
		name: "remedy", url: s.URL, handler: s,
		settings: map[string]string{
			"sso_url": s.SSOURL, "redirect_uri": remedytest.DefaultRedirectURI,
			"client_id": remedytest.DefaultClientID, "client_secret": remedytest.DefaultClientSecret,
		},
		secrets:   []string{remedytest.DefaultClientSecret},
		path:      "/api/arsys/v1/entry/HPD:IncidentInterface",
		revoke:    s.RevokeAll,
		exchanges: func() int { return s.Stats().Exchanges },
		calls:     func() int { return s.Stats().APICalls },
		breakAPI:  s.Break, breakAuth: s.BreakToken,
	}
}

func arJWTAt(t *testing.T, l net.Listener) *product {
	p := remedyAt(t, l)
	p.settings = map[string]string{"grant": "ar_jwt", "username": remedytest.DefaultUsername, "password": remedytest.DefaultPassword}
	p.secrets = []string{remedytest.DefaultPassword}
	return p
}

func webcommanderAt(t *testing.T, l net.Listener) *product {
	s := webcommandertest.NewServer(&webcommandertest.Options{Listener: l})
	t.Cleanup(s.Close)
	return &product{
		name: "webcommander", url: s.URL, handler: s,
		settings: map[string]string{
			"client_id": webcommandertest.DefaultClientID, "client_secret": webcommandertest.DefaultClientSecret,
			"username": webcommandertest.DefaultUsername, "password": webcommandertest.DefaultPassword,
			"redirect_uri": webcommandertest.DefaultRedirectURI,
		},
		secrets:   []string{webcommandertest.DefaultClientSecret, webcommandertest.DefaultPassword},
		path:      "/api/v4/products",
		revoke:    s.RevokeAll,
		exchanges: func() int { return s.Stats().Exchanges },
		calls:     func() int { return s.Stats().APICalls },
		breakAPI:  s.Break, breakAuth: s.BreakToken,
	}
}

// id is a name for tests that is different for Remedy's two grants.
func (p *product) id() string {
	if g := p.settings["grant"]; g != "" {
		return p.name + "-" + g
	}
	return p.name
}

// yaml returns the YAML of a connector called name, with further lines.
func (p *product) yaml(name string, more ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "  %s:\n    provider: %s\n    base_url: %s\n", name, p.name, p.url)
	for k, v := range p.settings {
		fmt.Fprintf(&b, "    %s: '%s'\n", k, v)
	}
	for _, line := range more {
		fmt.Fprintf(&b, "    %s\n", line)
	}
	return b.String()
}

// parse makes the connectors of YAML that belongs under connectors:.
func parse(t *testing.T, yaml string, opts ...config.Option) *config.Connectors {
	t.Helper()
	conns, err := config.Parse("itsmauth.yaml", []byte("version: 1\nconnectors:\n"+yaml), opts...)
	if err != nil {
		t.Fatalf("%v in\n%s", err, yaml)
	}
	t.Cleanup(func() { conns.Close() })
	return conns
}

// connect makes p's connector, and logs in if the grant needs it.
func (p *product) connect(t *testing.T, more ...string) *config.Connector {
	t.Helper()
	return p.get(t, parse(t, p.yaml("test", more...)), "test")
}

func (p *product) get(t *testing.T, conns *config.Connectors, name string) *config.Connector {
	t.Helper()
	c, err := conns.Get(name)
	if err != nil {
		t.Fatal(err)
	}
	if s := c.Authenticator().(*auth.Session); s.CodeFlow() != nil {
		login(t, s, p.handler.(*remedytest.Server))
	}
	return c
}

// login logs in as a person.
func login(t *testing.T, s *auth.Session, sso *remedytest.Server) {
	t.Helper()
	back, err := sso.Consent(s.CodeFlow().URL("state", "verifier-of-at-least-forty-three-characters-x"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Redeem(t.Context(), back.Query().Get("code"), "verifier-of-at-least-forty-three-characters-x"); err != nil {
		t.Fatal(err)
	}
}

// call makes one request and returns status and body.
func call(ctx context.Context, c *config.Connector, method, path, body string) (int, string, error) {
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := c.NewRequest(ctx, method, path, r)
	if err != nil {
		return 0, "", err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

func TestMainJob(t *testing.T) {
	t.Parallel()
	for _, p := range products(t) {
		t.Run(p.id(), func(t *testing.T) {
			t.Parallel()
			c := p.connect(t)
			for range 3 {
				if status, body, err := call(t.Context(), c, "GET", p.path, ""); err != nil || status != 200 {
					t.Fatalf("%d %s %v", status, body, err)
				}
			}
			if n := p.exchanges(); n != 1 {
				t.Errorf("%d exchanges for 3 calls", n)
			}
		})
	}
}

// If a token is revoked under 64 callers, no call fails and there is one exchange.
func TestRevocation(t *testing.T) {
	t.Parallel()
	for _, p := range products(t) {
		t.Run(p.id(), func(t *testing.T) {
			t.Parallel()
			c := p.connect(t, "transport: {rate_limits: []}")
			if status, body, err := call(t.Context(), c, "GET", p.path, ""); err != nil || status != 200 {
				t.Fatalf("%d %s %v", status, body, err)
			}
			before := p.exchanges()
			var once sync.Once
			var wg sync.WaitGroup
			for i := range 64 {
				wg.Go(func() {
					for n := range 2 {
						if i == 0 && n == 1 {
							once.Do(p.revoke)
						}
						if status, body, err := call(t.Context(), c, "GET", p.path, ""); err != nil || status != 200 {
							t.Errorf("%d %s %v", status, body, err)
						}
					}
				})
			}
			wg.Wait()
			if n := p.exchanges() - before; n != 1 {
				t.Errorf("%d exchanges", n)
			}
		})
	}
}

// If a product refuses every token, there are few exchanges, and callers get the product's response.
func TestEndlessRefusal(t *testing.T) {
	t.Parallel()
	refusals := map[string]string{
		"beyondtrust":  `{"error":"access_denied"}`,
		"remedy":       `[{"messageType":"ERROR","messageText":"Authentication failed","messageNumber":623}]`,
		"webcommander": `{"status":"error","code":401,"message":"Unauthorized","error":"unauthorized","errors":[]}`,
	}
	for _, p := range products(t) {
		t.Run(p.id(), func(t *testing.T) {
			t.Parallel()
			c := p.connect(t, "transport: {rate_limits: []}")
			p.breakAPI(func(w http.ResponseWriter, r *http.Request) bool {
				if strings.Contains(r.URL.Path, "oauth2") || strings.Contains(r.URL.Path, "/jwt/") {
					return false
				}
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(401)
				io.WriteString(w, refusals[p.name])
				return true
			})
			before, start := p.exchanges(), time.Now()
			for range 100 {
				status, body, err := call(t.Context(), c, "GET", p.path, "")
				if err != nil || status != 401 || body != refusals[p.name] {
					t.Fatalf("%d %s %v", status, body, err)
				}
			}
			took := time.Since(start)
			if n := p.exchanges() - before; n > 4+int(took/(5*time.Second)) {
				t.Errorf("%d exchanges for 100 refused calls in %s", n, took)
			}
		})
	}
}

// A 401 that is not about the token causes no exchange and no retry.
func TestRefusalOfTheRequest(t *testing.T) {
	t.Parallel()
	t.Run("beyondtrust", func(t *testing.T) {
		t.Parallel()
		p := beyondtrust(t)
		c := p.connect(t)
		for range 3 {
			if status, body, err := call(t.Context(), c, "GET", p.path+"&no_such_parameter=1", ""); err != nil || status != 401 {
				t.Fatalf("%d %s %v", status, body, err)
			}
		}
		if p.exchanges() != 1 || p.calls() != 3 {
			t.Errorf("%d exchanges, %d calls", p.exchanges(), p.calls())
		}
	})
	t.Run("webcommander", func(t *testing.T) {
		t.Parallel()
		s := webcommandertest.NewServer(nil)
		t.Cleanup(s.Close)
		p := webcommander(t)
		p.url, p.handler = s.URL, s
		c := p.connect(t)
		status, body, err := call(t.Context(), c, "POST", "/api/v4/customers/change-password", `{"old_password":"wrong","new_password":"new+/="}`)
		if err != nil || status != 401 || !strings.Contains(body, "old_password") {
			t.Fatalf("%d %s %v", status, body, err)
		}
		if st := s.Stats(); st.Exchanges != 1 || st.WriteRequests != 1 || st.Writes != 0 {
			t.Errorf("%+v", st)
		}
	})
}

// Two connectors of one account share a token; with another account label they do not.
func TestIdentity(t *testing.T) {
	t.Parallel()
	p := beyondtrust(t)
	conns := parse(t, p.yaml("a")+p.yaml("b")+p.yaml("c", "account: other"))
	for _, name := range conns.Names() {
		if status, body, err := call(t.Context(), p.get(t, conns, name), "GET", p.path, ""); err != nil || status != 200 {
			t.Fatalf("%s: %d %s %v", name, status, body, err)
		}
	}
	if n := p.exchanges(); n != 2 {
		t.Errorf("%d exchanges", n)
	}
}
