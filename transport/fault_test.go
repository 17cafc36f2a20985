package transport_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/emulator/memnet"
	"github.com/itsmauth/itsmauth/internal/testpki"
	"github.com/itsmauth/itsmauth/transport"
)

var update = flag.Bool("update", false, "write the measured table into docs/transport.md")

// A fault is one row of the table in docs/transport.md.
type fault struct {
	name    string
	play    func(s *faultServer, c *peer)
	https   func(ca *testpki.CA) *tls.Config // the server's TLS; nil: none
	meet    func(s *faultServer, base *string, o *transport.Options)
	warm    bool  // a good call comes first, whose connection is kept
	silence bool  // the outcome depends on time, so it runs in memory, where time is exact
	flood   bool  // of headers; the client's limit is lowered
	upload  int64 // the size of the body; such a row has no GET
	idle    bool  // the server then closes that connection
	moved   bool  // the server redirects, so several requests are no retries
}

// kinds are the requests of the table: the columns.
var kinds = []struct{ name, method, key string }{
	{"GET", "GET", ""}, {"PUT", "PUT", ""}, {"POST", "POST", ""}, {"POST with Idempotency-Key", "POST", "key-1"},
}

// faults returns the rows. State that a row needs is created for each request.
func faults(t *testing.T, ca *testpki.CA) []fault {
	serving := func(host string, life time.Duration) func(*testpki.CA) *tls.Config {
		return func(ca *testpki.CA) *tls.Config {
			return &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, host, time.Now().Add(life))}}
		}
	}
	foreign := testpki.New(t)
	answer := func(text string) func(*faultServer, *peer) {
		return func(_ *faultServer, c *peer) {
			if c.act() {
				c.say(text)
				c.half()
			}
		}
	}
	good := answer(ok)
	http2 := func(ca *testpki.CA) *tls.Config {
		c := serving("127.0.0.1", time.Hour)(ca)
		c.NextProtos = []string{"h2"}
		return c
	}
	// unless plays an HTTP/2 server that answers the first request on its first connection with refusal.
	unless := func(refusal func(stream string) string) func(*faultServer, *peer) {
		return func(s *faultServer, c *peer) {
			first := c.n == 1
			c.http2(func(stream string) string {
				if first {
					first = false
					return refusal(stream)
				}
				s.acted.Add(1)
				return ok2(stream)
			})
		}
	}
	proxied := func(scheme string) func(*faultServer, *string, *transport.Options) {
		return func(s *faultServer, base *string, o *transport.Options) {
			*base, o.AllowHTTP = scheme+"://api.example.com", true
			o.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: s.addr})
		}
	}
	return []fault{
		{name: "connection refused", meet: func(_ *faultServer, base *string, _ *transport.Options) { *base = "http://" + away }},
		{name: "no such host (DNS)", meet: func(_ *faultServer, base *string, _ *transport.Options) {
			*base = "https://a..invalid" // an empty label: no resolver is asked
		}},
		{name: "reset before the request was read", play: func(_ *faultServer, c *peer) {
			c.tcp.Read(make([]byte, 1)) // if reset sooner, some clients report that the connection was never made
			c.reset()
		}},
		{name: "reset in the middle of the upload", upload: 32 << 20, play: func(_ *faultServer, c *peer) {
			io.CopyN(io.Discard, c.r, 64<<10)
			c.reset()
		}},
		{name: "server stops reading the upload", silence: true, upload: 32 << 20, play: func(s *faultServer, c *peer) {
			io.CopyN(io.Discard, c.r, 64<<10)
			<-s.gone
		}},
		{name: "reset after the request was read", play: func(_ *faultServer, c *peer) {
			if c.act() {
				c.reset()
			}
		}},
		{name: "half-closed instead of an answer", play: answer("")},
		{name: "stall before the first byte", silence: true, play: func(_ *faultServer, c *peer) {
			if c.act() {
				c.stall()
			}
		}},
		{name: "reset in the middle of the headers", play: func(_ *faultServer, c *peer) {
			if c.act() {
				c.say(ok[:17]) // at the end of a line: half a line would be garbage
				c.reset()
			}
		}},
		{name: "stall in the middle of the headers", silence: true, play: func(_ *faultServer, c *peer) {
			if c.act() {
				c.say(ok[:30])
				c.stall()
			}
		}},
		{name: "headers that drip for longer than attempt_timeout", silence: true, play: func(_ *faultServer, c *peer) {
			if c.act() {
				c.drip(ok, faultAttempt/10)
			}
		}},
		{name: "garbage for a status line", play: answer("EHLO there\r\n\r\n")},
		{name: "garbage for a content length", play: answer("HTTP/1.1 200 OK\r\nContent-Length: four\r\n\r\ndone")},
		{name: "flood of 1xx, 10 MiB of headers", flood: true, play: flood},
		{name: "trickle of 1xx", silence: true, play: func(_ *faultServer, c *peer) {
			if c.act() {
				c.drip(strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 20), faultAttempt/100)
			}
		}},
		{name: "reset in the middle of the body", play: func(_ *faultServer, c *peer) {
			if c.act() {
				c.say(ok[:len(ok)-2])
				c.answered()
				c.reset()
			}
		}},
		{name: "half-closed in the middle of the body (content length too large)", play: answer(ok[:len(ok)-2])},
		{name: "content length too small", play: answer(ok + "and more")},
		{name: "stall in the middle of the body", silence: true, play: func(_ *faultServer, c *peer) {
			if c.act() {
				c.say(ok[:len(ok)-2])
				c.stall()
			}
		}},
		{name: "stall in the middle of the body of a 404", silence: true, play: func(_ *faultServer, c *peer) {
			if c.act() {
				c.say("HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ndo")
				c.stall()
			}
		}},
		{name: "body that drips for longer than attempt_timeout", silence: true, play: func(_ *faultServer, c *peer) {
			if c.act() {
				c.say("HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n")
				c.drip("twenty bytes of body", faultAttempt/10)
			}
		}},
		{name: "idle connection closed", warm: true, idle: true, play: func(s *faultServer, c *peer) {
			if c.act() {
				c.say(ok)
			}
			if c.n == 1 {
				c.answered()
				c.half() // returns when the client has closed too
				close(s.idle)
			} else {
				c.stall()
			}
		}},
		{name: "idle connection reset as the next request comes", warm: true, play: func(_ *faultServer, c *peer) {
			for c.act() {
				c.say(ok)
				if c.n == 1 {
					c.r.Peek(1)
					c.reset()
					return
				}
			}
		}},
		{name: "idle connection reset after the next request was read", warm: true, play: func(_ *faultServer, c *peer) {
			for i := 1; c.act(); i++ {
				if c.n == 1 && i == 2 {
					c.reset()
					return
				}
				c.say(ok)
			}
		}},
		{name: "idle connection that closes before the next request is written", warm: true, play: func(_ *faultServer, c *peer) {
			for c.act() {
				c.say(ok)
			}
		}, meet: func(_ *faultServer, _ *string, o *transport.Options) {
			wrap, writes := o.Wrap, 0
			o.Wrap = func(next http.RoundTripper) http.RoundTripper {
				t := next.(*http.Transport)
				dial := t.DialContext
				t.DialContext = transport.RecordDial(func(ctx context.Context, network, addr string) (net.Conn, error) {
					conn, err := dial(ctx, network, addr)
					return &breaking{conn, func() bool { writes++; return writes == 2 }}, err
				})
				return wrap(t)
			}
		}},
		{name: "HTTP/2: REFUSED_STREAM", https: http2, play: unless(refusedStream)},
		{name: "HTTP/2: GOAWAY above the last stream", https: http2, play: unless(func(string) string { return goAway(0) })},
		{name: "HTTP/2: GOAWAY with an error, as the first answer on the connection", https: http2, play: unless(func(string) string { return goAway(11) })},
		{name: "HTTP/2: reset after the request was read", https: http2, play: func(s *faultServer, c *peer) {
			c.http2(func(string) string {
				s.acted.Add(1)
				c.reset()
				return ""
			})
		}},
		{name: "TLS: the handshake breaks off", https: serving("127.0.0.1", time.Hour), play: func(_ *faultServer, c *peer) {
			c.tcp.Read(make([]byte, 1))
			c.reset()
		}},
		{name: "TLS: the handshake stalls", silence: true, https: serving("127.0.0.1", time.Hour), play: func(s *faultServer, c *peer) { <-s.gone }},
		{name: "TLS: the handshake is refused with an alert", https: func(*testpki.CA) *tls.Config {
			return &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, errors.New("none") }}
		}, play: refusing},
		{name: "TLS: the answer is plain text", https: serving("127.0.0.1", time.Hour), play: func(_ *faultServer, c *peer) {
			io.WriteString(c.tcp, "HTTP/1.1 400 Bad Request\r\n\r\n")
			c.tcp.CloseWrite()
			io.Copy(io.Discard, c.tcp)
		}},
		{name: "TLS: the certificate has expired", https: serving("127.0.0.1", -time.Hour), play: refusing},
		{name: "TLS: the certificate is of a foreign CA", https: func(*testpki.CA) *tls.Config { return serving("127.0.0.1", time.Hour)(foreign) }, play: refusing},
		{name: "TLS: the certificate is for another host", https: serving("example.org", time.Hour), play: refusing},
		// With TLS 1.3 the alert comes after the request was sent, and net/http sometimes reports only that
		// the connection is closed.
		{name: "TLS 1.2: a client certificate is missing", https: func(ca *testpki.CA) *tls.Config {
			c := serving("127.0.0.1", time.Hour)(ca)
			c.MaxVersion, c.ClientAuth, c.ClientCAs = tls.VersionTLS12, tls.RequireAndVerifyClientCert, ca.Pool()
			return c
		}, play: refusing},
		{name: "proxy down", meet: func(s *faultServer, base *string, o *transport.Options) {
			proxied("https")(s, base, o)
			o.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: away})
		}},
		{name: "proxy answers CONNECT with 407", meet: proxied("https"), play: refuse("HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n")},
		{name: "proxy answers plain http with 407", meet: proxied("http"), play: refuse("HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n")},
		{name: "proxy answers CONNECT with 502", meet: proxied("https"), play: refuse("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")},
		{name: "proxy never answers CONNECT", silence: true, meet: proxied("https"), play: func(_ *faultServer, c *peer) { c.stall() }},
		{name: "answers 500 (502, 503, 504, 408 are the same)", play: answer("HTTP/1.1 500 Internal Server Error\r\nConnection: close\r\nContent-Length: 4\r\n\r\ndone")},
		{name: "answers 429", play: refuse("HTTP/1.1 429 Too Many Requests\r\nConnection: close\r\nContent-Length: 4\r\n\r\ndone")},
		{name: "answers 503, Retry-After above max_retry_after", play: answer("HTTP/1.1 503 Unavailable\r\nRetry-After: 86400\r\nContent-Length: 4\r\n\r\ndone")},
		{name: "answers 301 (302 is the same)", moved: true, play: redirect("301 Moved Permanently")},
		{name: "answers 303", moved: true, play: redirect("303 See Other")},
		{name: "answers 307 (308 is the same)", moved: true, play: redirect("307 Temporary Redirect")},
		{name: "answers 404", play: answer("HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ndone")},
		{name: "none", play: good},
	}
}

