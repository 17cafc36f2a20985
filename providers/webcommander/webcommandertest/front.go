package webcommandertest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

const (
	maxBody     = 1 << 20
	maxRaw      = 1 << 20
	maxRequests = 1000
)

// A Request is one request as the server got it. It is not to be changed.
type Request struct {
	Time   time.Time
	Method string
	Path   string
	// Query is raw, without the question mark.
	Query string
	// Header has each name as it was spelled on the wire, Host included; index it, since
	// [http.Header.Get] changes the spelling.
	Header http.Header
	// Wire is the request line and the headers as they came, the empty line included. It is nil,
	// and Header spelled by net/http, if the Server is mounted in another one.
	Wire []byte
	// Body is at most 1 MiB of it.
	Body []byte
	// Status is that of the answer, 0 as long as there is none.
	Status int
}

// front is what stands before the product, the same in each emulator: the listener, the record of
// what came over the wire, and the hooks. Its mutex guards the product's state too.
type front struct {
	http    http.Server
	running sync.WaitGroup // the accept loop and the handlers

	mu         sync.Mutex
	closed     bool
	stats      Stats
	requests   []*Request
	raw        []byte
	throttle   int
	retryAfter string
	delay      time.Duration
	onAny      hook
	onToken    hook
}

type hook = func(http.ResponseWriter, *http.Request) bool

// start serves h on l, by default a free port of loopback, and returns the URL.
func (f *front) start(l net.Listener, h http.Handler) string {
	if l == nil {
		var err error
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			panic("no port on loopback: " + err.Error())
		}
	}
	f.http.Handler = h
	f.http.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, connKey{}, c)
	}
	f.http.DisableGeneralOptionsHandler = true // each request is to be in the record
	f.running.Go(func() { f.http.Serve(listener{l, f}) })
	return "http://" + l.Addr().String()
}

// Close closes the listener and all connections, those with a request under way too, and waits for
// the handlers. It must not be called by a hook.
func (f *front) Close() {
	f.http.Close()
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.running.Wait()
}

// Throttle makes the next n API or token requests get 429 with that Retry-After (RFC 9110 section
// 10.2.3), "" being none. 0 ends it.
func (f *front) Throttle(n int, retryAfter string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.throttle, f.retryAfter = n, retryAfter
}

// Break has h see each request before the product does. If h returns true, it has answered, or has
// hijacked the connection, or has waited for r.Context() to end. h may read the body. nil ends it.
func (f *front) Break(h func(w http.ResponseWriter, r *http.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onAny = h
}

// BreakToken is Break for the token endpoint alone. It comes after Break, and Delay holds for it too.
func (f *front) BreakToken(h func(w http.ResponseWriter, r *http.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onToken = h
}

// Delay holds the answers of the token endpoint back for d, or until the client has gone. What they
// tell has happened by then: whoever leaves meanwhile has made a token that nobody gets. 0 ends it.
func (f *front) Delay(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.delay = d
}

// Stats returns the counts so far.
func (f *front) Stats() Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stats
}

// Requests returns the last 1,000 requests, the oldest first, those being answered included.
func (f *front) Requests() []Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make([]Request, len(f.requests))
	for i, r := range f.requests {
		list[i] = *r
	}
	return list
}

// Raw returns the last 1 MiB that clients sent, as it came. It is empty if the Server is mounted in
// another one. Requests has the same by request.
func (f *front) Raw() []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return bytes.Clone(f.raw[max(0, len(f.raw)-maxRaw):])
}

// serve records r, asks the hooks and, if none has answered, the product.
func (f *front) serve(w http.ResponseWriter, r *http.Request, product func(http.ResponseWriter, *http.Request, *Request)) {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	f.running.Add(1)
	f.mu.Unlock()
	defer f.running.Done()

	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	whole := err == nil && len(body) <= maxBody
	req := &Request{
		Time:   time.Now(),
		Method: r.Method,
		Path:   r.URL.Path,
		Query:  r.URL.RawQuery,
		Body:   body[:min(len(body), maxBody)],
	}
	var reused bool
	if c, ok := r.Context().Value(connKey{}).(*conn); ok {
		req.Wire, reused = c.take(whole)
	}
	if req.Wire != nil {
		req.Header = parseHead(req.Wire)
	} else {
		req.Header = maps.Clone(r.Header)
		req.Header["Host"] = []string{r.Host}
	}
	token := strings.TrimSuffix(req.Path, "/") == tokenPath

	f.mu.Lock()
	if f.requests = append(f.requests, req); len(f.requests) > maxRequests {
		f.requests = f.requests[1:]
	}
	if token {
		f.stats.TokenRequests++
	} else if strings.HasPrefix(req.Path, "/api/") {
		f.stats.APICalls++
		if reused {
			f.stats.ReusedConnections++
		}
	}
	onAny, onToken, delay := f.onAny, f.onToken, f.delay
	f.mu.Unlock()

	a := &answer{ResponseWriter: w, front: f, req: req}
	answered := func(h hook) bool {
		if h == nil {
			return false
		}
		again := r.WithContext(r.Context())
		again.Body = io.NopCloser(io.MultiReader(bytes.NewReader(body), r.Body))
		return h(a, again)
	}
	if !whole {
		w.Header().Set("Connection", "close")
	}
	func() {
		if answered(onAny) {
			return
		}
		if token {
			a.hold = func() { wait(r.Context(), delay) }
			if answered(onToken) {
				return
			}
		}
		switch {
		case err != nil:
			a.WriteHeader(http.StatusBadRequest)
		case !whole:
			a.WriteHeader(http.StatusRequestEntityTooLarge)
		default:
			product(a, r, req)
		}
	}()
	if a.req.Status == 0 && !a.hijacked {
		a.WriteHeader(http.StatusOK)
	}
}

