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
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/emulator/memnet"
	"github.com/itsmauth/itsmauth/internal/testpki"
	"github.com/itsmauth/itsmauth/transport"
)

// The rules of net/http.RoundTripper and net/http.Client.

// byPath has a path for each way in which a call can end.
func byPath(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/refused": // the token
		io.Copy(io.Discard, r.Body)
		http.Error(w, "token", http.StatusUnauthorized)
	case "/unavailable":
		io.Copy(io.Discard, r.Body)
		w.WriteHeader(503)
	case "/throttled":
		io.Copy(io.Discard, r.Body)
		w.WriteHeader(429)
	case "/early": // responds without reading the body
		w.WriteHeader(400)
	case "/reset":
		panic(http.ErrAbortHandler)
	case "/cut":
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Length", "100")
		io.WriteString(w, "cut")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	case "/redirect":
		http.Redirect(w, r, "/ok", http.StatusTemporaryRedirect)
	case "/silent":
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	case "/silent-body":
		io.Copy(io.Discard, r.Body)
		w.(http.Flusher).Flush()
		if r.Method != "HEAD" { // its connection is reused
			<-r.Context().Done()
		}
	case "/nothing":
		io.Copy(io.Discard, r.Body)
		w.WriteHeader(204)
	default:
		io.Copy(w, r.Body)
	}
}

func paths(t testing.TB) *httptest.Server {
	srv := httptest.NewServer(http.HandlerFunc(byPath))
	t.Cleanup(srv.Close)
	return srv
}

var everyPath = []string{"/ok", "/refused", "/unavailable", "/throttled", "/early", "/reset", "/cut", "/redirect", "/nothing"}

// RoundTrip does not change the request, returns a response or an error, and is safe for concurrent use.
func TestRoundTripperRules(t *testing.T) {
	t.Parallel()
	srv := paths(t)
	rt, err := transport.New(auth.New(new(product), nil), &transport.Options{BaseURL: parse(t, srv.URL), Retry: quick, UserAgent: "ours"})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		for _, path := range everyPath {
			for _, method := range []string{"GET", "PUT", "POST"} {
				wg.Go(func() {
					var b io.ReadCloser
					if method != "GET" {
						b = io.NopCloser(strings.NewReader("payload"))
					}
					req, _ := http.NewRequestWithContext(t.Context(), method, srv.URL+path+"?a=b", b)
					req.Header = http.Header{"Authorization": {"mine"}, "x-own": {"1", "2"}, "User-Agent": nil}
					req.Trailer = http.Header{"T": nil}
					before, headers, url := *req, req.Header.Clone(), *req.URL
					resp, err := rt.RoundTrip(req)
					if (resp == nil) == (err == nil) {
						t.Errorf("%s %s: %v and %v", method, path, resp, err)
					}
					if err == nil {
						if resp.Body == nil || resp.Request != req {
							t.Errorf("%s %s: body %v of request %v", method, path, resp.Body, resp.Request)
						}
						io.Copy(io.Discard, resp.Body)
						resp.Body.Close()
						resp.Body.Close()
					}
					for i := range reflect.TypeFor[http.Request]().NumField() {
						was, is := reflect.ValueOf(before).Field(i), reflect.ValueOf(*req).Field(i)
						if f := reflect.TypeFor[http.Request]().Field(i); f.IsExported() && f.Type.Kind() != reflect.Func && !reflect.DeepEqual(was.Interface(), is.Interface()) {
							t.Errorf("%s %s: %s was changed", method, path, f.Name)
						}
					}
					if !reflect.DeepEqual(headers, req.Header) || url != *req.URL {
						t.Errorf("%s %s: now %v %v", method, path, req.URL, req.Header)
					}
				})
			}
		}
	}
	wg.Wait()
}

// gate is a request body of one piece, after which Read blocks until Close.
type gate struct {
	first  atomic.Bool
	reads  chan struct{} // closed when Read blocks
	done   chan struct{}
	closed atomic.Int64
}

func newGate() *gate { return &gate{reads: make(chan struct{}), done: make(chan struct{})} }

func (g *gate) Read(b []byte) (int, error) {
	if g.first.CompareAndSwap(false, true) {
		return copy(b, "first"), nil
	}
	select {
	case <-g.reads:
	default:
		close(g.reads)
	}
	<-g.done
	return 0, errors.New("closed")
}

func (g *gate) Close() error {
	if g.closed.Add(1) == 1 {
		close(g.done)
	}
	return nil
}

