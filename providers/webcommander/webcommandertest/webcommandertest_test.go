package webcommandertest

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/itsmauth/itsmauth/internal/emulator"
	"github.com/itsmauth/itsmauth/internal/emulator/memnet"
)

type reply struct {
	status int
	header http.Header
	body   string
}

// A failure is an error response of the product.
type failure struct {
	Status  string       `json:"status"`
	Code    int          `json:"code"`
	Message string       `json:"message"`
	Error   string       `json:"error"`
	Errors  []fieldError `json:"errors"`
}

// do sends a request with header names as spelled.
func do(t *testing.T, c *http.Client, method, url, body string, header http.Header) reply {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header
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

// refused checks that r is an error response with that status, reason and fields.
func refused(t *testing.T, r reply, status int, reason string, fields ...string) {
	t.Helper()
	var f failure
	if err := json.Unmarshal([]byte(r.body), &f); err != nil {
		t.Fatalf("not JSON: %+v", r)
	}
	if r.status != status || f.Code != status || f.Status != "error" || f.Message == "" || f.Error != reason || f.Errors == nil {
		t.Errorf("got %d %s, want %d %s", r.status, r.body, status, reason)
	}
	var got []string
	for _, e := range f.Errors {
		if e.Code == "" || e.Message == "" {
			t.Errorf("an error without code or message: %s", r.body)
		}
		got = append(got, e.Field)
	}
	if d := cmp.Diff(fields, got); d != "" {
		t.Errorf("fields (-want +got):\n%s", d)
	}
}

// grant returns the body of a client_credentials request with some fields changed; nil deletes a field.
func grant(changes map[string]any) map[string]any {
	body := map[string]any{
		"grant_type":    "client_credentials",
		"auth_string":   base64.StdEncoding.EncodeToString([]byte(DefaultUsername + ":" + DefaultPassword)),
		"redirect_uri":  DefaultRedirectURI,
		"client_id":     DefaultClientID,
		"client_secret": DefaultClientSecret,
	}
	return change(body, changes)
}

// refresh returns the body of a refresh_token request.
func refresh(token string, changes map[string]any) map[string]any {
	return change(grant(map[string]any{"grant_type": "refresh_token", "refresh_token": token, "auth_string": nil}), changes)
}

func change(body, changes map[string]any) map[string]any {
	maps.Copy(body, changes)
	maps.DeleteFunc(body, func(_ string, v any) bool { return v == nil })
	return body
}

func requestToken(t *testing.T, c *http.Client, s *Server, body map[string]any) reply {
	t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	return do(t, c, "POST", s.URL+tokenPath, string(b), http.Header{"Content-Type": {"application/json"}})
}

type tokens struct {
	AccessToken  string `json:"access_token"`
	RefreshToken string `json:"refresh_token"`
}

func exchange(t *testing.T, c *http.Client, s *Server, body map[string]any) tokens {
	t.Helper()
	r := requestToken(t, c, s, body)
	var tok tokens
	if err := json.Unmarshal([]byte(r.body), &tok); err != nil || r.status != 201 || tok.AccessToken == "" || tok.RefreshToken == "" {
		t.Fatalf("exchange: %+v", r)
	}
	return tok
}

func get(t *testing.T, c *http.Client, s *Server, token string) reply {
	t.Helper()
	return do(t, c, "GET", s.URL+"/api/v4/products", "", http.Header{"access_token": {token}})
}

func accepted(t *testing.T, c *http.Client, s *Server, token string) {
	t.Helper()
	if r := get(t, c, s, token); r.status != 200 {
		t.Errorf("API call: %+v", r)
	}
}

func TestExchange(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	r := requestToken(t, newClient(t), s, grant(nil))
	var got map[string]any
	if err := json.Unmarshal([]byte(r.body), &got); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"access_token", "refresh_token"} {
		if tok, _ := got[name].(string); len(tok) != 44 {
			t.Errorf("%s is %q", name, tok)
		}
		delete(got, name)
	}
	if d := cmp.Diff(map[string]any{"expires_in": 3600.0}, got); d != "" || r.status != 201 {
		t.Errorf("status %d, answer (-want +got):\n%s", r.status, d)
	}
}

