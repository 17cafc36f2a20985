package transport_test

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/transport"
)

// resolve makes DNS answer with these addresses until the test ends, which must not be parallel.
func resolve(t *testing.T, names map[string][]string) {
	before := net.DefaultResolver
	t.Cleanup(func() { net.DefaultResolver = before })
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe() // so the messages have the framing of TCP
		go func() {
			defer theirs.Close()
			for {
				var length uint16
				if binary.Read(theirs, binary.BigEndian, &length) != nil {
					return
				}
				var m dnsmessage.Message
				query := make([]byte, length)
				if _, err := io.ReadFull(theirs, query); err != nil || m.Unpack(query) != nil {
					return
				}
				answerDNS(&m, names)
				answer, err := m.Pack()
				if err != nil {
					return
				}
				theirs.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...))
			}
		}()
		return ours, nil
	}}
}

func answerDNS(m *dnsmessage.Message, names map[string][]string) {
	q := m.Questions[0]
	m.Response, m.RecursionAvailable = true, true
	m.Additionals = nil
	addresses := names[strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))]
	if addresses == nil {
		m.RCode = dnsmessage.RCodeNameError
	}
	for _, s := range addresses {
		addr := netip.MustParseAddr(s)
		h := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 60}
		switch {
		case addr.Is4() && q.Type == dnsmessage.TypeA:
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: addr.As4()}})
		case addr.Is6() && q.Type == dnsmessage.TypeAAAA:
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: addr.As16()}})
		}
	}
}

// everywhere serves at all addresses of this machine. hits returns the addresses that requests came to, since
// the last time.
func everywhere(t *testing.T, srv *httptest.Server) (port string, hits func() []string) {
	var mu sync.Mutex
	var at []string
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	srv.Listener.Close()
	srv.Listener = l
	srv.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.Context().Value(http.LocalAddrContextKey).(net.Addr).String())
		mu.Lock()
		defer mu.Unlock()
		at = append(at, host)
	})
	t.Cleanup(srv.Close)
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port, func() []string {
		mu.Lock()
		defer mu.Unlock()
		now := at
		at = nil
		return now
	}
}

// outside returns an address of this machine that others reach, and 0.0.0.0 if it has none: that reaches the
// machine itself, and is no loopback address either.
func outside(t *testing.T) string {
	interfaces, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range interfaces {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr().Is4() && !prefix.Addr().IsLoopback() {
			return prefix.Addr().String()
		}
	}
	return "0.0.0.0"
}

// ways are all ways to send a request to target: calls, exchanges, redirects with credentials and without, and
// the innermost RoundTripper itself, as check --online uses it.
func ways(t *testing.T, target string, o transport.Options) map[string]func() (*http.Response, error) {
	redirecting := httptest.NewTLSServer(http.RedirectHandler(target+"/x", http.StatusFound))
	t.Cleanup(redirecting.Close)
	roots := redirecting.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	var innermost http.RoundTripper
	capturing := o
	capturing.Wrap = func(next http.RoundTripper) http.RoundTripper {
		if innermost == nil {
			innermost = next
		}
		return next
	}
	call := client(t, new(product), target, capturing)
	o.NoProxy, o.TLS = "127.0.0.1:"+parse(t, redirecting.URL).Port(), &tls.Config{RootCAs: roots}
	bare := client(t, new(product), redirecting.URL, o)
	o.AllowedOrigins = []*url.URL{parse(t, target)}
	redirect := client(t, new(product), redirecting.URL, o)
	get := func(c *http.Client, at string) func() (*http.Response, error) {
		return func() (*http.Response, error) { return c.Get(at) }
	}
	return map[string]func() (*http.Response, error){
		"a GET":             get(call, target),
		"a POST":            func() (*http.Response, error) { return call.Post(target, "text/plain", strings.NewReader("x")) },
		"an exchange":       get(transport.NewExchanger(&o), target),
		"a redirect":        get(redirect, redirecting.URL),
		"a bare redirect":   get(bare, redirecting.URL),
		"without a call":    get(&http.Client{Transport: innermost}, target),
		"a GET once more":   get(call, target),
		"another exchanger": get(transport.NewExchanger(&o), target+"/revoke"),
	}
}