// refuse reads a request and responds without processing it.
func refuse(text string) func(*faultServer, *peer) {
	return func(_ *faultServer, c *peer) {
		if c.read() {
			c.say(text)
			c.half()
		}
	}
}

// redirect leads to /there, and processes what comes there.
func redirect(status string) func(*faultServer, *peer) {
	return func(s *faultServer, c *peer) {
		for {
			r, err := http.ReadRequest(c.r)
			if err != nil {
				return
			}
			io.Copy(io.Discard, r.Body)
			if r.URL.Path == "/there" {
				s.acted.Add(1)
				c.say(ok)
				continue
			}
			c.say("HTTP/1.1 " + status + "\r\nLocation: /there\r\nContent-Length: 5\r\n\r\nmoved")
		}
	}
}

// flood sends early hints without end.
func flood(_ *faultServer, c *peer) {
	hint := "HTTP/1.1 103 Early Hints\r\nLink: " + strings.Repeat("x", 16<<10) + "\r\n\r\n"
	for acted := c.act(); acted; {
		if _, err := io.WriteString(c.Conn, hint); err != nil {
			return
		}
	}
}

// refusing speaks TLS and, if the client accepts, HTTP.
func refusing(_ *faultServer, c *peer) {
	if c.act() {
		c.say(ok)
	}
	c.tcp.CloseWrite() // Close would reset the connection before the alert is read
	io.Copy(io.Discard, c.tcp)
}

