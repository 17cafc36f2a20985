package transport_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
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
	if req, err := http.ReadRequest(r); err != nil || req.Method != "CONNECT" {
		return
	}
	there, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer there.Close()
	io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
	go func() { io.Copy(there, r); there.Close() }()
	io.Copy(conn, there)
}

// server_name and the client certificate are for the product. A proxy of https gets neither.
func TestProxyGetsNoIdentity(t *testing.T) {
	t.Parallel()
	ca := testpki.New(t)
	life := time.Now().Add(time.Hour)
	type hello struct{ name, certificate string }
	hellos := make(chan string, 10)
	served := func(who, name string) *tls.Config {
		c := &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, name, life)}, ClientAuth: tls.RequestClientCert}
		c.VerifyConnection = func(s tls.ConnectionState) error {
			got := hello{name: s.ServerName}
			if len(s.PeerCertificates) > 0 {
				got.certificate = s.PeerCertificates[0].Subject.CommonName
			}
			hellos <- fmt.Sprint(who, got)
			return nil
		}
		return c
	}
	product1 := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	product1.TLS = served("product", "product.internal")
	product1.StartTLS()
	defer product1.Close()
	proxy := serveFaults(t, served("proxy", "localhost"), func(_ *faultServer, c *peer) { tunnel(c.Conn, product1.Listener.Addr().String()) })
	_, port, _ := net.SplitHostPort(proxy.addr)
	o := transport.Options{
		Proxy: http.ProxyURL(&url.URL{Scheme: "https", Host: "localhost:" + port}),
		TLS:   &tls.Config{RootCAs: ca.Pool(), ServerName: "product.internal", Certificates: []tls.Certificate{ca.Issue(t, "us", life)}},
	}
	const base = "https://192.0.2.1"
	for name, c := range map[string]*http.Client{"calls": client(t, new(product), base, o), "exchanges": transport.NewExchanger(&o)} {
		resp, err := c.Get(base)
		if err != nil {
			t.Fatal(name, err)
		}
		resp.Body.Close()
		for _, want := range []string{"proxy{localhost }", "product{product.internal us}"} {
			if got := <-hellos; got != want {
				t.Errorf("%s: %s, want %s", name, got, want)
			}
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
