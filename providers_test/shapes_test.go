package providers_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/config"
)

// A shape is a small server of a product whose token endpoint has ways of its own, and the YAML for it.
type shape struct {
	yaml  string                                              // %s is the server's URL
	grant func(r *http.Request, body []byte, n int) (ok bool) // whether the n-th token request is right
	token func(w http.ResponseWriter, n int)                  // the n-th token
	then  func(w http.ResponseWriter, r *http.Request, n int) // at /then, if the product has it
	valid func(r *http.Request, n int) bool                   // whether an API call has the n-th token
	deny  func(w http.ResponseWriter)                         // the response to wrong credentials
	life  time.Duration                                       // of a token
}

var shapes = map[string]shape{
	// Password Safe: a token does not work before POST Auth/SignAppin, whose session cookie is needed too.
	"password safe": {
		yaml: `
    token_url: %[1]s/token
    client_id: id
    client_secret: right
    credentials_in: form
    then: {url: "%[1]s/then"}`,
		grant: func(r *http.Request, body []byte, _ int) bool {
			f, _ := url.ParseQuery(string(body))
			return f.Get("grant_type") == "client_credentials" && f.Get("client_id") == "id" && f.Get("client_secret") == "right"
		},
		token: func(w http.ResponseWriter, n int) {
			fmt.Fprintf(w, `{"access_token":"token-%d","expires_in":3600,"token_type":"Bearer","scope":"publicapi"}`, n)
		},
		then: func(w http.ResponseWriter, r *http.Request, n int) {
			if r.Method != "POST" || r.ContentLength != 0 || r.Header.Get("Authorization") != fmt.Sprintf("Bearer token-%d", n) {
				w.WriteHeader(401)
				return
			}
			w.Header().Set("Set-Cookie", fmt.Sprintf("ASP.NET_SessionId=session-%d; path=/; secure; HttpOnly; SameSite=Lax", n))
			io.WriteString(w, `{"UserId":7,"SID":null,"EmailAddress":null,"UserName":"sync","Name":"sync"}`)
		},
		valid: func(r *http.Request, n int) bool {
			c, err := r.Cookie("ASP.NET_SessionId")
			return err == nil && c.Value == fmt.Sprintf("session-%d", n) && r.Header.Get("Authorization") == fmt.Sprintf("Bearer token-%d", n)
		},
		deny: func(w http.ResponseWriter) { w.WriteHeader(400); io.WriteString(w, `{"error":"invalid_client"}`) },
		life: time.Hour,
	},
	// SysAid: JSON, names of its own, a header with the account on the token request as well as on calls.
	"sysaid": {
		yaml: `
    token_url: %[1]s/token
    grant: none
    encoding: json
    client_id: id
    client_secret: right
    param_names: {client_id: clientId, client_secret: clientSecret}
    static_headers: {x-sysaid-accountid: acme}
    params: {remember: true, ttl: 20}
    response: {access_token: /token, expires_in: /expiresIn, token_type: /tokenType}`,
		grant: func(r *http.Request, body []byte, _ int) bool {
			var got map[string]any
			err := json.Unmarshal(body, &got)
			return err == nil && len(got) == 4 && got["clientId"] == "id" && got["clientSecret"] == "right" && got["remember"] == true && got["ttl"] == 20.0 &&
				r.Header.Get("x-sysaid-accountid") == "acme"
		},
		token: func(w http.ResponseWriter, n int) {
			fmt.Fprintf(w, `{"token":"token-%d","expiresIn":1200,"tokenType":"Bearer"}`, n)
		},
		valid: func(r *http.Request, n int) bool {
			return r.Header.Get("Authorization") == fmt.Sprintf("Bearer token-%d", n) && r.Header.Get("x-sysaid-accountid") == "acme"
		},
		deny: func(w http.ResponseWriter) { w.WriteHeader(401); io.WriteString(w, `{"message":"Unauthorized"}`) },
		life: 20 * time.Minute,
	},
	// An ASP.NET or OutSystems application: the login answers 200, and the token is a cookie.
	"aspnet": {
		yaml: `
    token_url: %[1]s/token
    grant: none
    encoding: json
    username: sync
    password: right
    response: {cookie: .ASPXAUTH, errors: [{pointer: /d, equals: "false", means: invalid_client}]}
    rejected_when: [{status: 302}]`,
		grant: func(_ *http.Request, body []byte, _ int) bool {
			return string(body) == `{"password":"right","username":"sync"}`
		},
		token: func(w http.ResponseWriter, n int) {
			w.Header().Add("Set-Cookie", "ASP.NET_SessionId=anonymous; path=/; HttpOnly")
			w.Header().Add("Set-Cookie", fmt.Sprintf(".ASPXAUTH=token-%d; expires=%s; path=/; HttpOnly", n, time.Now().Add(30*time.Minute).UTC().Format("Mon, 02-Jan-2006 15:04:05 GMT")))
			io.WriteString(w, `{"d":true}`)
		},
		valid: func(r *http.Request, n int) bool {
			return r.Header.Get("Cookie") == fmt.Sprintf(".ASPXAUTH=token-%d", n)
		},
		deny: func(w http.ResponseWriter) {
			w.Header().Add("Set-Cookie", "ASP.NET_SessionId=anonymous; path=/; HttpOnly")
			io.WriteString(w, `{"d":false}`)
		},
		life: 30 * time.Minute,
	},
	// A product that says when the token expires, by a clock that is three hours ahead of ours.
	"expires at": {
		yaml: `
    token_url: %[1]s/token
    client_id: id
    client_secret: right
    response: {access_token: /session/token, expires_at: /session/expires}
    token_headers: [{name: X-Session, template: "{access_token}"}]
    api_headers: {Accept: application/vnd.acme+json;version=2}`,
		grant: func(r *http.Request, _ []byte, _ int) bool {
			id, secret, _ := r.BasicAuth()
			return id == "id" && secret == "right" && r.Header.Get("Accept") == "application/json"
		},
		token: func(w http.ResponseWriter, n int) {
			now := time.Now().Add(3 * time.Hour).UTC()
			w.Header().Set("Date", now.Format(http.TimeFormat))
			fmt.Fprintf(w, `{"session":{"token":"token-%d","expires":%q}}`, n, now.Add(10*time.Minute).Format(time.RFC3339))
		},
		valid: func(r *http.Request, n int) bool {
			return r.Header.Get("X-Session") == fmt.Sprintf("token-%d", n) && r.Header.Get("Accept") == "application/vnd.acme+json;version=2"
		},
		deny: func(w http.ResponseWriter) { w.WriteHeader(401); io.WriteString(w, `{"error":"invalid_client"}`) },
		life: 10 * time.Minute,
	},
	// A login that answers with a JSON string.
	"a JSON string": {
		yaml: `
    token_url: %[1]s/token
    grant: none
    username: sync
    password: right
    response: {access_token: ""}
    default_lifetime: 15m`,
		grant: func(_ *http.Request, body []byte, _ int) bool {
			return string(body) == "password=right&username=sync"
		},
		token: func(w http.ResponseWriter, n int) { fmt.Fprintf(w, `"token-%d"`, n) },
		valid: func(r *http.Request, n int) bool {
			return r.Header.Get("Authorization") == fmt.Sprintf("Bearer token-%d", n)
		},
		deny: func(w http.ResponseWriter) { w.WriteHeader(401); io.WriteString(w, `"wrong password"`) },
		life: 15 * time.Minute,
	},
}

