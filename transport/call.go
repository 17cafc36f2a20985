package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/adopted"
)

// call is one RoundTrip, with all its attempts, until the response's body is read.
type call struct {
	t        *roundTripper
	req      *http.Request // the caller's; never changed
	origin   *origin       // nil: sent without credentials
	body     *callBody
	attempts int           // sent, and counted against Retry.MaxAttempts
	replayed bool          // after a rejected token
	adopted  bool          // that token came from the store, so another replay is left
	pauseFor time.Duration // the random pause that a 429 led to, reused as the retry's wait; 0: none

	ctx   context.Context // of the latest attempt
	first attempt

	mu     sync.Mutex
	cancel context.CancelCauseFunc // of ctx
	ended  bool

	timer        *time.Timer // runs expire
	began        time.Time
	deadline     atomic.Int64           // when headers are due, in Unix ns
	waitingSince atomic.Int64           // start of the current silence, by clock; 0: none
	uploadSince  atomic.Int64           // when the request body began to move, in Unix ns; 0: it does not
	answered     atomic.Bool            // response headers have come
	dialed       atomic.Pointer[dialed] // the connection made for the attempt, or nil

	slot     *slot
	returned bool // the caller has the response, so Timeout is over
	respBody returnedBody
}

func (c *call) do() (*http.Response, error) {
	now := time.Now()
	c.began = now
	c.body = newCallBody(c.req, c.t.o.MaxReplayBody)
	c.deadline.Store(c.headerDeadline(now))
	resp, err := c.attempt()
	c.budget().addCall(now.Unix())
	if wait, again := c.shouldRetry(resp, err); again {
		resp, err = c.retry(resp, err, wait)
	}
	c.body.finish()
	if err != nil {
		err = c.callError(err)
		c.end()
		return nil, err
	}
	resp.Request, c.returned = c.req, true
	if conn, ok := resp.Body.(io.ReadWriteCloser); ok && resp.StatusCode == http.StatusSwitchingProtocols {
		c.timer.Stop()
		resp.Body = &upgraded{conn, c} // a connection now, which the caller owns
		return resp, nil
	}
	if resp.Body == http.NoBody {
		c.end()
		if resp.StatusCode/100 != 3 {
			return resp, nil
		}
	}
	c.respBody = returnedBody{timedBody{c, resp.Body}} // through which a redirect finds this call, see headerDeadline
	resp.Body = &c.respBody
	return resp, nil
}

func (c *call) budget() *budget {
	if c.origin == nil {
		return &c.t.foreignBudget
	}
	return c.origin.budget
}

// attempt sends the request once, and again if the product rejects the token and another is obtained.
func (c *call) attempt() (*http.Response, error) {
	c.begin()
	tok, err := c.admit()
	if err != nil {
		return nil, err
	}
	c.attempts++
	resp, err := c.send(tok)
	if err != nil || tok == nil || !c.t.auth.Rejected(resp, tok) ||
		c.replayed || !c.body.replayable() {
		return resp, err
	}
	// While processes are without their store, their tokens may end each other's, so an adopted token
	// may be rejected although our own would not be.
	if c.replayed = c.adopted || !adopted.Is(tok); !c.replayed {
		c.adopted = true
	}
	c.creditUpload()
	ctx, cancel := context.WithDeadline(c.ctx, time.Unix(0, c.deadline.Load()))
	fresh, err := c.t.auth.Token(ctx)
	cancel()
	if err != nil || fresh.AccessToken == tok.AccessToken || !c.fitsDeadline(0, time.Now()) || !c.body.abandon() {
		return resp, nil
	}
	drain(resp)
	c.attempts--
	return c.attempt()
}

// canceled is a canceled context. Token with it returns a token only if it has one now.
var canceled = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// admit waits for a slot of the rate limit and returns the token to send, or nil to send none. It reads
// the token again after the wait, and gives the slot back if that takes an exchange: the exchange may
// need the slot.
func (c *call) admit() (*oauth2.Token, error) {
	c.slot.done()
	c.slot = nil
	if c.origin == nil {
		return nil, nil
	}
	exchange := c.t.auth == nil
	for {
		var tok *oauth2.Token
		var err error
		if !exchange {
			if tok, err = c.t.auth.Token(c.ctx); err != nil {
				return nil, err
			}
		}
		slot, waited, err := c.t.o.Limiter.acquire(c.ctx, exchange, time.Unix(0, c.deadline.Load()))
		if err != nil {
			return nil, err
		}
		if waited && !exchange {
			if tok, err = c.t.auth.Token(canceled); err != nil {
				slot.cancel()
				continue
			}
		}
		c.slot = slot
		return tok, nil
	}
}