// away is an address on which no server listens.
const away = "127.0.0.1:1"

// faultAttempt is attempt_timeout of the tests in memory.
const faultAttempt = 10 * time.Second

// measured is the outcome of one request.
type measured struct {
	sent, acted int64
	gets, lasts string
	headers     time.Duration // until Do returned
}

// measure makes one request of a kind. A fault that is not a silence must end without our limits, which
// are too long for that even on a slow machine.
func measure(t *testing.T, ca *testpki.CA, f fault, method, key string, timeout time.Duration) (m measured) {
	if !f.silence {
		measureIn(t, ca, f, method, key, transport.Options{Timeout: 5 * time.Minute, AttemptTimeout: 5 * time.Minute}, &m)
		return m
	}
	synctest.Test(t, func(t *testing.T) {
		measureIn(t, ca, f, method, key, transport.Options{Timeout: timeout, AttemptTimeout: faultAttempt}, &m)
	})
	return m
}

func measureIn(t *testing.T, ca *testpki.CA, f fault, method, key string, o transport.Options, m *measured) {
	var config *tls.Config
	scheme := "http"
	if f.https != nil {
		config, scheme = f.https(ca), "https"
	}
	play := f.play
	if play == nil {
		play = func(*faultServer, *peer) {}
	}
	var l *memnet.Listener
	var s *faultServer
	if f.silence {
		l = memnet.Listen()
		s = serveFaultsOn(t, l, config, play)
	} else {
		s = serveFaults(t, config, play)
	}
	base := scheme + "://" + s.addr
	o.TLS, o.Retry = &tls.Config{RootCAs: ca.Pool()}, quick
	o.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil }
	var sent atomic.Int64
	o.Wrap = func(next http.RoundTripper) http.RoundTripper {
		if f.flood {
			next.(*http.Transport).MaxResponseHeaderBytes = 256 << 10
		}
		return roundTrip(func(r *http.Request) (*http.Response, error) {
			sent.Add(1)
			return next.RoundTrip(r)
		})
	}
	if f.meet != nil {
		f.meet(s, &base, &o)
	}
	if f.silence {
		o = inMemory(l.Dial, o)
	}
	c := client(t, new(product), base, o)
	if f.warm {
		resp, err := c.Get(base)
		if err != nil {
			t.Fatal("the call before:", err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		close(s.seen)
		if f.idle {
			<-s.idle
		}
		sent.Store(0)
		s.acted.Store(0)
	}
	var body io.Reader
	if method != "GET" {
		body = strings.NewReader("payload")
	}
	req, err := http.NewRequest(method, base+"/path?query", body)
	if err != nil {
		t.Fatal(err)
	}
	if f.upload != 0 {
		req.ContentLength = f.upload
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(io.LimitReader(zeros{}, f.upload)), nil }
		req.Body, _ = req.GetBody()
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	start := time.Now()
	resp, err := c.Do(req)
	m.headers = time.Since(start)
	if !f.warm {
		close(s.seen)
	}
	if (resp == nil) == (err == nil) {
		t.Errorf("%s: response %v and error %v", method, resp, err)
	}
	if err != nil {
		m.gets = kindOfError(err)
	} else {
		var b []byte
		b, err = io.ReadAll(resp.Body)
		resp.Body.Close()
		m.gets = fmt.Sprintf("%d", resp.StatusCode)
		if err != nil {
			m.gets += fmt.Sprintf(", then from the body: %s", kindOfError(err))
		} else if len(b) == 0 && method != "GET" && resp.StatusCode != 407 {
			t.Errorf("%s: an empty body", method)
		}
	}
	took := time.Since(start)
	m.sent, m.acted = sent.Load(), s.acted.Load()
	silent := strings.Contains(m.gets, "Timeout()") || strings.Contains(m.gets, "Deadline")
	switch whole := time.Duration(m.sent) * o.AttemptTimeout; {
	case err == nil && (m.sent == 1 || f.moved):
		m.lasts = "as the server takes"
	case silent && took.Truncate(100*time.Millisecond) == whole: // the waits between attempts are shorter
		m.lasts = fmt.Sprintf("%d × `attempt_timeout`", m.sent)
	case silent:
		m.lasts = took.String()
	case m.sent > 1:
		m.lasts = "the waits"
	default:
		m.lasts = "at once"
	}
}

// kindOfError names an error as the table does. Errors of one kind differ from run to run.
func kindOfError(err error) string {
	var (
		cert *tls.CertificateVerificationError
		dns  *net.DNSError
		op   *net.OpError
		n    net.Error
		bad  x509.CertificateInvalidError
	)
	has := func(s string) bool { return strings.Contains(err.Error(), s) }
	switch {
	case errors.Is(err, context.DeadlineExceeded) && errors.As(err, &n) && n.Timeout():
		return "`context.DeadlineExceeded`"
	case errors.As(err, &n) && n.Timeout():
		return "a `net.Error` with `Timeout()`"
	case errors.Is(err, auth.ErrProtocol) && has("HTTP 407"):
		return "`auth.ErrProtocol` that names 407"
	case errors.Is(err, auth.ErrProtocol):
		return "`auth.ErrProtocol`"
	case errors.As(err, &cert), errors.As(err, &bad):
		return "`*tls.CertificateVerificationError`"
	case errors.As(err, &dns) && dns.IsNotFound:
		return "`*net.DNSError`"
	case errors.As(err, &op) && op.Op == "remote error":
		return "the TLS alert"
	case has("first record does not look like a TLS handshake"), has("HTTP response to HTTPS client"):
		return "an error that says so"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "`ECONNREFUSED`"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET),
		errors.Is(err, syscall.EPIPE), errors.Is(err, net.ErrClosed), has("server closed idle connection"):
		return "the connection's error"
	case has("Bad Gateway"):
		return "the proxy's status as an error"
	}
	return err.Error()
}

