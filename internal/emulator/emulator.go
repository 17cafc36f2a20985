// Package emulator is what the products' emulators have in common: an HTTP server that records what
// comes over the wire, counts, and has hooks for a test to break, delay and throttle.
//
// Each providers/<p>/<p>test embeds a [Front] in its Server and answers as its product does.
package emulator

import (
	"bytes"
	"context"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
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

// Stats are the counts that every product has, of requests, whoever answered them: the Server or a
// hook.
type Stats struct {
	Exchanges         int // token requests answered with a token
	TokenRequests     int // requests to a token endpoint, whatever came of them
	APICalls          int
	Rejected          int // API calls refused for their token
	ReusedConnections int // API calls on a connection that had carried a request before; 0 if the Server is mounted in another
	Throttled         int // token requests and API calls answered with 429, by Throttle or by the product's own limits
}

// A Product is what stands behind a Front.
type Product struct {
	// Tokens are the paths of its token endpoints. One with a trailing slash is counted, broken
	// and delayed as one without, whatever the product says to it.
	Tokens []string
	// API is how the path of an API call begins, if it is none of Tokens.
	API string
	// Handler answers what no hook has answered. The body of its request is there whole.
	Handler func(w *Response, r *http.Request)
	// Mutex guards Stats and whatever else the product wants. It is not held in Handler.
	Mutex *sync.Mutex
	// Stats gets TokenRequests, APICalls and ReusedConnections from the Front and Throttled from
	// [Response.Throttled]. The rest is the product's.
	Stats *Stats
}

// A Front is what a test has of each emulator. Its methods are safe for concurrent use.
type Front struct {
	// URL is the base URL, http://127.0.0.1:PORT without a trailing slash. It is spelled http on a
	// listener of crypto/tls too.
	URL string

	product Product
	server  http.Server
	running sync.WaitGroup // the accept loop and the handlers

	mu         *sync.Mutex // the product's
	closed     bool
	requests   []*Request
	raw        []byte
	throttle   int
	retryAfter string
	delay      time.Duration
	onAny      hook
	onToken    hook
}

type hook = func(http.ResponseWriter, *http.Request) bool

// Start serves p on l, or on a free port of loopback if l is nil. It panics if there is none. The
// caller closes the Front.
func Start(l net.Listener, p Product) *Front {
	if l == nil {
		var err error
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			panic("emulator: no port on loopback: " + err.Error())
		}
	}
	f := &Front{URL: "http://" + l.Addr().String(), product: p, mu: p.Mutex}
	f.server.Handler = f
	f.server.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, connKey{}, c)
	}
	f.server.DisableGeneralOptionsHandler = true // each request is to be in the record
	f.running.Go(func() { f.server.Serve(listener{l, f}) })
	return f
}

// Close closes the listener and all connections, those with a request under way too, and waits for
// the handlers. It must not be called by a hook.
func (f *Front) Close() {
	f.server.Close()
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.running.Wait()
}

// Throttle makes the next n API or token requests get 429 with that Retry-After (RFC 9110 section
// 10.2.3), "" being none. 0 ends it.
func (f *Front) Throttle(n int, retryAfter string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.throttle, f.retryAfter = n, retryAfter
}

// Break has h see each request before the product does. If h returns true, it has answered, or has
// hijacked the connection, or has waited for r.Context() to end; it may panic with
// [http.ErrAbortHandler], too. h may read the body. nil ends it.
func (f *Front) Break(h func(w http.ResponseWriter, r *http.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onAny = h
}

// BreakToken is Break for the token endpoints alone. It comes after Break, and Delay holds for it
// too.
func (f *Front) BreakToken(h func(w http.ResponseWriter, r *http.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onToken = h
}

// Delay holds the answers of the token endpoints back for d, or until the client has gone. What they
// tell has happened by then: whoever leaves meanwhile has made a token that nobody gets, or has
// spent a refresh token for it. 0 ends it.
func (f *Front) Delay(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.delay = d
}

// Stats returns the counts so far.
func (f *Front) Stats() Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	return *f.product.Stats
}

// Requests returns the last 1,000 requests, the oldest first, those being answered included.
func (f *Front) Requests() []Request {
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
func (f *Front) Raw() []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return bytes.Clone(f.raw[max(0, len(f.raw)-maxRaw):])
}

// ServeHTTP implements [http.Handler]: it records r, asks the hooks and, if none has answered, the
// product. A closed Front answers 503.
func (f *Front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
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
	if !whole {
		w.Header().Set("Connection", "close")
	}
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
	token := slices.Contains(f.product.Tokens, strings.TrimSuffix(req.Path, "/"))
	api := !token && strings.HasPrefix(req.Path, f.product.API)

	f.mu.Lock()
	if f.requests = append(f.requests, req); len(f.requests) > maxRequests {
		f.requests = f.requests[1:]
	}
	if token {
		f.product.Stats.TokenRequests++
	}
	if api {
		f.product.Stats.APICalls++
		if reused {
			f.product.Stats.ReusedConnections++
		}
	}
	onAny, onToken, delay := f.onAny, f.onToken, f.delay
	f.mu.Unlock()

	resp := &Response{ResponseWriter: w, Request: req, front: f, limited: token || api}
	fresh := func() *http.Request { // with the body to be read from its beginning
		again := r.WithContext(r.Context())
		again.Body = io.NopCloser(io.MultiReader(bytes.NewReader(body), r.Body))
		return again
	}
	answered := func(h hook) bool { return h != nil && h(resp, fresh()) }
	if !answered(onAny) {
		if token {
			resp.hold = func() { wait(r.Context(), delay) }
		}
		switch {
		case token && answered(onToken):
		case err != nil:
			resp.WriteHeader(http.StatusBadRequest)
		case !whole:
			resp.WriteHeader(http.StatusRequestEntityTooLarge)
		default:
			f.product.Handler(resp, fresh())
		}
	}
	if !resp.hijacked {
		resp.begin()
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
