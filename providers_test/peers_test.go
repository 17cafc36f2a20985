package providers_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/config"
	"github.com/itsmauth/itsmauth/internal/testpki"
)

// said is in all text that a peer of TestPeers chooses. No error and no log may show it.
const said = "peersays"

// A peerRow is one way in which the product, or the proxy before it, speaks.
type peerRow struct {
	h1      string                                                            // the product's answer over HTTP/1.1
	h2      func(f *http2.Framer, stream uint32, h func(kv ...string) []byte) // over HTTP/2
	names   func(*x509.Certificate)                                           // changes the certificate
	connect string                                                            // the proxy's answer to CONNECT
	socks   string                                                            // the SOCKS proxy's answer
	proxy   bool                                                              // the certificate, or h1, is the proxy's
	brief   bool                                                              // a throttled exchange would wait for half a minute
	raw     bool                                                              // h1 is said in place of a TLS handshake
}

func peerRows() map[string]peerRow {
	const head = "HTTP/1.1 200 OK\r\n"
	rows := map[string]peerRow{
		"a certificate's names":  {names: func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = []string{said + ".example"}, nil }},
		"a certificate's issuer": {names: func(c *x509.Certificate) { c.Issuer.CommonName = said }},
		"an expired certificate": {names: func(c *x509.Certificate) { c.Subject.CommonName, c.NotAfter = said, time.Now().Add(-time.Hour) }},
		"a certificate's constraint": {names: func(c *x509.Certificate) {
			c.DNSNames, c.URIs = append(c.DNSNames, said+"."), []*url.URL{{Scheme: "https", Host: said + "\x1b.example"}}
		}},
		"no TLS":                    {h1: said + "\r\n\r\n", raw: true},
		"HTTP in place of TLS":      {h1: "HTTP/1.1 400 " + said + "\r\n\r\n" + said, raw: true},
		"a proxy's names":           {proxy: true, names: func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = []string{said + ".example"}, nil }},
		"a proxy's issuer":          {proxy: true, names: func(c *x509.Certificate) { c.Issuer.CommonName = said }},
		"a proxy without TLS":       {proxy: true, raw: true, h1: said + "\r\n\r\n"},
		"SOCKS: another version":    {socks: said},
		"SOCKS: another method":     {socks: "\x05\xff" + said},
		"SOCKS: an unknown refusal": {socks: "\x05\x00\x05\x77\x00\x03\x08" + said + "\x00\x01"},
		"SOCKS: a refusal":          {socks: "\x05\x00\x05\x02\x00\x03\x08" + said + "\x00\x01"},
		"SOCKS: an unknown address": {socks: "\x05\x00\x05\x00\x00\x77" + said},
	}
	for name, answer := range map[string]string{
		"reason":               "HTTP/1.1 502 " + said + "\r\nContent-Length: 0\r\n\r\n",
		"password":             "HTTP/1.1 407 " + said + "\r\nProxy-Authenticate: Basic realm=" + said + "\r\nContent-Length: 0\r\n\r\n",
		"status line":          said + "\r\n\r\n",
		"status code":          "HTTP/1.1 " + said + " OK\r\n\r\n",
		"version":              "HTTP/" + said + " 200 OK\r\n\r\n",
		"header line":          head + said + "\r\n\r\n",
		"header name":          head + said + "\x1b[31m: 1\r\n\r\n",
		"length":               head + "Content-Length: " + said + "\r\n\r\n",
		"lengths":              head + "Content-Length: 1\r\nContent-Length: " + said + "\r\n\r\n",
		"empty length":         head + "Content-Length: \r\n\r\n" + said,
		"transfer encoding":    head + "Transfer-Encoding: " + said + "\r\n\r\n",
		"transfer encodings":   head + "Transfer-Encoding: chunked\r\nTransfer-Encoding: " + said + "\r\n\r\n",
		"length of a refusal":  "HTTP/1.1 502 Bad Gateway\r\nContent-Length: " + said + "\r\n\r\n",
		"an unfinished header": head + said,
		"switching protocols":  "HTTP/1.1 101 " + said + "\r\nUpgrade: " + said + "\r\nConnection: upgrade\r\n\r\n" + said,
		"a hint":               strings.Repeat("HTTP/1.1 103 "+said+"\r\nLink: "+said+"\r\n\r\n", 9),
	} {
		rows["CONNECT: "+name] = peerRow{connect: answer}
		rows[name] = peerRow{h1: answer}
	}
	const gzipped = head + "Content-Encoding: gzip\r\nContent-Length: "
	all := "Server: " + said + "\r\nDate: " + said + "\r\nX-Request-Id: " + said + "\r\nContent-Type: text/" + said + "; charset=" + said +
		"\r\nX-RateLimit-Limit: " + said + "\r\nX-RateLimit-Remaining: " + said + "\r\nWWW-Authenticate: Bearer error=" + said + "\r\n"
	for name, answer := range map[string]string{
		"headers":              head + all + "Retry-After: " + said + "\r\nContent-Length: 0\r\n\r\n",
		"refused headers":      "HTTP/1.1 401 " + said + "\r\n" + all + "Content-Length: 0\r\n\r\n",
		"throttling":           "HTTP/1.1 429 " + said + "\r\n" + all + "Retry-After: " + said + "\r\nContent-Length: 0\r\n\r\n",
		"too late":             "HTTP/1.1 503 " + said + "\r\n" + all + "Retry-After: 99999999999" + said + "\r\nContent-Length: 0\r\n\r\n",
		"trailer":              head + "Transfer-Encoding: chunked\r\nTrailer: " + said + ", Content-Length\r\n\r\n",
		"line of a trailer":    head + "Transfer-Encoding: chunked\r\n\r\n0\r\n" + said + "\r\n\r\n",
		"other trailers":       head + "Transfer-Encoding: chunked\r\nTrailer: A\r\n\r\n0\r\n" + said + ": 1\r\n" + said + "\r\n\r\n",
		"length of a chunk":    head + "Transfer-Encoding: chunked\r\n\r\n" + said + "\r\n",
		"end of a chunk":       head + "Transfer-Encoding: chunked\r\n\r\n1\r\n" + said,
		"gzip":                 gzipped + fmt.Sprint(len(said)) + "\r\n\r\n" + said,
		"broken gzip":          gzipped + fmt.Sprint(10+len(said)) + "\r\n\r\n\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff" + said,
		"cut off":              head + "Content-Length: 999\r\n\r\n" + said,
		"too long":             head + "Content-Length: 1\r\n\r\n1" + said,
		"Location":             "HTTP/1.1 302 " + said + "\r\nLocation: http://[" + said + "\r\nContent-Length: 0\r\n\r\n",
		"Location to kept":     "HTTP/1.1 307 " + said + "\r\nLocation: %" + said + "\r\nContent-Length: 0\r\n\r\n",
		"redirect away":        "HTTP/1.1 302 " + said + "\r\nLocation: https://127.0.0.1:1/" + said + "?" + said + "\r\nContent-Length: 0\r\n\r\n",
		"redirect to a name":   "HTTP/1.1 302 " + said + "\r\nLocation: https://" + said + ".localhost:1/\r\nContent-Length: 0\r\n\r\n",
		"redirect to a scheme": "HTTP/1.1 302 " + said + "\r\nLocation: " + said + "://x\r\nContent-Length: 0\r\n\r\n",
		"redirect within":      "HTTP/1.1 302 " + said + "\r\nLocation: /" + said + "\r\nContent-Length: 0\r\n\r\n",
	} {
		rows[name] = peerRow{h1: answer, brief: name == "throttling"}
	}
	headers := func(kv ...string) func(*http2.Framer, uint32, func(...string) []byte) {
		return func(f *http2.Framer, id uint32, h func(...string) []byte) {
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: h(kv...), EndHeaders: true, EndStream: true})
		}
	}
	for name, answer := range map[string]func(*http2.Framer, uint32, func(...string) []byte){
		"HTTP/2: GOAWAY": func(f *http2.Framer, id uint32, _ func(...string) []byte) {
			f.WriteGoAway(id, http2.ErrCodeProtocol, []byte(said))
		},
		"HTTP/2: GOAWAY before": func(f *http2.Framer, id uint32, _ func(...string) []byte) {
			f.WriteGoAway(0, http2.ErrCodeEnhanceYourCalm, []byte(said))
		},
		"HTTP/2: GOAWAY, no code": func(f *http2.Framer, id uint32, _ func(...string) []byte) {
			f.WriteGoAway(id, http2.ErrCode(binary.BigEndian.Uint32([]byte(said))), []byte(said))
		},
		"HTTP/2: header name":   headers(":status", "200", strings.ToUpper(said), "1"),
		"HTTP/2: pseudo-header": headers(":status", "200", ":"+said, "1"),
		"HTTP/2: header value":  headers(":status", "200", "x-"+said, "a\x01"+said),
		"HTTP/2: status":        headers(":status", said),
		"HTTP/2: no status":     headers("x", said),
		"HTTP/2: length":        headers(":status", "200", "content-length", said),
		"HTTP/2: headers": headers(":status", "200", "server", said, "date", said, "retry-after", said, "x-request-id", said,
			"content-type", "text/"+said, "x-ratelimit-limit", said),
		"HTTP/2: Location": headers(":status", "302", "location", "http://["+said),
		"HTTP/2: trailer": func(f *http2.Framer, id uint32, h func(...string) []byte) {
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: h(":status", "200"), EndHeaders: true})
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: h(":"+said, said), EndHeaders: true, EndStream: true})
		},
		"HTTP/2: RST_STREAM": func(f *http2.Framer, id uint32, h func(...string) []byte) {
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: h(":status", "200"), EndHeaders: true})
			f.WriteRSTStream(id, http2.ErrCode(binary.BigEndian.Uint32([]byte(said))))
		},
		"HTTP/2: no frame": func(f *http2.Framer, id uint32, _ func(...string) []byte) {
			f.WriteRawFrame(99, 0, id, []byte(said))
			f.WriteRawFrame(4, 0, 1, []byte(said))
		},
		"HTTP/2: HTTP/1": nil,
	} {
		if answer == nil {
			rows[name] = peerRow{h1: "HTTP/1.1 400 " + said + "\r\n\r\n" + said, h2: func(*http2.Framer, uint32, func(...string) []byte) {}}
			continue
		}
		rows[name] = peerRow{h2: answer}
	}
	return rows
}