// TestFaults measures the table of docs/transport.md, and fails if a request that is not idempotent is
// processed twice or if a call hangs.
func TestFaults(t *testing.T) {
	t.Parallel()
	ca := testpki.New(t)
	rows := faults(t, ca)
	table := make([][]measured, len(rows))
	t.Run("rows", func(t *testing.T) {
		for i, f := range rows {
			table[i] = make([]measured, len(kinds))
			t.Run(f.name, func(t *testing.T) {
				t.Parallel()
				for j, k := range kinds {
					if f.upload != 0 && k.method == "GET" {
						continue
					}
					m := measure(t, ca, f, k.method, k.key, time.Minute)
					table[i][j] = m
					if m.sent > 4 || m.acted > 5 {
						t.Errorf("%s: %d attempts acted %d times", k.name, m.sent, m.acted)
					}
					if k.name == "POST" && m.acted > 1 {
						t.Errorf("a POST acted %d times", m.acted)
					}
				}
			})
		}
	})
	checkDoc(t, "../docs/transport.md", "faults", render(rows, table))
}

// With a timeout below attempt_timeout, the response or the error comes in time. But the beginning of an
// error's body is read before the response is returned, and its silence may last attempt_timeout.
func TestNoFaultOutlastsTimeout(t *testing.T) {
	t.Parallel()
	const timeout = faultAttempt / 3
	ca := testpki.New(t)
	for _, f := range faults(t, ca) {
		if !f.silence || f.upload != 0 { // ended by the silence of the upload, see TestFaults
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			m := measure(t, ca, f, "PUT", "", timeout)
			limit := timeout
			if strings.HasPrefix(m.gets, "404") {
				limit = faultAttempt
			}
			if m.headers > limit {
				t.Errorf("after %s: %s", m.headers, m.gets)
			}
		})
	}
}

