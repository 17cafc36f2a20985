package transport_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/itsmauth/itsmauth/internal/emulator/memnet"
	"github.com/itsmauth/itsmauth/internal/testpki"
	"github.com/itsmauth/itsmauth/transport"
)

// NoProxy has the syntax of NO_PROXY.
func TestNoProxy(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		list, url string
		direct    bool
	}{
		{"", "https://api.example.com", false},
		{"api.example.com", "https://api.example.com/x", true},
		{"API.example.com", "https://api.EXAMPLE.com/x", true},
		{"example.com", "https://api.example.com", true},
		{"example.com", "https://example.com", true},
		{"example.com", "https://notexample.com", false},
		{"example.com", "https://example.com.evil.org", false},
		{".example.com", "https://api.example.com", true},
		{".example.com", "https://example.com", false},
		{"*.example.com", "https://a.b.example.com", true},
		{"*.example.com", "https://example.com", false},
		{"*", "https://api.example.com", true},
		{"other.org , example.com", "https://api.example.com", true},
		{",, ,", "https://api.example.com", false},
		{"example.com:8443", "https://example.com:8443", true},
		{"example.com:8443", "https://example.com", false},
		{"example.com:443", "https://example.com", true},
		{"example.com:80", "http://example.com", true},
		{"10.1.2.3", "https://10.1.2.3:8443", true},
		{"10.1.2.3:443", "https://10.1.2.3:8443", false},
		{"10.0.0.0/8", "https://10.1.2.3", true},
		{"10.0.0.0/8", "https://11.1.2.3", false},
		{"10.0.0.0/8", "https://ten.example.com", false},
		{"10.1.2", "https://10.1.2.3", false},
		{"::1", "https://[::1]:8443", true},
		{"[::1]:8443", "https://[::1]:8443", true},
		{"[::1]:443", "https://[::1]:8443", false},
		{"fd00::/8", "https://[fd00::1]", true},
		{"10.1.2.3", "https://[::ffff:10.1.2.3]", true},
		{"::ffff:10.0.0.0/104", "https://10.1.2.3", true},
		{"::ffff:10.0.0.0/104", "https://11.1.2.3", false},
		{"::ffff:10.1.2.3", "https://10.1.2.3", true},
		{"2.3", "https://10.1.2.3", false},
		{"fe80::1", "https://[fe80::1%25eth0]", true},
		{"bücher.example", "https://bücher.example", true},
		{"BÜCHER.example", "https://api.xn--bcher-kva.example", true},
		{"xn--bcher-kva.example", "https://bücher.example", true},
		{".bücher.example", "https://api.bücher.example", true},
		{"*.bücher.example", "https://bücher.example", false},
		{"example.com:", "https://example.com:8443", true},
		{"*example.com", "https://example.com", false},
		{"*example.com", "https://myexample.com", false},
		{"*:8443", "https://example.com:8443", false},
		{"**", "https://example.com", false},
		{"x.example, *", "https://10.1.2.3:8443", true},
		{"my_host.example", "https://my_host.example", true},
	} {
		proxy := parse(t, "http://proxy:3128")
		o := transport.Options{NoProxy: test.list, Proxy: http.ProxyURL(proxy)}
		got, err := o.ProxyFor(&http.Request{URL: parse(t, test.url)})
		if err != nil || (got == nil) != test.direct {
			t.Errorf("%q, %s: by way of %v, %v", test.list, test.url, got, err)
		}
	}
}

// Calls and exchanges go around the proxy to the hosts of NoProxy.
func TestNoProxyOnTheWire(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer srv.Close()
	o := transport.Options{NoProxy: "127.0.0.0/8", Proxy: http.ProxyURL(parse(t, "http://"+away)), Retry: quick}
	for name, c := range map[string]*http.Client{"calls": client(t, new(product), srv.URL, o), "exchanges": transport.NewExchanger(&o)} {
		resp, err := c.Get(srv.URL)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		resp.Body.Close()
	}
}

// tunnel connects a client of an HTTP proxy to the address.
func tunnel(conn net.Conn, to string) {
	r := bufio.NewReader(conn)
	if req, err := http.ReadRequest(r); err == nil && req.Method == "CONNECT" {
		connect(conn, r, to)
	}
}

// connect answers a CONNECT that was read from r.
func connect(conn net.Conn, r *bufio.Reader, to string) {
	there, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer there.Close()
	io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
	go func() { io.Copy(there, r); there.Close() }()
	io.Copy(conn, there)
}

