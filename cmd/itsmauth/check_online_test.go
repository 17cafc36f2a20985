package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/config"
	"github.com/itsmauth/itsmauth/internal/dpoptest"
	"github.com/itsmauth/itsmauth/internal/testnet"
	"github.com/itsmauth/itsmauth/internal/testpki"
	"github.com/itsmauth/itsmauth/providers/beyondtrust/beyondtrusttest"
	"github.com/itsmauth/itsmauth/providers/remedy/remedytest"
	"github.com/itsmauth/itsmauth/providers/webcommander/webcommandertest"
)

// An onlineCase is a connector with what check --online finds.
type onlineCase struct {
	yaml        string // of the connector
	code        int
	want        []string // parts of stdout
	not         []string // no parts of it
	requests    func() int
	maxRequests int // for tokens
}

// serveTLS serves h on loopback with a certificate, without net/http's log of failed handshakes.
func serveTLS(t *testing.T, h http.Handler, config *tls.Config) (port string) {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = config
	s.StartTLS()
	t.Cleanup(s.Close)
	_, port, _ = net.SplitHostPort(s.Listener.Addr().String())
	return port
}

func appliance(t *testing.T) *beyondtrusttest.Server {
	s := beyondtrusttest.NewServer(nil)
	t.Cleanup(s.Close)
	return s
}

func lines(base string, more ...string) string {
	return fmt.Sprintf("    provider: beyondtrust\n    base_url: %s\n    client_id: %q\n    client_secret: %q\n", base,
		beyondtrusttest.DefaultClientID, beyondtrusttest.DefaultClientSecret) + strings.Join(more, "")
}

// change wraps a handler and changes its responses.
func change(h http.Handler, f func(*http.Response) *http.Response) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		resp := f(rec.Result())
		for k, v := range resp.Header {
			w.Header()[k] = v
		}
		w.WriteHeader(resp.StatusCode)
		io.Copy(w, resp.Body)
	})
}

func answer(h http.Handler, prefix string, status int, header, value string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, prefix) {
			h.ServeHTTP(w, r)
			return
		}
		w.Header().Set(header, value)
		w.WriteHeader(status)
		io.WriteString(w, `{"error":"access_denied"}`)
	})
}