// What goes to a loopback name over plain http is sent to loopback addresses only, whatever DNS says.
func TestLoopbackNames(t *testing.T) {
	srv := httptest.NewUnstartedServer(nil)
	port, hits := everywhere(t, srv)
	srv.Start()
	public := outside(t)
	resolve(t, map[string][]string{
		"public.localhost":      {public},
		"any.localhost":         {"0.0.0.0"},
		"mapped.localhost":      {"::ffff:" + public},
		"both.localhost":        {public, "127.0.0.1"},
		"other.localhost":       {"127.9.9.9"},
		"a.mapped.localhost":    {"::ffff:127.0.0.1"},
		"localhost.example.com": {"127.0.0.1"},
	})
	for name, want := range map[string]string{
		"public.localhost": "", "PUBLIC.LocalHost": "", "any.localhost": "", "mapped.localhost": "",
		"both.localhost": "127.0.0.1", "other.localhost": "127.9.9.9", "a.mapped.localhost": "127.0.0.1", "localhost": "127.0.0.1", "127.0.0.1": "127.0.0.1",
	} {
		target := "http://" + name + ":" + port
		for way, send := range ways(t, target, transport.Options{Retry: quick}) {
			resp, err := send()
			if err == nil {
				resp.Body.Close()
			}
			got := hits()
			if want == "" && (len(got) > 0 || !errors.Is(err, auth.ErrInsecure)) {
				t.Errorf("%s to %s: %v, and these addresses got it: %v", way, name, err, got)
			}
			if want != "" && (err != nil || len(got) != 1 || got[0] != want) {
				t.Errorf("%s to %s: %v, and these addresses got it: %v, want %s", way, name, err, got, want)
			}
		}
	}
	for way, send := range ways(t, "http://public.localhost:"+port, transport.Options{Retry: quick, AllowHTTP: true}) {
		if resp, err := send(); err != nil || len(hits()) != 1 {
			t.Errorf("%s with AllowHTTP: %v", way, err)
		} else {
			resp.Body.Close()
		}
	}
	// A name that only resolves to loopback is not local: DNS may say otherwise later.
	if _, err := transport.NewExchanger(nil).Get("http://localhost.example.com:" + port); !errors.Is(err, auth.ErrInsecure) || len(hits()) > 0 {
		t.Error(err)
	}
}

// TLS proves who the server is, so a loopback name may have any address. A connection made for https does not
// serve http.
func TestLoopbackNamesOverTLS(t *testing.T) {
	srv := httptest.NewUnstartedServer(nil)
	port, hits := everywhere(t, srv)
	srv.StartTLS()
	resolve(t, map[string][]string{"app.localhost": {outside(t)}})
	trusted := srv.Client().Transport.(*http.Transport).TLSClientConfig
	secure, plain := "https://app.localhost:"+port, "http://app.localhost:"+port
	c := client(t, new(product), secure, transport.Options{Retry: quick, AllowedOrigins: []*url.URL{parse(t, plain)},
		TLS: &tls.Config{RootCAs: trusted.RootCAs, ServerName: "example.com"}})
	for range 2 {
		resp, err := c.Get(secure)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if _, err := c.Get(plain); !errors.Is(err, auth.ErrInsecure) {
			t.Error(err)
		}
	}
	if got := hits(); len(got) != 2 {
		t.Error(got)
	}
}

// Plain http to loopback does not leave this machine by way of a proxy.
func TestLoopbackUsesNoProxy(t *testing.T) {
	srv := httptest.NewUnstartedServer(nil)
	port, hits := everywhere(t, srv)
	srv.Start()
	resolve(t, map[string][]string{"app.localhost": {"127.0.0.1"}})
	for _, scheme := range []string{"http", "https", "socks5"} {
		for _, host := range []string{"127.0.0.1", "localhost", "app.localhost", "[::ffff:127.0.0.1]"} {
			proxy := serveFaults(t, nil, func(_ *faultServer, c *peer) { c.r.Peek(1) })
			o := transport.Options{Retry: transport.Retry{MaxAttempts: 1}, Proxy: http.ProxyURL(&url.URL{Scheme: scheme, Host: proxy.addr})}
			for way, send := range ways(t, "http://"+host+":"+port, o) {
				resp, err := send()
				if err != nil || proxy.conns.Load() > 0 {
					t.Errorf("%s to %s by way of %s: %v, and the proxy got %d connections", way, host, scheme, err, proxy.conns.Swap(0))
				} else {
					resp.Body.Close()
				}
				hits()
			}
			o.AllowHTTP = true
			for way, send := range ways(t, "http://"+host+":"+port, o) {
				if resp, err := send(); err == nil {
					resp.Body.Close()
				}
				if got := hits(); len(got) > 0 {
					t.Errorf("%s to %s with AllowHTTP went around the proxy", way, host)
				}
			}
		}
	}
}
