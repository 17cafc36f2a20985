package transport_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/emulator/memnet"
	"github.com/itsmauth/itsmauth/internal/testpki"
	"github.com/itsmauth/itsmauth/transport"
)

// refusals are the ways in which a server, or the network, does not process a request and net/http can know
// it. refuse reports whether a request is one of those.
var refusals = []struct {
	name  string
	http2 bool
	ours  bool  // net/http resends only a GET then
	more  int64 // how many times in a row, after the first
	play  func(c *peer, refuse func() bool)
	dial  func(dial dialFunc, refuse func() bool) (_ dialFunc, gotConn func())
}{
	{name: "REFUSED_STREAM", http2: true, play: func(c *peer, refuse func() bool) {
		c.http2(func(stream string) string {
			if refuse() {
				return refusedStream(stream)
			}
			return ok2(stream)
		})
	}},
	{name: "GOAWAY above the last stream", http2: true, play: func(c *peer, refuse func() bool) {
		c.http2(func(stream string) string {
			if refuse() {
				return goAway(0)
			}
			return ok2(stream)
		})
	}},
	{name: "GOAWAY from many connections", http2: true, more: 40, play: func(c *peer, refuse func() bool) {
		c.http2(func(stream string) string {
			if refuse() {
				return goAway(0)
			}
			return ok2(stream)
		})
	}},
	{name: "idle connection that breaks before the request is written", play: func(c *peer, _ func() bool) {
		for c.act() {
			c.say(ok)
		}
	}, dial: func(dial dialFunc, refuse func() bool) (dialFunc, func()) {
		return func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			return &breaking{conn, refuse}, err
		}, func() {}
	}},
	{name: "idle connection that closes between its choice and the writing", ours: true, play: func(c *peer, _ func() bool) {
		for c.act() {
			c.say(ok)
		}
	}, dial: func(dial dialFunc, refuse func() bool) (dialFunc, func()) {
		var latest *closing
		return func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := dial(ctx, network, addr)
				latest = &closing{Conn: conn, closed: make(chan struct{})}
				return latest, err
			}, func() {
				if refuse() {
					latest.byServer.Store(true)
					latest.Conn.Close()
					<-latest.closed
				}
			}
	}},
}

type dialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// breaking is a connection whose Write fails where refuse says so.
type breaking struct {
	net.Conn
	refuse func() bool
}

func (b *breaking) Write(p []byte) (int, error) {
	if b.refuse() {
		return 0, syscall.EPIPE
	}
	return b.Conn.Write(p)
}

// closing is a connection that the server may close.
type closing struct {
	net.Conn
	byServer atomic.Bool
	closed   chan struct{} // closed when we close it
	once     sync.Once
}

func (c *closing) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.byServer.Load() {
		err = io.EOF
	}
	return n, err
}