// The caller's body is closed once, however the call ends. See also TestBodyIsClosedOnce.
func TestBodyIsClosedOnceWhenCutOff(t *testing.T) {
	t.Parallel()
	srv := paths(t)
	closedOnce := func(t *testing.T, closed *atomic.Int64) {
		t.Helper()
		for range 10_000 { // net/http may close it a little later
			if closed.Load() > 0 {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if n := closed.Load(); n != 1 {
			t.Errorf("closed %d times", n)
		}
	}
	t.Run("cancelled while the body is read", func(t *testing.T) {
		t.Parallel()
		c := client(t, new(product), srv.URL, transport.Options{})
		ctx, cancel := context.WithCancel(t.Context())
		g := newGate()
		req, _ := http.NewRequestWithContext(ctx, "POST", srv.URL+"/ok", g)
		go func() { <-g.reads; cancel() }()
		if _, err := c.Do(req); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		closedOnce(t, &g.closed)
	})
	t.Run("silent body", func(t *testing.T) {
		t.Parallel()
		c := client(t, new(product), srv.URL, transport.Options{AttemptTimeout: 100 * time.Millisecond})
		g := newGate()
		req, _ := http.NewRequest("POST", srv.URL+"/ok", g)
		if _, err := c.Do(req); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		closedOnce(t, &g.closed)
	})
	t.Run("answered while the body is read", func(t *testing.T) {
		t.Parallel()
		g := newGate()
		early := serveFaults(t, nil, func(s *faultServer, c *peer) {
			if _, err := http.ReadRequest(c.r); err == nil {
				c.say("HTTP/1.1 400 Bad Request\r\nContent-Length: 4\r\n\r\ndone")
			}
			<-s.gone
		})
		c := client(t, new(product), "http://"+early.addr, transport.Options{})
		req, _ := http.NewRequest("PUT", "http://"+early.addr, g)
		resp, err := c.Do(req)
		if err != nil || resp.StatusCode != 400 {
			t.Fatal(resp, err)
		}
		resp.Body.Close()
		closedOnce(t, &g.closed)
	})
	t.Run("cancelled in the wait before a retry", func(t *testing.T) {
		t.Parallel()
		c := client(t, new(product), srv.URL, transport.Options{Retry: transport.Retry{MinBackoff: time.Hour, MaxBackoff: time.Hour}, Timeout: 1000 * time.Hour})
		b := &body{Reader: strings.NewReader("x")}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		req, _ := http.NewRequestWithContext(ctx, "PUT", srv.URL+"/unavailable", b)
		time.AfterFunc(100*time.Millisecond, cancel)
		c.Do(req)
		closedOnce(t, &b.closed)
	})
	t.Run("no slot", func(t *testing.T) {
		t.Parallel()
		lim := transport.NewLimiter([]auth.Limit{{Requests: 1, Per: time.Hour}}, 0)
		c := client(t, new(product), srv.URL, transport.Options{Limiter: lim})
		for want := range 2 {
			b := &body{Reader: strings.NewReader("x")}
			req, _ := http.NewRequest("POST", srv.URL+"/nothing", b)
			if _, err := c.Do(req); errors.Is(err, auth.ErrRateLimited) != (want == 1) {
				t.Error(err)
			}
			closedOnce(t, &b.closed)
		}
	})
	t.Run("no token", func(t *testing.T) {
		t.Parallel()
		s := auth.New(&failing{}, nil)
		c, err := transport.NewClient(s, &transport.Options{BaseURL: parse(t, srv.URL)})
		if err != nil {
			t.Fatal(err)
		}
		b := &body{Reader: strings.NewReader("x")}
		req, _ := http.NewRequest("POST", srv.URL+"/nothing", b)
		if _, err := c.Do(req); !errors.Is(err, auth.ErrCredentials) {
			t.Error(err)
		}
		closedOnce(t, &b.closed)
	})
	t.Run("GetBody fails", func(t *testing.T) {
		t.Parallel()
		c := client(t, new(product), srv.URL, transport.Options{Retry: quick})
		b := &body{Reader: strings.NewReader("x")}
		req, _ := http.NewRequest("PUT", srv.URL+"/unavailable", b)
		broken := errors.New("the file is gone")
		req.GetBody = func() (io.ReadCloser, error) { return nil, broken }
		if _, err := c.Do(req); !errors.Is(err, broken) {
			t.Error(err)
		}
		closedOnce(t, &b.closed)
	})
}

// failing is a provider whose credentials are refused.
type failing struct{ product }

func (*failing) Exchange(context.Context, *oauth2.Token) (*oauth2.Token, error) {
	return nil, &auth.Error{Op: "exchange", Err: auth.ErrCredentials}
}

// A body of which more is sent than kept, while the response is judged, is not resent in part.
func TestBodyIsNeverRepeatedInPart(t *testing.T) {
	t.Parallel()
	const size = 3 << 20
	s := serveFaults(t, nil, func(_ *faultServer, c *peer) {
		r, err := http.ReadRequest(c.r)
		if err != nil {
			return
		}
		if c.n == 1 {
			const page = 100 << 10 // more than Rejected reads, so the response is not over yet
			c.say(fmt.Sprintf("HTTP/1.1 401 Unauthorized\r\nContent-Length: %d\r\n\r\n%-*s", page, page, "token"))
		}
		if n, err := io.Copy(io.Discard, r.Body); err == nil && n != size {
			t.Errorf("request %d had %d of %d bytes", c.n, n, size)
		}
		c.say(ok)
		c.half()
	})
	e := &eager{sent: make(chan struct{}), exchange: make(chan struct{})}
	c, err := transport.NewClient(auth.New(e, nil), &transport.Options{BaseURL: parse(t, "http://"+s.addr)})
	if err != nil {
		t.Fatal(err)
	}
	req, _ := http.NewRequest("PUT", "http://"+s.addr, io.NopCloser(io.MultiReader(io.LimitReader(zeros{}, 64<<10), e, io.LimitReader(zeros{}, size-64<<10), &e.end)))
	resp, err := c.Do(req)
	if err != nil || resp.StatusCode != 401 {
		t.Fatal(resp, err)
	}
	resp.Body.Close()
}

// eager sends the rest of a body while the second exchange runs.
type eager struct {
	product
	end      eof
	sent     chan struct{}
	exchange chan struct{}
}

func (e *eager) Exchange(ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
	if e.made.Load() == 1 {
		e.end.reached = e.sent
		close(e.exchange)
		<-e.sent
	}
	return e.product.Exchange(ctx, prev)
}

func (e *eager) Read([]byte) (int, error) { <-e.exchange; return 0, io.EOF }

type eof struct{ reached chan struct{} }

func (e *eof) Read([]byte) (int, error) { close(e.reached); return 0, io.EOF }

// After an upgrade (WebSocket) the caller owns the connection, which counts as in flight until it is closed.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	s := serveFaults(t, nil, func(_ *faultServer, c *peer) {
		if !c.act() {
			return
		}
		c.say("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		io.Copy(c.Conn, c.r)
	})
	c := client(t, new(product), "http://"+s.addr, transport.Options{Limiter: transport.NewLimiter(nil, 1), Timeout: 20 * time.Second})
	for range 2 { // the second would be refused if the first still counted
		req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://"+s.addr, nil)
		req.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"echo"}}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		conn, is := resp.Body.(io.ReadWriteCloser)
		if resp.StatusCode != 101 || !is {
			t.Fatalf("%d, body %T", resp.StatusCode, resp.Body)
		}
		io.WriteString(conn, "hello\n")
		if line, err := bufio.NewReader(conn).ReadString('\n'); line != "hello\n" {
			t.Errorf("%q %v", line, err)
		}
		conn.Close()
	}
}

