package transport

import (
	"errors"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/itsmauth/itsmauth/auth"
)

func TestProxyAddress(t *testing.T) {
	t.Parallel()
	for v, want := range map[string]bool{
		"http://proxy:3128": true, "https://proxy": true, "socks5://proxy:1080": true, "socks5h://proxy:1080": true,
		"proxy:3128": true, "proxy": true, "127.0.0.1:3128": true, "[::1]:3128": true, "user:pass@proxy:3128": true,
		"http://user:p%40ss@proxy:3128/": true, "http://user:p@ss@proxy:3128": true,
		"http://proxy:3128 ": false, " http://proxy:3128": false, `"http://proxy:3128"`: false, "'http://proxy:3128'": false,
		"https//proxy:3128": false, "ftp://proxy:21": false, "http://": false, "//proxy:3128": false, "http://http://proxy": false,
		"http://user:p#ss@proxy:3128": false, "http://user:p/ss@proxy:3128": false, "http://user:p?ss@proxy:3128": false,
		"http://user:p@host/ss@proxy:3128": false, "http://user:1#ss@proxy:3128": false, "http://user:p%ss@proxy:3128": false,
		"http://proxy:99999": false, "http://user:p ss@proxy:3128": false,
	} {
		if got := proxyAddress(v); got != want {
			t.Errorf("%q: %v", v, got)
		}
	}
}

// The variables are read once, so the test is run again as a process with each environment.
func TestProxyFromEnvironment(t *testing.T) {
	t.Parallel()
	if expected, ok := os.LookupEnv("TEST_PROXY_FOR"); ok {
		target, want, _ := strings.Cut(expected, " ")
		req := httptest.NewRequest("GET", target, nil)
		proxy, err := new(Options).ProxyFor(req)
		got := "direct"
		if err != nil {
			got = err.Error()
		} else if proxy != nil {
			got = proxy.Host
		}
		if !strings.Contains(got, want) || strings.Contains(got, "Zecret") || err != nil && !errors.Is(err, auth.ErrInsecure) {
			t.Errorf("%s: %s, want %s", target, got, want)
		}
		if err != nil {
			if _, err := NewExchanger(&Options{AllowHTTP: true}).Get(target); !errors.Is(err, auth.ErrInsecure) || !strings.Contains(err.Error(), want) {
				t.Errorf("an exchange: %v", err)
			}
		}
		return
	}
	const wrong = "the environment variable HTTPS_PROXY must be a URL such as http://user:password@proxy:3128, with special characters as %XX"
	for name, tt := range map[string]struct {
		env    []string
		target string
		want   string
	}{
		"right":               {[]string{"HTTPS_PROXY=http://p.invalid:1"}, "https://x.invalid", "p.invalid:1"},
		"lower case":          {[]string{"https_proxy=p.invalid:1"}, "https://x.invalid", "p.invalid:1"},
		"none":                {nil, "https://x.invalid", "direct"},
		"space":               {[]string{"HTTPS_PROXY=http://p.invalid:1 "}, "https://x.invalid", wrong},
		"not encoded":         {[]string{"https_proxy=http://user:p@Zecret/x@p.invalid:1"}, "https://x.invalid", wrong},
		"used directly":       {[]string{"HTTPS_PROXY=http://user:Zecret@%zz"}, "https://x.invalid", wrong},
		"of another scheme":   {[]string{"HTTPS_PROXY=http://p.invalid:1 "}, "http://x.invalid", "direct"},
		"NO_PROXY":            {[]string{"HTTPS_PROXY=http://p.invalid:1 ", "NO_PROXY=.invalid"}, "https://x.invalid", "direct"},
		"loopback":            {[]string{"HTTPS_PROXY=http://p.invalid:1 "}, "https://127.0.0.1:1", "direct"},
		"not net/http's":      {[]string{"HTTPS_PROXY=http://p.invalid:1 "}, "https://app.localhost", wrong},
		"stays local":         {[]string{"HTTP_PROXY=http://p.invalid:1"}, "http://app.localhost", "direct"},
		"local, wrong":        {[]string{"HTTP_PROXY='http://p.invalid:1'"}, "http://LOCALHOST:1", "direct"},
		"TLS to a local name": {[]string{"HTTPS_PROXY=http://p.invalid:1"}, "https://app.localhost", "p.invalid:1"},
		"HTTP_PROXY is used":  {[]string{"HTTP_PROXY='http://p.invalid:1'"}, "http://x.invalid", "HTTP_PROXY must be"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestProxyFromEnvironment$")
			cmd.Env = append(tt.env, "TEST_PROXY_FOR="+tt.target+" "+tt.want)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