func plainServer(t *testing.T, h http.Handler) string {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

// rawServer answers the first bytes on each connection with response, and closes it.
func rawServer(t *testing.T, response string) (address string) {
	return testnet.Serve(t, func(conn net.Conn) {
		conn.Read(make([]byte, 4<<10))
		io.WriteString(conn, response)
	})
}

// forward is a proxy for CONNECT.
func forward(w http.ResponseWriter, r *http.Request) {
	up, err := net.Dial("tcp", r.Host)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	down, early, err := http.NewResponseController(w).Hijack()
	if err != nil {
		up.Close()
		return
	}
	io.WriteString(down, "HTTP/1.1 200 OK\r\n\r\n")
	go func() { io.Copy(up, early); up.Close() }()
	io.Copy(down, up)
	down.Close()
}

func TestCheckOnline(t *testing.T) {
	t.Parallel()
	ca := testpki.New(t)
	caLine := "    transport: {tls_config: {ca_file: " + ca.File(t) + "}"
	issue := func(host string, end time.Duration) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, host, time.Now().Add(end))}}
	}
	for name, setup := range map[string]func(t *testing.T) onlineCase{
		"well": func(t *testing.T) onlineCase {
			s := httptest.NewTLSServer(appliance(t))
			t.Cleanup(s.Close)
			file := filepath.Join(t.TempDir(), "ca.pem")
			if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
				t.Fatal(err)
			}
			return onlineCase{yaml: lines(s.URL, "    transport: {tls_config: {ca_file: "+file+"}}\n"), want: []string{
				"dns: ok: 127.0.0.1 needs no look-up", "tcp: ok: connected to 127.0.0.1:", "tls: ok: TLS 1.3, certificate for 127.0.0.1, ",
				"clock: ok: agrees with the server's", "store: ok: file can be read and written", "token: ok: a new token, valid for 59m",
				"probe: ok: GET /api/command answered 200 OK", "rate limit: ok: 14998 of 15000 requests left"}}
		},
		"each request signed": func(t *testing.T) onlineCase {
			s := dpoptest.NewServer(t)
			s.Set(dpoptest.Rules{NonceUses: 1})
			return onlineCase{yaml: "    provider: oauth2\n    base_url: " + s.URL + "\n    token_url: " + s.URL + "/oauth2/token\n    client_id: id\n    dpop: true\n    probe: /moved\n",
				want: []string{"token: ok: a new token", "probe: ok: GET /moved answered 200 OK"}}
		},
		"name unknown": func(t *testing.T) onlineCase {
			return onlineCase{yaml: lines("https://itsm.invalid"), code: 1, want: []string{"dns: failed: itsm.invalid has no address: ", "; check the name in base_url", "token: skipped"}}
		},
		"port closed": func(t *testing.T) onlineCase {
			return onlineCase{yaml: lines("https://" + closedAddress), code: 1, want: []string{"tcp: failed: no connection to 127.0.0.1:", "refused; check host and port in base_url"}}
		},
		"certificate expired": func(t *testing.T) onlineCase {
			port := serveTLS(t, appliance(t), issue("127.0.0.1", -72*time.Hour))
			return onlineCase{yaml: lines("https://127.0.0.1:"+port, caLine, "}\n"), code: 1, want: []string{"tls: failed: the certificate expired 3 days ago, on "}}
		},
		"certificate not yet valid": func(t *testing.T) onlineCase {
			port := serveTLS(t, appliance(t), issue("127.0.0.1", 72*time.Hour))
			return onlineCase{yaml: lines("https://127.0.0.1:"+port, caLine, "}\n"), code: 1, want: []string{"tls: failed: the certificate is not valid before ", "; check this machine's clock"}}
		},
		"certificate ends": func(t *testing.T) onlineCase {
			port := serveTLS(t, appliance(t), issue("127.0.0.1", 20*time.Hour))
			return onlineCase{yaml: lines("https://127.0.0.1:"+port, caLine, "}\n"), want: []string{"tls: warning: TLS 1.3, certificate for 127.0.0.1, 19h59m left; have it renewed"}}
		},
		"certificate of another": func(t *testing.T) onlineCase {
			port := serveTLS(t, appliance(t), issue("other.example", time.Hour))
			return onlineCase{yaml: lines("https://127.0.0.1:"+port, caLine, "}\n"), code: 1, want: []string{"tls: failed: the certificate is not for 127.0.0.1; use a name that it is for in base_url, or set transport.tls_config.server_name to one"}, not: []string{"other.example"}}
		},
		"authority unknown": func(t *testing.T) onlineCase {
			port := serveTLS(t, appliance(t), issue("127.0.0.1", time.Hour))
			return onlineCase{yaml: lines("https://127.0.0.1:" + port), code: 1, want: []string{"tls: failed: the certificate is from an authority that this machine does not trust; set transport.tls_config.ca_file to the PEM file of that authority"}, not: []string{"test CA"}}
		},
		"unverified": func(t *testing.T) onlineCase {
			port := serveTLS(t, appliance(t), issue("other.example", time.Hour))
			return onlineCase{yaml: lines("https://127.0.0.1:"+port, "    transport: {tls_config: {insecure_skip_verify: true}}\n"), want: []string{"tls: warning: ", "not verified; insecure_skip_verify protects nothing"}}
		},
		"no TLS": func(t *testing.T) onlineCase {
			return onlineCase{yaml: lines("https" + strings.TrimPrefix(plainServer(t, appliance(t)), "http")), code: 1, want: []string{"tls: failed: 127.0.0.1:", " does not speak TLS; check the port"}}
		},
		"client certificate wanted": func(t *testing.T) onlineCase {
			config := issue("127.0.0.1", time.Hour)
			config.ClientAuth, config.ClientCAs = tls.RequireAndVerifyClientCert, ca.Pool()
			port := serveTLS(t, appliance(t), config)
			return onlineCase{yaml: lines("https://127.0.0.1:"+port, caLine, "}\n"), code: 1, want: []string{"tls: failed: the server refuses the handshake: ", "if it requires a client certificate"}}
		},
		"through a proxy": func(t *testing.T) onlineCase {
			port := serveTLS(t, appliance(t), issue("127.0.0.1", time.Hour))
			proxy := plainServer(t, http.HandlerFunc(forward))
			return onlineCase{yaml: lines("https://127.0.0.1:"+port, caLine, ", proxy_url: "+proxy+"}\n"), want: []string{"proxy: ok: through 127.0.0.1:", "probe: ok"}}
		},
		"proxy down": func(t *testing.T) onlineCase {
			port := serveTLS(t, appliance(t), issue("127.0.0.1", time.Hour))
			return onlineCase{yaml: lines("https://127.0.0.1:"+port, caLine, ", proxy_url: http://"+closedAddress+"}\n"), code: 1, want: []string{"tcp: failed: no connection to 127.0.0.1:", "check host and port in transport.proxy_url"}}
		},
		"plain http to loopback uses no proxy": func(t *testing.T) onlineCase {
			return onlineCase{yaml: lines(appliance(t).URL, "    transport: {proxy_url: http://"+closedAddress+"}\n"), want: []string{"tcp: ok", "token: ok", "probe: ok"}, not: []string{"proxy"}}
		},
		"proxy wants a password": func(t *testing.T) onlineCase {
			proxy := plainServer(t, answer(nil, "", http.StatusProxyAuthRequired, "Proxy-Authenticate", "Basic"))
			return onlineCase{yaml: lines("https://127.0.0.1:1", "    transport: {proxy_url: "+proxy+"}\n"), code: 1, want: []string{"proxy: failed: the proxy 127.0.0.1:", " refuses: 407 Proxy Authentication Required; check user and password in transport.proxy_url"}, not: []string{"unexpected answer"}}
		},
		"proxy forbids": func(t *testing.T) onlineCase {
			proxy := plainServer(t, answer(nil, "", http.StatusForbidden, "X", "y"))
			return onlineCase{yaml: lines("https://127.0.0.1:1", "    transport: {proxy_url: "+proxy+"}\n"), code: 1, want: []string{"proxy: failed: the proxy 127.0.0.1:", "Forbidden; check user"}}
		},
		"http to a TLS port": func(t *testing.T) onlineCase {
			s := appliance(t)
			port := serveTLS(t, s, issue("127.0.0.1", time.Hour))
			return onlineCase{yaml: lines("http://127.0.0.1:" + port), code: 1, want: []string{
				"tls: failed: 127.0.0.1:" + port + " expects TLS, and the URL begins with http://; write https:// in base_url", "token: skipped"},
				not: []string{"clock"}, requests: func() int { return s.Stats().TokenRequests }}
		},
		"https to a plain proxy": func(t *testing.T) onlineCase {
			port := serveTLS(t, appliance(t), issue("127.0.0.1", time.Hour))
			proxy := strings.TrimPrefix(plainServer(t, http.HandlerFunc(forward)), "http://")
			return onlineCase{yaml: lines("https://127.0.0.1:"+port, caLine, ", proxy_url: https://"+proxy+"}\n"), code: 1, want: []string{
				"proxy: failed: " + proxy + " does not speak TLS; write http:// in transport.proxy_url or $HTTPS_PROXY: https:// is for a proxy that is itself reached over TLS", "token: skipped"},
				not: []string{"proxy: ok", "tls: "}}
		},
		"https to a plain proxy for an http target": func(t *testing.T) onlineCase {
			proxy := strings.TrimPrefix(plainServer(t, http.NotFoundHandler()), "http://")
			return onlineCase{yaml: lines("http://itsm.example.com", "    transport: {allow_http: true, proxy_url: https://"+proxy+"}\n"), code: 1, want: []string{
				"proxy: failed: " + proxy + " does not speak TLS; write http:// in transport.proxy_url or $HTTP_PROXY"}, not: []string{"proxy: ok"}}
		},
		"http to a TLS port behind a proxy": func(t *testing.T) onlineCase {
			port := serveTLS(t, http.NotFoundHandler(), issue("127.0.0.1", time.Hour))
			proxy := plainServer(t, change(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.Out.Host = "" }}, func(r *http.Response) *http.Response {
				r.Header.Set("Via", "1.1 squid")
				return r
			}))
			return onlineCase{yaml: lines("http://127.0.0.1:"+port, "    transport: {allow_http: true, proxy_url: "+proxy+"}\n"), code: 1, want: []string{
				"proxy: ok", "tls: failed: 127.0.0.1:" + port + " expects TLS, and the URL begins with http://; write https:// in base_url"}}
		},
		"a web server as the proxy": func(t *testing.T) onlineCase {
			web := plainServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.WriteString(w, "<html>")
			}))
			return onlineCase{yaml: lines("https://itsm.example.com", "    transport: {proxy_url: "+web+"}\n"), code: 1, want: []string{
				"tls: failed: itsm.example.com does not speak TLS through the proxy " + strings.TrimPrefix(web, "http://") + "; check that transport.proxy_url or $HTTPS_PROXY names a proxy, and the port in base_url, or use"}}
		},
		"a web server that closes the connection as the proxy": func(t *testing.T) onlineCase {
			web := rawServer(t, "HTTP/1.1 200 OK\r\n\r\n<html>")
			return onlineCase{yaml: lines("https://itsm.example.com", "    transport: {proxy_url: http://"+web+"}\n"), code: 1, want: []string{
				"tls: failed: the handshake through the proxy " + web + " failed: ", "; check that transport.proxy_url or $HTTPS_PROXY names a proxy, and the port in base_url, and any"}}
		},
		"a web server as the proxy for an http target": func(t *testing.T) onlineCase {
			web := plainServer(t, http.NotFoundHandler())
			return onlineCase{yaml: lines("http://itsm.example.com", "    transport: {allow_http: true, proxy_url: "+web+"}\n"), code: 1, want: []string{
				"token: failed: unexpected answer: this path does not exist; the response came through the proxy " + web + " (HTTP 404)"}}
		},
		"a web server that answers 200 as the proxy for an http target": func(t *testing.T) onlineCase {
			web := plainServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.WriteString(w, "<html>")
			}))
			return onlineCase{yaml: lines("http://itsm.example.com", "    transport: {allow_http: true, proxy_url: "+web+"}\n"), code: 1, want: []string{
				"token: failed: unexpected answer: ", "; the response came through the proxy " + web + " (HTTP 200)"}}
		},
		"SSH as the proxy": func(t *testing.T) onlineCase {
			ssh := rawServer(t, "SSH-2.0-OpenSSH_9.6\r\n")
			return onlineCase{yaml: lines("https://itsm.example.com", "    transport: {proxy_url: http://"+ssh+"}\n"), code: 1, want: []string{
				"proxy: failed: the proxy " + ssh + " refuses: the connection broke, or the response was not HTTP; check"}, not: []string{"SSH-"}}
		},
		"SSH as the product": func(t *testing.T) onlineCase {
			return onlineCase{yaml: lines("http://" + rawServer(t, "SSH-2.0-OpenSSH_9.6\r\n")), code: 1, want: []string{
				"http: failed: no response from 127.0.0.1:", ": the connection broke, or the response was not HTTP; check"}, not: []string{"SSH-"}}
		},
		"a header that is none": func(t *testing.T) onlineCase {
			return onlineCase{yaml: lines("http://" + rawServer(t, "HTTP/1.1 200 OK\r\nq8 z4\r\n\r\n")), code: 1, want: []string{
				"http: failed: no response from 127.0.0.1:", ": the connection broke, or the response was not HTTP; check"}, not: []string{"q8"}}
		},
		"redirected to what is no URL": func(t *testing.T) onlineCase {
			return onlineCase{yaml: lines(plainServer(t, answer(appliance(t), "/api/", 302, "Location", "http://q8:%zz"))), code: 1, want: []string{
				"probe: failed: GET /api/command: unreadable Location; "}, not: []string{"q8"}}
		},
		"throttled in words": func(t *testing.T) onlineCase {
			return onlineCase{yaml: lines(plainServer(t, answer(appliance(t), "/api/", 429, "Retry-After", "q8"))), code: 1, want: []string{
				"probe: failed: GET /api/command answered 429 Too Many Requests; the account's rate limit is used up: send less, or wait a while"}, not: []string{"q8"}}
		},
		"http to a TLS proxy": func(t *testing.T) onlineCase {
			port := serveTLS(t, http.HandlerFunc(forward), issue("127.0.0.1", time.Hour))
			return onlineCase{yaml: lines("https://itsm.example.com", "    transport: {proxy_url: http://127.0.0.1:"+port+"}\n"), code: 1, want: []string{
				"proxy: failed: the proxy 127.0.0.1:" + port + " refuses: ", "whether it expects https://"}, not: []string{"proxy: ok"}}
		},
		"TLS proxy with a certificate of another": func(t *testing.T) onlineCase {
			port := serveTLS(t, http.HandlerFunc(forward), issue("other.example", time.Hour))
			return onlineCase{yaml: lines("https://itsm.example.com", caLine, ", proxy_url: https://127.0.0.1:"+port+"}\n"), code: 1, want: []string{
				"proxy: failed: the certificate is not for 127.0.0.1; use a name that it is for in transport.proxy_url or $HTTPS_PROXY"}, not: []string{"proxy: ok", "base_url", "server_name", "other.example"}}
		},
		"through a TLS proxy": func(t *testing.T) onlineCase {
			port := serveTLS(t, appliance(t), issue("127.0.0.1", time.Hour))
			proxy := serveTLS(t, http.HandlerFunc(forward), issue("127.0.0.1", time.Hour))
			return onlineCase{yaml: lines("https://127.0.0.1:"+port, caLine, ", proxy_url: https://127.0.0.1:"+proxy+"}\n"), want: []string{"proxy: ok", "tls: warning: TLS 1.3, certificate for 127.0.0.1, 59m left", "probe: ok"}}
		},
		"through a TLS proxy with a server_name": func(t *testing.T) onlineCase {
			port := serveTLS(t, appliance(t), issue("product.internal", time.Hour))
			proxy := serveTLS(t, http.HandlerFunc(forward), issue("127.0.0.1", time.Hour))
			return onlineCase{yaml: lines("https://127.0.0.1:"+port, "    transport: {tls_config: {ca_file: "+ca.File(t)+", server_name: product.internal}, proxy_url: https://127.0.0.1:"+proxy+"}\n"), want: []string{"proxy: ok", "tls: warning: TLS 1.3", "probe: ok"}}
		},
		"the target does not answer behind a proxy": func(t *testing.T) onlineCase {
			proxy := plainServer(t, http.HandlerFunc(forward))
			return onlineCase{yaml: lines("https://"+closedAddress, "    transport: {proxy_url: "+proxy+"}\n"), code: 1, want: []string{
				"proxy: failed: the proxy 127.0.0.1:", " refuses: it answered CONNECT with 502 Bad Gateway; check that 127.0.0.1:1, the host and port in base_url, can be reached from the proxy"}}
		},
		"proxy wants a password for an http target": func(t *testing.T) onlineCase {
			proxy := plainServer(t, answer(nil, "", http.StatusProxyAuthRequired, "Proxy-Authenticate", "Basic"))
			return onlineCase{yaml: lines("http://itsm.example.com", "    transport: {allow_http: true, proxy_url: "+proxy+"}\n"), code: 1, want: []string{
				"proxy: failed: the proxy 127.0.0.1:", " refuses: 407 Proxy Authentication Required; check user and password in transport.proxy_url"}, not: []string{"proxy: ok"}}
		},
		"certificate expired behind a TLS proxy": func(t *testing.T) onlineCase {
			port := serveTLS(t, appliance(t), issue("127.0.0.1", -time.Hour))
			proxy := serveTLS(t, http.HandlerFunc(forward), issue("127.0.0.1", time.Hour))
			return onlineCase{yaml: lines("https://127.0.0.1:"+port, caLine, ", proxy_url: https://127.0.0.1:"+proxy+"}\n"), code: 1, want: []string{"proxy: ok", "tls: failed: the certificate expired 1h00m ago"}}
		},
		"certificate expired behind a proxy": func(t *testing.T) onlineCase {
			port := serveTLS(t, appliance(t), issue("127.0.0.1", -time.Hour))
			proxy := plainServer(t, http.HandlerFunc(forward))
			return onlineCase{yaml: lines("https://127.0.0.1:"+port, caLine, ", proxy_url: "+proxy+"}\n"), code: 1, want: []string{"proxy: ok", "tls: failed: the certificate expired 1h00m ago"}}
		},
		"clock an hour behind": func(t *testing.T) onlineCase {
			return onlineCase{yaml: lines(plainServer(t, change(appliance(t), func(r *http.Response) *http.Response {
				r.Header.Set("Date", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
				return r
			}))), code: 1, want: []string{"clock: failed: this machine's clock is 1h00m behind the server's; synchronize the clock", "token: ok"}}
		},
		"clock an hour ahead": func(t *testing.T) onlineCase {
			return onlineCase{yaml: lines(plainServer(t, change(appliance(t), func(r *http.Response) *http.Response {
				r.Header.Set("Date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat))
				return r
			}))), code: 1, want: []string{"clock: failed: this machine's clock is 1h00m ahead of the server's"}}
		},
		"no answer": func(t *testing.T) onlineCase {
			s := appliance(t)
			return onlineCase{yaml: lines(plainServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				panic(http.ErrAbortHandler)
			}))), code: 1, want: []string{"http: failed: no response from 127.0.0.1:", "; check the port in base_url, and that the product is running; if the port expects TLS, write https://"}, requests: func() int { return s.Stats().TokenRequests }}
		},
		"credentials refused": func(t *testing.T) onlineCase {
			s := appliance(t)
			s.SetSecret("another+/=&%")
			return onlineCase{yaml: lines(s.URL), code: 4, want: []string{"token: failed: credentials refused", "check the client id, the secret"}, requests: func() int { return s.Stats().TokenRequests }, maxRequests: 1}
		},
		"consent required": func(t *testing.T) onlineCase {
			s := remedytest.NewServer(nil)
			t.Cleanup(s.Close)
			return onlineCase{yaml: fmt.Sprintf("    provider: remedy\n    base_url: %s\n    sso_url: %s\n    client_id: a\n    client_secret: b\n    redirect_uri: http://127.0.0.1:8400/callback\n", s.URL, s.SSOURL),
				code: 3, want: []string{"token: failed: consent required", "run: itsmauth login target"}}
		},
		"every token refused": func(t *testing.T) onlineCase {
			s := appliance(t)
			return onlineCase{yaml: lines(plainServer(t, answer(s, "/api/", 401, "Content-Type", "application/json"))), code: 1,
				want: []string{"probe: failed: the product answers alike with a new token and without one: something in front of it drops the header Authorization"}, requests: func() int { return s.Stats().TokenRequests }, maxRequests: 1}
		},
		"header dropped": func(t *testing.T) onlineCase {
			s := webcommandertest.NewServer(nil)
			t.Cleanup(s.Close)
			u, err := url.Parse(s.URL)
			if err != nil {
				t.Fatal(err)
			}
			nginx := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
				r.SetURL(u)
				for name := range r.Out.Header {
					if strings.Contains(name, "_") {
						delete(r.Out.Header, name)
					}
				}
			}}
			return onlineCase{yaml: storeLines(plainServer(t, nginx)), code: 1, want: []string{"something in front of it drops the header access_token; nginx drops names with _ unless told underscores_in_headers on"}}
		},
		"path unknown": func(t *testing.T) onlineCase {
			return onlineCase{yaml: lines(appliance(t).URL, "    probe: /api/nowhere?a=hunter2\n"), code: 1, want: []string{"probe: failed: GET /api/nowhere answered 404 Not Found; check the path"}}
		},
		"forbidden":  status(403, "give the account the permission"),
		"throttled":  status(429, "the account's rate limit is used up: send less, or wait 7s"),
		"redirected": status(302, "set base_url to the URL that it redirects to"),
		"redirected within the origin": func(t *testing.T) onlineCase {
			s := appliance(t)
			mux := http.NewServeMux()
			mux.Handle("/", s)
			mux.Handle("/old", http.RedirectHandler("/api/command?action=get_api_info", http.StatusFound))
			return onlineCase{yaml: lines(plainServer(t, mux), "    probe: /old\n"), want: []string{"probe: ok: GET /old answered 200 OK", "rate limit: ok"}}
		},
		"redirected in circles": func(t *testing.T) onlineCase {
			return onlineCase{yaml: lines(plainServer(t, answer(appliance(t), "/api/", 307, "Location", "/api/"))), code: 1, want: []string{"probe: failed: GET /api/command answered 307", "it redirects elsewhere or in circles"}}
		},
		"out of work": status(503, "the product itself fails"),
		"limit nearly used up": func(t *testing.T) onlineCase {
			return onlineCase{yaml: lines(plainServer(t, change(appliance(t), func(r *http.Response) *http.Response {
				r.Header.Set("X-RateLimit-Remaining", "12")
				return r
			}))), want: []string{"rate limit: warning: 12 of 15000 requests left; find out which other program"}}
		},
		"no probe": func(t *testing.T) onlineCase {
			s := webcommandertest.NewServer(nil)
			t.Cleanup(s.Close)
			return onlineCase{yaml: strings.ReplaceAll(storeLines(s.URL), "    probe: /api/v4/products\n", ""), want: []string{"token: ok", "probe: skipped: no path to request; set probe"}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := setup(t)
			file := onlineFile(t, s.yaml)
			code, stdout, stderr := checkOnline(t, file)
			if code != s.code {
				t.Errorf("exit %d, want %d: %s", code, s.code, stderr)
			}
			for _, w := range s.want {
				if !strings.Contains(stdout, w) {
					t.Errorf("lacks %q:\n%s", w, stdout)
				}
			}
			for _, n := range s.not {
				if strings.Contains(stdout, n) {
					t.Errorf("has %q:\n%s", n, stdout)
				}
			}
			if strings.Contains(stdout+stderr, "hunter2") || strings.Count(stderr, "\n") > 1 {
				t.Errorf("%s", stdout+stderr)
			}
			if s.requests != nil && s.requests() > s.maxRequests {
				t.Errorf("%d token requests", s.requests())
			}
		})
	}
}

