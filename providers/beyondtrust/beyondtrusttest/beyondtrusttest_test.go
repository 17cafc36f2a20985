package beyondtrusttest

import (
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/itsmauth/itsmauth/internal/emulator/memnet"
)

// A reply is the part of a response that tests check.
type reply struct {
	status int
	header http.Header
	body   string
}

func do(t *testing.T, c *http.Client, method, url, body string, header ...string) reply {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, string(b)}
}

func newServer(t *testing.T, o *Options) *Server {
	t.Helper()
	s := NewServer(o)
	t.Cleanup(s.Close)
	return s
}

func newClient(t *testing.T) *http.Client {
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func basic(s *Server) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(s.opts.ClientID+":"+s.opts.ClientSecret))
}

func requestToken(t *testing.T, c *http.Client, s *Server, authorization string) reply {
	t.Helper()
	return do(t, c, "POST", s.URL+tokenPath, "grant_type=client_credentials",
		"Authorization", authorization, "Content-Type", "application/x-www-form-urlencoded")
}

func exchange(t *testing.T, c *http.Client, s *Server) string {
	t.Helper()
	r := requestToken(t, c, s, basic(s))
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.Unmarshal([]byte(r.body), &answer); err != nil || r.status != 200 || answer.AccessToken == "" {
		t.Fatalf("exchange: %+v", r)
	}
	return answer.AccessToken
}

func get(t *testing.T, c *http.Client, s *Server, path, token string) reply {
	t.Helper()
	return do(t, c, "GET", s.URL+path, "", "Authorization", "Bearer "+token)
}

func call(t *testing.T, c *http.Client, s *Server, token string) {
	t.Helper()
	if r := get(t, c, s, "/api/command?action=get_api_info", token); r.status != 200 {
		t.Fatalf("API call: %+v", r)
	}
}

func code(t *testing.T, r reply) string {
	t.Helper()
	var answer map[string]string
	if err := json.Unmarshal([]byte(r.body), &answer); err != nil || answer["message"] == "" {
		t.Fatalf("not an error's JSON: %q", r.body)
	}
	return answer["error"]
}

func TestExchange(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	r := requestToken(t, newClient(t), s, basic(s))
	var got map[string]any
	if err := json.Unmarshal([]byte(r.body), &got); err != nil {
		t.Fatal(err)
	}
	if tok, _ := got["access_token"].(string); len(tok) != 44 {
		t.Errorf("access_token is %q", tok)
	}
	delete(got, "access_token")
	if d := cmp.Diff(map[string]any{"token_type": "Bearer", "expires_in": 3600.0}, got); d != "" || r.status != 200 {
		t.Errorf("status %d, answer (-want +got):\n%s", r.status, d)
	}
	if !strings.Contains(r.body, `"expires_in":3600,`) {
		t.Errorf("expires_in is no integer: %s", r.body)
	}
}

