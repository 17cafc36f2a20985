package providers_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/config"
	"github.com/itsmauth/itsmauth/internal/testpki"
)

// serviceNow answers every refused credential with 401 server_error, as ServiceNow does.
type serviceNow struct {
	mu        sync.Mutex
	password  string
	serial    int
	access    string   // the valid access token
	refresh   string   // the valid refresh token
	passwords []string // that were sent
	refreshes []string // that were sent
}

func (s *serviceNow) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if r.URL.Path != "/oauth_token.do" {
		if r.Header.Get("Authorization") != "Bearer "+s.access {
			w.WriteHeader(401)
			fmt.Fprint(w, `{"error":{"message":"User Not Authenticated","detail":"Required to provide Auth information"},"status":"failure"}`)
			return
		}
		fmt.Fprint(w, `{"result":[]}`)
		return
	}
	granted := r.FormValue("client_id") == "id" && r.FormValue("client_secret") == "client's secret"
	switch r.FormValue("grant_type") {
	case "password":
		s.passwords = append(s.passwords, r.FormValue("password"))
		granted = granted && r.FormValue("username") == "sync" && r.FormValue("password") == s.password
	case "refresh_token":
		s.refreshes = append(s.refreshes, r.FormValue("refresh_token"))
		granted = granted && r.FormValue("refresh_token") == s.refresh
	}
	if !granted {
		w.WriteHeader(401)
		fmt.Fprint(w, `{"error_description":"access_denied","error":"server_error"}`)
		return
	}
	s.serial++
	s.access = fmt.Sprint("access-", s.serial)
	if r.FormValue("grant_type") == "password" {
		s.refresh = fmt.Sprint("refresh-", s.serial)
	}
	json.NewEncoder(w).Encode(map[string]any{"access_token": s.access, "refresh_token": s.refresh, "scope": "useraccount", "token_type": "Bearer", "expires_in": 1799})
}

const serviceNowYAML = `version: 1
connectors:
  snow:
    provider: oauth2
    base_url: https://acme.service-now.com
    token_url: https://acme.service-now.com/oauth_token.do
    grant: password
    client_id: id
    client_secret: client's secret
    credentials_in: form
    username: sync
    password: right password
`

// connect makes a connector to s, as a process does that starts.
func (s *serviceNow) connect(t *testing.T, yaml string, opts ...config.Option) (c *config.Connector, end func()) {
	t.Helper()
	opts = append(opts, config.WithWrap(func(string, http.RoundTripper) http.RoundTripper { return inMemory{s} }))
	conns, err := config.Parse("itsmauth.yaml", []byte(yaml), opts...)
	if err != nil {
		t.Fatal(err)
	}
	c, err = conns.Get("snow")
	if err != nil {
		t.Fatal(err)
	}
	return c, func() { conns.Close() }
}

// A wrong password is sent once in 50 s, however many calls there are: accounts get locked.
func TestServiceNowWrongPassword(t *testing.T) {
	t.Parallel()
	const mapped = "    response: {errors: [{status: 401, pointer: /error_description, equals: access_denied, means: invalid_grant}]}\n"
	for name, test := range map[string]struct{ more, say string }{
		"as it comes":     {"", "HTTP 401, server_error"},
		"response.errors": {mapped, "HTTP 401, invalid_grant"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &serviceNow{password: "another password"}
				c, end := s.connect(t, serviceNowYAML+test.more)
				defer end()
				for range 25 {
					_, _, err := call(t.Context(), c, "GET", "/api/now/table/incident", "")
					if !errors.Is(err, auth.ErrCredentials) || !strings.Contains(err.Error(), test.say) || !strings.Contains(err.Error(), "check the client id, the secret and the account") {
						t.Error(err)
					}
					time.Sleep(2 * time.Second)
				}
				if len(s.passwords) != 1 {
					t.Errorf("sent %d passwords", len(s.passwords))
				}
			})
		})
	}
}