// send sends one attempt.
func (c *call) send(tok *oauth2.Token) (*http.Response, error) {
	ctx, slot := c.ctx, c.slot
	if slot != nil && c.t.o.Limiter.limited() {
		ctx = c.withSlotTrace(ctx, slot)
	}
	out := c.req.WithContext(ctx)
	out.Response = nil
	out.Close = c.t.o.Close || c.req.Close || c.t.auth == nil // net/http logs unexpected data on an idle connection
	out.Header = c.header(tok)
	if c.body != nil {
		body, err := c.body.next(c)
		if err != nil {
			slot.cancel()
			return nil, fmt.Errorf("GetBody of the request failed: %w", err)
		}
		out.Body, out.GetBody = body, nil // only this package resends a body
	}
	inner := c.t.inner
	if c.origin == nil {
		inner = c.t.anonymous
	}
	start := c.clock()
	c.waitingSince.Store(start)
	resp, err := c.roundTrip(inner, out)
	if err = redactServerText(err); err != nil && c.ctx.Err() != nil {
		err = context.Cause(c.ctx)
	}
	switch {
	case err == nil:
		slot.answered()
	case neverConnected(err), invalidRequest(err):
		slot.cancel()
	default:
		slot.failed()
	}
	if err != nil {
		c.body.abandon()
		c.creditUpload()
		slot.done()
	} else if c.origin != nil && c.t.auth != nil {
		slot.observe(resp.Header)
		c.pauseIdentity(resp)
	}
	c.answered.Store(err == nil)
	c.waitingSince.Store(0)
	if err == nil && resp.StatusCode >= 400 && resp.Body != http.NoBody { // Rejected reads part of it
		resp.Body = &timedBody{c, resp.Body}
	}
	if c.t.o.Logger.Enabled(c.ctx, slog.LevelDebug) {
		c.log(resp, err, time.Duration(c.clock()-start))
	}
	return resp, err
}

// withSlotTrace tells slot when the request is written. net/http itself resends a request if a reused
// connection turns out to be closed; that resend takes another slot, or is canceled.
func (c *call) withSlotTrace(ctx context.Context, slot *slot) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(got httptrace.GotConnInfo) {
			c.waitingSince.Store(0)
			err := slot.again(ctx, time.Unix(0, c.deadline.Load()))
			c.waitingSince.Store(c.clock())
			if err == nil {
				return
			}
			c.mu.Lock()
			c.cancel(err)
			c.mu.Unlock()
			// HTTP/1 would still write the request. HTTP/2 does not, and its connection is shared.
			if t, ok := got.Conn.(*tls.Conn); !ok || t.ConnectionState().NegotiatedProtocol != "h2" {
				got.Conn.Close()
			}
		},
		WroteRequest: func(httptrace.WroteRequestInfo) { slot.wrote() },
	})
}

// roundTrip returns when the call ends, even while net/http waits for a Read of the request body.
func (c *call) roundTrip(inner http.RoundTripper, out *http.Request) (*http.Response, error) {
	if c.body == nil || c.body.getBody != nil {
		return withBody(inner.RoundTrip(out))
	}
	trailer := out.Trailer         // the caller fills it while the body is read
	out = out.Clone(out.Context()) // inner may still read it after we have returned
	out.Trailer = trailer
	type outcome struct {
		resp *http.Response
		err  error
	}
	done := make(chan outcome, 1)
	go func() {
		resp, err := withBody(inner.RoundTrip(out))
		done <- outcome{resp, err}
	}()
	select {
	case a := <-done:
		return a.resp, a.err
	case <-c.ctx.Done():
		if c.wasSilent() { // no Read of the body is under way
			a := <-done
			return a.resp, a.err
		}
		c.body.interrupt()
		go func() {
			if a := <-done; a.err == nil {
				a.resp.Body.Close()
			}
		}()
		return nil, context.Cause(c.ctx)
	}
}

// withBody adds the body that a response from a Wrap may lack.
func withBody(resp *http.Response, err error) (*http.Response, error) {
	if err == nil && resp.Body == nil {
		resp.Body = http.NoBody
	}
	return resp, err
}

// header returns the headers of an attempt: the caller's, with the token's replacing those of the same
// name in any spelling. A request to another origin carries no credentials.
func (c *call) header(tok *oauth2.Token) http.Header {
	var token []field
	if tok != nil {
		token = c.t.tokenFields(tok)
	}
	h := make(http.Header, len(c.req.Header)+len(token)+1)
	anonymous := c.origin == nil
	for k, v := range c.req.Header {
		if !hasField(token, k) && !(anonymous && c.isCredential(k)) {
			h[k] = v
		}
	}
	for i := range token {
		h[token[i].name] = token[i].values
	}
	if c.t.o.UserAgent != "" && !anonymous {
		if _, ok := h["User-Agent"]; !ok {
			h["User-Agent"] = []string{c.t.o.UserAgent}
		}
	}
	return h
}

