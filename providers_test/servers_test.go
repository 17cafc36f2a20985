package providers_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/config"
	"github.com/itsmauth/itsmauth/internal/testpki"
)

// Tests with real servers between a connector and an emulator: nginx and tinyproxy.

// program finds a server program. If it is not installed, the test is skipped, or fails with CI=true.
func program(t *testing.T, name string) string {
	t.Helper()
	for _, at := range []string{name, "/usr/sbin/" + name} {
		if path, err := exec.LookPath(at); err == nil {
			return path
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing: apt-get install %s", name, name)
	}
	t.Skipf("%s is missing: apt-get install %s", name, name)
	return ""
}

// run starts a server on a free address, and returns the address when the server listens. configure writes
// the configuration for an address and returns the arguments. The server writes pidFile when it has its
// port. If the port is in use, the server is started again with another one.
func run(t *testing.T, path, pidFile string, configure func(addr string) (args []string)) (addr string) {
	t.Helper()
	var out lockedBuffer
	for range 10 {
		addr = freePort(t)
		cmd := exec.Command(path, configure(addr)...)
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { cmd.Wait(); close(ended) }()
		t.Cleanup(func() {
			cmd.Process.Kill()
			<-ended
		})
		if listens(addr, pidFile, ended) {
			return addr
		}
		cmd.Process.Kill()
		<-ended
		os.Remove(pidFile)
	}
	t.Fatalf("%s does not listen: %s", path, out.String())
	return ""
}

// listens waits until a server has written pidFile and accepts connections, or has ended.
func listens(addr, pidFile string, ended <-chan struct{}) bool {
	for range 3000 {
		if pid, _ := os.ReadFile(pidFile); len(pid) > 0 {
			if conn, err := net.Dial("tcp", addr); err == nil {
				conn.Close()
				return true
			}
		}
		select {
		case <-ended:
			return false
		case <-time.After(10 * time.Millisecond): // the server is starting
		}
	}
	return false
}

// nobody is an address on which no test listens.
const nobody = "127.0.0.1:1"

// freePort returns a free address. The port is below those that systems give to outgoing connections.
func freePort(t *testing.T) string {
	t.Helper()
	var err error
	for range 10 {
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(20000))); err == nil {
			defer l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal(err)
	return ""
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// nginx runs nginx in front of p, whose token endpoint always works. lines are for the server block;
// BACKEND in them is replaced by p's address. It returns the base URL, and log, which returns "protocol
// method status" for each API request.
func nginx(t *testing.T, p *product, listen, lines string) (base string, log func() []string) {
	t.Helper()
	path := program(t, "nginx")
	dir := t.TempDir()
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;"
	}
	conf := `daemon off; master_process off; pid DIR/pid; error_log DIR/error.log; USER
events {}
http {
	log_format plain '$server_protocol $request_method $status';
	access_log off;
	client_body_temp_path DIR/body; proxy_temp_path DIR/proxy; fastcgi_temp_path DIR/f; uwsgi_temp_path DIR/u; scgi_temp_path DIR/s;
	limit_req_zone $server_port zone=few:1m rate=2r/s;
	limit_req_status 429;
	proxy_http_version 1.1;
	server {
		listen ADDR LISTEN;
		access_log DIR/access.log plain;
		location /api/v4/oauth2/ { access_log off; proxy_pass BACKEND; }
		LINES
	}
}`
	conf = strings.NewReplacer("LINES", lines).Replace(conf)
	addr := run(t, path, filepath.Join(dir, "pid"), func(addr string) []string {
		conf := strings.NewReplacer("DIR", dir, "ADDR", addr, "LISTEN", listen, "BACKEND", p.url, "USER", user).Replace(conf)
		write(t, filepath.Join(dir, "nginx.conf"), conf)
		return []string{"-p", dir, "-c", filepath.Join(dir, "nginx.conf"), "-e", filepath.Join(dir, "error.log")}
	})
	scheme := "http://"
	if strings.Contains(listen, "ssl") {
		scheme = "https://"
	}
	return scheme + addr, func() []string {
		b, err := os.ReadFile(filepath.Join(dir, "access.log"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(strings.TrimSpace(string(b)), "\n")
	}
}

// behind makes p's connector with another base URL and settings of transport.
func behind(t *testing.T, p *product, base, transport string, opts ...config.Option) *config.Connector {
	t.Helper()
	q := *p
	q.url = base
	return q.get(t, parse(t, q.yaml("test", "transport: {"+transport+"}"), opts...), "test")
}

func TestNginxTLS(t *testing.T) {
	t.Parallel()
	ca := testpki.New(t)
	cert, key := testpki.Files(t, ca.Issue(t, "127.0.0.1", time.Now().Add(time.Hour)))
	ours, ourKey := testpki.Files(t, ca.Issue(t, "itsmauth", time.Now().Add(time.Hour)))
	serving := fmt.Sprintf("ssl_certificate %s; ssl_certificate_key %s;", cert, key)
	mutual := serving + fmt.Sprintf("ssl_verify_client on; ssl_client_certificate %s;", ca.File(t))
	const pass = "underscores_in_headers on; location / { proxy_pass BACKEND; }"
	trust := "tls_config: {ca_file: " + ca.File(t) + "}"
	known := fmt.Sprintf("tls_config: {ca_file: %s, cert_file: %s, key_file: %s}", ca.File(t), ours, ourKey)
	var untrusted *tls.CertificateVerificationError
	for name, test := range map[string]struct {
		listen, lines, transport string
		status, major            int
		refused                  func(error) bool
	}{
		"private CA":                      {"ssl", serving, trust, 200, 1, nil},
		"private CA, not ours":            {"ssl", serving, "", 0, 0, func(err error) bool { return errors.As(err, &untrusted) }},
		"HTTP/2":                          {"ssl http2", serving, trust, 200, 2, nil},
		"client certificate":              {"ssl", mutual, known, 200, 1, nil},
		"client certificate and HTTP/2":   {"ssl http2", mutual, known, 200, 2, nil},
		"client certificate is not given": {"ssl", mutual, trust, 400, 1, nil}, // nginx reports it in HTTP
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := webcommander(t)
			base, _ := nginx(t, p, test.listen, test.lines+pass)
			c := behind(t, p, base, test.transport)
			req, err := c.NewRequest(t.Context(), "GET", p.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := c.Do(req)
			switch {
			case test.refused != nil:
				if !test.refused(err) {
					t.Error(err)
				}
			case test.status == 400: // the exchange fails first
				if err == nil || p.exchanges() != 0 {
					t.Error(resp, err)
				}
			case err != nil:
				t.Error(err)
			default:
				resp.Body.Close()
				if resp.StatusCode != test.status || resp.ProtoMajor != test.major {
					t.Errorf("%s over %s", resp.Status, resp.Proto)
				}
			}
		})
	}
}

// By default nginx drops headers with an underscore, such as WebCommander's.
func TestNginxUnderscores(t *testing.T) {
	t.Parallel()
	for lines, want := range map[string]int{"": 401, "underscores_in_headers on;": 200} {
		p := webcommander(t)
		base, _ := nginx(t, p, "", lines+"location / { proxy_pass BACKEND; }")
		status, body, err := call(t.Context(), behind(t, p, base, ""), "GET", p.path, "")
		if err != nil || status != want {
			t.Errorf("%q: %d %s %v", lines, status, body, err)
		}
	}
}

func TestNginxThrottles(t *testing.T) {
	t.Parallel()
	for name, lines := range map[string]string{
		"without Retry-After": "location / { limit_req zone=few; proxy_pass BACKEND; }",
		"with Retry-After": `location / { limit_req zone=few; proxy_pass BACKEND; error_page 429 @later; }
			location @later { internal; add_header Retry-After 1 always; return 429; }`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := webcommander(t)
			base, log := nginx(t, p, "", "underscores_in_headers on;"+lines)
			c := behind(t, p, base, "retry: {max_attempts: 8, min_backoff: 400ms}")
			start := time.Now()
			calls, throttled := 0, 0
			for calls < 30 && throttled == 0 { // a busy machine may need half a second between two calls
				for range 3 {
					calls++
					if status, body, err := call(t.Context(), c, "GET", p.path, ""); err != nil || status != 200 {
						t.Fatalf("%d %s %v", status, body, err)
					}
				}
				throttled = strings.Count(strings.Join(log(), "\n"), " 429")
			}
			if throttled == 0 || p.calls() != calls {
				t.Errorf("429 %d times, of %d calls the product saw %d", throttled, calls, p.calls())
			}
			if name == "with Retry-After" && time.Since(start) < time.Duration(throttled)*time.Second {
				t.Errorf("429 %d times within %s", throttled, time.Since(start))
			}
		})
	}
}