// A stream of events may be silent for longer than attempt_timeout, and ends when the caller closes it or
// its context ends. Other bodies may not be silent.
func TestEventStream(t *testing.T) {
	t.Parallel()
	for media, endless := range map[string]bool{
		"text/event-stream":                true,
		"Text/Event-Stream; charset=utf-8": true,
		"text/event-stream2":               false,
		"application/json":                 false,
	} {
		t.Run(media, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := serveInMemory(t, nil, func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Content-Type", media)
					for {
						io.WriteString(w, "data: x\n\n")
						w.(http.Flusher).Flush()
						select {
						case <-time.After(time.Hour):
						case <-r.Context().Done():
							return
						}
					}
				})
				c := client(t, new(product), "http://api.example.com", inMemory(l.Dial, transport.Options{Limiter: transport.NewLimiter(nil, 1)}))
				for range 2 { // the second would be refused if the first still counted
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					req, _ := http.NewRequestWithContext(ctx, "GET", "http://api.example.com/", nil)
					resp, err := c.Do(req)
					if err != nil {
						t.Fatal(err)
					}
					n, err := io.ReadFull(resp.Body, make([]byte, 3*len("data: x\n\n")))
					if endless != (err == nil) || !endless && (n != len("data: x\n\n") || !errors.Is(err, context.DeadlineExceeded)) {
						t.Errorf("%d bytes, %v", n, err)
					}
					if endless {
						time.AfterFunc(time.Minute, cancel)
						if _, err := resp.Body.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) {
							t.Errorf("after the caller has canceled: %v", err)
						}
					}
					resp.Body.Close()
				}
			})
		})
	}
}