// TestPeers lets a product, or the proxy before it, say something of its own choice wherever it can, to a call,
// an exchange and a logout.
func TestPeers(t *testing.T) {
	t.Parallel()
	ca := testpki.New(t)
	file := ca.File(t)
	honest := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `{"access_token":"t"}`) }))
	t.Cleanup(honest.Close)
	var rows sync.WaitGroup
	for name, row := range peerRows() {
		rows.Go(func() { // all at once: they wait for most of their time
			t.Run(name, func(t *testing.T) { sayRow(t, row, ca, file, honest.URL) })
		})
	}
	rows.Wait()
}

func sayRow(t *testing.T, row peerRow, ca *testpki.CA, file, honest string) {
	product, proxyTLS := issue(t, ca, nil), issue(t, ca, nil)
	if row.names != nil && row.proxy {
		proxyTLS = issue(t, ca, row.names)
	} else if row.names != nil {
		product = issue(t, ca, row.names)
	}
	if row.h2 != nil {
		product.NextProtos = []string{"h2"}
	}
	if row.raw && row.proxy {
		proxyTLS = nil
	} else if row.raw {
		product = nil
	}
	answer := func(conn net.Conn, r *bufio.Reader) {
		switch {
		case row.h2 != nil && row.h1 == "":
			serveHTTP2(conn, r, row.h2)
		case product == nil:
			r.Peek(1)
			io.WriteString(conn, row.h1)
		default:
			if row.h2 == nil {
				if _, err := http.ReadRequest(r); err != nil {
					return
				}
			}
			io.WriteString(conn, row.h1)
		}
	}
	secure, plain := play(t, product, answer), play(t, nil, answer)
	tunnel := func(conn net.Conn, r *bufio.Reader) {
		if row.raw && row.proxy {
			r.Peek(1)
			io.WriteString(conn, row.h1)
			return
		}
		req, err := http.ReadRequest(r)
		switch {
		case err != nil:
		case row.connect != "":
			io.WriteString(conn, row.connect)
		case req.Method != "CONNECT":
			io.WriteString(conn, row.h1)
		default:
			io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
			relay(conn, r, secure)
		}
	}
	socks := func(conn net.Conn, r *bufio.Reader) {
		r.Discard(3)
		if row.socks != "" {
			io.WriteString(conn, row.socks)
			return
		}
		io.WriteString(conn, "\x05\x00")
		head, _ := r.Peek(5)
		if len(head) < 5 {
			return
		}
		r.Discard(7 + int(head[4]))
		io.WriteString(conn, "\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
		relay(conn, r, secure)
	}
	const away = "https://api.example.com"
	routes := map[string][2]string{ // the product, the proxy
		"http proxy":  {away, "http://" + play(t, nil, tunnel)},
		"https proxy": {away, "https://" + play(t, proxyTLS, tunnel)},
	}
	switch {
	case row.socks != "":
		routes = map[string][2]string{"SOCKS": {away, "socks5://" + play(t, nil, socks)}}
	case row.proxy:
		delete(routes, "http proxy")
	case row.connect == "":
		routes["direct"] = [2]string{"https://" + secure, ""}
		routes["SOCKS"] = [2]string{away, "socks5://" + play(t, nil, socks)}
		if row.h1 != "" && row.h2 == nil && !row.raw {
			routes["direct, plain"] = [2]string{"http://" + plain, ""}
			routes["http proxy, plain"] = [2]string{"http://api.example.com", routes["http proxy"][1]}
		}
	}
	var wg sync.WaitGroup
	for route, at := range routes {
		wg.Go(func() {
			for _, to := range []string{"call", "exchange", "logout"} {
				out := sayTo(t, to, at[0], honest, at[1], file, row.brief)
				if i := strings.Index(strings.ToLower(out), said); i >= 0 {
					t.Errorf("%s, %s: %q", route, to, out[max(0, i-120):min(len(out), i+40)])
				}
				if testing.Verbose() {
					t.Logf("%s, %s: %.400s", route, to, out)
				}
			}
		})
	}
	wg.Wait()
}

// sayTo sends one request to base: a call, an exchange or a logout. It returns what is logged and the error, in all
// its forms.
func sayTo(t *testing.T, to, base, tokenURL, proxy, ca string, brief bool) string {
	var log lockedBuffer
	if to == "exchange" {
		tokenURL = base + "/token"
	}
	if proxy != "" {
		proxy = "proxy_url: " + proxy + ", "
	}
	conns, err := config.Parse("peers.yaml", []byte(fmt.Sprintf(`version: 1
connectors:
  c:
    provider: oauth2
    base_url: %s
    token_url: %s
    revoke_url: %[1]s/revoke
    client_id: id
    client_secret: secret
    transport: {%[3]sno_proxy: 127.0.0.1, allow_http: true, tls_config: {ca_file: %[4]s}, retry: {max_attempts: 1}}
`, base, tokenURL, proxy, ca)), config.WithLogger(slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))))
	if err != nil {
		t.Error(err)
		return ""
	}
	defer conns.Close()
	c, err := conns.Get("c")
	if err != nil {
		t.Error(err)
		return ""
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if brief {
		time.AfterFunc(5*time.Second, cancel)
	}
	req, err := c.NewRequest(ctx, "GET", "/", nil)
	if err != nil {
		t.Error(err)
		return ""
	}
	var out strings.Builder
	if to == "logout" {
		if _, err = c.Authenticator().Token(t.Context()); err != nil {
			t.Error(err)
		}
		err = c.Authenticator().(*auth.Session).Revoke(ctx)
	} else if resp, failed := c.Do(req); failed != nil {
		err = failed
	} else {
		_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
		resp.Body.Close()
	}
	var chain func(error)
	chain = func(err error) {
		if err == nil {
			return
		}
		out.WriteString(shown(err))
		switch e := err.(type) {
		case interface{ Unwrap() error }:
			chain(e.Unwrap())
		case interface{ Unwrap() []error }:
			for _, err := range e.Unwrap() {
				chain(err)
			}
		}
	}
	chain(err)
	var network net.Error
	var op *net.OpError
	var dns *net.DNSError
	if errors.As(err, &network) {
		out.WriteString(shown(network))
	}
	if errors.As(err, &op) {
		out.WriteString(shown(op))
	}
	if errors.As(err, &dns) {
		out.WriteString(shown(dns))
	}
	return out.String() + log.String()
}