// A field is a header field, spelled as it is sent.
type field struct {
	name   string
	values []string
}

// tokenHeader caches the header fields of one token.
type tokenHeader struct {
	tok    *oauth2.Token
	fields []field
}

// tokenFields returns the header fields of tok, built once for each token.
func (t *roundTripper) tokenFields(tok *oauth2.Token) []field {
	if c := t.tokenHeader.Load(); c != nil && c.tok == tok {
		return c.fields
	}
	c := &tokenHeader{tok: tok}
	for name, values := range t.auth.Header(tok) {
		c.fields = append(c.fields, field{name, values})
	}
	t.tokenHeader.Store(c)
	return c.fields
}

// hasField reports whether one of fields has that name, in any spelling.
func hasField(fields []field, name string) bool {
	for i := range fields {
		if len(fields[i].name) == len(name) && strings.EqualFold(fields[i].name, name) {
			return true
		}
	}
	return false
}

// isCredential reports whether a header must not be sent to other origins.
func (c *call) isCredential(key string) bool {
	// An empty token is enough to learn the names of the token's headers.
	product := slices.Collect(maps.Keys(c.t.auth.Header(new(oauth2.Token))))
	return slices.ContainsFunc(append(product, "Authorization", "Cookie", "Cookie2", "Proxy-Authorization", "Referer", "access_token"),
		func(k string) bool { return strings.EqualFold(k, key) })
}

// drain reads up to 64 KiB of a response and closes it, so that its connection can be reused.
func drain(resp *http.Response) {
	io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	resp.Body.Close()
}

// end releases what the call holds.
func (c *call) end() {
	c.timer.Stop()
	c.slot.done()
	c.mu.Lock()
	c.ended = true
	c.cancel(nil)
	c.mu.Unlock()
	c.body.interrupt()
}

// callError returns why the call ended (our time limit, the caller's context) instead of the network
// error that resulted.
func (c *call) callError(err error) error {
	var t timeoutError
	if errors.As(context.Cause(c.ctx), &t) && !errors.Is(err, auth.ErrStore) {
		return &auth.Error{Connector: c.t.o.Connector, Op: "request", Err: t}
	}
	if ctx := c.req.Context(); ctx.Err() != nil && !errors.Is(err, ctx.Err()) {
		return context.Cause(ctx)
	}
	var e *auth.Error
	if errors.As(err, &e) && e.Connector == "" {
		named := *e
		named.Connector = c.t.o.Connector
		return &named
	}
	var n net.Error
	if errors.As(err, &n) && n.Timeout() && !errors.Is(err, context.DeadlineExceeded) { // of a TLS handshake
		return &auth.Error{Connector: c.t.o.Connector, Op: "request", Err: timeoutError{what: err.Error()}}
	}
	return err
}

// errNotHTTP replaces errors of net/http that quote what the server sent.
var errNotHTTP = fmt.Errorf("%w: the response is not valid HTTP", auth.ErrProtocol)

// redactServerText replaces net/http errors that quote bytes from the server, which may contain our
// token.
func redactServerText(err error) error {
	if err == nil {
		return nil
	}
	var bad textproto.ProtocolError
	var known net.Error
	switch {
	case strings.HasPrefix(err.Error(), "net/http: HTTP/1.x transport connection broken: http: ContentLength="): // the caller's mistake
		return err
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &known):
		return err
	case errors.As(err, &bad), strings.Contains(err.Error(), "transport connection broken"),
		strings.Contains(err.Error(), "malformed"), strings.Contains(err.Error(), "bad trailer"):
		return errNotHTTP
	}
	return err
}

// logged are the response headers that may appear in a log.
var logged = []string{"Content-Type", "Date", "Retry-After", "Server", "X-Ratelimit-Limit", "X-Ratelimit-Remaining", "X-Request-Id"}

func (c *call) log(resp *http.Response, err error, took time.Duration) {
	at := *c.req.URL
	at.RawQuery, at.Fragment, at.User = "", "", nil
	attrs := []slog.Attr{
		slog.String("connector", c.t.o.Connector), slog.String("method", c.req.Method),
		slog.String("url", at.String()), slog.Int("attempt", c.attempts), slog.Duration("took", took),
	}
	if err != nil {
		attrs = append(attrs, slog.Any("error", err))
	} else {
		attrs = append(attrs, slog.Int("status", resp.StatusCode))
		for _, k := range logged {
			if v := resp.Header.Get(k); v != "" {
				attrs = append(attrs, slog.String(strings.ToLower(k), v))
			}
		}
	}
	c.t.o.Logger.LogAttrs(c.ctx, slog.LevelDebug, "attempt", attrs...)
}