// However a call ends, it no longer counts against max_concurrency.
func TestPlacesComeBack(t *testing.T) {
	t.Parallel()
	srv := paths(t)
	c := client(t, new(product), srv.URL, transport.Options{Retry: quick, Timeout: 10 * time.Second, AttemptTimeout: 5 * time.Second,
		Limiter: transport.NewLimiter(nil, 1)})
	for _, path := range append(everyPath, "/silent", "/silent-body") {
		for _, method := range []string{"GET", "HEAD", "PUT", "POST"} {
			ctx, cancel := context.WithCancel(t.Context())
			if strings.HasPrefix(path, "/silent") {
				time.AfterFunc(50*time.Millisecond, cancel)
			}
			var b io.Reader
			if method == "PUT" || method == "POST" {
				b = io.NopCloser(strings.NewReader("payload"))
			}
			req, _ := http.NewRequestWithContext(ctx, method, srv.URL+path, b)
			resp, err := c.Do(req)
			if errors.Is(err, auth.ErrRateLimited) {
				t.Fatalf("%s %s: no place", method, path)
			}
			if err == nil {
				if method != "POST" {
					io.Copy(io.Discard, resp.Body)
				}
				resp.Body.Close()
			}
			cancel()
		}
	}
}

// A call ends as soon as its context does, at any stage.
func TestCancellationIsPrompt(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		at      string
		p       auth.Provider
		limited bool
	}{
		"before the headers":   {"http://api.example.com/silent", new(product), false},
		"in the body":          {"http://api.example.com/silent-body", new(product), false},
		"between attempts":     {"http://api.example.com/unavailable", new(product), false},
		"in the exchange":      {"http://api.example.com/ok", hangingProvider{}, false},
		"in the queue":         {"http://api.example.com/ok", new(product), true},
		"in the TLS handshake": {"https://api.example.com/ok", new(product), false},
	} {
		for _, how := range []error{context.Canceled, context.DeadlineExceeded} {
			t.Run(name+" "+how.Error(), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					o := transport.Options{BaseURL: parse(t, test.at), Timeout: 1000 * time.Hour, AttemptTimeout: time.Hour,
						Retry: transport.Retry{MinBackoff: 100 * time.Hour, MaxBackoff: 100 * time.Hour}}
					if test.limited {
						o.Limiter = transport.NewLimiter([]auth.Limit{{Requests: 1, Per: time.Hour}}, 0)
					}
					var l *memnet.Listener
					if o.BaseURL.Scheme == "https" {
						l = memnet.Listen()
						serveFaultsOn(t, l, nil, func(s *faultServer, c *peer) { <-s.gone })
					} else {
						l = serveInMemory(t, nil, byPath)
					}
					o = inMemory(l.Dial, o)
					session := auth.New(test.p, nil)
					defer session.Close(t.Context())
					c, err := transport.NewClient(session, &o)
					if err != nil {
						t.Fatal(err)
					}
					defer c.CloseIdleConnections()
					if test.limited {
						resp, err := c.Get(test.at)
						if err != nil {
							t.Fatal(err)
						}
						resp.Body.Close()
					}
					const after = 300 * time.Millisecond
					// The context has no near deadline when the call begins: a wait that cannot fit would not be begun.
					ctx := &late{Context: t.Context(), done: make(chan struct{}), err: how}
					start := time.Now()
					time.AfterFunc(after, ctx.end)
					req, _ := http.NewRequestWithContext(ctx, "GET", test.at, nil)
					resp, err := c.Do(req)
					if err == nil {
						_, err = io.ReadAll(resp.Body)
						resp.Body.Close()
					}
					if took := time.Since(start); took != after {
						t.Errorf("after %s", took)
					}
					var n net.Error
					if !errors.Is(err, how) || errors.Is(how, context.DeadlineExceeded) != (errors.As(err, &n) && n.Timeout()) {
						t.Errorf("%v", err)
					}
				})
			})
		}
	}
}

// late is a context whose end, and error, the test decides.
type late struct {
	context.Context
	done chan struct{}
	err  error
}

func (l *late) Done() <-chan struct{} { return l.done }
func (l *late) end()                  { close(l.done) }
func (l *late) Err() error {
	select {
	case <-l.done:
		return l.err
	default:
		return nil
	}
}

// hangingProvider has a token endpoint that does not respond.
type hangingProvider struct{ *product }