// identities are TLS servers that ask for a client certificate and record the server name and the certificate
// that they get.
type identities struct {
	ca   *testpki.CA
	seen chan string
	keys [32]byte // of session tickets, if it is set
}

func (i *identities) serve(t *testing.T, who, name string, protocols ...string) *tls.Config {
	c := &tls.Config{Certificates: []tls.Certificate{i.ca.Issue(t, name, time.Now().Add(time.Hour))}, ClientAuth: tls.RequestClientCert, NextProtos: protocols}
	if i.keys != [32]byte{} {
		c.SetSessionTicketKeys([][32]byte{i.keys})
	}
	c.VerifyConnection = func(s tls.ConnectionState) error {
		certificate := "no certificate"
		if len(s.PeerCertificates) > 0 {
			certificate = s.PeerCertificates[0].Subject.CommonName
		}
		i.seen <- fmt.Sprintf("%s: %s, %s", who, s.ServerName, certificate)
		return nil
	}
	return c
}

// next returns what was recorded since the last time.
func (i *identities) next() (all []string) {
	for {
		select {
		case s := <-i.seen:
			all = append(all, s)
		default:
			return all
		}
	}
}

// server_name and the client certificate are for the product. A proxy of https gets neither, whatever is sent by
// way of it, and wherever the proxy's address comes from. The environment is read once, so the test is run again
// as a process in which it has the proxy.
func TestProxyGetsNoIdentity(t *testing.T) {
	t.Parallel()
	if os.Getenv("TEST_PROXY_IN_ENVIRONMENT") == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestProxyGetsNoIdentity$")
		cmd.Env = []string{"TEST_PROXY_IN_ENVIRONMENT=1", "NO_PROXY=127.0.0.1"}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}
	ids := &identities{ca: testpki.New(t), seen: make(chan string, 100)}
	products := map[string]*httptest.Server{}
	for _, protocol := range []string{"http/1.1", "h2"} {
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/away" {
				http.Redirect(w, r, "https://192.0.2.2/", http.StatusFound)
			}
			io.WriteString(w, r.Proto)
		}))
		srv.EnableHTTP2 = protocol == "h2"
		srv.TLS = ids.serve(t, "product", "product.internal", protocol)
		srv.StartTLS()
		defer srv.Close()
		products[protocol] = srv
	}
	foreign := httptest.NewUnstartedServer(http.NotFoundHandler())
	foreign.TLS = ids.serve(t, "another", "192.0.2.2", "http/1.1")
	foreign.StartTLS()
	defer foreign.Close()
	var at string // of the product
	proxy := serveFaults(t, ids.serve(t, "proxy", "localhost"), func(_ *faultServer, c *peer) {
		req, err := http.ReadRequest(c.r)
		switch {
		case err != nil:
		case req.Method != "CONNECT":
			c.say("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nHTTP/1.1")
		case req.URL.Host == "192.0.2.2:443":
			connect(c.Conn, c.r, foreign.Listener.Addr().String())
		default:
			connect(c.Conn, c.r, at)
		}
	})
	_, port, _ := net.SplitHostPort(proxy.addr)
	address := "https://localhost:" + port
	o := transport.Options{
		Proxy:   http.ProxyURL(parse(t, address)),
		NoProxy: "127.0.0.1",
		TLS:     &tls.Config{RootCAs: ids.ca.Pool(), ServerName: "product.internal", Certificates: []tls.Certificate{ids.ca.Issue(t, "us", time.Now().Add(time.Hour))}},
	}
	if os.Getenv("TEST_PROXY_IN_ENVIRONMENT") != "" {
		o.Proxy, o.NoProxy = nil, ""
		os.Setenv("HTTPS_PROXY", address)
		os.Setenv("HTTP_PROXY", address)
	}
	const base, toProxy, toProduct = "https://192.0.2.1", "proxy: localhost, no certificate", "product: product.internal, us"
	for protocol, srv := range products {
		at = srv.Listener.Addr().String()
		renewed := o
		renewed.TLS = o.TLS.Clone()
		renewed.TLS.RootCAs = testpki.New(t).Pool()
		renewed.RootCAs = func(context.Context) *x509.CertPool { return o.TLS.RootCAs }
		inClear := o
		inClear.AllowHTTP = true
		var innermost http.RoundTripper // as check --online uses it
		capturing := o
		capturing.Wrap = func(next http.RoundTripper) http.RoundTripper {
			if innermost == nil {
				innermost = next
			}
			return next
		}
		client(t, new(product), base, capturing)
		for name, test := range map[string]struct {
			client *http.Client
			target string
			want   []string
		}{
			"a call":                  {client(t, new(product), base, o), base, []string{toProxy, toProduct}},
			"an exchange":             {transport.NewExchanger(&o), base, []string{toProxy, toProduct}},
			"with other authorities":  {client(t, new(product), base, renewed), base, []string{toProxy, toProduct}},
			"an exchange with others": {transport.NewExchanger(&renewed), base, []string{toProxy, toProduct}},
			"without a call":          {&http.Client{Transport: innermost}, base, []string{toProxy, toProduct}},
			"plain http":              {client(t, new(product), "http://192.0.2.1", inClear), "http://192.0.2.1", []string{toProxy}},
			"a bare redirect": {client(t, new(product), base, o), base + "/away",
				[]string{toProxy, toProduct, toProxy, "another: , no certificate"}},
			"without the proxy": {client(t, new(product), srv.URL, o), srv.URL, []string{toProduct}},
		} {
			resp, err := test.client.Get(test.target)
			if err != nil {
				t.Fatal(name, protocol, err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if got := ids.next(); !slices.Equal(got, test.want) {
				t.Errorf("%s, %s: %q, want %q", name, protocol, got, test.want)
			}
			if name == "a call" && string(body) != map[string]string{"h2": "HTTP/2.0", "http/1.1": "HTTP/1.1"}[protocol] {
				t.Errorf("%s: %s", protocol, body)
			}
		}
	}
}

// A TLS session that is resumed has the client certificate of its first handshake. A proxy that has the keys of the
// product's tickets, or another origin on its host, gets none of its sessions.
func TestProxyGetsNoSession(t *testing.T) {
	t.Parallel()
	ids := &identities{ca: testpki.New(t), seen: make(chan string, 100), keys: [32]byte{1}}
	foreign := httptest.NewUnstartedServer(http.NotFoundHandler())
	foreign.TLS = ids.serve(t, "another", "localhost", "http/1.1")
	foreign.StartTLS()
	defer foreign.Close()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/away" {
			http.Redirect(w, r, "https://localhost:"+parse(t, foreign.URL).Port(), http.StatusFound)
		}
	}))
	srv.TLS = ids.serve(t, "product", "localhost", "http/1.1")
	srv.StartTLS()
	defer srv.Close()
	proxy := serveFaults(t, ids.serve(t, "proxy", "localhost"), func(_ *faultServer, c *peer) { tunnel(c.Conn, srv.Listener.Addr().String()) })
	_, proxyPort, _ := net.SplitHostPort(proxy.addr)
	base := "https://localhost:" + parse(t, srv.URL).Port()
	o := transport.Options{Close: true, NoProxy: "*", Proxy: http.ProxyURL(parse(t, "https://localhost:"+proxyPort)),
		TLS: &tls.Config{RootCAs: ids.ca.Pool(), Certificates: []tls.Certificate{ids.ca.Issue(t, "us", time.Now().Add(time.Hour))},
			ClientSessionCache: tls.NewLRUClientSessionCache(10)}}
	direct := client(t, new(product), base, o)
	o.NoProxy = ""
	through := client(t, new(product), base, o)
	for _, step := range []struct {
		client *http.Client
		path   string
		want   []string
	}{
		{direct, "/", []string{"product: localhost, us"}},
		{through, "/", []string{"proxy: localhost, no certificate", "product: localhost, us"}},
		{direct, "/away", []string{"product: localhost, us", "another: localhost, no certificate"}},
	} {
		resp, err := step.client.Get(base + step.path)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body) // the tickets come before the body
		resp.Body.Close()
		if got := ids.next(); !slices.Equal(got, step.want) {
			t.Errorf("%s: %q, want %q", step.path, got, step.want)
		}
	}
}