func TestExchangeRefused(t *testing.T) {
	t.Parallel()
	encode := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	tests := []struct {
		name    string
		refresh bool
		changes map[string]any
		status  int
		reason  string
		fields  []string
	}{
		{"empty", false, map[string]any{"grant_type": nil, "auth_string": nil, "redirect_uri": nil, "client_id": nil, "client_secret": nil}, 400, "validation_failed", []string{"grant_type", "client_id", "client_secret", "redirect_uri"}},
		{"no grant_type", false, map[string]any{"grant_type": nil}, 400, "validation_failed", []string{"grant_type"}},
		{"other grant_type", false, map[string]any{"grant_type": "password"}, 400, "validation_failed", []string{"grant_type"}},
		{"no auth_string", false, map[string]any{"auth_string": nil}, 400, "validation_failed", []string{"auth_string"}},
		{"auth_string in the clear", false, map[string]any{"auth_string": DefaultUsername + ":" + DefaultPassword}, 400, "validation_failed", []string{"auth_string"}},
		{"auth_string without colon", false, map[string]any{"auth_string": encode("user")}, 400, "validation_failed", []string{"auth_string"}},
		{"no redirect_uri", false, map[string]any{"redirect_uri": nil}, 400, "validation_failed", []string{"redirect_uri"}},
		{"other redirect_uri", false, map[string]any{"redirect_uri": DefaultRedirectURI + "/"}, 400, "validation_failed", []string{"redirect_uri"}},
		{"no client_id", false, map[string]any{"client_id": nil}, 400, "validation_failed", []string{"client_id"}},
		{"no client_secret", false, map[string]any{"client_secret": ""}, 400, "validation_failed", []string{"client_secret"}},
		{"a number", false, map[string]any{"client_secret": 1}, 400, "validation_failed", []string{"client_secret"}},
		{"wrong client_id", false, map[string]any{"client_id": "x"}, 401, "invalid_client", []string{"client_secret"}},
		{"wrong client_secret", false, map[string]any{"client_secret": "x"}, 401, "invalid_client", []string{"client_secret"}},
		{"escaped client_secret", false, map[string]any{"client_secret": url.QueryEscape(DefaultClientSecret)}, 401, "invalid_client", []string{"client_secret"}},
		{"wrong user", false, map[string]any{"auth_string": encode("x:" + DefaultPassword)}, 401, "invalid_grant", []string{"auth_string"}},
		{"wrong password", false, map[string]any{"auth_string": encode(DefaultUsername + ":x")}, 401, "invalid_grant", []string{"auth_string"}},

		{"no refresh_token", true, map[string]any{"refresh_token": nil}, 400, "validation_failed", []string{"refresh_token"}},
		{"refresh without client_secret", true, map[string]any{"client_secret": nil}, 400, "validation_failed", []string{"client_secret"}},
		{"refresh without redirect_uri", true, map[string]any{"redirect_uri": nil}, 400, "validation_failed", []string{"redirect_uri"}},
		{"refresh with other redirect_uri", true, map[string]any{"redirect_uri": "x"}, 400, "validation_failed", []string{"redirect_uri"}},
		{"refresh without client_id", true, map[string]any{"client_id": nil}, 400, "validation_failed", []string{"client_id"}},
		{"refresh with wrong client_secret", true, map[string]any{"client_secret": "x"}, 401, "invalid_client", []string{"client_secret"}},
		{"unknown refresh_token", true, map[string]any{"refresh_token": "x"}, 401, "invalid_grant", []string{"refresh_token"}},
	}
	s := newServer(t, nil)
	c := newClient(t)
	tok := exchange(t, c, s, grant(nil))
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			body := grant(tt.changes)
			if tt.refresh {
				body = refresh(tok.RefreshToken, tt.changes)
			}
			refused(t, requestToken(t, c, s, body), tt.status, tt.reason, tt.fields...)
		})
	}
	exchange(t, c, s, refresh(tok.RefreshToken, nil)) // the refresh token is still valid
	want := Stats{Stats: emulator.Stats{Exchanges: 2, TokenRequests: len(tests) + 2}, Refreshes: 1, RefusedRefreshes: 1}
	if d := cmp.Diff(want, s.Stats()); d != "" {
		t.Errorf("stats (-want +got):\n%s", d)
	}
}