func (c *closing) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// What the server has not processed is sent again, whatever the method, in the same attempt and with the
// same slot, if the body can be sent again.
func TestSafeResends(t *testing.T) {
	t.Parallel()
	bodies := map[string]struct {
		body  func() io.Reader
		fails bool // it cannot be sent again
	}{
		"no body":            {func() io.Reader { return nil }, false},
		"GetBody":            {func() io.Reader { return strings.NewReader("done") }, false},
		"without GetBody":    {func() io.Reader { return io.NopCloser(strings.NewReader("done")) }, false},
		"more than is kept":  {func() io.Reader { return io.NopCloser(io.LimitReader(zeros{}, 2<<10)) }, true},
		"GetBody, long body": {func() io.Reader { return strings.NewReader(strings.Repeat("x", 2<<10)) }, false},
	}
	for _, r := range refusals {
		for _, method := range []string{"GET", "PUT", "POST", "PATCH"} {
			for with, b := range bodies {
				t.Run(fmt.Sprint(r.name, ", ", method, ", ", with), func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) {
						const refused = 2 // the number of the request
						var seen, attempts atomic.Int64
						l := memnet.Listen()
						dial, gotConn := dialFunc(l.Dial), func() {}
						refuse := func() bool {
							n := seen.Add(1)
							return n >= refused && n <= refused+r.more
						}
						if r.dial != nil {
							dial, gotConn = r.dial(dial, refuse)
						}
						ca := testpki.New(t)
						base, config := "http://api.example.com", (*tls.Config)(nil)
						if r.http2 {
							base = "https://api.example.com"
							config = &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, "api.example.com", time.Now().Add(time.Hour))}, NextProtos: []string{"h2"}}
						}
						serveFaultsOn(t, l, config, func(_ *faultServer, c *peer) { r.play(c, refuse) })
						c := client(t, new(product), base, inMemory(dial, transport.Options{
							Limiter: transport.NewLimiter([]auth.Limit{{Requests: refused, Per: time.Hour}}, 1),
							TLS:     &tls.Config{RootCAs: ca.Pool()}, MaxReplayBody: 1 << 10, Retry: transport.Retry{MaxAttempts: 1},
							Wrap: func(next http.RoundTripper) http.RoundTripper {
								return roundTrip(func(r *http.Request) (*http.Response, error) { attempts.Add(1); return next.RoundTrip(r) })
							}}))
						do := func(method string, body io.Reader) error {
							ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { gotConn() }})
							req, _ := http.NewRequestWithContext(ctx, method, base+"/", body)
							resp, err := c.Do(req)
							if err == nil {
								io.Copy(io.Discard, resp.Body)
								resp.Body.Close()
							}
							return err
						}
						if err := do("GET", nil); err != nil {
							t.Fatal(err)
						}
						fails := b.fails && r.http2 // over HTTP/1 nothing of the body was read
						if err := do(method, b.body()); (err != nil) != fails || fails && !strings.Contains(err.Error(), "max_replay_body") {
							t.Errorf("the refused call: %v", err)
						}
						wrapped := int64(refused)
						if r.ours && method != "GET" { // a Wrap sees our own resends
							wrapped++
						}
						if attempts.Load() != wrapped {
							t.Errorf("a Wrap saw %d requests, want %d", attempts.Load(), wrapped)
						}
						if err := do("GET", nil); !errors.Is(err, auth.ErrRateLimited) {
							t.Errorf("one more: %v; the limit is used up", err)
						}
					})
				})
			}
		}
	}
}

// POSTs to a server that closes connections after 20 ms without a request. If one fails, its request had
// been written: an http.Client loses these too.
func TestIdleConnectionsThatClose(t *testing.T) {
	t.Parallel()
	const idle = 20 * time.Millisecond
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprint("TLS ", secure), func(t *testing.T) {
			t.Parallel()
			var acted atomic.Int64
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				acted.Add(1)
			}))
			srv.Config.IdleTimeout = idle
			o := transport.Options{Limiter: transport.NewLimiter([]auth.Limit{{Requests: 1 << 20, Per: time.Hour}}, 0)}
			if secure {
				srv.StartTLS()
				o.TLS = srv.Client().Transport.(*http.Transport).TLSClientConfig
			} else {
				srv.Start()
			}
			defer srv.Close()
			var conns sync.Map // *counting by local address
			dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := new(net.Dialer).DialContext(ctx, network, addr)
				if err != nil {
					return nil, err
				}
				c := &counting{Conn: conn}
				conns.Store(conn.LocalAddr().String(), c)
				return c, nil
			}
			c := client(t, new(product), srv.URL, inMemory(dial, o))
			var wg sync.WaitGroup
			var failed atomic.Int64
			for i := range 8 {
				wg.Go(func() {
					for j := range 25 {
						time.Sleep(idle + time.Duration(i*j%7-3)*100*time.Microsecond) // real time: the race is with the server's timer
						var on *counting
						var before int64
						ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) {
							found, _ := conns.Load(got.Conn.LocalAddr().String())
							on = found.(*counting)
							before = on.written.Load()
						}})
						req, _ := http.NewRequestWithContext(ctx, "POST", srv.URL, strings.NewReader("body"))
						resp, err := c.Do(req)
						if err != nil {
							if failed.Add(1); on == nil || on.written.Load() == before {
								t.Errorf("lost before the writing: %v", err)
							}
							continue
						}
						io.Copy(io.Discard, resp.Body)
						resp.Body.Close()
					}
				})
			}
			wg.Wait()
			t.Logf("%d lost after the writing, %d processed", failed.Load(), acted.Load())
			if n := acted.Load(); n > 8*25 {
				t.Errorf("%d POSTs processed, of %d", n, 8*25)
			}
		})
	}
}