func TestExchangeRefused(t *testing.T) {
	t.Parallel()
	s := newServer(t, &Options{ClientID: "id+/=&%", ClientSecret: ">+/?=&%é:x", PerSecond: -1})
	// Its base64 has a plus, a slash and padding.
	encode := func(id, secret string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(id+":"+secret))
	}
	const id, secret, form, grant = "id+/=&%", ">+/?=&%é:x", "application/x-www-form-urlencoded", "grant_type=client_credentials"
	right := encode(id, secret)
	tests := []struct {
		name, method, path, auth, contentType, body string
		status                                      int
		code                                        string
	}{
		{"right", "POST", tokenPath, right, form, grant, 200, ""},
		{"charset", "POST", tokenPath, right, form + "; charset=UTF-8", grant, 200, ""},
		{"percent-escaped", "POST", tokenPath, encode(url.QueryEscape(id), url.QueryEscape(secret)), form, grant, 401, "invalid_client"},
		{"escaped secret", "POST", tokenPath, encode(id, url.QueryEscape(secret)), form, grant, 401, "invalid_client"},
		{"URL alphabet", "POST", tokenPath, strings.NewReplacer("+", "-", "/", "_").Replace(right), form, grant, 401, "invalid_client"},
		{"without padding", "POST", tokenPath, strings.TrimRight(right, "="), form, grant, 401, "invalid_client"},
		{"wrong secret", "POST", tokenPath, encode(id, "wrong"), form, grant, 401, "invalid_client"},
		{"wrong id", "POST", tokenPath, encode("wrong", secret), form, grant, 401, "invalid_client"},
		{"no header", "POST", tokenPath, "", form, grant, 401, "invalid_client"},
		{"credentials in the form", "POST", tokenPath, "", form, grant + "&" + url.Values{"client_id": {id}, "client_secret": {secret}}.Encode(), 401, "invalid_client"},
		{"trailing slash", "POST", tokenPath + "/", right, form, grant, 405, "method_not_allowed"},
		{"GET", "GET", tokenPath, right, form, "", 405, "method_not_allowed"},
		{"JSON", "POST", tokenPath, right, "application/json", `{"grant_type":"client_credentials"}`, 400, "invalid_request"},
		{"form said to be JSON", "POST", tokenPath, right, "application/json", grant, 400, "invalid_request"},
		{"no grant", "POST", tokenPath, right, form, "", 400, "invalid_request"},
		{"grant in the query", "POST", tokenPath + "?" + grant, right, form, "", 400, "invalid_request"},
		{"broken form", "POST", tokenPath, right, form, grant + "&%zz", 400, "invalid_request"},
		{"other grant", "POST", tokenPath, right, form, "grant_type=refresh_token", 400, "unsupported_grant_type"},
	}
	c := newClient(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			header := []string{"Content-Type", tt.contentType}
			if tt.auth != "" {
				header = append(header, "Authorization", tt.auth)
			}
			r := do(t, c, tt.method, s.URL+tt.path, tt.body, header...)
			if r.status != tt.status || tt.code != "" && code(t, r) != tt.code {
				t.Errorf("got %d %s, want %d %s", r.status, r.body, tt.status, tt.code)
			}
		})
	}
	if len(tests) != s.Stats().TokenRequests || s.Stats().Exchanges != 2 {
		t.Errorf("stats are %+v", s.Stats())
	}
}

func TestAPI(t *testing.T) {
	t.Parallel()
	const js = "application/json"
	tests := []struct {
		name, method, path, contentType, body string
		status                                int
		has                                   string // in the body
	}{
		{"command", "GET", "/api/command?action=get_api_info", "", "", 200, `<get_api_info xmlns="https://www.beyondtrust.com/namespaces/API/command">`},
		{"command HEAD", "HEAD", "/api/command?action=get_api_info", "", "", 200, ""},
		{"unknown command", "GET", "/api/command?action=reboot", "", "", 400, `<error xmlns="https://www.beyondtrust.com/namespaces/API/command">`},
		{"command POST", "POST", "/api/command?action=get_api_info", "", "", 405, `"method_not_allowed"`},
		{"report", "GET", "/api/reporting?generate_report=SupportSession&start_date=2026-03-02&duration=0", "", "", 200, `<session lsid="`},
		{"unknown report", "GET", "/api/reporting?generate_report=X", "", "", 400, `<error xmlns="https://www.beyondtrust.com/namespaces/API/reporting">`},
		{"list", "GET", "/api/config/v1/jump-item", "", "", 200, `"name":"web-01"`},
		{"list by name", "GET", "/api/config/v1/jump-item?name=db-01", "", "", 200, `[{"id":2,`},
		{"list of none", "GET", "/api/config/v1/jump-item?name=x", "", "", 200, `[]`},
		{"create", "POST", "/api/config/v1/jump-item", js, `{"name":"app","hostname":"h"}`, 201, `{"id":3,"name":"app","hostname":"h","tag":""}`},
		{"create nameless", "POST", "/api/config/v1/jump-item", js, `{}`, 422, `"invalid_request"`},
		{"create with a form", "POST", "/api/config/v1/jump-item", "", `name=x`, 400, `"invalid_request"`},
		{"create with broken JSON", "POST", "/api/config/v1/jump-item", js, `{`, 400, `"invalid_request"`},
		{"DELETE", "DELETE", "/api/config/v1/jump-item", "", "", 405, `"method_not_allowed"`},
		{"unknown parameter", "GET", "/api/command?action=get_api_info&x=1", "", "", 401, `"invalid_request"`},
		{"unknown parameter of JSON", "GET", "/api/config/v1/jump-item?action=x", "", "", 401, `"invalid_request"`},
		{"broken query", "GET", "/api/command?action=%zz", "", "", 401, `"invalid_request"`},
		{"unknown path", "GET", "/api/x", "", "", 404, `"not_found"`},
		{"trailing slash", "GET", "/api/command/?action=get_api_info", "", "", 404, `"not_found"`},
	}
	s := newServer(t, &Options{PerSecond: -1})
	c := newClient(t)
	tok := exchange(t, c, s)
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := do(t, c, tt.method, s.URL+tt.path, tt.body, "Authorization", "Bearer "+tok, "Content-Type", tt.contentType)
			if r.status != tt.status || !strings.Contains(r.body, tt.has) || strings.Contains(r.body, "access_denied") {
				t.Errorf("got %d %s, want %d with %s", r.status, r.body, tt.status, tt.has)
			}
			if strings.HasPrefix(tt.has, "<") {
				if err := xml.Unmarshal([]byte(r.body), new(struct{})); err != nil || !strings.HasPrefix(r.header.Get("Content-Type"), "text/xml") {
					t.Errorf("not XML: %v, %q", err, r.header.Get("Content-Type"))
				}
			}
			want := []string{"15000", strconv.Itoa(15000 - 1 - (i + 1))}
			got := []string{r.header.Get("X-RateLimit-Limit"), r.header.Get("X-RateLimit-Remaining")}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("rate limit headers (-want +got):\n%s", d)
			}
		})
	}
	if st := s.Stats(); st.APICalls != len(tests) || st.Writes != 1 || st.Rejected != 0 {
		t.Errorf("stats are %+v", st)
	}
	if r := get(t, c, s, "/elsewhere", tok); r.status != 404 || len(r.header["X-Ratelimit-Limit"]) != 0 {
		t.Errorf("outside the API: %+v", r)
	}
}