func TestExchangeIsJSON(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	c := newClient(t)
	all := []string{"grant_type", "client_id", "client_secret", "redirect_uri"}
	form := make(url.Values)
	for name, v := range grant(nil) {
		form.Set(name, v.(string))
	}
	js, _ := json.Marshal(grant(nil))
	for _, tt := range []struct{ contentType, body string }{
		{"application/x-www-form-urlencoded", form.Encode()},
		{"application/json", form.Encode()},
		{"application/json", "null"},
		{"application/json", "[]"},
		{"application/x-www-form-urlencoded", string(js)},
		{"", string(js)},
	} {
		r := do(t, c, "POST", s.URL+tokenPath, tt.body, http.Header{"Content-Type": {tt.contentType}})
		refused(t, r, 400, "validation_failed", all...)
	}
	if r := do(t, c, "POST", s.URL+tokenPath, string(js), http.Header{"Content-Type": {"application/json; charset=utf-8"}}); r.status != 201 {
		t.Errorf("JSON with a charset: %+v", r)
	}
}

func TestRefresh(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	c := newClient(t)
	first := exchange(t, c, s, grant(nil))
	second := exchange(t, c, s, refresh(first.RefreshToken, nil))
	if first.RefreshToken == second.RefreshToken || first.AccessToken == second.AccessToken {
		t.Error("a refresh gives the same token again")
	}
	accepted(t, c, s, first.AccessToken)
	accepted(t, c, s, second.AccessToken)
	refused(t, requestToken(t, c, s, refresh(first.RefreshToken, nil)), 401, "invalid_grant", "refresh_token")

	third := exchange(t, c, s, refresh(second.RefreshToken, nil))
	s.RevokeAll()
	fourth := exchange(t, c, s, refresh(third.RefreshToken, nil))
	s.Revoke(fourth.RefreshToken)
	refused(t, requestToken(t, c, s, refresh(fourth.RefreshToken, nil)), 401, "invalid_grant", "refresh_token")
	fifth := exchange(t, c, s, grant(nil))
	s.RevokeRefresh()
	refused(t, requestToken(t, c, s, refresh(fifth.RefreshToken, nil)), 401, "invalid_grant", "refresh_token")
	accepted(t, c, s, fifth.AccessToken)

	if st := s.Stats(); st.Refreshes != 3 || st.RefusedRefreshes != 3 || st.Exchanges != 5 {
		t.Errorf("stats are %+v", st)
	}
}

func TestTokenRefused(t *testing.T) {
	t.Parallel()
	tests := map[string]func(s *Server, token string) http.Header{
		"none":   func(*Server, string) http.Header { return nil },
		"wrong":  func(*Server, string) http.Header { return http.Header{"access_token": {"x"}} },
		"Bearer": func(_ *Server, tok string) http.Header { return http.Header{"Authorization": {"Bearer " + tok}} },
		"revoked": func(s *Server, tok string) http.Header {
			s.Revoke(tok)
			return http.Header{"access_token": {tok}}
		},
		"all revoked": func(s *Server, tok string) http.Header {
			s.RevokeAll()
			return http.Header{"access_token": {tok}}
		},
		"expired": func(s *Server, tok string) http.Header {
			s.Expire()
			return http.Header{"access_token": {tok}}
		},
	}
	for name, prepare := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, nil)
			c := newClient(t)
			tok := exchange(t, c, s, grant(nil)).AccessToken
			accepted(t, c, s, tok)
			header := prepare(s, tok)
			for _, route := range []string{"GET /api/v4/products", "GET /api/v4/customers/101", "POST /api/v4/customers/change-password"} {
				method, path, _ := strings.Cut(route, " ")
				refused(t, do(t, c, method, s.URL+path, "{}", header.Clone()), 401, "unauthorized")
			}
			if st := s.Stats(); st.Rejected != 3 || st.WriteRequests != 0 || st.BadHeaders != 0 {
				t.Errorf("stats are %+v", st)
			}
			accepted(t, c, s, exchange(t, c, s, grant(nil)).AccessToken)
		})
	}
}

