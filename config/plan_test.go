package config

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/providers"
)

// plansOf gives the plans of the connectors in data, by name.
func plansOf(t *testing.T, data string) map[string]*plan {
	t.Helper()
	l := newLoader(".", testOptions())
	f, _ := l.root([]byte(data))
	plans := map[string]*plan{}
	for _, p := range l.plans(f) {
		plans[p.name] = p
	}
	if l.doc.Faults != nil {
		t.Fatal(l.doc.Faults)
	}
	return plans
}

func TestLayers(t *testing.T) {
	t.Parallel()
	plans := plansOf(t, `
version: 1
x-acme: &acme {provider: acme, client_secret: x, base_url: https://acme.example//}
defaults:
  early_refresh: 1m
  transport:
    timeout: 10s
    retry: {max_attempts: 2, min_backoff: 1s}
    rate_limits: [{requests: 1, per: 1h}, {requests: 1, per: 1m}]
    connection: keepalive
    max_replay_body: 0
    allowed_origins: [https://one.example]
connectors:
  plain: {<<: *acme, client_id: a}
  own:
    <<: [*acme, {client_id: unused}]
    client_id: b
    early_refresh: 2m
    transport:
      retry: {max_attempts: 3}
      rate_limits: [{requests: 5, per: 1s}]
      connection: keepalive
      max_replay_body: 3
      allowed_origins: [http://localhost:8080]
      user_agent: me/1
  shared: {<<: *acme, client_id: a, base_url: https://other.example, transport: {timeout: 3s}}
  apart: {<<: *acme, client_id: a, account: mine, transport: {rate_limits: []}}
`)
	plain, own := plans["plain"], plans["own"]
	if !strings.HasPrefix(plain.transport.UserAgent, "itsmauth/") {
		t.Error(plain.transport.UserAgent)
	}
	type shape struct {
		base, agent        string
		early, timeout     time.Duration
		attempts           int
		minBackoff         time.Duration
		limits             []auth.Limit
		close              bool
		replay             int64
		origins            string
		identityIsPlain    bool
		numSecrets, numOwn int
	}
	got := map[string]shape{}
	for name, p := range plans {
		o := p.transport
		got[name] = shape{p.BaseURL.String(), "", p.EarlyRefresh, o.Timeout, o.Retry.MaxAttempts, o.Retry.MinBackoff, p.Transport.RateLimits,
			o.Close, o.MaxReplayBody, fmt.Sprint(o.AllowedOrigins), p.leader == plain, len(p.sessionOptions().Secrets), len(p.settings)}
	}
	acmes := []auth.Limit{{Requests: 20, Per: time.Second}}
	base := shape{"https://acme.example", "", time.Minute, 10 * time.Second, 2, time.Second, acmes, true, -1, "[https://one.example]", true, 1, 2}
	shared, apart := base, base
	shared.base, shared.timeout = "https://other.example", 3*time.Second
	apart.limits, apart.identityIsPlain = []auth.Limit{}, false
	want := map[string]shape{"plain": base, "shared": shared, "apart": apart, "own": {
		"https://acme.example", "", 2 * time.Minute, 10 * time.Second, 3, time.Second, []auth.Limit{{Requests: 5, Per: time.Second}}, false, 3,
		"[http://localhost:8080]", false, 1, 2}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(shape{})); diff != "" {
		t.Error(diff)
	}
	if own.transport.UserAgent != "me/1" {
		t.Error(own.transport.UserAgent)
	}
}