// nginx ends an HTTP/2 connection after 100 requests, while others are on their way: no POST is lost, and
// none is processed twice.
func TestNginxEndsConnections(t *testing.T) {
	t.Parallel()
	testNginxEndsConnections(t, 600)
}

func testNginxEndsConnections(t *testing.T, posts int) {
	const workers, perConnection = 16, 100
	ca := testpki.New(t)
	cert, key := testpki.Files(t, ca.Issue(t, "127.0.0.1", time.Now().Add(time.Hour)))
	lines := fmt.Sprintf("ssl_certificate %s; ssl_certificate_key %s; keepalive_requests %d; location /write { return 200 done; }", cert, key, perConnection)
	trust := "tls_config: {ca_file: " + ca.File(t) + "}"
	for name, client := range map[string]func(p *product, base string) *http.Client{
		"http.Client": func(*product, string) *http.Client {
			return &http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: ca.Pool()}}}
		},
		"itsmauth": func(p *product, base string) *http.Client { return behind(t, p, base, trust).Client() },
		// One slot for each POST and one for the exchange: a resend takes none.
		"itsmauth with a rate limit": func(p *product, base string) *http.Client {
			return behind(t, p, base, fmt.Sprintf("%s, rate_limits: [{requests: %d, per: 1h}]", trust, posts+1)).Client()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := webcommander(t)
			base, log := nginx(t, p, "ssl http2", lines)
			c := client(p, base)
			defer c.CloseIdleConnections()
			var wg sync.WaitGroup
			var left, failed, resent atomic.Int64
			left.Store(int64(posts))
			for range workers {
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						sent := 0
						ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { sent++ }})
						req, err := http.NewRequestWithContext(ctx, "POST", base+"/write", strings.NewReader(`{"a": "b"}`))
						if err != nil {
							t.Error(err)
							return
						}
						resp, err := c.Do(req)
						if sent > 1 {
							resent.Add(1)
						}
						if err != nil {
							failed.Add(1)
							t.Log(err)
							continue
						}
						if resp.StatusCode != 200 || resp.ProtoMajor != 2 {
							t.Errorf("%s over %s", resp.Status, resp.Proto)
						}
						io.Copy(io.Discard, resp.Body)
						resp.Body.Close()
					}
				})
			}
			wg.Wait()
			t.Logf("%d of %d were sent again", resent.Load(), posts)
			if failed.Load() != 0 {
				t.Errorf("%d of %d POSTs failed", failed.Load(), posts)
			}
			processed := 0
			for range 1000 { // nginx writes its log after the response
				if processed = strings.Count(strings.Join(log(), "\n"), "POST 200"); processed >= posts {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			if processed != posts {
				t.Errorf("nginx processed %d POSTs, want %d", processed, posts)
			}
		})
	}
}