func TestHeader(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	newer := newServer(t, &Options{BearerToo: true})
	c := newClient(t)
	tests := []struct {
		name   string
		server *Server
		header func(tok string) http.Header
		status int
		says   string
	}{
		{"right", s, func(tok string) http.Header { return http.Header{"access_token": {tok}} }, 200, ""},
		{"canonical", s, func(tok string) http.Header { return http.Header{"Access_token": {tok}} }, 400, "not Access_token"},
		{"capitals", s, func(tok string) http.Header { return http.Header{"ACCESS_TOKEN": {tok}} }, 400, "not ACCESS_TOKEN"},
		{"hyphen", s, func(tok string) http.Header { return http.Header{"access-token": {tok}} }, 400, "not access-token"},
		{"both", s, func(tok string) http.Header { return http.Header{"access_token": {tok}, "Access_Token": {tok}} }, 400, "not Access_Token"},
		{"twice", s, func(tok string) http.Header { return http.Header{"access_token": {tok, tok}} }, 400, "once, not 2 times"},
		{"newer store", newer, func(tok string) http.Header { return http.Header{"access_token": {tok}} }, 200, ""},
		{"newer store, Bearer", newer, func(tok string) http.Header { return http.Header{"Authorization": {"Bearer " + tok}} }, 200, ""},
		{"newer store, other scheme", newer, func(tok string) http.Header { return http.Header{"Authorization": {"Token " + tok}} }, 401, "access token"},
		{"newer store, two Bearers", newer, func(tok string) http.Header {
			return http.Header{"Authorization": {"Bearer " + tok, "Bearer " + tok}}
		}, 401, "access token"},
		{"newer store, misspelled", newer, func(tok string) http.Header {
			return http.Header{"Authorization": {"Bearer " + tok}, "Access_token": {tok}}
		}, 400, "not Access_token"},
	}
	bad := map[*Server]int{}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tok := exchange(t, c, tt.server, grant(nil)).AccessToken
			r := do(t, c, "GET", tt.server.URL+"/api/v4/products", "", tt.header(tok))
			if r.status != tt.status || !strings.Contains(r.body, tt.says) || strings.Contains(r.body, tok) {
				t.Errorf("got %d %s, want %d %s", r.status, r.body, tt.status, tt.says)
			}
			if tt.status == 400 {
				refused(t, r, 400, "invalid_header", "access_token")
				bad[tt.server]++
			}
		})
	}
	for _, s := range []*Server{s, newer} {
		if n := s.Stats().BadHeaders; n != bad[s] {
			t.Errorf("%d bad headers, want %d", n, bad[s])
		}
	}
}

func TestMounted(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	outer := httptest.NewServer(s)
	defer outer.Close()
	c := newClient(t)
	tok := exchange(t, c, s, grant(nil)).AccessToken
	if r := do(t, c, "GET", outer.URL+"/api/v4/products", "", http.Header{"access_token": {tok}}); r.status != 200 {
		t.Errorf("%+v", r)
	}
	r := do(t, c, "GET", outer.URL+"/api/v4/products", "", http.Header{"access_token": {tok}, "Access_token": {tok}})
	refused(t, r, 400, "invalid_header", "access_token")
}

func TestAPI(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, method, path string
		status             int
		has                string
	}{
		{"products", "GET", "/api/v4/products", 200, `"sku":"PRODUCT-9911C0FB"`},
		{"products with a query", "GET", "/api/v4/products?max=1", 200, `"status":"success"`},
		{"customer", "GET", "/api/v4/customers/101", 200, `"customer_id":101`},
		{"another", "GET", "/api/v4/customers/102", 200, `"customer_id":102`},
		{"unknown customer", "GET", "/api/v4/customers/103", 404, `"error":"not_found"`},
		{"unknown path", "GET", "/api/v4/nothing", 200, `"isSuccess":false`},
		{"trailing slash", "GET", "/api/v4/products/", 200, `"isSuccess":false`},
		{"other version", "GET", "/api/v3/products", 200, `"isSuccess":false`},
		{"outside", "GET", "/", 200, `"isSuccess":false`},
		{"other method", "DELETE", "/api/v4/products", 200, `"isSuccess":false`},
		{"GET token", "GET", tokenPath, 200, `"isSuccess":false`},
		{"token with slash", "POST", tokenPath + "/", 200, `"isSuccess":false`},
	}
	s := newServer(t, nil)
	c := newClient(t)
	tok := exchange(t, c, s, grant(nil)).AccessToken
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := do(t, c, tt.method, s.URL+tt.path, "", http.Header{"access_token": {tok}})
			if r.status != tt.status || !strings.Contains(r.body, tt.has) || r.header.Get("Content-Type") != "application/json" {
				t.Errorf("got %+v, want %d with %s", r, tt.status, tt.has)
			}
		})
	}
	if r := do(t, c, "GET", s.URL+"/api/v4/nothing", "", nil); r.status != 200 {
		t.Errorf("an unroutable URL asks for a token: %+v", r)
	}
}

