package providers_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/itsmauth/itsmauth/config"
)

// haproxy runs HAProxy in front of backend. lines are for the frontend.
func haproxy(t *testing.T, backend, lines string) (base string) {
	t.Helper()
	path := program(t, "haproxy")
	dir := t.TempDir()
	addr := run(t, path, filepath.Join(dir, "pid"), func(addr string) []string {
		conf := strings.NewReplacer("ADDR", addr, "BACKEND", strings.TrimPrefix(backend, "http://"), "LINES", lines).Replace(`
defaults
	mode http
	timeout connect 10s
	timeout client 60s
	timeout server 60s
frontend in
	bind ADDR
LINES
	default_backend out
backend out
	server one BACKEND
`)
		write(t, filepath.Join(dir, "haproxy.cfg"), conf)
		return []string{"-W", "-db", "-p", filepath.Join(dir, "pid"), "-f", filepath.Join(dir, "haproxy.cfg")}
	})
	return "http://" + addr
}

// statuses counts the responses with status 429.
type statuses struct {
	next  http.RoundTripper
	count *atomic.Int64
}

func (s statuses) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := s.next.RoundTrip(r)
	if err == nil && resp.StatusCode == http.StatusTooManyRequests {
		s.count.Add(1)
	}
	return resp, err
}

// HAProxy lets two token requests through each second. Those of many accounts wait, and no call fails.
func TestHAProxyThrottlesTokens(t *testing.T) {
	t.Parallel()
	product := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `{"access_token":"A","expires_in":3600}`)
	}))
	t.Cleanup(product.Close)
	base := haproxy(t, product.URL, `
	stick-table type integer size 10 expire 10s store gpc0,gpc0_rate(1s)
	http-request track-sc0 int(1) if { path /token }
	http-request return status 429 hdr Retry-After 1 if { path /token } { sc0_gpc0_rate gt 1 }
	http-request sc-inc-gpc0(0) if { path /token }`)
	const accounts = 4
	var yaml string
	for i := range accounts {
		yaml += fmt.Sprintf(`  a%d: {provider: oauth2, base_url: "%s", token_url: "%s/token", client_id: c, client_secret: s, account: a%d}`+"\n", i, base, base, i)
	}
	var throttled atomic.Int64
	for throttled.Load() == 0 { // a busy machine may need a second for three requests
		conns := parse(t, yaml, config.WithWrap(func(_ string, next http.RoundTripper) http.RoundTripper { return statuses{next, &throttled} }))
		var calls sync.WaitGroup
		for i := range accounts {
			calls.Go(func() {
				c, err := conns.Get(fmt.Sprint("a", i))
				if err != nil {
					t.Error(err)
					return
				}
				if status, body, err := call(t.Context(), c, "GET", "/", ""); err != nil || status != 200 {
					t.Errorf("%d %s %v", status, body, err)
				}
			})
		}
		if calls.Wait(); t.Failed() {
			return
		}
	}
	t.Logf("429 for %d token requests", throttled.Load())
}