func (hangingProvider) Exchange(ctx context.Context, _ *oauth2.Token) (*oauth2.Token, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// Each of our time limits is a context.DeadlineExceeded and a net.Error with Timeout.
func TestTimeoutsAreTimeouts(t *testing.T) {
	t.Parallel()
	srv := paths(t)
	hanging := serveFaults(t, nil, func(s *faultServer, c *peer) { <-s.gone })
	const short = 100 * time.Millisecond
	for name, test := range map[string]struct {
		at     string
		o      transport.Options
		client time.Duration
	}{
		"timeout":                        {srv.URL + "/silent", transport.Options{Timeout: short}, 0},
		"attempt_timeout":                {srv.URL + "/silent", transport.Options{AttemptTimeout: short, Retry: quick}, 0},
		"attempt_timeout in a body":      {srv.URL + "/silent-body", transport.Options{AttemptTimeout: short}, 0},
		"attempt_timeout in a handshake": {"https://" + hanging.addr, transport.Options{AttemptTimeout: short, Retry: quick}, 0},
		"http.Client.Timeout":            {srv.URL + "/silent", transport.Options{}, short},
		"http.Client.Timeout, body":      {srv.URL + "/silent-body", transport.Options{}, short},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := client(t, new(product), test.at, test.o)
			c.Timeout = test.client
			resp, err := c.Get(test.at)
			if err == nil {
				_, err = io.ReadAll(resp.Body)
				resp.Body.Close()
			}
			var n net.Error
			if !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &n) || !n.Timeout() {
				t.Errorf("%T %v", err, err)
			}
		})
	}
}

// Expect: 100-continue: the body is sent when the server asks for it, and not if it refuses.
func TestExpectContinue(t *testing.T) {
	t.Parallel()
	for _, status := range []int{100, 417} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := memnet.Listen()
				serveFaultsOn(t, l, nil, func(_ *faultServer, c *peer) {
					r, err := http.ReadRequest(c.r)
					if err != nil || r.Header.Get("Expect") != "100-continue" {
						t.Errorf("%v %v", r, err)
						return
					}
					if status == 417 {
						sent := make(chan int64)
						go func() { n, _ := io.Copy(io.Discard, c.r); sent <- n }()
						time.Sleep(time.Second / 2) // net/http sends the body after a second
						c.say("HTTP/1.1 417 Expectation Failed\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
						if n := <-sent; n != 0 {
							t.Errorf("%d bytes were sent nevertheless", n)
						}
						return
					}
					c.say("HTTP/1.1 100 Continue\r\n\r\n")
					if b, err := io.ReadAll(r.Body); string(b) != "payload" {
						t.Errorf("%q %v", b, err)
					}
					c.say(ok)
					c.half()
				})
				c := client(t, new(product), "http://api.example.com", inMemory(l.Dial, transport.Options{}))
				b := &body{Reader: strings.NewReader("payload")}
				req, _ := http.NewRequest("POST", "http://api.example.com/", b)
				req.ContentLength = 7
				req.Header.Set("Expect", "100-continue")
				resp, err := c.Do(req)
				if err != nil || resp.StatusCode != max(status, 200) {
					t.Fatal(resp, err)
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if n := b.closed.Load(); n != 1 {
					t.Errorf("closed %d times", n)
				}
			})
		})
	}
}

// If the token is rejected before the server asks for the body, nothing was uploaded and the replay is complete.
func TestExpectContinueRefusedToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := memnet.Listen()
		serveFaultsOn(t, l, nil, func(_ *faultServer, c *peer) {
			r, err := http.ReadRequest(c.r)
			if err != nil {
				return
			}
			if r.Header.Get("Authorization") == "Bearer T1" {
				go io.Copy(io.Discard, c.r)
				time.Sleep(time.Second / 2)
				c.say("HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Length: 5\r\n\r\ntoken")
				return
			}
			c.say("HTTP/1.1 100 Continue\r\n\r\n")
			if n, err := io.Copy(io.Discard, r.Body); n != 3<<20 {
				t.Errorf("%d bytes %v", n, err)
			}
			c.say(ok)
			c.half()
		})
		c := client(t, new(product), "http://api.example.com", inMemory(l.Dial, transport.Options{}))
		req, _ := http.NewRequest("POST", "http://api.example.com/", io.NopCloser(io.LimitReader(zeros{}, 3<<20))) // more than is ever kept
		req.Header.Set("Expect", "100-continue")
		resp, err := c.Do(req)
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
		resp.Body.Close()
	})
}

// A large body is sent without being kept. Not parallel: it measures the whole heap.
func TestLargeUploadIsNotKept(t *testing.T) {
	const size = 128 << 20
	s := serveFaults(t, nil, func(_ *faultServer, c *peer) {
		r, err := http.ReadRequest(c.r)
		if err != nil {
			return
		}
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r.Body, make([]byte, 1<<20))
		if err != nil || n != size {
			t.Errorf("%d bytes, %v", n, err)
		}
		c.say(ok)
		c.half()
	})
	c := client(t, new(product), "http://"+s.addr, transport.Options{})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	req, _ := http.NewRequest("PUT", "http://"+s.addr, io.NopCloser(io.LimitReader(zeros{}, size)))
	resp, err := c.Do(req)
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	resp.Body.Close()
	runtime.ReadMemStats(&after)
	if n := (after.TotalAlloc - before.TotalAlloc) >> 20; n > 16 { // freed memory included
		t.Errorf("%d MiB allocated", n)
	}
}

