// Package providers_test tests the products from outside: through YAML, against their emulators and
// against other servers.
package providers_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
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
	oauth2    bool // connect by provider: oauth2
	url       string
	settings  map[string]string // YAML keys other than provider and base_url
	more      map[string]string // further keys, as in YAML
	secrets   []string
	path      string               // a harmless GET
	refused   func() *http.Request // is refused, and not for its token
	revoke    func()               // revokes all access tokens
	kill      func(token string)   // revokes one
	exchanges func() int
	calls     func() int
	handler   http.Handler
	breakAPI  func(func(http.ResponseWriter, *http.Request) bool)
	breakAuth func(func(http.ResponseWriter, *http.Request) bool)
}

// products starts an emulator of each product, for each way to connect.
func products(t *testing.T) []*product { return bothWays(t, beyondtrust, remedy, arJWT, webcommander) }

// bothWays starts each product twice: for its own provider, and for provider: oauth2.
func bothWays(t *testing.T, starts ...func(*testing.T) *product) (all []*product) {
	for _, start := range starts {
		for _, oauth2 := range []bool{false, true} {
			p := start(t)
			p.oauth2 = oauth2
			all = append(all, p)
		}
	}
	return all
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
		refused:   request("GET", s.URL+"/api/command?action=get_api_info&no_such_parameter=1", ""),
		revoke:    s.RevokeAll,
		kill:      s.Revoke,
		exchanges: func() int { return s.Stats().Exchanges },
		calls:     func() int { return s.Stats().APICalls },
		breakAPI:  s.Break, breakAuth: s.BreakToken,
	}
}

func remedyAt(t *testing.T, l net.Listener) *product {
	return remedyWith(t, remedytest.Options{Listener: l})
}

func remedyWith(t *testing.T, o remedytest.Options) *product {
	s := remedytest.NewServer(&o)
	t.Cleanup(s.Close)
	return &product{
		name: "remedy", url: s.URL, handler: s,
		settings: map[string]string{
			"sso_url": s.SSOURL, "redirect_uri": remedytest.DefaultRedirectURI,
			"client_id": remedytest.DefaultClientID, "client_secret": remedytest.DefaultClientSecret,
		},
		secrets:   []string{remedytest.DefaultClientSecret},
		path:      "/api/arsys/v1/entry/HPD:IncidentInterface",
		refused:   request("GET", s.URL+"/api/arsys/v1/entry/NoSuchForm", ""),
		revoke:    s.RevokeAll,
		kill:      s.Revoke,
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
	return webcommanderWith(t, webcommandertest.Options{Listener: l})
}

func webcommanderWith(t *testing.T, o webcommandertest.Options) *product {
	s := webcommandertest.NewServer(&o)
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
		refused:   request("POST", s.URL+"/api/v4/customers/change-password", `{"old_password":"x","new_password":"y"}`),
		revoke:    s.RevokeAll,
		kill:      s.Revoke,
		exchanges: func() int { return s.Stats().Exchanges },
		calls:     func() int { return s.Stats().APICalls },
		breakAPI:  s.Break, breakAuth: s.BreakToken,
	}
}

// request returns a function that makes a request.
func request(method, url, body string) func() *http.Request {
	return func() *http.Request {
		r, err := http.NewRequest(method, url, strings.NewReader(body))
		if err != nil {
			panic(err)
		}
		r.Header.Set("Content-Type", "application/json")
		return r
	}
}

// id is a name for tests that is different for Remedy's two grants and for the ways to connect.
func (p *product) id() string { return p.kind() + p.way() }

func (p *product) kind() string {
	if g := p.settings["grant"]; g != "" {
		return p.name + "-" + g
	}
	return p.name
}

func (p *product) way() string {
	if p.oauth2 {
		return " by oauth2"
	}
	return ""
}