// A constructor finds each required setting set, whatever the file holds, and its errors are reported too.
func TestConstructor(t *testing.T) {
	t.Parallel()
	type host struct {
		URL *url.URL `yaml:"url" required:"true"`
	}
	type settings struct {
		Word  string     `yaml:"word" required:"true"`
		Hosts []host     `yaml:"hosts" required:"true"`
		Main  *host      `yaml:"main" required:"true"`
		More  []*url.URL `yaml:"more"`
	}
	mine := WithProvider(providers.Define("mine", func(c settings, env auth.Env) (auth.Provider, error) {
		_ = c.Word[0]
		for _, u := range append(c.More, env.BaseURL, c.Hosts[0].URL, c.Main.URL) {
			_ = u.Host
		}
		return nil, errors.Join(&auth.KeyError{Key: "hosts.0.url", Err: errors.New("is far away")}, errors.New("not today"))
	}))
	none := WithProvider(providers.Define("none", func(struct{}, auth.Env) (auth.Provider, error) { return nil, nil }))
	for settings, want := range map[string][]string{
		"provider: none, base_url: 'https://h'": {"connectors.a: the constructor of none returned no provider"},
		"provider: mine": {"connectors.a.base_url: missing", "connectors.a.hosts: missing", "connectors.a.main: missing",
			"connectors.a.word: missing", "connectors.a: not today"},
		"provider: mine, base_url: h, word: '', hosts: [], main: , more: x": {"connectors.a.base_url: must be an absolute http or https URL",
			"connectors.a.hosts: must not be empty", "connectors.a.main: needs a value", "connectors.a.more: must be a list, such as [a, b]",
			"connectors.a.word: must not be empty", "connectors.a: not today"},
		"provider: mine, base_url: 'https://h', word: [x], hosts: [x], main: x, more: [~, x]": {"connectors.a.hosts[0]: must be a mapping of keys to values",
			"connectors.a.main: must be a mapping of keys to values", "connectors.a.more[0]: needs a value",
			"connectors.a.more[1]: must be an absolute http or https URL", "connectors.a.word: must be a single value, not a list or a mapping",
			"connectors.a: not today"},
		"provider: mine, base_url: 'https://h', word: x, hosts: [{url: 'https://h'}], main: {}, unknown: x": {"connectors.a.hosts[0].url: is far away",
			"connectors.a.main.url: missing", "connectors.a.unknown: unknown key; known: account, base_url, early_refresh, hosts, main, more, probe, provider, transport, word",
			"connectors.a: not today"},
	} {
		_, err := Parse("t.yaml", []byte("version: 1\nconnectors:\n  a: {"+settings+"}\n"), mine, none)
		var got []string
		for _, p := range err.(Problems) {
			got = append(got, p.Path+": "+p.Message)
		}
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s\n-want +got\n%s", settings, diff)
		}
	}
}

func TestBaseURLSlashes(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{
		"https://h": "https://h", "https://h/": "https://h", "https://h//": "https://h", "https://h/a/": "https://h/a",
		"https://h/a%2F/": "https://h/a%2F", "https://h/%2F": "https://h/%2F", "https://h/a%2Fb//": "https://h/a%2Fb", "https://h/a%2f": "https://h/a%2f",
	} {
		p := plansOf(t, "{version: 1, connectors: {a: {provider: acme, client_id: a, client_secret: x, base_url: '"+given+"'}}}")["a"]
		if got := p.BaseURL.String(); got != want {
			t.Errorf("%s: %s, want %s", given, got, want)
		}
		if got := p.BaseURL.JoinPath("b").String(); got != want+"/b" {
			t.Errorf("%s: %s below it", given, got)
		}
	}
}

func TestProxy(t *testing.T) {
	t.Parallel()
	p := plansOf(t, `
version: 1
connectors: {a: {provider: acme, client_id: a, client_secret: x, base_url: 'https://h', transport: {proxy_url: 'http://user:${env:CFG_ID}@proxy:3128'}}}
`)["a"]
	u, err := p.transport.Proxy(&http.Request{URL: p.BaseURL})
	if err != nil || u.String() != "http://user:client-7@proxy:3128" {
		t.Error(u, err)
	}
	if s := fmt.Sprintf("%v %+v %#v", p.Transport, p.Transport, p.Transport); strings.Contains(s, "client-7") {
		t.Error(s)
	}
}

// no_proxy is NO_PROXY's where it is not given, whether proxy_url is or the environment names the proxy. Not
// parallel: it sets environment variables.
func TestNoProxy(t *testing.T) {
	t.Setenv("NO_PROXY", "h.example")
	for _, tc := range []struct{ settings, direct string }{
		{"proxy_url: http://proxy:3128", "h.example"},
		{"proxy_url: http://proxy:3128, no_proxy: 'i.example, 10.0.0.0/8'", "i.example 10.1.2.3"},
		{"proxy_url: http://proxy:3128, no_proxy: ''", ""},
		{"proxy_url: http://proxy:3128, no_proxy: '*'", "h.example i.example 10.1.2.3"},
		{"no_proxy: i.example", "h.example i.example 10.1.2.3"}, // there is no proxy
	} {
		conns, err := parse1(t, "    transport: {"+tc.settings+"}\n")
		if err != nil {
			t.Fatal(err)
		}
		defer conns.Close()
		a, err := conns.Get("a")
		if err != nil {
			t.Fatal(err)
		}
		for _, host := range []string{"h.example", "i.example", "10.1.2.3"} {
			proxy, err := a.Proxy(&url.URL{Scheme: "https", Host: host})
			if direct := slices.Contains(strings.Fields(tc.direct), host); err != nil || (proxy == nil) != direct {
				t.Errorf("%s: %s by %v, %v", tc.settings, host, proxy, err)
			}
		}
	}
}