func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// throttled reports whether Throttle wants this request refused, and sets its Retry-After.
func (f *front) throttled(w http.ResponseWriter) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.throttle <= 0 {
		return false
	}
	f.throttle--
	f.stats.Throttled++
	if f.retryAfter != "" {
		w.Header().Set("Retry-After", f.retryAfter)
	}
	return true
}

// answer is the ResponseWriter that puts the status into the record, before the client sees it.
type answer struct {
	http.ResponseWriter
	front    *front
	req      *Request
	hold     func() // before the first byte, or nil
	hijacked bool
}

func (a *answer) note(status int) {
	a.front.mu.Lock()
	defer a.front.mu.Unlock()
	if a.req.Status == 0 && status >= 200 {
		a.req.Status = status
	}
}

func (a *answer) WriteHeader(status int) {
	if a.hold != nil {
		a.hold()
		a.hold = nil
	}
	a.note(status)
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(b []byte) (int, error) {
	if a.req.Status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	return a.ResponseWriter.Write(b)
}

func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func (a *answer) Flush() {
	if a.req.Status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	http.NewResponseController(a.ResponseWriter).Flush()
}

// Hijack gives the connection that the listener accepted, so that a hook can reset a
// [net.TCPConn].
func (a *answer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(a.ResponseWriter).Hijack()
	a.hijacked = err == nil
	if own, ok := c.(*conn); ok {
		c = own.Conn
	}
	return c, rw, err
}

// listener has each connection record what it reads: net/http changes the spelling of header
// names, and for one product it matters.
type listener struct {
	net.Listener
	front *front
}

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, front: l.front}, nil
}

type conn struct {
	net.Conn
	front *front

	mu      sync.Mutex
	carried bool   // a request before
	pending []byte // read, and of no request yet
	lost    bool   // where in the stream a request begins
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	if !c.lost {
		c.pending = append(c.pending, p[:n]...)
	}
	c.mu.Unlock()
	c.front.mu.Lock()
	defer c.front.mu.Unlock()
	if c.front.raw = append(c.front.raw, p[:n]...); len(c.front.raw) > 2*maxRaw {
		c.front.raw = bytes.Clone(c.front.raw[len(c.front.raw)-maxRaw:])
	}
	return n, err
}

// CloseWrite is what net/http looks for, to let a client that still sends read the answer.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// take returns the head of the request that net/http has just read off the connection, up to the
// end of its body if whole is true, and whether another came before it.
func (c *conn) take(whole bool) (head []byte, reused bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	reused, c.carried = c.carried, true
	if c.lost {
		return nil, reused
	}
	head = bytes.Clone(c.pending[:headLen(c.pending)])
	unread := bytes.NewReader(c.pending)
	br := bufio.NewReader(unread)
	r, err := http.ReadRequest(br)
	if err == nil && whole {
		_, err = io.Copy(io.Discard, r.Body)
	}
	if err != nil || !whole {
		c.pending, c.lost = nil, true
		return head, reused
	}
	c.pending = bytes.Clone(c.pending[len(c.pending)-unread.Len()-br.Buffered():])
	return head, reused
}

// headLen is how far the head of an HTTP/1 message goes, the empty line included.
func headLen(b []byte) int {
	for i := 0; ; {
		n := bytes.IndexByte(b[i:], '\n')
		if n < 0 {
			return len(b)
		}
		line := b[i : i+n]
		i += n + 1
		if len(line) == 0 || string(line) == "\r" {
			return i
		}
	}
}

// parseHead reads the header lines of an HTTP/1 request (RFC 9112 section 5) and leaves the names
// as they are spelled.
func parseHead(head []byte) http.Header {
	h := make(http.Header)
	var last string
	lines := strings.Split(string(head), "\n")
	for _, line := range lines[1:] {
		line = strings.TrimSuffix(line, "\r")
		if folded := strings.TrimLeft(line, " \t"); folded != line && last != "" {
			values := h[last]
			values[len(values)-1] = strings.Trim(values[len(values)-1]+" "+folded, " \t")
			continue
		}
		if name, value, ok := strings.Cut(line, ":"); ok {
			last = name
			h[name] = append(h[name], strings.Trim(value, " \t"))
		}
	}
	return h
}

type connKey struct{}

func newToken() string {
	b := make([]byte, 32)
	rand.Read(b)
	return base64.StdEncoding.EncodeToString(b)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}
