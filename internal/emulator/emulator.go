// Package emulator has what the emulators of all products share: an HTTP server that records and counts
// requests, and has hooks for tests to break, delay and throttle.
//
// The Server of each providers/<p>/<p>test embeds a [Front], and adds the product's responses.
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

// A Request is a request as the server received it. Do not change it.
type Request struct {
	Time   time.Time
	Method string
	Path   string
	// Query is the raw query, without the question mark.
	Query string
	// Header has the names as spelled on the wire, including Host. Index it, because [http.Header.Get]
	// changes the spelling.
	Header http.Header
	// Wire is the bytes of the request line and the headers, including the empty line. If the Server is
	// mounted in another one, it is nil, and Header has net/http's spelling.
	Wire []byte
	// Body is the first 1 MiB of the body.
	Body []byte
	// Status is the response's status, 0 until there is one.
	Status int
}

// Stats are the counts of requests that all products have. They include requests that a hook answered.
type Stats struct {
	Exchanges         int // token requests that got a token
	TokenRequests     int // all requests to a token endpoint
	APICalls          int
	Rejected          int // API calls refused because of their token
	ReusedConnections int // API calls on a connection with an earlier request; 0 if the Server is mounted in another
	Throttled         int // token requests and API calls that got 429, because of Throttle or the product's own limits
}

// A Product is the part of an emulator that differs for each product.
type Product struct {
	// Tokens are the paths of its token endpoints. A path with a trailing slash is counted, broken and
	// delayed like one without.
	Tokens []string
	// API is the prefix of the paths of API calls. Paths in Tokens are no API calls.
	API string
	// Handler handles requests that no hook has answered. Their body is complete.
	Handler func(w *Response, r *http.Request)
	// Mutex guards Stats, and may guard the product's own state. It is not held when Handler is called.
	Mutex *sync.Mutex
	// Stats is where the Front counts TokenRequests, APICalls and ReusedConnections, and
	// [Response.Throttled] counts Throttled. The product counts the rest.
	Stats *Stats
}

// A Front is the part of an emulator that is the same for all products. Its methods are safe for
// concurrent use.
type Front struct {
	// URL is the base URL, http://127.0.0.1:PORT without a trailing slash. It begins with http on a
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

// Start serves p on l, or on a free port of loopback if l is nil. It panics if there is no free port. The
// caller must close the Front.
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
	f.server.DisableGeneralOptionsHandler = true // so that OPTIONS * is recorded too
	f.running.Go(func() { f.server.Serve(listener{l, f}) })
	return f
}

// Close closes the listener and all connections, even during a request, and waits for the handlers. A
// hook must not call it.
func (f *Front) Close() {
	f.server.Close()
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.running.Wait()
}

// Throttle makes the next n API calls or token requests get 429, with that Retry-After (RFC 9110 section
// 10.2.3) unless it is "". n = 0 ends it.
func (f *Front) Throttle(n int, retryAfter string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.throttle, f.retryAfter = n, retryAfter
}

// Break calls h for each request, before the product. If h returns true, the product does not get the
// request: h has responded, hijacked the connection, or waited for r.Context() to end. h may also read the
// body, and panic with [http.ErrAbortHandler]. A nil h ends it.
func (f *Front) Break(h func(w http.ResponseWriter, r *http.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onAny = h
}

// BreakToken is Break for the token endpoints only. It is called after Break, and Delay applies to it too.
func (f *Front) BreakToken(h func(w http.ResponseWriter, r *http.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onToken = h
}

// Delay holds back the responses of the token endpoints for d, or until the client has disconnected. The
// request has taken effect by then: if the client disconnects, its refresh token is spent and the new
// token is lost. 0 ends it.
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

// Requests returns the last 1,000 requests, oldest first, including those without a response yet.
func (f *Front) Requests() []Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make([]Request, len(f.requests))
	for i, r := range f.requests {
		list[i] = *r
	}
	return list
}

// Raw returns the last 1 MiB that clients sent. It is empty if the Server is mounted in another one.
func (f *Front) Raw() []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return bytes.Clone(f.raw[max(0, len(f.raw)-maxRaw):])
}

// ServeHTTP implements [http.Handler]. It records r and calls the hooks, then the product if none of them
// has answered. A closed Front responds with 503.
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
	fresh := func() *http.Request { // with an unread body
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