// Response bodies stream: the beginning can be read before the server sends the end.
func TestResponseStreams(t *testing.T) {
	t.Parallel()
	for _, status := range []int{200, 206} {
		half := make(chan struct{})
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(status)
			io.WriteString(w, "first")
			w.(http.Flusher).Flush()
			<-half
			io.WriteString(w, "second")
		}))
		defer srv.Close()
		c := client(t, new(product), srv.URL, transport.Options{})
		resp, err := c.Get(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 5)
		if _, err := io.ReadFull(resp.Body, b); string(b) != "first" {
			t.Fatal(string(b), err)
		}
		close(half)
		if rest, err := io.ReadAll(resp.Body); string(rest) != "second" {
			t.Error(string(rest), err)
		}
		resp.Body.Close()
	}
}

// A transfer may last ten minutes as long as data comes; silence ends it at attempt_timeout. TestTimeouts
// tests the same without a network.
func TestLongTransfers(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		transfer func(t *testing.T, pieces int) (got int, err error)
		pieces   int // of 30, then silence
		took     time.Duration
	}{
		"download":         {download, 30, 10 * time.Minute},
		"download, silent": {download, 1, 20*time.Second + attempt},
		"upload":           {upload, 30, 10 * time.Minute},
		"upload, silent":   {upload, 1, 20*time.Second + attempt},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				got, err := test.transfer(t, test.pieces)
				if took := time.Since(start); took != test.took || got != test.pieces ||
					errors.Is(err, context.DeadlineExceeded) != (test.pieces < 30) || err != nil && test.pieces == 30 {
					t.Errorf("%d pieces after %s: %v", got, took, err)
				}
			})
		})
	}
}

// The times of a long transfer.
const (
	pause   = 20 * time.Second // before each piece
	attempt = 30 * time.Second // the default
)

func download(t *testing.T, pieces int) (int, error) {
	l := serveInMemory(t, nil, func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		for range pieces {
			time.Sleep(pause)
			io.WriteString(w, "x")
			w.(http.Flusher).Flush()
		}
		if pieces < 30 {
			<-r.Context().Done()
		}
	})
	resp, err := client(t, new(product), "http://api.example.com", inMemory(l.Dial, transport.Options{})).Get("http://api.example.com/")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return len(b), err
}

func upload(t *testing.T, pieces int) (int, error) {
	var got atomic.Int64
	l := serveInMemory(t, nil, func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		got.Store(n)
	})
	var body io.Reader = &drip{ctx: t.Context(), every: pause, left: pieces}
	if pieces < 30 {
		ctx, cancel := context.WithCancel(t.Context())
		t.Cleanup(cancel)
		body = io.MultiReader(body, &drip{ctx: ctx, every: 1000 * time.Hour, left: 1})
	}
	resp, err := client(t, new(product), "http://api.example.com", inMemory(l.Dial, transport.Options{})).Post("http://api.example.com/", "text/plain", body)
	if err == nil {
		resp.Body.Close()
	}
	synctest.Wait()
	return int(got.Load()), err
}

// Silences do not add up: the handshake and the headers may each take most of attempt_timeout, on a new
// connection and on a reused one.
func TestSilencesDoNotAddUp(t *testing.T) {
	t.Parallel()
	for _, protocol := range []string{"http/1.1", "h2"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ca := testpki.New(t)
				config := &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, "api.example.com", time.Now().Add(time.Hour))}, NextProtos: []string{protocol}}
				config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
					time.Sleep(pause)
					return nil, nil
				}
				l := serveInMemory(t, config, func(http.ResponseWriter, *http.Request) { time.Sleep(pause) })
				c := client(t, new(product), "https://api.example.com", inMemory(l.Dial, transport.Options{
					TLS: &tls.Config{RootCAs: ca.Pool()}, Retry: transport.Retry{MaxAttempts: 1}}))
				for _, want := range []time.Duration{2 * pause, pause} {
					start := time.Now()
					resp, err := c.Get("https://api.example.com/")
					if err != nil || resp.TLS.NegotiatedProtocol != protocol || time.Since(start) != want {
						t.Fatal(resp, err, time.Since(start))
					}
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
			})
		})
	}
}

