package static_test

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/authtest"
	"github.com/itsmauth/itsmauth/providers/static"
)

func s(text string) auth.Secret { return auth.SecretString(text) }

func env(t *testing.T, base string) auth.Env {
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	return auth.Env{Name: "desk", BaseURL: u}
}

// What is sent: names as spelled, RFC 7617's Basic.
func TestHeader(t *testing.T) {
	t.Parallel()
	keys := map[string]auth.Secret{"DD-API-KEY": s("k1"), "dd_application_key": s("k2"), "Accept": s("application/vnd.x+json")}
	for name, tc := range map[string]struct {
		config      static.Config
		want        http.Header
		credentials []string
	}{
		"basic":          {static.Config{Username: s("me@example.com/token"), Password: s("p:ä")}, http.Header{"Authorization": {"Basic bWVAZXhhbXBsZS5jb20vdG9rZW46cDrDpA=="}}, []string{"username", "password"}},
		"no password":    {static.Config{Username: s("key")}, http.Header{"Authorization": {"Basic a2V5Og=="}}, []string{"username"}},
		"no username":    {static.Config{Password: s("pat")}, http.Header{"Authorization": {"Basic OnBhdA=="}}, []string{"password"}},
		"empty password": {static.Config{Username: s("key"), Password: s("")}, http.Header{"Authorization": {"Basic a2V5Og=="}}, []string{"username", "password"}},
		"several": {static.Config{Headers: keys}, http.Header{"DD-API-KEY": {"k1"}, "dd_application_key": {"k2"}, "Accept": {"application/vnd.x+json"}},
			[]string{"headers.DD-API-KEY", "headers.dd_application_key"}},
		"scheme": {static.Config{Headers: map[string]auth.Secret{"authorization": s("Token token=k")}}, http.Header{"authorization": {"Token token=k"}}, []string{"headers.authorization"}},
		"both":   {static.Config{Username: s("u"), Headers: keys}, http.Header{"Authorization": {"Basic dTo="}, "DD-API-KEY": {"k1"}, "dd_application_key": {"k2"}, "Accept": {"application/vnd.x+json"}}, nil},
	} {
		p, err := static.New(tc.config, env(t, "https://desk.example.com/api"))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		tok, err := p.Exchange(t.Context(), nil)
		if err != nil || tok.AccessToken == "" || !tok.Expiry.IsZero() {
			t.Errorf("%s: %v", name, err)
		}
		if got := p.Header(tok); !maps.EqualFunc(got, tc.want, slices.Equal[[]string]) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
		if got := p.(auth.Static).StaticCredentials(); tc.credentials != nil && !slices.Equal(got, tc.credentials) {
			t.Errorf("%s: %v, want %v", name, got, tc.credentials)
		}
		if shown := fmt.Sprintf("%v %+v %#v %s", p, p, p, p.(auth.Identifier).Identity()); strings.Contains(shown, "k1") || strings.Contains(shown, "me@") {
			t.Errorf("%s: %s shows a secret", name, shown)
		}
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	const describes = "cannot be set: it describes the message or the connection, not the caller"
	header := func(names ...string) (c static.Config) {
		c.Headers = map[string]auth.Secret{}
		for _, name := range names {
			c.Headers[name] = s("k")
		}
		return c
	}
	for want, c := range map[string]static.Config{
		"username: required, or password, or headers":                                                  {},
		"username: required, or password, or headers ":                                                 {Username: s(""), Password: s("")},
		"username: required, or password, or headers  ":                                                header("Accept", "User-Agent"),
		"username: must not contain a colon, which ends the username in a Basic header":                {Username: s("a:b"), Password: s("c")},
		"password: unusable secret: it has several lines, which only a key or a certificate may have":  {Password: s("a\nb")},
		"headers.Content-Type: " + describes:                                                           header("Content-Type", "K"),
		"headers.content-length: " + describes:                                                         header("content-length", "K"),
		"headers.Host: " + describes:                                                                   header("Host", "K"),
		"headers.TE: " + describes:                                                                     header("TE", "K"),
		"headers.Connection: " + describes:                                                             header("Connection", "K"),
		"headers.Keep-Alive: " + describes:                                                             header("Keep-Alive", "K"),
		"headers.Transfer-Encoding: " + describes:                                                      header("Transfer-Encoding", "K"),
		"headers.Upgrade: " + describes:                                                                header("Upgrade", "K"),
		"headers.proxy-authorization: " + describes:                                                    header("proxy-authorization", "K"),
		"headers.a b: is not a header name":                                                            header("a b"),
		"headers.x-key: appears twice":                                                                 header("X-Key", "x-key"),
		"headers.user-agent: must be spelled User-Agent":                                               header("user-agent", "K"),
		"headers.X: must not be empty":                                                                 {Headers: map[string]auth.Secret{"X": s("")}},
		"headers.X: must not hold a line break":                                                        {Headers: map[string]auth.Secret{"X": s("{\n}")}},
		"headers.authorization: is the header of username and password":                                {Username: s("u"), Headers: header("authorization").Headers},
		"rejected_when.0: is empty and would match every response":                                     {Username: s("u"), RejectedWhen: []static.Condition{{}}},
		"rejected_when.0.status: must be 400 or more to look at the body; below, the body is streamed": {Username: s("u"), RejectedWhen: []static.Condition{{Status: 200, Pointer: "/a"}}},
		"rejected_when.0.pointer: must be a JSON Pointer, such as /data/token (RFC 6901)":              {Username: s("u"), RejectedWhen: []static.Condition{{Pointer: "a"}}},
		"password: must not hold a line break":                                                         {Password: s("{\n}")},
		"headers.Trailer: " + describes:                                                                header("Trailer", "K"),
		"headers.Expect: " + describes:                                                                 header("Expect", "K"),
		"headers.Proxy-Connection: " + describes:                                                       header("Proxy-Connection", "K"),
	} {
		_, err := static.New(c, env(t, "https://desk.example.com"))
		var key *auth.KeyError
		if err == nil || !strings.Contains(err.Error(), strings.TrimSpace(want)) || !errors.As(err, &key) || strings.Count(err.Error(), "\n") > 0 {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if _, err := static.New(static.Config{Username: s("u")}, auth.Env{}); err == nil || err.Error() != "base_url: required" {
		t.Error(err)
	}
}

func TestProvider(t *testing.T) {
	t.Parallel()
	var dead atomic.Bool
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("X-Key") != "hunter2" || dead.Load():
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path != "/tickets":
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer s.Close()
	get := func(path string) func() *http.Request {
		return func() *http.Request { return httptest.NewRequest("GET", s.URL+path, nil) }
	}
	authtest.TestProvider(t, func(t *testing.T) auth.Provider {
		p, err := static.New(static.Config{Headers: map[string]auth.Secret{"x-key": auth.SecretString("hunter2")}}, env(t, s.URL))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}, authtest.Product{Good: get("/tickets"), Refused: get("/nothing"), Kill: func(string) { dead.Store(true) }, Secrets: []string{"hunter2"}})
}

// The identity is the origin and the names of the headers, whatever the credentials.
func TestIdentity(t *testing.T) {
	t.Parallel()
	identity := func(base string, c static.Config) string {
		p, err := static.New(c, env(t, base))
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(p.(auth.Identifier).Identity())
	}
	same := identity("https://desk.example.com/api/v2", static.Config{Username: s("a"), Password: s("b")})
	if other := identity("https://DESK.example.com:443", static.Config{Password: s("c")}); other != same || same != "[origin=https://desk.example.com:443 header=authorization]" {
		t.Errorf("%s, %s", same, other)
	}
	key := map[string]auth.Secret{"X-Key": s("k")}
	for name, other := range map[string]string{
		"host":    identity("https://other.example.com", static.Config{Username: s("a")}),
		"port":    identity("https://desk.example.com:8443", static.Config{Username: s("a")}),
		"headers": identity("https://desk.example.com", static.Config{Headers: key}),
		"both":    identity("https://desk.example.com", static.Config{Username: s("a"), Headers: key}),
	} {
		if other == same {
			t.Errorf("%s: the same identity", name)
		}
	}
}

func TestRejects(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		when   []static.Condition
		status int
		body   string
		want   bool
	}{
		{nil, 401, "", true}, {nil, 403, "", false}, {nil, 200, "", false},
		{[]static.Condition{{Status: 403, Pointer: "/code", Equals: "bad_key"}}, 403, `{"code":"bad_key"}`, true},
		{[]static.Condition{{Status: 403, Pointer: "/code", Equals: "bad_key"}}, 403, `{"code":"other"}`, false},
		{[]static.Condition{{Status: 403, Pointer: "/code", Equals: "bad_key"}}, 401, "", false},
		{[]static.Condition{{Status: 400, BodyContains: "API key"}, {Status: 401}}, 400, "wrong API key", true},
		{[]static.Condition{{Status: 203}}, 203, "", true},
	} {
		p, err := static.New(static.Config{Username: s("u"), RejectedWhen: tc.when}, env(t, "https://desk.example.com"))
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Rejects(&http.Response{StatusCode: tc.status}, []byte(tc.body)); got != tc.want {
			t.Errorf("%v, %d %s: %v", tc.when, tc.status, tc.body, got)
		}
	}
}

// What cannot be sent fails before it is, and the error says which setting that is.
func TestUnusable(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "key")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]static.Config{
		"headers.X": {Headers: map[string]auth.Secret{"X": auth.SecretFile(file)}},
		"username":  {Username: auth.SecretFile(file)},
	} {
		write("hunter2\n")
		p, err := static.New(c, env(t, "https://desk.example.com"))
		if err != nil {
			t.Fatal(err)
		}
		for text, want := range map[string]string{"": "empty", "hunter2\nhunter3": "lines", "{\n}": "break", "\x01hunter2": "control"} {
			write(text)
			_, err := p.Exchange(t.Context(), nil)
			if !errors.Is(err, auth.ErrUnavailable) || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter") {
				t.Errorf("%s, %q: %v", name, text, err)
			}
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Exchange(t.Context(), nil); !errors.Is(err, os.ErrNotExist) || !strings.HasPrefix(err.Error(), "desk: token: unavailable: "+name+" ") {
			t.Error(err)
		}
		if h := p.Header(nil); h != nil {
			t.Errorf("%s: %v", name, h)
		}
	}
}