// A fault of a default is reported where the default is written, once, whatever the connectors are called.
func TestDefaultsFaultPosition(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"plain", "transport", "early_refresh", "defaults", "connectors", "a.b", "a.transport", "transport.b", `"`, "[0]", "ein name"} {
		data := fmt.Sprintf(`
version: 1
defaults:
  transport:
    user_agent: "a\rb"
    tls_config: {ca_file: none.pem, cert_file: cert.pem}
    allowed_origins: [http://h]
connectors:
  %q: {provider: acme, base_url: 'https://h', client_id: a, client_secret: x}
`, name)
		_, err := Parse("t.yaml", []byte(data), testOptions()...)
		var got []string
		for _, p := range err.(Problems) {
			got = append(got, fmt.Sprintf("%d:%d: %s", p.Line, p.Col, p.Path))
		}
		want := []string{
			"5:17: defaults.transport.user_agent",
			"6:27: defaults.transport.tls_config.ca_file",
			"6:48: defaults.transport.tls_config.cert_file",
			"7:23: defaults.transport.allowed_origins[0]",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("connector %q\n-want +got\n%s", name, diff)
		}
	}
}

// Refused values are found by the key of the constructor's error, and those of both layers in their own.
func TestProblemPaths(t *testing.T) {
	t.Parallel()
	type settings struct {
		Params map[string]string `yaml:"params"`
	}
	mine := WithProvider(providers.Define("mine", func(settings, auth.Env) (auth.Provider, error) {
		return nil, errors.Join(&auth.KeyError{Key: "params.b.c", Err: errors.New("is odd")}, &auth.KeyError{Key: "params.d", Err: errors.New("is odd")})
	}))
	_, err := Parse("t.yaml", []byte(`
version: 1
defaults: {transport: {user_agent: ok}}
connectors:
  a:
    provider: mine
    base_url: https://h
    params: {b.c: x}
    transport: {user_agent: "a\rb"}
`), mine)
	want := `t.yaml:8:5: connectors.a.params.d: is odd
t.yaml:8:19: connectors.a.params."b.c": is odd
t.yaml:9:29: connectors.a.transport.user_agent: must not hold a line break`
	if diff := cmp.Diff(want, fmt.Sprint(err)); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// Token requests, which connectors of one identity share, have the longest times of these.
func TestSharedTokenRequest(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, first, second string
		takes               time.Duration // the product's answer, and then its Retry-After
	}{
		{"the second has more", "", ", transport: {attempt_timeout: 3m, retry: {max_retry_after: 1m}}", 40 * time.Second},
		{"the first has more", ", transport: {attempt_timeout: 3m, retry: {max_retry_after: 1m}}", "", 40 * time.Second},
		{"each has one", ", transport: {attempt_timeout: 3m}", ", transport: {retry: {max_retry_after: 1m}}", 40 * time.Second},
		{"the first has less than the default", ", transport: {attempt_timeout: 1s, retry: {max_retry_after: 1s}}", "", 9 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				tokenRequests := 0
				product := WithWrap(func(string, http.RoundTripper) http.RoundTripper {
					return roundTripper(func(r *http.Request) (*http.Response, error) {
						resp := &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"application/json"}}, Request: r,
							Body: io.NopCloser(strings.NewReader(`{"access_token": "t", "expires_in": 3600}`))}
						if r.URL.Path != "/token" {
							return resp, nil
						}
						select {
						case <-time.After(tc.takes):
						case <-r.Context().Done():
							return nil, r.Context().Err()
						}
						if tokenRequests++; tokenRequests == 1 {
							resp.StatusCode = 429
							resp.Header.Set("Retry-After", fmt.Sprint(tc.takes.Seconds()))
						}
						return resp, nil
					})
				})
				common := ": {provider: oauth2, base_url: https://h, token_url: https://h/token, client_id: a, client_secret: x"
				conns, err := Parse("t.yaml", []byte("version: 1\nconnectors:\n  a"+common+tc.first+"}\n  b"+common+tc.second+"}\n"), product)
				if err != nil {
					t.Fatal(err)
				}
				defer conns.Close()
				for _, name := range []string{"a", "b"} {
					c, err := conns.Get(name)
					if err != nil {
						t.Fatal(err)
					}
					if _, err := c.Authenticator().Token(t.Context()); err != nil {
						t.Errorf("%s: %v after %d token requests", name, err, tokenRequests)
					}
				}
			})
		})
	}
}
