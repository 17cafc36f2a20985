package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// A server is a small product with a token endpoint, and the configuration of the connector api to it.
type server struct {
	*testing.T
	url, yaml string
	connector string // its part of the YAML

	mu       sync.Mutex
	api      http.HandlerFunc                           // answers other requests; nil is {}
	token    func(url.Values) (status int, body string) // answers token requests
	requests []string                                   // "POST /path key=value" of the keys grant_type and token
}

// newServer starts a server. lines are further lines of the connector.
func newServer(t *testing.T, lines string) *server {
	t.Helper()
	s := &server{T: t, token: func(url.Values) (int, string) { return 200, `{"access_token": "a1", "expires_in": 3600}` }}
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	s.url = h.URL
	redirect, err := freeRedirectURI()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s.yaml = filepath.Join(dir, "itsmauth.yaml")
	lines = strings.NewReplacer("URL", s.url, "REDIRECT", redirect).Replace(lines)
	s.connector = fmt.Sprintf("connectors:\n  api:\n    provider: oauth2\n    base_url: %s\n    token_url: %[1]s/token\n    client_id: me\n%s", s.url, lines)
	s.store(filepath.Join(dir, "tokens"))
	return s
}

// store writes the configuration with a file store in dir.
func (s *server) store(dir string) {
	s.Helper()
	text := "version: 1\ntoken_store: {type: file, path: " + dir + "}\n" + s.connector
	if err := os.WriteFile(s.yaml, []byte(text), 0o600); err != nil {
		s.Fatal(err)
	}
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.ParseForm()
	s.mu.Lock()
	line := r.Method + " " + r.URL.RequestURI()
	for _, key := range []string{"grant_type", "token"} {
		if v := r.PostForm.Get(key); v != "" {
			line += " " + key + "=" + v
		}
	}
	s.requests = append(s.requests, line)
	token := s.token
	s.mu.Unlock()
	if r.URL.Path == "/token" {
		status, body := token(r.PostForm)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		io.WriteString(w, body)
		return
	}
	if s.api != nil {
		s.api(w, r)
		return
	}
	io.WriteString(w, "{}")
}

func (s *server) answers(status int, body string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.token = func(url.Values) (int, string) { return status, body }
}

// seen returns the requests since the last time.
func (s *server) seen() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := strings.Join(s.requests, ", ")
	s.requests = nil
	return list
}

func (s *server) run(args ...string) (code int, stdout, stderr string) {
	return itsmauth(context.WithoutCancel(s.Context()), append([]string{"--config", s.yaml}, args...)...)
}

// logIn runs login and is the browser that comes back with a code. It returns the last page as text.
func (s *server) logIn() (code int, page, stdout, stderr string) {
	s.Helper()
	out, in := io.Pipe()
	var errs strings.Builder
	done := make(chan int, 1)
	go func() {
		done <- run(context.WithoutCancel(s.Context()), []string{"--config", s.yaml, "login", "api", "--no-browser"}, nil, in, &errs)
		in.Close()
	}()
	lines := bufio.NewReader(out)
	line, err := lines.ReadString('\n')
	if err != nil {
		return <-done, "", line, errs.String()
	}
	u, err := url.Parse(strings.TrimSpace(line))
	if err != nil {
		s.Fatal(err)
	}
	resp, err := http.Get(u.Query().Get("redirect_uri") + "?code=c&state=" + u.Query().Get("state"))
	if err != nil {
		s.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.Fatal(err)
	}
	rest, _ := io.ReadAll(lines)
	_, page, _ = strings.Cut(string(b), "<main>")
	return <-done, page, string(rest), errs.String()
}

const withLogin = "    grant: authorization_code\n    auth_url: URL/authorize\n    redirect_uri: REDIRECT\n    pkce: true\n"