// nginx reports in HTTP, with status 400, what its TLS layer refuses. That says nothing of the credentials.
func TestCheckOnlineNginxTLS(t *testing.T) {
	t.Parallel()
	ca, foreign := testpki.New(t), testpki.New(t)
	cert, key := testpki.Files(t, ca.Issue(t, "127.0.0.1", time.Now().Add(time.Hour)))
	known, knownKey := testpki.Files(t, ca.Issue(t, "itsmauth", time.Now().Add(time.Hour)))
	stranger, strangerKey := testpki.Files(t, foreign.Issue(t, "itsmauth", time.Now().Add(time.Hour)))
	setting := fmt.Sprintf("ssl_certificate %s; ssl_certificate_key %s; ssl_verify_client on; ssl_client_certificate %s;", cert, key, ca.File(t))
	for name, tc := range map[string]struct {
		scheme, tls string
		want        []string
		code        int
	}{
		"a client certificate is missing": {"https", "", []string{"tls: failed: the server requires a client certificate; set transport.tls_config.cert_file and key_file"}, 1},
		"a client certificate of another CA": {"https", ", cert_file: " + stranger + ", key_file: " + strangerKey,
			[]string{"tls: failed: the server does not accept the client certificate; have transport.tls_config.cert_file issued by a CA that the server trusts"}, 1},
		"the client certificate": {"https", ", cert_file: " + known + ", key_file: " + knownKey, []string{"tls: warning: TLS 1.2, certificate for 127.0.0.1, 59m left", "token: ok", "probe: ok"}, 0},
		"http":                   {"http", "", []string{"tls: failed: 127.0.0.1:", " expects TLS, and the URL begins with http://; write https:// in base_url"}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := appliance(t)
			base := tc.scheme + strings.TrimPrefix(nginxBefore(t, "ssl", setting, s.URL), "http")
			code, stdout, stderr := checkOnline(t, onlineFile(t, lines(base, "    transport: {tls_config: {ca_file: "+ca.File(t)+tc.tls+"}}\n")))
			if code != tc.code {
				t.Errorf("exit %d: %s", code, stderr)
			}
			for _, w := range tc.want {
				if !strings.Contains(stdout, w) {
					t.Errorf("lacks %q:\n%s", w, stdout)
				}
			}
			if code != 0 && (strings.Contains(stdout, "certificate for") || !strings.Contains(stdout, "token: skipped") || s.Stats().TokenRequests != 0) {
				t.Errorf("%d token requests\n%s", s.Stats().TokenRequests, stdout)
			}
		})
	}
}