// Headers without end are cut off at 10 MiB.
func TestFloodOfHeaders(t *testing.T) {
	t.Parallel()
	s := serveFaults(t, nil, flood)
	c := client(t, new(product), "http://"+s.addr, transport.Options{})
	if _, err := c.Post("http://"+s.addr, "text/plain", strings.NewReader("x")); !errors.Is(err, auth.ErrProtocol) {
		t.Error(err)
	}
}

// render returns the table as Markdown.
func render(rows []fault, table [][]measured) string {
	var b strings.Builder
	b.WriteString("| fault |")
	for _, k := range kinds {
		fmt.Fprintf(&b, " %s |", k.name)
	}
	b.WriteString(" the caller gets | lasts |\n|---|---|---|---|---|---|---|\n")
	for i, f := range rows {
		fmt.Fprintf(&b, "| %s |", f.name)
		for _, m := range table[i] {
			if m.gets == "" {
				b.WriteString(" – |")
				continue
			}
			fmt.Fprintf(&b, " %d / %d |", m.sent, m.acted)
		}
		fmt.Fprintf(&b, " %s | %s |\n", together(table[i], func(m measured) string { return m.gets }),
			together(table[i], func(m measured) string { return m.lasts }))
	}
	return b.String()
}

// together returns what all kinds have in common, or the most common value and each exception.
func together(row []measured, of func(measured) string) string {
	var said []string
	who := map[string][]string{}
	for j, m := range row {
		if v := of(m); v != "" {
			if who[v] == nil {
				said = append(said, v)
			}
			who[v] = append(who[v], kinds[j].name)
		}
	}
	if len(said) == 1 {
		return said[0]
	}
	slices.SortStableFunc(said, func(a, b string) int { return len(who[b]) - len(who[a]) })
	for i, v := range said[1:] {
		said[i+1] = strings.Join(who[v], ", ") + ": " + v
	}
	return strings.Join(said, "; ")
}