// A product that gives no refresh token, usually because the scope offline_access is missing.
func TestLoginWithoutRefreshToken(t *testing.T) {
	t.Parallel()
	const (
		without = `{"access_token": "a2", "expires_in": 3600}`
		with    = `{"access_token": "a1", "expires_in": 3600, "refresh_token": "r1"}`
	)
	for name, revoke := range map[string]string{"": "", "revoked": "    revoke_url: URL/revoke\n"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, withLogin+revoke)
			s.answers(200, without)
			code, page, stdout, stderr := s.logIn()
			if code != 0 || stdout != "api is logged in for 59m only: the product gave no refresh token, usually because the scope offline_access is missing; then log in again\n" {
				t.Errorf("exit %d, %s%s", code, stdout, stderr)
			}
			if !strings.Contains(page, "api is connected") || !regexp.MustCompile("It ends in (59|60) minutes").MatchString(page) || !strings.Contains(page, "offline_access") {
				t.Error(page)
			}
			if _, stdout, _ := s.run("--output", "json", "status"); strings.Contains(stdout, `"consent_expiry": null`) {
				t.Error(stdout)
			}
			if _, stdout, _ := s.run("check", "--online"); !strings.Contains(stdout, "api: consent: warning: 59m left: the product gave no refresh token") {
				t.Error(stdout)
			}

			s.answers(200, with)
			if code, page, stdout, stderr = s.logIn(); code != 0 || stdout != "api is logged in\n" || !strings.Contains(page, "renews itself") {
				t.Errorf("exit %d, %s%s\n%s", code, stdout, stderr, page)
			}
			s.seen()
			s.answers(200, without)
			code, page, stdout, stderr = s.logIn()
			if code != 1 || stdout != "" || !strings.Contains(stderr, "itsmauth: api: login: the product returned no refresh token for this sign-in, so the earlier login stays in force; ") ||
				!strings.HasSuffix(stderr, "to replace the earlier login, first run: itsmauth logout api\n") {
				t.Errorf("exit %d, %s%s", code, stdout, stderr)
			}
			for _, want := range []string{"api keeps its earlier login", "gave no refresh token", "offline_access", "itsmauth logout api"} {
				if !strings.Contains(page, want) {
					t.Errorf("no %q in %s", want, page)
				}
			}
			want := "POST /token grant_type=authorization_code"
			if revoke != "" {
				want += ", POST /revoke token=a2"
			}
			if got := s.seen(); got != want {
				t.Errorf("requests: %s", got)
			}
			if _, stdout, _ := s.run("token", "api"); stdout != "a1\n" {
				t.Error(stdout)
			}
		})
	}
}

// logout says what it did not do.
func TestLogoutSaysWhatStays(t *testing.T) {
	t.Parallel()
	const answer = `{"access_token": "a1", "expires_in": 3600, "refresh_token": "r1"}`
	for name, tt := range map[string]struct {
		lines, stdout string
	}{
		"revoked":         {"    client_secret: x\n    revoke_url: URL/revoke\n", "api is logged out\n"},
		"an access token": {"    client_secret: x\n    refresh: {fallback: grant}\n", "api is logged out here, but not at the product, because the connector has no revoke_url; still valid there: its access token for 59m\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, tt.lines)
			if code, stdout, stderr := s.run("logout", "api"); code != 0 || stdout != "api is logged out\n" || stderr != "" {
				t.Errorf("without a token: exit %d, %s%s", code, stdout, stderr)
			}
			s.run("token", "api")
			if code, stdout, stderr := s.run("logout", "api"); code != 0 || stdout != tt.stdout || stderr != "" {
				t.Errorf("exit %d, %s%s", code, stdout, stderr)
			}
		})
	}
	t.Run("a login", func(t *testing.T) {
		t.Parallel()
		s := newServer(t, withLogin)
		s.answers(200, answer)
		s.logIn()
		if code, stdout, stderr := s.run("logout", "api"); code != 0 || stderr != "" ||
			stdout != "api is logged out here, but not at the product, because the connector has no revoke_url; still valid there: its access token for 59m, its refresh token until the product ends it\n" {
			t.Errorf("exit %d, %s%s", code, stdout, stderr)
		}
		s.answers(200, `{"access_token": "a1", "expires_in": 1, "refresh_token": "r1"}`)
		s.logIn()
		time.Sleep(time.Second)
		if code, stdout, _ := s.run("logout", "api"); code != 0 ||
			stdout != "api is logged out here, but not at the product, because the connector has no revoke_url; still valid there: its refresh token until the product ends it\n" {
			t.Errorf("exit %d, %s", code, stdout)
		}
	})
}

// A redirect that is not followed means that a write was not made. Nobody must take it for done.
func TestCallIsRedirected(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		method, location string
		status, code     int
		want             string // the request that arrived last
	}{
		{"GET", "/done", 302, 0, "GET /done"},
		{"GET", "", 302, 1, "GET /x"},
		{"GET", "", 304, 0, "GET /x"},
		{"GET", "", 300, 0, "GET /x"},
		{"POST", "/done", 301, 1, "POST /x"},
		{"POST", "/done", 302, 1, "POST /x"},
		{"PUT", "/done", 302, 1, "PUT /x"},
		{"DELETE", "/done", 301, 1, "DELETE /x"},
		{"POST", "/done", 303, 0, "GET /done"},
		{"POST", "/done", 307, 0, "POST /done"},
		{"POST", "http://127.0.0.1:1/done", 307, 1, "POST /x"},
		{"POST", "http://127.0.0.1:1/done", 308, 1, "POST /x"},
	} {
		t.Run(fmt.Sprint(tt.method, " ", tt.status, " ", tt.location != ""), func(t *testing.T) {
			t.Parallel()
			s := newServer(t, "    client_secret: x\n")
			s.api = func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/x" {
					if tt.location != "" {
						w.Header().Set("Location", tt.location)
					}
					w.WriteHeader(tt.status)
				}
			}
			args := []string{"call", "api", tt.method, "/x"}
			if tt.method != "GET" {
				args = append(args, "-d", "a=1")
			}
			code, stdout, stderr := s.run(args...)
			seen := s.seen()
			if code != tt.code || !strings.HasSuffix(seen, ", "+tt.want) {
				t.Errorf("exit %d, %s%s; requests: %s", code, stdout, stderr, seen)
			}
			want := fmt.Sprintf("itsmauth: api: %s /x: the product answered %d %s, and this redirect is not followed; call the address in its header Location, which -i shows\n", tt.method, tt.status, http.StatusText(tt.status))
			if code != 0 && stderr != want {
				t.Errorf("%s\nwant %s", stderr, want)
			}
		})
	}
}