// yaml returns the YAML of a connector called name, with further lines.
func (p *product) yaml(name string, more ...string) string {
	keys := map[string]string{"provider": p.name, "base_url": p.url}
	for k, v := range p.settings {
		keys[k] = "'" + v + "'"
	}
	if p.oauth2 {
		p.asOAuth2(keys)
	}
	maps.Copy(keys, p.more)
	for _, line := range more {
		k, v, _ := strings.Cut(line, ": ")
		if k == "transport" && keys[k] != "" {
			v = merged(keys[k], v)
		}
		keys[k] = v
	}
	var b strings.Builder
	fmt.Fprintf(&b, "  %s:\n", name)
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		fmt.Fprintf(&b, "    %s: %s\n", k, keys[k])
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

func get(t *testing.T, conns *config.Connectors, name string) *config.Connector {
	t.Helper()
	c, err := conns.Get(name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// connect makes p's connector, and logs in if the grant needs it.
func (p *product) connect(t *testing.T, more ...string) *config.Connector {
	t.Helper()
	return p.get(t, parse(t, p.yaml("test", more...)), "test")
}

func (p *product) get(t *testing.T, conns *config.Connectors, name string) *config.Connector {
	t.Helper()
	c := get(t, conns, name)
	if s := c.Session(); s.CodeFlow() != nil {
		login(t, s, p.handler.(*remedytest.Server))
	}
	return c
}

// login logs in as a person.
func login(t *testing.T, s *auth.Session, sso *remedytest.Server) {
	t.Helper()
	back, err := sso.Consent(s.CodeFlow().URL("state", verifier))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Redeem(t.Context(), back.Query().Get("code"), verifier); err != nil {
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
	for _, p := range bothWays(t, beyondtrust, remedy, arJWT) {
		t.Run(p.id(), func(t *testing.T) {
			t.Parallel()
			c := p.connect(t)
			before := p.exchanges()
			if p.name == "remedy" {
				p.breakAPI(func(w http.ResponseWriter, r *http.Request) bool {
					if !strings.HasPrefix(r.URL.Path, "/api/arsys") {
						return false
					}
					http.Error(w, `[{"messageType":"ERROR","messageText":"No permission","messageNumber":9388}]`, http.StatusUnauthorized)
					return true
				})
			}
			for range 3 {
				if status, body, err := call(t.Context(), c, "GET", p.path+"&no_such_parameter=1", ""); err != nil || status != 401 {
					t.Fatalf("%d %s %v", status, body, err)
				}
			}
			if p.exchanges() != max(1, before) || p.calls() != 3 { // the login is one
				t.Errorf("%d exchanges, %d calls", p.exchanges(), p.calls())
			}
		})
	}
	for _, p := range bothWays(t, webcommander) {
		t.Run(p.id(), func(t *testing.T) {
			t.Parallel()
			c := p.connect(t)
			status, body, err := call(t.Context(), c, "POST", "/api/v4/customers/change-password", `{"old_password":"wrong","new_password":"new+/="}`)
			if err != nil || status != 401 || !strings.Contains(body, "old_password") {
				t.Fatalf("%d %s %v", status, body, err)
			}
			if st := p.handler.(*webcommandertest.Server).Stats(); st.Exchanges != 1 || st.WriteRequests != 1 || st.Writes != 0 {
				t.Errorf("%+v", st)
			}
		})
	}
}

// Wrong credentials are recognized, with the product's error code.
func TestWrongCredentials(t *testing.T) {
	t.Parallel()
	codes := map[string]string{"beyondtrust": "invalid_client", "remedy": "invalid_client", "remedy-ar_jwt": "623", "webcommander": "invalid_client"}
	for _, p := range products(t) {
		t.Run(p.id(), func(t *testing.T) {
			t.Parallel()
			c := p.connect(t)
			if _, wrong := p.settings["client_secret"]; wrong {
				p.handler.(interface{ SetSecret(string) }).SetSecret("another")
			} else {
				p.settings["password"] = "another"
				c = p.connect(t)
			}
			session := c.Session()
			if tok, err := session.Token(t.Context()); err == nil {
				session.Invalidate(tok)
			}
			_, err := session.Token(t.Context())
			var e *auth.Error
			if !errors.Is(err, auth.ErrCredentials) || !errors.As(err, &e) || e.Code != codes[p.kind()] {
				t.Errorf("%v, want the code %s", err, codes[p.kind()])
			}
		})
	}
}

// A refused refresh token is a lost login with Remedy, and with WebCommander it is replaced within the call.
func TestRefusedRefreshToken(t *testing.T) {
	t.Parallel()
	for _, p := range bothWays(t, remedy, webcommander) {
		t.Run(p.id(), func(t *testing.T) {
			t.Parallel()
			c := p.connect(t)
			if status, body, err := call(t.Context(), c, "GET", p.path, ""); err != nil || status != 200 {
				t.Fatalf("%d %s %v", status, body, err)
			}
			p.handler.(interface{ RevokeRefresh() }).RevokeRefresh()
			p.revoke()
			status, body, err := call(t.Context(), c, "GET", p.path, "")
			if p.name == "webcommander" {
				if err != nil || status != 200 || p.exchanges() != 2 {
					t.Errorf("%d %s %v after %d exchanges", status, body, err, p.exchanges())
				}
				return
			}
			if err != nil || status != 401 {
				t.Errorf("%d %s %v, want the product's 401", status, body, err)
			}
			if _, err := c.Authenticator().Token(t.Context()); !errors.Is(err, auth.ErrConsentRequired) {
				t.Error(err)
			}
		})
	}
}

// Two connectors of one account share a token; with another account label they do not.
func TestIdentity(t *testing.T) {
	t.Parallel()
	for _, p := range bothWays(t, beyondtrust) {
		conns := parse(t, p.yaml("a")+p.yaml("b")+p.yaml("c", "account: other"))
		for _, name := range conns.Names() {
			if status, body, err := call(t.Context(), p.get(t, conns, name), "GET", p.path, ""); err != nil || status != 200 {
				t.Fatalf("%s: %d %s %v", name, status, body, err)
			}
		}
		if n := p.exchanges(); n != 2 {
			t.Errorf("%s: %d exchanges", p.id(), n)
		}
	}
}