// checkDoc compares the part of a document between <!-- name --> and <!-- /name --> with want, or writes
// it with -update.
func checkDoc(t *testing.T, path, name, want string) {
	t.Helper()
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := bytes.Cut(doc, fmt.Appendf(nil, "<!-- %s -->\n", name))
	got, tail, ok2 := bytes.Cut(rest, fmt.Appendf(nil, "<!-- /%s -->", name))
	if !ok || !ok2 {
		t.Fatalf("%s has no part %s", path, name)
	}
	if *update {
		doc = fmt.Appendf(nil, "%s<!-- %s -->\n%s<!-- /%s -->%s", head, name, want, name, tail)
		if err := os.WriteFile(path, doc, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(strings.Split(string(got), "\n"), strings.Split(want, "\n")); d != "" {
		t.Errorf("%s does not say what was measured (go test ./transport -run TestFaults -update writes it):\n%s", path, d)
	}
}

// Which bodies are resent, if the method may be retried.
func TestFaultsByBody(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		size     int64
		getBody  bool
		chunked  bool
		attempts int64
	}{
		"GetBody":                   {100, true, false, 4},
		"large with GetBody":        {3 << 20, true, false, 4},
		"small without":             {100, false, false, 4},
		"small without, chunked":    {100, false, true, 4},
		"just max_replay_body":      {1 << 20, false, false, 4},
		"above max_replay_body":     {1<<20 + 1, false, false, 1},
		"much above it, unmeasured": {3 << 20, false, true, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var whole atomic.Int64
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if n, err := io.Copy(io.Discard, r.Body); err != nil || n != test.size {
					t.Errorf("%d of %d bytes, %v", n, test.size, err)
				}
				whole.Add(1)
				panic(http.ErrAbortHandler)
			}))
			defer srv.Close()
			c := client(t, new(product), srv.URL, transport.Options{Retry: quick})
			next := func() (io.ReadCloser, error) { return io.NopCloser(io.LimitReader(zeros{}, test.size)), nil }
			req, _ := http.NewRequest("PUT", srv.URL, nil)
			req.Body, _ = next()
			if !test.chunked {
				req.ContentLength = test.size
			}
			if test.getBody {
				req.GetBody = next
			}
			if _, err := c.Do(req); err == nil {
				t.Error("no error")
			}
			if whole.Load() != test.attempts {
				t.Errorf("%d attempts, want %d", whole.Load(), test.attempts)
			}
		})
	}
}