// A reason phrase is the server's text, and may hold anything.
func TestCallShowsNoReasonPhrase(t *testing.T) {
	t.Parallel()
	s := newServer(t, "    client_secret: x\n    probe: /x\n")
	s.api = func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		io.WriteString(conn, "HTTP/1.1 404 \x1b[31mtoken a1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
		conn.Close()
	}
	for _, args := range [][]string{{"call", "api", "/x"}, {"check", "--online"}} {
		code, stdout, stderr := s.run(args...)
		if code != 1 || !strings.Contains(stdout+stderr, "404 Not Found") || strings.Contains(stdout+stderr, "a1") {
			t.Errorf("%s: exit %d, %s%s", args, code, stdout, stderr)
		}
	}
}

// If the credentials are refused, token and check name the key that says how they are sent.
func TestRefusedCredentialsNameTheKey(t *testing.T) {
	t.Parallel()
	for lines, want := range map[string]string{
		"    client_secret: ab\n":                              "try credentials_in: form (HTTP 401, invalid_client); check",
		"    client_secret: a+b%\n    credentials_in: basic\n": "try credentials_encoding: raw (HTTP 401, invalid_client); check",
		"    client_secret: ab\n    credentials_in: form\n":    "credentials refused (HTTP 401, invalid_client); check",
	} {
		s := newServer(t, lines)
		s.answers(401, `{"error": "invalid_client"}`)
		for _, args := range [][]string{{"token", "api"}, {"check", "--online"}} {
			code, stdout, stderr := s.run(args...)
			if code != 4 || !strings.Contains(stdout+stderr, want) {
				t.Errorf("%s: exit %d, %s%s\nwant %s", args, code, stdout, stderr, want)
			}
		}
	}
}

// If a token request fails at the proxy, the error names the proxy and not the product.
func TestTokenNamesTheProxy(t *testing.T) {
	t.Parallel()
	web := strings.TrimPrefix(plainServer(t, http.NotFoundHandler()), "http://")
	proxy := strings.TrimPrefix(plainServer(t, http.HandlerFunc(forward)), "http://")
	for _, tt := range []struct{ target, proxy, want string }{
		{"https://itsm.example.com", "http://" + web, "unavailable: the proxy http://" + web + ": it answered CONNECT with 404 Not Found; "},
		{"https://" + closedAddress, "http://" + proxy, "unavailable: the proxy http://" + proxy + ": it answered CONNECT with 502 Bad Gateway; "},
		{"https://itsm.example.com", "https://" + proxy, "unavailable: the proxy https://" + proxy + " does not speak TLS; write http:// in proxy_url; "},
		{"https://itsm.example.com", "http://" + closedAddress, "unavailable: the proxy http://" + closedAddress + ": "},
	} {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			file := onlineFile(t, lines(tt.target, "    transport: {retry: {max_attempts: 1}, proxy_url: "+tt.proxy+"}\n"))
			code, stdout, stderr := itsmauth(t.Context(), "--config", file, "token", "target")
			if code != 1 || stdout != "" || !strings.HasPrefix(stderr, "itsmauth: target: exchange: "+tt.want) {
				t.Errorf("%s through %s: exit %d, %s\nwant %s", tt.target, tt.proxy, code, stderr, tt.want)
			}
		})
	}
}

// What an operator reads when the token endpoint answers with something else than a token.
func TestTokenResponseIsNone(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		`{"token": "a1"}`:      `the token response has no access token at "/access_token"; if it is elsewhere in the response, set response.access_token; the response has the keys token (HTTP 200); `,
		`{"access_token": ""}`: `the token response has no access token at "/access_token"; if it is elsewhere in the response, set response.access_token; the response has the keys access_token (HTTP 200); `,
		`<html>`:               "the token response is an HTML page (HTTP 200); ",
		`access_token=a1`:      "the token response is a form; set response.format to text (HTTP 200); ",
		`a1`:                   "the token response is not JSON (HTTP 200); ",
	} {
		s := newServer(t, "    client_secret: x\n")
		s.answers(200, body)
		if code, stdout, stderr := s.run("token", "api"); code != 1 || stdout != "" || !strings.HasPrefix(stderr, "itsmauth: api: exchange: unexpected answer: "+want) {
			t.Errorf("%s: exit %d, %s\nwant %s", body, code, stderr, want)
		}
	}
}