// play serves conversations on loopback, over TLS unless config is nil, and returns its address.
func play(t *testing.T, config *tls.Config, conversation func(net.Conn, *bufio.Reader)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[conn] = true
			mu.Unlock()
			wg.Go(func() {
				defer conn.Close()
				var c net.Conn = conn
				if config != nil {
					c = tls.Server(conn, config)
				}
				r := bufio.NewReader(c)
				conversation(c, r)
				if s, ok := c.(interface{ CloseWrite() error }); ok {
					s.CloseWrite()
				}
				io.Copy(io.Discard, r) // a reset would lose what was said
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for conn := range maps.Keys(open) {
			conn.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String()
}

// relay connects a proxy's client to the address, until either side closes.
func relay(conn net.Conn, r io.Reader, to string) {
	there, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer there.Close()
	go func() {
		io.Copy(there, r)
		there.(*net.TCPConn).CloseWrite()
	}()
	io.Copy(conn, there)
}

// serveHTTP2 answers one request.
func serveHTTP2(conn net.Conn, r *bufio.Reader, answer func(*http2.Framer, uint32, func(...string) []byte)) {
	if _, err := r.Discard(len(http2.ClientPreface)); err != nil {
		return
	}
	f := http2.NewFramer(conn, r)
	f.AllowIllegalWrites = true
	f.WriteSettings()
	for {
		got, err := f.ReadFrame()
		if err != nil {
			return
		}
		ended := false
		switch got := got.(type) {
		case *http2.HeadersFrame:
			ended = got.StreamEnded()
		case *http2.DataFrame:
			ended = got.StreamEnded()
		}
		if ended {
			answer(f, got.Header().StreamID, func(kv ...string) []byte {
				var b bytes.Buffer
				e := hpack.NewEncoder(&b)
				for i := 0; i < len(kv); i += 2 {
					e.WriteField(hpack.HeaderField{Name: kv[i], Value: kv[i+1]})
				}
				return b.Bytes()
			})
			return
		}
	}
}

// issue makes a certificate for the names of the test, which change may spoil.
func issue(t *testing.T, ca *testpki.CA, change func(*x509.Certificate)) *tls.Config {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"api.example.com"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if change != nil {
		change(template)
	}
	if name := template.Issuer.CommonName; name != "" {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template.Issuer = pkix.Name{}
		template.Subject.CommonName = name
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	}
	return &tls.Config{Certificates: []tls.Certificate{ca.Sign(t, template)}}
}