// When the refresh token has died, which takes 100 days, the password is used again: by a process that runs
// and by one that starts.
func TestServiceNowDeadRefreshToken(t *testing.T) {
	t.Parallel()
	for name, restart := range map[string]bool{"running": false, "starting": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := new(auth.Memory)
			shared := config.WithStore("shared", func(struct{}) (auth.Store, error) { return store, nil })
			synctest.Test(t, func(t *testing.T) {
				s := &serviceNow{password: "right password"}
				c, end := s.connect(t, "token_store: {type: shared}\n"+serviceNowYAML, shared)
				defer func() { end() }()
				works := func() {
					t.Helper()
					if status, body, err := call(t.Context(), c, "GET", "/api/now/table/incident", ""); err != nil || status != 200 {
						t.Errorf("%d %s %v", status, body, err)
					}
				}
				works()
				time.Sleep(time.Hour)
				works()
				if !slices.Equal(s.refreshes, []string{"refresh-1"}) || len(s.passwords) != 1 {
					t.Errorf("refreshed with %v, %d passwords", s.refreshes, len(s.passwords))
				}
				s.refresh, s.refreshes = "", nil
				if restart {
					end()
					c, end = s.connect(t, "token_store: {type: shared}\n"+serviceNowYAML, shared)
				}
				time.Sleep(100 * 24 * time.Hour)
				works()
				works()
				if !slices.Equal(s.refreshes, []string{"refresh-1"}) || len(s.passwords) != 2 {
					t.Errorf("refreshed with %v, %d passwords", s.refreshes, len(s.passwords))
				}
			})
		})
	}
}

// nginx answers 400 itself to requests that do not meet what its TLS layer wants. That is no verdict on the
// credentials, nor on the refresh token.
func TestNginxBadRequest(t *testing.T) {
	t.Parallel()
	ca := testpki.New(t)
	cert, key := testpki.Files(t, ca.Issue(t, "127.0.0.1", time.Now().Add(time.Hour)))
	ours, ourKey := testpki.Files(t, ca.Issue(t, "itsmauth", time.Now().Add(time.Hour)))
	mutual := fmt.Sprintf("ssl_certificate '%s'; ssl_certificate_key '%s'; ssl_verify_client on; ssl_client_certificate '%s'; location / { proxy_pass BACKEND; }", cert, key, ca.File(t))
	for name, test := range map[string]struct{ scheme, transport, say string }{
		"no client certificate": {"https://", "tls_config: {ca_file: '" + ca.File(t) + "'}", "transport.tls_config"},
		"http to a TLS port":    {"http://", "", "use https"},
	} {
		for _, grant := range []string{"client_credentials", "refresh_token"} {
			t.Run(name+" "+grant, func(t *testing.T) {
				t.Parallel()
				spent := make(chan string, 10)
				backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/token" {
						spent <- r.FormValue("refresh_token")
						fmt.Fprint(w, `{"access_token":"AT","refresh_token":"rotated"}`)
					}
				}))
				t.Cleanup(backend.Close)
				base, _ := nginx(t, &product{url: backend.URL}, "ssl", mutual)
				store := filepath.Join(t.TempDir(), "tokens")
				connect := func(base, transport string) *config.Connector {
					yaml := fmt.Sprintf("version: 1\ntoken_store: {type: file, path: '%s'}\nconnectors:\n  test:\n    provider: oauth2\n    base_url: %s\n    token_url: %s/token\n    grant: %s\n    client_id: id\n    client_secret: s\n    transport: {%s}\n",
						store, base, base, grant, transport)
					if grant == "refresh_token" {
						yaml += "    refresh_token: seed\n"
					}
					conns, err := config.Parse("itsmauth.yaml", []byte(yaml))
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { conns.Close() })
					c, err := conns.Get("test")
					if err != nil {
						t.Fatal(err)
					}
					return c
				}
				_, _, err := call(t.Context(), connect(strings.Replace(base, "https://", test.scheme, 1), test.transport), "GET", "/api", "")
				if !errors.Is(err, auth.ErrProtocol) || errors.Is(err, auth.ErrCredentials) || errors.Is(err, auth.ErrConsentRequired) || !strings.Contains(err.Error(), test.say) {
					t.Error(err)
				}
				c := connect(base, fmt.Sprintf("tls_config: {ca_file: '%s', cert_file: '%s', key_file: '%s'}", ca.File(t), ours, ourKey))
				if status, body, err := call(t.Context(), c, "GET", "/api", ""); err != nil || status != 200 {
					t.Errorf("with the certificate: %d %s %v", status, body, err)
				}
				want := map[string]string{"client_credentials": "", "refresh_token": "seed"}[grant]
				if got := <-spent; got != want || len(spent) != 0 {
					t.Errorf("the backend got the refresh token %q and %d more requests", got, len(spent))
				}
			})
		}
	}
}