// counting counts the writes that succeed and are longer than a TLS alert.
type counting struct {
	net.Conn
	written atomic.Int64
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if n > 75 {
		c.written.Add(1)
	}
	return n, err
}

// A server that never processes anything is not asked without end: an attempt sends twice over the same
// connection and 51 times over new ones, and the retry policy decides on further ones, each with a slot of its own.
func TestResendsAreBounded(t *testing.T) {
	t.Parallel()
	reset := func(stream string) string { return frame(3, 0, stream, "\x00\x00\x00\x01") } // PROTOCOL_ERROR
	early := func(stream string) string { return frame(1, 4, stream, "\x08\x03103") }      // :status 103
	for name, test := range map[string]struct {
		say             func(stream string) string
		method          string
		want            int64
		text            string
		slots, attempts int
	}{
		"REFUSED_STREAM":                   {refusedStream, "POST", 6, "refused the HTTP/2 streams", 100, 3},
		"REFUSED_STREAM, one attempt":      {refusedStream, "POST", 2, "refused the HTTP/2 streams", 100, 1},
		"REFUSED_STREAM, GET":              {refusedStream, "GET", 6, "refused the HTTP/2 streams", 100, 3},
		"GOAWAY":                           {func(string) string { return goAway(0) }, "POST", 3 * 51, "ended the connections", 100, 3},
		"GOAWAY and a limit of 2":          {func(string) string { return goAway(0) }, "POST", 2 * 51, "ended the connections", 2, 3},
		"PROTOCOL_ERROR":                   {reset, "POST", 1, "PROTOCOL_ERROR", 100, 3},
		"PROTOCOL_ERROR, PATCH":            {reset, "PATCH", 1, "PROTOCOL_ERROR", 100, 3},
		"PROTOCOL_ERROR after a 103":       {func(stream string) string { return early(stream) + reset(stream) }, "POST", 1, "PROTOCOL_ERROR", 100, 3},
		"PROTOCOL_ERROR, GET":              {reset, "GET", 3, "PROTOCOL_ERROR", 100, 3},
		"PROTOCOL_ERROR, PUT, one attempt": {reset, "PUT", 1, "PROTOCOL_ERROR", 100, 1},
	} {
		for with, body := range map[string]func() io.Reader{
			"no body": func() io.Reader { return nil },
			"body":    func() io.Reader { return strings.NewReader("done") },
			"stream":  func() io.Reader { return io.NopCloser(strings.NewReader("done")) },
		} {
			t.Run(name+", "+with, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					l := memnet.Listen()
					ca := testpki.New(t)
					config := &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, "api.example.com", time.Now().Add(time.Hour))}, NextProtos: []string{"h2"}}
					var seen atomic.Int64
					serveFaultsOn(t, l, config, func(_ *faultServer, c *peer) {
						c.http2(func(stream string) string { seen.Add(1); return test.say(stream) })
					})
					c := client(t, new(product), "https://api.example.com", inMemory(l.Dial, transport.Options{
						Limiter: transport.NewLimiter([]auth.Limit{{Requests: test.slots, Per: time.Hour}}, 0),
						TLS:     &tls.Config{RootCAs: ca.Pool()}, Retry: transport.Retry{MaxAttempts: test.attempts}}))
					req, _ := http.NewRequest(test.method, "https://api.example.com/", body())
					if _, err := c.Do(req); err == nil || !strings.Contains(err.Error(), test.text) {
						t.Errorf("%v, want %q", err, test.text)
					}
					if seen.Load() != test.want {
						t.Errorf("the server saw %d requests, want %d", seen.Load(), test.want)
					}
				})
			})
		}
	}
}