func TestChangePassword(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	c := newClient(t)
	tok := exchange(t, c, s, grant(nil)).AccessToken
	post := func(body string) reply {
		t.Helper()
		return do(t, c, "POST", s.URL+"/api/v4/customers/change-password", body,
			http.Header{"access_token": {tok}, "Content-Type": {"application/json"}})
	}
	body := func(old, new string) string {
		b, _ := json.Marshal(map[string]string{"old_password": old, "new_password": new})
		return string(b)
	}
	refused(t, post(body("x", "y")), 401, "invalid_password", "old_password")
	refused(t, post(body(DefaultPassword, "")), 400, "validation_failed", "new_password")
	refused(t, post("old_password=x"), 400, "validation_failed", "old_password", "new_password")
	exchange(t, c, s, grant(nil))
	if r := post(body(DefaultPassword, "new+/=&%")); r.status != 200 {
		t.Errorf("%+v", r)
	}
	accepted(t, c, s, tok)
	refused(t, requestToken(t, c, s, grant(nil)), 401, "invalid_grant", "auth_string")
	exchange(t, c, s, grant(map[string]any{"auth_string": base64.StdEncoding.EncodeToString([]byte(DefaultUsername + ":new+/=&%"))}))
	if st := s.Stats(); st.WriteRequests != 4 || st.Writes != 1 || st.Rejected != 0 {
		t.Errorf("stats are %+v", st)
	}
}

func TestSetSecret(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	c := newClient(t)
	tok := exchange(t, c, s, grant(nil)).AccessToken
	s.SetSecret("new+/=&%")
	refused(t, requestToken(t, c, s, grant(nil)), 401, "invalid_client", "client_secret")
	exchange(t, c, s, grant(map[string]any{"client_secret": "new+/=&%"}))
	accepted(t, c, s, tok)
}

func TestThrottle(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	c := newClient(t)
	tok := exchange(t, c, s, grant(nil)).AccessToken
	s.Throttle(2, "7")
	for _, r := range []reply{requestToken(t, c, s, grant(nil)), get(t, c, s, tok)} {
		refused(t, r, 429, "too_many_requests")
		if r.header.Get("Retry-After") != "7" {
			t.Errorf("%+v", r)
		}
	}
	accepted(t, c, s, tok)
	if st := s.Stats(); st.Throttled != 2 || st.Exchanges != 1 {
		t.Errorf("stats are %+v", st)
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	s := newServer(t, &Options{ClientID: "id", ClientSecret: "secret", RedirectURI: "http://127.0.0.1/x", Username: "u", Password: "p:q"})
	c := newClient(t)
	refused(t, requestToken(t, c, s, grant(nil)), 400, "validation_failed", "redirect_uri")
	exchange(t, c, s, map[string]any{
		"grant_type": "client_credentials", "client_id": "id", "client_secret": "secret",
		"redirect_uri": "http://127.0.0.1/x", "auth_string": base64.StdEncoding.EncodeToString([]byte("u:p:q")),
	})
}

func TestTokenLifetime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := memnet.Listen()
		s := newServer(t, &Options{Listener: l})
		c := l.Client()
		defer c.CloseIdleConnections()
		tok := exchange(t, c, s, grant(nil))
		time.Sleep(time.Hour - 1)
		accepted(t, c, s, tok.AccessToken)
		time.Sleep(1 * time.Nanosecond)
		refused(t, get(t, c, s, tok.AccessToken), 401, "unauthorized")
		accepted(t, c, s, exchange(t, c, s, refresh(tok.RefreshToken, nil)).AccessToken)
	})
}