// An upload that goes on after the response headers keeps the call from timing out.
func TestUploadWhileTheAnswerWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := memnet.Listen()
		serveFaultsOn(t, l, nil, func(_ *faultServer, c *peer) {
			r, err := http.ReadRequest(c.r)
			if err != nil {
				return
			}
			c.say(ok[:len(ok)-4])
			io.Copy(io.Discard, r.Body)
			c.say(ok[len(ok)-4:])
			c.half()
		})
		c := client(t, new(product), "http://api.example.com", inMemory(l.Dial, transport.Options{}))
		slow := &drip{ctx: t.Context(), every: pause, left: 20}
		resp, err := c.Post("http://api.example.com/", "text/plain", io.MultiReader(io.LimitReader(zeros{}, 64<<10), slow))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if b, err := io.ReadAll(resp.Body); string(b) != "done" {
			t.Errorf("%q %v", b, err)
		}
	})
}

// A response from a Wrap may have no body.
func TestResponseWithoutBody(t *testing.T) {
	t.Parallel()
	for _, status := range []int{200, 401, 503} {
		c, err := transport.NewClient(auth.New(rejecting{new(product)}, nil), &transport.Options{
			BaseURL: parse(t, "https://api.example.com"), Retry: quick,
			Wrap: func(http.RoundTripper) http.RoundTripper {
				return roundTrip(func(*http.Request) (*http.Response, error) { return &http.Response{StatusCode: status}, nil })
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Get("https://api.example.com/")
		if err != nil || resp.StatusCode != status {
			t.Fatal(resp, err)
		}
		if b, err := io.ReadAll(resp.Body); len(b) != 0 || err != nil {
			t.Errorf("%d: %q %v", status, b, err)
		}
	}
}

// rejecting tells a rejected token by the status alone.
type rejecting struct{ *product }

func (rejecting) Rejects(resp *http.Response, _ []byte) bool { return resp.StatusCode == 401 }

// A request that net/http refuses to send is not retried.
func TestInvalidRequestIsTriedOnce(t *testing.T) {
	t.Parallel()
	srv := paths(t)
	for name, spoil := range map[string]func(*http.Request){
		"header name":  func(r *http.Request) { r.Header["X Y"] = []string{"1"} },
		"header value": func(r *http.Request) { r.Header["X"] = []string{"1\n2"} },
		"trailer name": func(r *http.Request) { r.Trailer = http.Header{"X Y": nil} },
	} {
		attempts := 0
		c := client(t, new(product), srv.URL, transport.Options{Retry: quick, Wrap: func(next http.RoundTripper) http.RoundTripper {
			return roundTrip(func(r *http.Request) (*http.Response, error) { attempts++; return next.RoundTrip(r) })
		}})
		req, _ := http.NewRequest("GET", srv.URL+"/ok", nil)
		spoil(req)
		if _, err := c.Do(req); err == nil || attempts != 1 {
			t.Errorf("%s: %d attempts, %v", name, attempts, err)
		}
	}
}

// A request body that fails to read is not retried.
func TestUnreadableBody(t *testing.T) {
	t.Parallel()
	s := serveFaults(t, nil, func(_ *faultServer, c *peer) { c.act() })
	c := client(t, new(product), "http://"+s.addr, transport.Options{Retry: quick})
	broken := errors.New("the disk is gone")
	req, _ := http.NewRequest("PUT", "http://"+s.addr, io.MultiReader(strings.NewReader("x"), iotest.ErrReader(broken)))
	if _, err := c.Do(req); !errors.Is(err, broken) || s.conns.Load() > 1 || s.acted.Load() != 0 {
		t.Errorf("%v, %d attempts", err, s.conns.Load())
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// net/http itself resends a GET if its reused connection broke. The product may see both, so both count
// against the limit.
func TestLimitHoldsWhereNetHTTPSendsAgain(t *testing.T) {
	t.Parallel()
	const fits, never, calls = 500 * time.Millisecond, time.Hour, 2
	for _, per := range []time.Duration{fits, never} {
		t.Run(per.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				var at []time.Time
				attempts := 0
				l := memnet.Listen()
				s := serveFaultsOn(t, l, nil, func(_ *faultServer, c *peer) {
					for c.read() {
						mu.Lock()
						at = append(at, time.Now())
						breaks := len(at) == calls
						mu.Unlock()
						if breaks {
							return
						}
						c.say(ok)
					}
				})
				c := client(t, new(product), "http://api.example.com", inMemory(l.Dial, transport.Options{
					Limiter:        transport.NewLimiter([]auth.Limit{{Requests: calls, Per: per}}, 1),
					AttemptTimeout: fits * 4 / 5, Retry: transport.Retry{MaxAttempts: 1},
					Wrap: func(next http.RoundTripper) http.RoundTripper {
						return roundTrip(func(r *http.Request) (*http.Response, error) { attempts++; return next.RoundTrip(r) })
					}}))
				for i := range calls {
					resp, err := c.Get("http://api.example.com")
					if last := i == calls-1; last && per == never {
						if !errors.Is(err, auth.ErrRateLimited) {
							t.Error(resp, err)
						}
						continue
					}
					if err != nil {
						t.Fatal(err)
					}
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				time.Sleep(time.Minute) // for requests that should not come
				mu.Lock()
				defer mu.Unlock()
				if s.conns.Load() != 2 || attempts != calls {
					t.Fatalf("%d connections, %d attempts: not the case that is meant", s.conns.Load(), attempts)
				}
				want := calls
				if per == fits {
					want++
				}
				if len(at) != want {
					t.Fatalf("%d requests, want %d", len(at), want)
				}
				if took := at[len(at)-1].Sub(at[0]); per == fits && took <= per {
					t.Errorf("%d requests within %s", len(at), took)
				}
			})
		})
	}
}

// A failed call closes no connection but its own.
func TestFailureKeepsThePool(t *testing.T) {
	t.Parallel()
	const width = 8
	var opened atomic.Int64
	meet := make(chan struct{}, width)
	all := make(chan struct{})
	var once sync.Once
	inner := paths(t).Config.Handler
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/together" {
			meet <- struct{}{}
			if len(meet) == width {
				once.Do(func() { close(all) })
			}
			<-all
			return
		}
		inner.ServeHTTP(w, r)
	}))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			opened.Add(1)
		}
	}
	srv.Start()
	defer srv.Close()
	c := client(t, new(product), srv.URL, transport.Options{Retry: quick})
	get := func(ctx context.Context, method, path string) {
		req, _ := http.NewRequestWithContext(ctx, method, srv.URL+path, nil)
		if resp, err := c.Do(req); err == nil {
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	}
	var wg sync.WaitGroup
	for range width {
		wg.Go(func() { get(t.Context(), "GET", "/together") })
	}
	wg.Wait()
	before := opened.Load()
	if before < width {
		t.Fatalf("%d connections, want %d", before, width)
	}
	get(t.Context(), "GET", "/unavailable") // 4 attempts
	get(t.Context(), "POST", "/throttled")
	get(t.Context(), "GET", "/refused")
	get(t.Context(), "POST", "/early")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	get(ctx, "GET", "/silent")  // takes 1
	get(ctx, "POST", "/silent") // none: its context has ended
	for range width {
		get(t.Context(), "GET", "/ok")
	}
	for len(meet) > 0 {
		<-meet
	}
	all, once = make(chan struct{}), sync.Once{}
	for range width {
		wg.Go(func() { get(t.Context(), "GET", "/together") })
	}
	wg.Wait()
	if n := opened.Load() - before; n > 1 {
		t.Errorf("%d connections had to be opened again", n)
	}
}

