// Package servers has the tests in which OAuth servers that others wrote accept what itsmauth sends. It is a module
// of its own, so that these servers are not dependencies of itsmauth.
package servers

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/config"
)

// The client that all servers know. Its id and secret are not the same when they are URL-escaped.
const (
	clientID = "sync/ü 1"
	secret   = `p+a/s=s%2B&w?o:r;d,"'\ #ü€`
)

// publicID is a client without a secret.
const publicID = "public"

// callback is where the servers send the browser. Nothing listens there.
const callback = "http://127.0.0.1:1/callback"

// A server is a product: an OAuth server, and an API that accepts its tokens.
type server struct {
	*httptest.Server
	mux *http.ServeMux

	// accepts reports whether the API accepts an access token, and revoke ends one.
	accepts func(accessToken string) bool
	revoke  func(accessToken string)

	endsFamilies bool // a spent refresh token that comes again ends all that came of the login

	mu        sync.Mutex
	live      map[string]bool // access tokens that the API has accepted
	spent     map[string]int  // how often each refresh token was sent
	issued    string          // the newest refresh token
	exchanges int             // token requests
}

// newServer starts a server whose endpoints are to be added to its mux.
func newServer(t *testing.T) *server {
	s := &server{mux: http.NewServeMux(), live: map[string]bool{}, spent: map[string]int{}}
	s.mux.HandleFunc("/api", s.api)
	s.mux.HandleFunc("/signin", signIn)
	s.Server = httptest.NewServer(s.mux)
	t.Cleanup(s.Close)
	return s
}

func (s *server) api(w http.ResponseWriter, r *http.Request) {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !s.accepts(token) {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live[token] = true
}

// handleToken serves the token endpoint, and counts.
func (s *server) handleToken(h http.HandlerFunc) {
	s.mux.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) {
		sent := r.PostFormValue("refresh_token")
		answer := httptest.NewRecorder()
		h(answer, r)
		var token struct {
			Refresh string `json:"refresh_token"`
		}
		json.Unmarshal(answer.Body.Bytes(), &token)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.exchanges++
		if sent != "" {
			s.spent[sent]++
		}
		if token.Refresh != "" {
			s.issued = token.Refresh
		}
		maps.Copy(w.Header(), answer.Header())
		w.WriteHeader(answer.Code)
		w.Write(answer.Body.Bytes())
	})
}

// revokeAll ends all access tokens that the API has accepted.
func (s *server) revokeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for token := range s.live {
		s.revoke(token)
	}
	clear(s.live)
}

// counts returns how many token requests there were, how many refresh tokens were sent, and how many of them twice.
func (s *server) counts() (exchanges, refreshes, reused int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.spent {
		if n > 1 {
			reused++
		}
	}
	return s.exchanges, len(s.spent), reused
}

// newestRefreshToken is the refresh token that the server issued last.
func (s *server) newestRefreshToken() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.issued
}

// signIn signs a person in, who is sent back with a cookie.
func signIn(w http.ResponseWriter, r *http.Request) {
	http.SetCookie(w, &http.Cookie{Name: "person", Value: "ann"})
	http.Redirect(w, r, "/authorize?"+r.URL.RawQuery, http.StatusFound)
}

// signedIn returns the person, or sends them to sign in.
func signedIn(w http.ResponseWriter, r *http.Request) string {
	c, err := r.Cookie("person")
	if err != nil {
		http.Redirect(w, r, "/signin?"+r.URL.RawQuery, http.StatusFound)
		return ""
	}
	return c.Value
}

// yaml is a configuration with the connector "test".
func (s *server) yaml(head string, settings ...string) string {
	text := "version: 1\n" + head + "connectors:\n  test:\n    provider: oauth2\n    base_url: " + s.URL + "\n    token_url: " + s.URL + "/token\n"
	for _, line := range append(settings, "transport: {retry: {min_backoff: 1ms}}") {
		text += "    " + line + "\n"
	}
	return text
}

// connect makes the connector, as a process does that starts.
func (s *server) connect(t *testing.T, settings ...string) *config.Connector {
	t.Helper()
	return parse(t, s.yaml("", settings...))
}

func parse(t *testing.T, yaml string) *config.Connector {
	t.Helper()
	conns, err := config.Parse("itsmauth.yaml", []byte(yaml))
	if err != nil {
		t.Fatalf("%v in\n%s", err, yaml)
	}
	t.Cleanup(func() { conns.Close() })
	c, err := conns.Get("test")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func fileStore(t *testing.T) string {
	return "token_store: {type: file, " + setting("path", filepath.Join(t.TempDir(), "tokens")) + "}\n"
}

// setting is a line of YAML.
func setting(key, value string) string {
	text, _ := json.Marshal(value)
	return key + ": " + string(text)
}

// codeFlow are the settings of a login.
func (s *server) codeFlow(id string, settings ...string) []string {
	return append([]string{"grant: authorization_code", setting("client_id", id), "auth_url: " + s.URL + "/authorize",
		"revoke_url: " + s.URL + "/revoke", "redirect_uri: " + callback, "scopes: [read]", "pkce: true"}, settings...)
}

// call calls the API.
func call(c *config.Connector) error {
	resp, err := c.Client().Get(c.BaseURL.JoinPath("api").String())
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// mustCall makes a call that must succeed.
func mustCall(t *testing.T, c *config.Connector) {
	t.Helper()
	if err := call(c); err != nil {
		t.Fatal(err)
	}
}

// mustRenew has the server revoke the access token, and makes a call that must succeed with another. It returns that.
func (s *server) mustRenew(t *testing.T, c *config.Connector) (accessToken string) {
	t.Helper()
	before := mustToken(t, c)
	s.revoke(before)
	mustCall(t, c)
	if accessToken = mustToken(t, c); accessToken == before {
		t.Fatal("a revoked token is still in use")
	}
	return accessToken
}

func mustToken(t *testing.T, c *config.Connector) string {
	t.Helper()
	tok, err := c.Session().Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return tok.AccessToken
}

// browse goes through the server's pages as a browser does, and returns the code with its verifier.
func browse(t *testing.T, c *config.Connector) (code, verifier string) {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	browser := &http.Client{Jar: jar, CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		if strings.HasPrefix(r.URL.String(), callback) {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	state := oauth2.GenerateVerifier()
	verifier = oauth2.GenerateVerifier()
	resp, err := browser.Get(c.Session().CodeFlow().URL(state, verifier))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	back, err := resp.Location()
	if err != nil {
		t.Fatal(resp.Status, err)
	}
	if q := back.Query(); q.Get("state") != state || q.Get("code") == "" {
		t.Fatalf("the browser came back with %v", q)
	}
	return back.Query().Get("code"), verifier
}

// login logs the person in.
func login(t *testing.T, c *config.Connector) {
	t.Helper()
	code, verifier := browse(t, c)
	if err := c.Session().Redeem(t.Context(), code, verifier); err != nil {
		t.Fatal(err)
	}
}

// refused is the error that a server's refusal is to become.
type refused struct {
	is   error
	code string
	says string // a part of the message
}

func (want refused) check(t *testing.T, err error) {
	t.Helper()
	var e *auth.Error
	switch {
	case !errors.As(err, &e):
		t.Errorf("%v is no *auth.Error", err)
	case !errors.Is(err, want.is) || e.Code != want.code || !strings.Contains(err.Error(), want.says):
		t.Errorf("%v (code %q), want %v (code %q) that says %q", err, e.Code, want.is, want.code, want.says)
	case strings.Contains(fmt.Sprintf("%v %+v", err, err), secret):
		t.Errorf("%v shows the secret", err)
	}
}