// nginx may want a client certificate for the API alone, and answers 400 there.
func TestCheckOnlineNginxProbe(t *testing.T) {
	t.Parallel()
	ca, s := testpki.New(t), appliance(t)
	cert, key := testpki.Files(t, ca.Issue(t, "127.0.0.1", time.Now().Add(time.Hour)))
	setting := fmt.Sprintf("ssl_certificate %s; ssl_certificate_key %s; ssl_verify_client optional; ssl_client_certificate %s; location /api { if ($ssl_client_verify != SUCCESS) { return 496; } }", cert, key, ca.File(t))
	base := "https" + strings.TrimPrefix(nginxBefore(t, "ssl", setting, s.URL), "http")
	code, stdout, _ := checkOnline(t, onlineFile(t, lines(base, "    transport: {tls_config: {ca_file: "+ca.File(t)+"}}\n")))
	if want := "probe: failed: the server requires a client certificate; set transport.tls_config.cert_file and key_file\n"; code != 1 || !strings.Contains(stdout, want) {
		t.Errorf("exit %d, lacks %q:\n%s", code, want, stdout)
	}
}

// nginx, where a proxy is configured, answers 400 to plain HTTP if its port is one of TLS.
func TestCheckOnlineNginxAsProxy(t *testing.T) {
	t.Parallel()
	ca, s := testpki.New(t), appliance(t)
	cert, key := testpki.Files(t, ca.Issue(t, "127.0.0.1", time.Now().Add(time.Hour)))
	tlsPort := fmt.Sprintf("ssl_certificate %s; ssl_certificate_key %s;", cert, key)
	mutual := tlsPort + fmt.Sprintf("ssl_verify_client on; ssl_client_certificate %s;", ca.File(t))
	for name, tc := range map[string]struct{ scheme, setting, want, token string }{
		"http": {"http", tlsPort, " expects TLS, and the URL begins with http://; write https:// in transport.proxy_url or $HTTP_PROXY\n",
			"the server or a proxy expects TLS; use https in its URL; the response came through the proxy http://"},
		"a client certificate is missing": {"https", mutual, " requires a client certificate; it gets none: use another proxy, or set transport.no_proxy\n",
			"the response came through the proxy https://"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy := strings.TrimPrefix(nginxBefore(t, "ssl", tc.setting, s.URL), "http://")
			file := onlineFile(t, lines(s.URL, "    transport: {allow_http: true, proxy_url: "+tc.scheme+"://"+proxy+", tls_config: {ca_file: "+ca.File(t)+"}}\n"))
			code, stdout, _ := checkOnline(t, file)
			if want := "proxy: failed: the proxy " + proxy + tc.want; code != 1 || !strings.Contains(stdout, want) || strings.Contains(stdout, "tls: ") {
				t.Errorf("exit %d, lacks %q:\n%s", code, want, stdout)
			}
			var stdoutToken, stderr bytes.Buffer
			code = run(t.Context(), []string{"--config", file, "token", "target"}, nil, &stdoutToken, &stderr)
			if want := tc.token + proxy + " (HTTP 400)"; code != 1 || !strings.Contains(stderr.String(), want) {
				t.Errorf("exit %d, lacks %q:\n%s", code, want, &stderr)
			}
		})
	}
}