// A shapeServer counts tokens; only the last one is valid.
type shapeServer struct {
	shape
	mu       sync.Mutex
	requests int
	valid    int // the number of the valid token
}

func (s *shapeServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch r.URL.Path {
	case "/token":
		s.requests++
		if r.Method != "POST" || !s.grant(r, body, s.requests) {
			s.deny(w)
			return
		}
		if s.then == nil {
			s.valid = s.requests
		}
		s.token(w, s.requests)
	case "/then":
		s.then(w, r, s.requests)
		s.valid = s.requests
	default:
		if s.valid == 0 || !s.shape.valid(r, s.valid) {
			w.Header().Set("Location", "/login")
			w.WriteHeader(map[bool]int{false: 401, true: 302}[strings.Contains(s.yaml, "status: 302")])
			return
		}
		io.WriteString(w, "ok")
	}
}

func (s *shapeServer) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.valid = 0
}

// connectShape makes a connector, as a process does that starts.
func connectShape(t *testing.T, base, yaml, store string) (c *config.Connector, end func()) {
	t.Helper()
	conns := parse(t, "  shape:\n    provider: oauth2\n    base_url: "+base+fmt.Sprintf(yaml, base)+"\n"+store)
	return get(t, conns, "shape"), func() { conns.Close() }
}

