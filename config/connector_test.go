package config

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

func TestNewRequest(t *testing.T) {
	t.Parallel()
	const insecure = "insecure"
	for _, tc := range []struct{ base, path, want string }{
		{"https://h/api", "x", "https://h/api/x"},
		{"https://h/api", "/x/", "https://h/api/x/"},
		{"https://h/api", "", "https://h/api"},
		{"https://h/api", "?a=b%20c&d", "https://h/api?a=b%20c&d"},
		{"https://h", "/x?a=1#frag", "https://h/x?a=1"},
		{"https://h", `/x?q='Status' = "New"&b=%20+`, `https://h/x?q='Status'%20=%20%22New%22&b=%20+`},
		{"https://h", "/x?sysparm_query=active=true^priority=1", "https://h/x?sysparm_query=active=true%5Epriority=1"},
		{"https://h", "/a\"<>\\^`{|}[] ü%/b?\"<>\\^`{|}[] ü%", "https://h/a%22%3C%3E%5C%5E%60%7B%7C%7D%5B%5D%20%C3%BC%25/b?%22%3C%3E%5C%5E%60%7B%7C%7D%5B%5D%20%C3%BC%25"},
		{"https://h", "/a%22%7b%zz%4?%22%7b%zz%4", "https://h/a%22%7b%25zz%254?%22%7b%25zz%254"},
		{"https://h", "/a-._~!$&'()*+,;=:@%2F?-._~!$&'()*+,;=:@/?%2F", "https://h/a-._~!$&'()*+,;=:@%2F?-._~!$&'()*+,;=:@/?%2F"},
		{"https://h", "/\xff\xe2\x82", "https://h/%FF%E2%82"},
		{"https://h/[a]", "b", "https://h/%5Ba%5D/b"},
		{"https://[::1]:8443", "https://[::1]:8443/[x]?[y]", "https://[::1]:8443/%5Bx%5D?%5By%5D"},
		{"https://h", "https://h?{a}", "https://h?%7Ba%7D"},
		{"https://h", "/a\nb", "bad"},
		{"https://h", `https://h\evil/x`, "bad"},
		{"https://h/a%2Fb", "c%2Fd", "https://h/a%2Fb/c%2Fd"},
		{"https://h", "/HPD:Help Desk/%", "https://h/HPD:Help%20Desk/%25"},
		{"https://h", "HPD:Help Desk", "https://h/HPD:Help%20Desk"},
		{"https://h", "a//b", "https://h/a//b"},
		{"https://h/api", "a/../b", "https://h/api/a/../b"},
		{"https://h/api", "https://h:443/other?page=2", "https://h/other?page=2"},
		{"https://h:8443", "HTTPS://H:8443/x", "https://h:8443/x"},
		{"https://h/api", "../x", insecure},
		{"https://h/api", "a/../../x", insecure},
		{"https://h/api", "a/%2e%2e/%2E./x", insecure},
		{"https://h/api", `..\x`, insecure},
		{"https://h/api", "..;/x", insecure},
		{"https://h/api", "a;b=../c;d", "https://h/api/a;b=../c;d"},
		{"https://h/api", "%2e%2e%2fx", insecure},
		{"https://h/api", "//evil/x", insecure},
		{"https://h/api", "https://evil/x", insecure},
		{"https://h/api", "http://h/x", insecure},
		{"https://h/api", "https://h:8443/x", insecure},
		{"https://h/api", "https://user@h/x", insecure},
		{"https://h/api", "https://h.evil/x", insecure},
	} {
		base, err := url.Parse(tc.base)
		if err != nil {
			t.Fatal(err)
		}
		c := &Connector{Name: "a", BaseURL: base}
		req, err := c.NewRequest(t.Context(), "POST", tc.path, strings.NewReader("body"))
		switch {
		case tc.want == insecure:
			if !errors.Is(err, auth.ErrInsecure) {
				t.Errorf("%s: %v", tc.path, err)
			}
		case tc.want == "bad":
			if err == nil || strings.Contains(err.Error(), "Desk") {
				t.Errorf("%s: %v", tc.path, err)
			}
		case err != nil || req.URL.String() != tc.want || req.Method != "POST":
			t.Errorf("%s: want %s, got %v %v", tc.path, tc.want, req, err)
		default:
			body, err := req.GetBody()
			if err != nil {
				t.Fatal(err)
			}
			if b, _ := io.ReadAll(body); string(b) != "body" || req.ContentLength != 4 {
				t.Errorf("%s: body %q", tc.path, b)
			}
		}
		if base.String() != tc.base {
			t.Errorf("%s: base is now %s", tc.path, base)
		}
	}
}

func TestDoShowsNoQuery(t *testing.T) {
	t.Parallel()
	const addr = "127.0.0.1:1" // nothing listens there
	c := &Connector{client: &http.Client{}, BaseURL: &url.URL{}}
	req, err := http.NewRequest("GET", "http://user:hunter2@"+addr+"/path?token=hunter2#hunter2", nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Do(req)
	var failed *url.Error
	if !errors.As(err, &failed) || failed.URL != "http://"+addr+"/path" || strings.Contains(err.Error(), "hunter2") {
		t.Error(err)
	}
}

// proxy_url is a secret and is read again once a second. If it is not a URL, the last one stays in force.
func TestProxyURLChanges(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "proxy")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const one, two = "http://one:3128", "http://two:3128"
	write(one)
	synctest.Test(t, func(t *testing.T) {
		conns, err := parse1(t, `    transport: {proxy_url: "${file:`+file+`}"}`)
		if err != nil {
			t.Fatal(err)
		}
		defer conns.Close()
		a, err := conns.Get("a")
		if err != nil {
			t.Fatal(err)
		}
		proxy := func(want string) {
			t.Helper()
			if u, err := a.Proxy(a.BaseURL); err != nil || u.String() != want {
				t.Errorf("%v, %v; want %s", u, err, want)
			}
		}
		last := one
		for _, step := range []struct{ url, want string }{{two, two}, {"hunter2://" + secret, two}, {"", two}, {one, one}} {
			write(step.url)
			time.Sleep(time.Second - 1)
			proxy(last)
			time.Sleep(1 * time.Nanosecond)
			proxy(step.want)
			last = step.want
		}
	})
}

// A request uses the proxy that is in force when it is sent.
func TestRequestTakesTheProxy(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "to "+r.Host) }))
	defer s.Close()
	conns, err := Parse("t.yaml", []byte(`
version: 1
connectors:
  a:
    provider: acme
    base_url: http://h.invalid
    client_id: a
    client_secret: x
    transport: {allow_http: true, proxy_url: "`+s.URL+`"}
`), testOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	defer conns.Close()
	a, err := conns.Get("a")
	if err != nil {
		t.Fatal(err)
	}
	resp, err := a.Client().Get("http://h.invalid/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); string(body) != "to h.invalid" || err != nil {
		t.Errorf("%q, %v", body, err)
	}
}