func TestTokenRefused(t *testing.T) {
	t.Parallel()
	paths := []string{"/api/command?action=get_api_info", "/api/reporting?generate_report=SupportSession", "/api/config/v1/jump-item", "/api/command?unknown=1"}
	tests := map[string]func(s *Server, token string) []string{
		"none":         func(*Server, string) []string { return nil },
		"wrong":        func(*Server, string) []string { return []string{"Bearer x"} },
		"empty":        func(*Server, string) []string { return []string{"Bearer "} },
		"other scheme": func(_ *Server, token string) []string { return []string{"Token " + token} },
		"twice":        func(_ *Server, token string) []string { return []string{"Bearer " + token, "Bearer " + token} },
		"revoked": func(s *Server, token string) []string {
			s.Revoke(token)
			return []string{"Bearer " + token}
		},
		"all revoked": func(s *Server, token string) []string {
			s.RevokeAll()
			return []string{"Bearer " + token}
		},
		"expired": func(s *Server, token string) []string {
			s.Expire()
			return []string{"Bearer " + token}
		},
		"secret regenerated": func(s *Server, token string) []string {
			s.SetSecret("new+/=&%")
			return []string{"Bearer " + token}
		},
	}
	for name, prepare := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, nil)
			c := newClient(t)
			tok := exchange(t, c, s)
			call(t, c, s, tok)
			var header []string
			for _, v := range prepare(s, tok) {
				header = append(header, "Authorization", v)
			}
			for _, path := range paths {
				r := do(t, c, "GET", s.URL+path, "", header...)
				if r.status != 401 || code(t, r) != "access_denied" || r.header.Get("Content-Type") != "application/json" {
					t.Errorf("%s: %+v", path, r)
				}
			}
			if n := s.Stats().Rejected; n != len(paths) {
				t.Errorf("%d rejected, want %d", n, len(paths))
			}
			call(t, c, s, exchange(t, c, s))
		})
	}
}

func TestRevokeLeavesOthers(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	c := newClient(t)
	one, other := exchange(t, c, s), exchange(t, c, s)
	s.Revoke(one)
	call(t, c, s, other)
}

func TestSetSecret(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	c := newClient(t)
	old := basic(s)
	s.SetSecret("new+/=&%")
	if r := requestToken(t, c, s, old); r.status != 401 || code(t, r) != "invalid_client" {
		t.Errorf("old secret: %+v", r)
	}
	exchange(t, c, s)
}