func TestNginxWithoutBackend(t *testing.T) {
	t.Parallel()
	hangs, err := net.Listen("tcp", "127.0.0.1:0") // accepts and never responds
	if err != nil {
		t.Fatal(err)
	}
	defer hangs.Close()
	for status, lines := range map[int]string{
		502: "location / { proxy_pass http://" + nobody + "; }",
		504: "location / { proxy_pass http://" + hangs.Addr().String() + "; proxy_read_timeout 100ms; }",
	} {
		p := webcommander(t)
		base, log := nginx(t, p, "", lines)
		c := behind(t, p, base, "retry: {min_backoff: 1ms, max_backoff: 2ms}")
		for _, test := range []struct {
			method string
			want   int
		}{{"GET", 4}, {"PUT", 4}, {"POST", 1}} {
			got, body, err := call(t.Context(), c, test.method, p.path, "{}")
			if err != nil || got != status || !strings.Contains(body, "nginx") {
				t.Errorf("%s: %d %q %v", test.method, got, body, err)
			}
			n := 0
			for range 1000 { // nginx writes its log after the response
				if n = strings.Count(strings.Join(log(), "\n"), fmt.Sprintf("%s %d", test.method, status)); n >= test.want {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			if n != test.want {
				t.Errorf("%s was sent %d times, want %d", test.method, n, test.want)
			}
		}
	}
}

// tinyproxy runs a forward proxy. log returns its log.
func tinyproxy(t *testing.T, lines string) (addr string, log func() string) {
	t.Helper()
	path := program(t, "tinyproxy")
	dir := t.TempDir()
	addr = run(t, path, filepath.Join(dir, "pid"), func(addr string) []string {
		_, port, _ := net.SplitHostPort(addr)
		conf := filepath.Join(dir, "tinyproxy.conf")
		write(t, conf, fmt.Sprintf("Listen 127.0.0.1\nPort %s\nTimeout 60\nMaxClients 50\nLogFile \"%s/log\"\nLogLevel Connect\nPidFile \"%s/pid\"\n%s\n", port, dir, dir, lines))
		return []string{"-d", "-c", conf}
	})
	return addr, func() string {
		b, err := os.ReadFile(filepath.Join(dir, "log"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
}

func TestTinyproxy(t *testing.T) {
	t.Parallel()
	ca := testpki.New(t)
	cert, key := testpki.Files(t, ca.Issue(t, "127.0.0.1", time.Now().Add(time.Hour)))
	p := webcommander(t)
	https, _ := nginx(t, p, "ssl http2", fmt.Sprintf("ssl_certificate %s; ssl_certificate_key %s; underscores_in_headers on; location / { proxy_pass BACKEND; }", cert, key))
	trust := ", tls_config: {ca_file: " + ca.File(t) + "}"
	open, openLog := tinyproxy(t, "")
	closed, _ := tinyproxy(t, "BasicAuth user proxypassword")
	const wrong = "not-the-password"
	for name, test := range map[string]struct {
		base, proxy, more string
		status            int    // 0: an error
		say               string // the error must contain this
	}{
		"CONNECT":                          {https, "http://" + open, trust, 200, ""},
		"CONNECT with a password":          {https, "http://user:proxypassword@" + closed, trust, 200, ""},
		"CONNECT with a wrong password":    {https, "http://user:" + wrong + "@" + closed, trust, 0, "the proxy refused"},
		"CONNECT without a password":       {https, "http://" + closed, trust, 0, "407"},
		"plain http":                       {p.url, "http://" + open, ", allow_http: true", 200, ""},
		"plain http with a password":       {p.url, "http://user:proxypassword@" + closed, ", allow_http: true", 200, ""},
		"plain http without a password":    {p.url, "http://" + closed, ", allow_http: true", 0, "407"},
		"plain http with a wrong password": {p.url, "http://user:" + wrong + "@" + closed, ", allow_http: true", 0, "401"}, // tinyproxy's own
		"away":                             {https, "http://" + nobody, trust, 0, "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := behind(t, p, test.base, "proxy_url: '"+test.proxy+"'"+test.more+", retry: {min_backoff: 1ms, max_backoff: 2ms}")
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			status, body, err := call(ctx, c, http.MethodGet, p.path, "")
			switch {
			case test.status != status:
				t.Errorf("%d %s %v", status, body, err)
			case test.status == 0 && (!strings.Contains(err.Error(), test.say) || strings.Contains(err.Error(), wrong)):
				t.Errorf("%v", err)
			}
			if name == "CONNECT" && !strings.Contains(openLog(), "CONNECT "+strings.TrimPrefix(https, "https://")) {
				t.Errorf("the proxy saw no CONNECT: %s", openLog())
			}
		})
	}
}