// If the proxy is the wrong kind of server, or fails, the error names it and its kind. If the product
// fails, the error does not name the proxy.
func TestErrorNamesTheProxy(t *testing.T) {
	t.Parallel()
	ca := testpki.New(t)
	certificate := func(host string) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, host, time.Now().Add(time.Hour))}}
	}
	closes := func(_ *faultServer, c *peer) { c.r.Peek(1) }
	says := func(text string) func(*faultServer, *peer) {
		return func(_ *faultServer, c *peer) {
			c.r.Peek(1)
			c.say(text)
			c.half()
		}
	}
	product1 := serveFaults(t, certificate("other.example.com"), refusing)
	plain, secure := []string{"http://api.example.com", "https://api.example.com"}, []string{"https://api.example.com"}
	for name, test := range map[string]struct {
		scheme  string
		tls     *tls.Config // the proxy's
		play    func(*faultServer, *peer)
		targets []string
		product bool // the error is of the product
		want    string
	}{
		"https to a plain proxy":       {scheme: "https", play: says("HTTP/1.1 400 Bad Request\r\n\r\n"), targets: plain, want: "does not look like a TLS handshake"},
		"http to a proxy of https":     {scheme: "http", tls: certificate("127.0.0.1"), play: closes, targets: plain},
		"http to a SOCKS proxy":        {scheme: "http", play: says("\x05\xff"), targets: plain},
		"http to what is no proxy":     {scheme: "http", play: says("SSH-2.0-hunter2\r\n"), targets: plain, want: "not valid HTTP"},
		"http to a web server":         {scheme: "http", play: says("HTTP/1.1 405 hunter2\r\nContent-Length: 0\r\n\r\n"), targets: secure, want: "405 Method Not Allowed"},
		"http to one that closes":      {scheme: "http", play: closes, targets: plain, want: "EOF"},
		"SOCKS to a proxy of http":     {scheme: "socks5", play: says("HTTP/1.1 400 Bad Request\r\n\r\n"), targets: plain, want: "socks connect"},
		"https, another's certificate": {scheme: "https", tls: certificate("other.example.com"), play: closes, targets: plain, want: "certificate"},
		"wrong password":               {scheme: "http", play: says("HTTP/1.1 407 hunter2\r\nContent-Length: 0\r\n\r\n"), targets: secure, want: "HTTP 407"},
		"the product's certificate":    {scheme: "http", play: func(_ *faultServer, c *peer) { tunnel(c.Conn, product1.addr) }, targets: secure, product: true, want: "certificate"},
		"the product, which says no TLS": {scheme: "http", play: func(_ *faultServer, c *peer) {
			c.read()
			c.say("HTTP/1.1 200 OK\r\n\r\n")
			c.r.Peek(1)
			c.say("SSH-2.0\r\n")
			c.half()
		}, targets: secure, product: true, want: "TLS handshake"},
	} {
		for _, target := range test.targets {
			t.Run(name+", "+target, func(t *testing.T) {
				t.Parallel()
				s := serveFaults(t, test.tls, test.play)
				o := transport.Options{AllowHTTP: true, Retry: transport.Retry{MaxAttempts: 1}, TLS: &tls.Config{RootCAs: ca.Pool()},
					Proxy: http.ProxyURL(&url.URL{Scheme: test.scheme, Host: s.addr, User: url.UserPassword("user", "hunter2")})}
				_, err := client(t, new(product), target, o).Get(target + "/path")
				if err == nil {
					t.Fatal("no error")
				}
				proxy := "the proxy " + test.scheme + "://" + s.addr
				if test.want == "HTTP 407" {
					proxy = s.addr + ": the proxy refused"
				}
				text := err.Error()
				if strings.Contains(text, proxy) == test.product || !strings.Contains(text, test.want) || strings.Contains(text, "hunter2") {
					t.Error(text)
				}
			})
		}
	}
	t.Run("silent", func(t *testing.T) {
		t.Parallel()
		for _, target := range plain {
			synctest.Test(t, func(t *testing.T) {
				l := memnet.Listen()
				serveFaultsOn(t, l, nil, func(s *faultServer, _ *peer) { <-s.gone })
				o := inMemory(l.Dial, transport.Options{Retry: transport.Retry{MaxAttempts: 1}, Proxy: http.ProxyURL(parse(t, "http://proxy:3128"))})
				_, err := client(t, new(product), target, o).Get(target)
				if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no sign of the proxy http://proxy:3128 for 30s") {
					t.Error(err)
				}
			})
		}
	})
}

// A SOCKS proxy that says nothing, or is a proxy of another kind and waits, is named.
func TestSilentSOCKSProxy(t *testing.T) {
	t.Parallel()
	for _, base := range []string{"https://api.example.com", "http://api.example.com"} {
		t.Run(base, func(t *testing.T) {
			t.Parallel()
			s := serveFaults(t, nil, func(_ *faultServer, c *peer) { c.stall() })
			proxy := "socks5://" + s.addr
			c := client(t, new(product), base, transport.Options{AllowHTTP: true, AttemptTimeout: 200 * time.Millisecond,
				Retry: transport.Retry{MaxAttempts: 1}, Proxy: http.ProxyURL(parse(t, proxy))})
			_, err := c.Get(base)
			if err == nil || !strings.Contains(err.Error(), "the proxy "+proxy) {
				t.Error(err)
			}
		})
	}
}