func TestMaxTokens(t *testing.T) {
	t.Parallel()
	s := newServer(t, &Options{PerSecond: -1})
	c := newClient(t)
	var tokens []string
	for range 32 {
		tokens = append(tokens, exchange(t, c, s))
	}
	for i, tok := range tokens {
		want := 200
		if i < 2 {
			want = 401
		}
		if r := get(t, c, s, "/api/command?action=get_api_info", tok); r.status != want {
			t.Errorf("token %d: got %d, want %d", i, r.status, want)
		}
	}
	if n := s.Stats().Killed; n != 2 {
		t.Errorf("%d killed, want 2", n)
	}

	s = newServer(t, &Options{MaxTokens: -1, PerSecond: -1})
	first := exchange(t, c, s)
	for range 31 {
		exchange(t, c, s)
	}
	call(t, c, s, first)
}

func TestTokenLifetime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := memnet.Listen()
		s := newServer(t, &Options{Listener: l, MaxTokens: 1})
		c := l.Client()
		defer c.CloseIdleConnections()
		tok := exchange(t, c, s)
		time.Sleep(time.Hour - 1)
		call(t, c, s, tok)
		time.Sleep(1 * time.Nanosecond)
		if r := get(t, c, s, "/api/command", tok); r.status != 401 || code(t, r) != "access_denied" {
			t.Errorf("after an hour: %+v", r)
		}
		exchange(t, c, s)
		if n := s.Stats().Killed; n != 0 {
			t.Errorf("an expired token was counted as killed")
		}
	})
}

func TestLimits(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		options Options
		window  time.Duration
		limit   int
	}{
		{"20 a second", Options{}, time.Second, 20},
		{"3 a second", Options{PerSecond: 3, PerHour: -1}, time.Second, 3},
		{"5 an hour", Options{PerSecond: -1, PerHour: 5}, time.Hour, 5},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := memnet.Listen()
				tt.options.Listener = l
				tt.options.TokenLifetime = 24 * time.Hour
				s := newServer(t, &tt.options)
				c := l.Client()
				defer c.CloseIdleConnections()
				tok := exchange(t, c, s) // takes a slot
				time.Sleep(tt.window / 2)
				for range tt.limit - 1 {
					call(t, c, s, tok)
				}
				over := func() {
					t.Helper()
					r := get(t, c, s, "/api/command?action=get_api_info", tok)
					if r.status != 429 || code(t, r) == "" {
						t.Fatalf("over the limit: %+v", r)
					}
					if remaining := r.header["X-Ratelimit-Remaining"]; tt.window == time.Hour && !cmp.Equal(remaining, []string{"0"}) {
						t.Errorf("remaining is %q", remaining)
					}
				}
				over()
				if r := requestToken(t, c, s, basic(s)); r.status != 429 {
					t.Errorf("token request over the limit: %+v", r)
				}
				time.Sleep(tt.window/2 - 1)
				over()
				time.Sleep(1 * time.Nanosecond)
				call(t, c, s, tok) // the exchange has left the window
				over()
				time.Sleep(tt.window / 2)
				for range tt.limit - 1 {
					call(t, c, s, tok)
				}
				over()
				if n := s.Stats().Throttled; n != 5 {
					t.Errorf("%d throttled, want 5", n)
				}
			})
		})
	}
}

func TestThrottle(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	c := newClient(t)
	tok := exchange(t, c, s)
	s.Throttle(2, "7")
	for _, r := range []reply{requestToken(t, c, s, basic(s)), get(t, c, s, "/api/command", tok)} {
		if r.status != 429 || code(t, r) == "" || r.header.Get("Retry-After") != "7" {
			t.Errorf("%+v", r)
		}
	}
	call(t, c, s, tok)
	if st := s.Stats(); st.Throttled != 2 || st.Exchanges != 1 {
		t.Errorf("stats are %+v", st)
	}
}

func TestNoLimits(t *testing.T) {
	t.Parallel()
	s := newServer(t, &Options{PerSecond: -1, PerHour: -1})
	c := newClient(t)
	tok := exchange(t, c, s)
	for range 100 {
		call(t, c, s, tok)
	}
	if r := get(t, c, s, "/api/command", tok); len(r.header["X-Ratelimit-Limit"]) != 0 {
		t.Errorf("a limit in the headers: %v", r.header)
	}
}