// http.Client's error about a Location that does not parse quotes it, and a server may have put our token
// there. A redirect that is not followed is returned without it.
func TestUnreadableLocation(t *testing.T) {
	t.Parallel()
	const location = "http://%zz/?t=Bearer_SECRET"
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		status, _ := strconv.Atoi(r.URL.Path[1:])
		w.Header().Set("Location", location)
		w.WriteHeader(status)
		io.WriteString(w, "body")
	}))
	defer srv.Close()
	clients := map[string]*http.Client{
		"calls":     client(t, new(product), srv.URL, transport.Options{}),
		"exchanges": transport.NewExchanger(nil),
	}
	for who, c := range clients {
		for _, status := range []int{201, 300, 301, 302, 303, 307, 308} {
			for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE"} {
				for with, body := range map[string]io.Reader{"no body": nil, "body": strings.NewReader("x"), "stream": io.NopCloser(strings.NewReader("x"))} {
					req, _ := http.NewRequest(method, srv.URL+"/"+strconv.Itoa(status), body)
					resp, err := c.Do(req)
					followed := who == "calls" && status > 300
					switch {
					case status == 301, status == 302:
						followed = followed && (method == "GET" || method == "HEAD")
					case status > 303:
						followed = followed && with != "stream"
					}
					name := fmt.Sprint(who, " ", status, " ", method, " ", with)
					switch {
					case err != nil:
						if !followed || !errors.Is(err, auth.ErrProtocol) || !strings.Contains(err.Error(), "unreadable Location") || strings.Contains(err.Error(), "SECRET") {
							t.Errorf("%s: %v", name, err)
						}
						continue
					case followed:
						t.Errorf("%s: %s", name, resp.Status)
					}
					got, err := io.ReadAll(resp.Body)
					resp.Body.Close()
					if err != nil || resp.StatusCode != status || method != "HEAD" && string(got) != "body" {
						t.Errorf("%s: %s %q %v", name, resp.Status, got, err)
					}
				}
			}
		}
	}
}
