package transport_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/transport"
)

func viaProxy(t *testing.T) (*http.Client, *[]string) {
	var seen []string
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.URL.Host+" "+r.Header.Get("Authorization"))
		if r.URL.Path == "/leave" {
			w.Header().Set("Location", "http://mys%C4%B0te.test/x") // İ
			w.WriteHeader(302)
		}
	}))
	t.Cleanup(proxy.Close)
	at := parse(t, proxy.URL)
	return client(t, new(product), "http://mysite.test", transport.Options{AllowHTTP: true,
		Proxy: func(*http.Request) (*url.URL, error) { return at, nil }}), &seen
}

// İ (U+0130) is i in lower case, but a host name with it is another host.
func TestHostsAreNotFolded(t *testing.T) {
	t.Parallel()
	c, seen := viaProxy(t)
	resp, err := c.Get("http://mysite.test/leave")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if last := (*seen)[len(*seen)-1]; strings.Contains(last, "Bearer") {
		t.Errorf("redirect: %s", last)
	}
	if _, err := c.Get("http://mys\u0130te.test/x"); !errors.Is(err, auth.ErrInsecure) {
		t.Errorf("direct: %v %q", err, *seen)
	}
}

// A proxy may read another host from an opaque URL than URL.Host.
func TestOpaqueURL(t *testing.T) {
	t.Parallel()
	c, seen := viaProxy(t)
	req, _ := http.NewRequest("GET", "http://mysite.test/", nil)
	req.URL.Opaque = "//evil.example/x"
	if _, err := c.Do(req); !errors.Is(err, auth.ErrInsecure) || len(*seen) > 0 {
		t.Errorf("%v; the proxy is to send to %q", err, *seen)
	}
}