// nginx drops the header unless underscores_in_headers is on.
func TestCheckOnlineBehindNginx(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		setting, want string
		code          int
	}{
		{"", "something in front of it drops the header access_token; nginx drops names with _ unless told underscores_in_headers on", 1},
		{"underscores_in_headers on;", "probe: ok: GET /api/v4/products answered 200 OK", 0},
	} {
		s := webcommandertest.NewServer(nil)
		defer s.Close()
		file := onlineFile(t, storeLines(nginxBefore(t, "", tc.setting, s.URL)))
		for range 2 { // with a new token, then with the stored one
			code, stdout, _ := checkOnline(t, file)
			if code != tc.code || !strings.Contains(stdout, tc.want) {
				t.Errorf("%q: exit %d\n%s", tc.setting, code, stdout)
			}
		}
	}
}

// nginxBefore starts nginx in front of backend. If the port is taken, it tries another. listen has further
// parameters of the directive listen.
func nginxBefore(t *testing.T, listen, setting, backend string) (base string) {
	t.Helper()
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("nginx is missing; install the package nginx")
		}
		t.Skip("nginx is missing; install the package nginx to run this test")
	}
	dir := t.TempDir()
	for range 10 {
		uri, err := freeRedirectURI()
		if err != nil {
			t.Fatal(err)
		}
		base = strings.TrimSuffix(uri, "/callback")
		at := strings.TrimPrefix(base, "http://")
		conf := "daemon off; master_process off; pid nginx.pid; error_log error.log; events {}\nhttp { access_log off; server { listen " + at + " " + listen + "; " + setting + " location / { proxy_pass " + backend + "; } }\n"
		for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
			conf += kind + "_temp_path " + kind + ";\n"
		}
		if err := os.WriteFile(filepath.Join(dir, "nginx.conf"), []byte(conf+"}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(nginx, "-p", dir, "-c", "nginx.conf", "-e", "error.log")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { cmd.Wait(); close(ended) }()
		t.Cleanup(func() {
			cmd.Process.Kill()
			<-ended
		})
		for has := true; has; {
			pid, _ := os.ReadFile(filepath.Join(dir, "nginx.pid")) // written when it has its port
			if c, err := net.Dial("tcp", at); err == nil {
				c.Close()
				if len(pid) > 0 {
					return base
				}
			}
			select {
			case <-ended:
				has = false
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	log, _ := os.ReadFile(filepath.Join(dir, "error.log"))
	t.Fatalf("nginx does not listen: %s", log)
	return ""
}

func storeLines(base string) string {
	return fmt.Sprintf("    provider: webcommander\n    base_url: %s\n    client_id: %q\n    client_secret: %q\n    redirect_uri: %s\n    username: %q\n    password: %q\n", base,
		webcommandertest.DefaultClientID, webcommandertest.DefaultClientSecret, webcommandertest.DefaultRedirectURI, webcommandertest.DefaultUsername, webcommandertest.DefaultPassword) +
		"    probe: /api/v4/products\n"
}

func status(code int, want string) func(*testing.T) onlineCase {
	return func(t *testing.T) onlineCase {
		return onlineCase{yaml: lines(plainServer(t, answer(appliance(t), "/api/", code, "Retry-After", "7"))), code: 1, want: []string{"probe: failed: GET /api/command answered ", want}}
	}
}

// closedAddress is an address where no program listens.
const closedAddress = "127.0.0.1:1"

func onlineFile(t *testing.T, connector string) string {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "itsmauth.yaml")
	text := "version: 1\ntoken_store: {type: file, path: " + filepath.Join(dir, "store") + "}\nconnectors:\n  target:\n" + connector
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func checkOnline(t *testing.T, file string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(context.WithoutCancel(t.Context()), append([]string{"--config", file, "check", "--online"}, args...), nil, &out, &errs)
	return code, out.String(), errs.String()
}

// A second check uses the stored token. If the product refuses it, it requests one new token.
func TestCheckOnlineSharesTheToken(t *testing.T) {
	t.Parallel()
	s := appliance(t)
	file := onlineFile(t, lines(s.URL))
	for i, want := range []struct {
		exchanges int
		says      string
	}{{1, "token: ok: a new token"}, {1, "token: ok: the stored token"}, {2, "probe: warning: the product refuses the stored token"}} {
		if i == 2 {
			s.RevokeAll()
		}
		code, stdout, stderr := checkOnline(t, file)
		if code != 0 || s.Stats().Exchanges != want.exchanges || !strings.Contains(stdout, want.says) || !strings.Contains(stdout, "probe: ok") {
			t.Errorf("check %d: exit %d, %d exchanges\n%s%s", i, code, s.Stats().Exchanges, stdout, stderr)
		}
	}
}

// What a product or a proxy says in place of HTTP, or in it, is in no finding.
func TestCheckOnlineQuotesNobody(t *testing.T) {
	t.Parallel()
	const said = "peersays"
	for name, response := range map[string]string{
		"garbage":       said,
		"status":        "HTTP/1.1 " + said + " OK\r\n\r\n",
		"reason":        "HTTP/1.1 503 " + said + "\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
		"length":        "HTTP/1.1 200 OK\r\nContent-Length: " + said + "\r\n\r\n",
		"encoding":      "HTTP/1.1 200 OK\r\nTransfer-Encoding: " + said + "\r\n\r\n",
		"password":      "HTTP/1.1 407 " + said + "\r\nContent-Length: " + said + "\r\n\r\n",
		"location":      "HTTP/1.1 302 Found\r\nLocation: http://[" + said + "\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
		"token":         "HTTP/1.1 200 OK\r\nDate: " + said + "\r\nX-RateLimit-Remaining: 12345678901\r\nRetry-After: " + said + "\r\nContent-Type: " + said + "\r\nContent-Length: 8\r\nConnection: close\r\n\r\n" + said,
		"no permission": "HTTP/1.1 401 " + said + "\r\nWWW-Authenticate: Bearer error=" + said + "\r\nContent-Length: 8\r\nConnection: close\r\n\r\n" + said,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := rawServer(t, response)
			for _, file := range []string{
				onlineFile(t, lines("http://"+address)),
				onlineFile(t, lines("https://"+address)),
				onlineFile(t, lines("https://itsm.example.com", "    transport: {proxy_url: http://"+address+"}\n")),
				onlineFile(t, lines("https://itsm.example.com", "    transport: {proxy_url: https://"+address+"}\n")),
				onlineFile(t, lines("https://itsm.example.com", "    transport: {proxy_url: socks5://"+address+"}\n")),
			} {
				for _, args := range [][]string{nil, {"--output", "json"}} {
					code, stdout, stderr := checkOnline(t, file, args...)
					if code == 0 || strings.Contains(stdout+stderr, said) || strings.Contains(stdout, "12345678901") {
						t.Errorf("exit %d, %s%s", code, stdout, stderr)
					}
				}
			}
		})
	}
}

// A finding may have what the product says about an error, which must not change the terminal.
func TestFindingsHaveNoControls(t *testing.T) {
	t.Parallel()
	var stdout strings.Builder
	c := &onlineCheck{Connector: &config.Connector{Name: "api"}, app: &app{stdout: &stdout}}
	c.failed("tls", "the certificate is from CN=a\x1b[31mb\u009b,\u202ewhich", "c\x07", nil)
	if want := "api: tls: failed: the certificate is from CN=a [31mb , which; c\n"; stdout.String() != want {
		t.Errorf("%q", &stdout)
	}
}

func TestCheckOnlineUnread(t *testing.T) {
	t.Parallel()
	file := onlineFile(t, lines(appliance(t).URL))
	var stderr bytes.Buffer
	if code := run(t.Context(), []string{"--config", file, "check", "--online"}, nil, full{}, &stderr); code != 1 || stderr.String() != "itsmauth: no space left on device\n" {
		t.Errorf("exit %d, %s", code, &stderr)
	}
}

func TestCheckOnlineJSON(t *testing.T) {
	t.Parallel()
	file := onlineFile(t, lines("https://"+closedAddress))
	code, stdout, _ := checkOnline(t, file, "--output", "json")
	var got []connectorReport
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || code != 1 {
		t.Fatal(code, err, stdout)
	}
	if len(got) != 1 || got[0].Connector != "target" || got[0].Provider != "beyondtrust" || len(got[0].Checks) != 3 ||
		got[0].Checks[1].Status != "failed" || got[0].Checks[1].Fix == "" {
		t.Errorf("%+v", got)
	}
}

// A server that switches to another protocol, and is silent then, does not hold the command.
func TestCheckOnlineIsNotUpgraded(t *testing.T) {
	t.Parallel()
	done := make(chan struct{})
	t.Cleanup(func() { close(done) })
	address := testnet.Serve(t, func(conn net.Conn) {
		conn.Read(make([]byte, 4<<10))
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
		<-done
	})
	if code, stdout, stderr := checkOnline(t, onlineFile(t, lines("http://"+address))); code != 1 || !strings.Contains(stdout, "another protocol") {
		t.Errorf("exit %d, %s%s", code, stdout, stderr)
	}
}