// TestShapes connects to products by YAML alone: calls share a token, a killed token is replaced in the call that
// meets it, a restart makes no token request, and wrong credentials are refused as such.
func TestShapes(t *testing.T) {
	t.Parallel()
	for name, shape := range shapes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &shapeServer{shape: shape}
			srv := httptest.NewServer(s)
			t.Cleanup(srv.Close)
			store := fileStore(t)
			c, end := connectShape(t, srv.URL, s.yaml, store)
			works := func(requests int) {
				t.Helper()
				for range 2 {
					if status, body, err := call(t.Context(), c, "GET", "/api", ""); err != nil || status != 200 || body != "ok" {
						t.Errorf("%d %s %v", status, body, err)
					}
				}
				if s.requests != requests {
					t.Errorf("%d token requests, want %d", s.requests, requests)
				}
			}
			works(1)
			tok, err := c.Authenticator().Token(t.Context())
			if left := time.Until(tok.Expiry); err != nil || left > s.life || left < s.life-time.Minute {
				t.Errorf("lives for %v, want %v; %v", left, s.life, err)
			}
			end()
			c, _ = connectShape(t, srv.URL, s.yaml, store)
			works(1)
			s.kill()
			works(2)
			c, _ = connectShape(t, srv.URL, strings.ReplaceAll(s.yaml, ": right", ": wrong"), fileStore(t))
			if _, _, err := call(t.Context(), c, "GET", "/api", ""); !errors.Is(err, auth.ErrCredentials) {
				t.Error(err)
			}
		})
	}
}

// Zoho wants commas between scopes, a header of its own, and answers refusals with 200.
func TestShapeZoho(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var requests []url.Values
	answers := []string{
		`{"access_token":"token-1","refresh_token":"RT","api_domain":"https://www.zohoapis.eu","token_type":"Bearer","expires_in":3600}`,
		`{"access_token":"token-2","expires_in":3600}`,
		`{"error":"invalid_code"}`,
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if r.URL.Path != "/oauth/v2/token" {
			fmt.Fprint(w, r.Header.Get("Authorization"), " ", r.Header.Get("Accept"))
			return
		}
		r.ParseForm()
		requests = append(requests, r.PostForm)
		io.WriteString(w, answers[min(len(requests), len(answers))-1])
	}))
	t.Cleanup(srv.Close)
	conns := parse(t, fmt.Sprintf(`  zoho:
    provider: oauth2
    base_url: %[1]s
    token_url: %[1]s/oauth/v2/token
    auth_url: %[1]s/oauth/v2/auth?access_type=offline&prompt=consent
    grant: authorization_code
    client_id: id
    client_secret: s
    credentials_in: form
    redirect_uri: http://127.0.0.1:8400/callback
    scopes: [SDPOnDemand.requests.ALL, SDPOnDemand.assets.READ]
    scope_separator: ","
    code_fields: [scope]
    token_headers: [{name: Authorization, template: "Zoho-oauthtoken {access_token}"}]
    api_headers: {Accept: application/vnd.manageengine.sdp.v3+json}
    response: {errors: [{pointer: /error, equals: invalid_code, means: invalid_grant}, {pointer: /error, equals: Access Denied, means: temporarily_unavailable}]}
`, srv.URL))
	c := get(t, conns, "zoho")
	s := c.Session()
	page, err := url.Parse(s.CodeFlow().URL("state", "verifier"))
	if q := page.Query(); err != nil || q.Get("scope") != "SDPOnDemand.requests.ALL,SDPOnDemand.assets.READ" || q.Get("access_type") != "offline" {
		t.Error(page, err)
	}
	if err := s.Redeem(t.Context(), "code", "verifier"); err != nil {
		t.Fatal(err)
	}
	if got := requests[0].Get("scope"); got != "SDPOnDemand.requests.ALL,SDPOnDemand.assets.READ" {
		t.Error(got)
	}
	works := func(token string) {
		t.Helper()
		if status, body, err := call(t.Context(), c, "GET", "/api/v3/requests", ""); err != nil || status != 200 || body != "Zoho-oauthtoken "+token+" application/vnd.manageengine.sdp.v3+json" {
			t.Errorf("%d %s %v", status, body, err)
		}
	}
	works("token-1")
	refreshed := func() error {
		t.Helper()
		tok, err := s.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s.Invalidate(tok)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		_, err = s.Token(ctx)
		return err
	}
	if err := refreshed(); err != nil {
		t.Fatal(err)
	}
	works("token-2")
	if !slices.Equal(requests[1]["refresh_token"], []string{"RT"}) || requests[1].Has("scope") {
		t.Error(requests[1])
	}
	if err := refreshed(); !errors.Is(err, auth.ErrConsentRequired) {
		t.Error(err)
	}
}
