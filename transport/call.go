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
	origin   *origin       // nil: bare
	payload  *payload
	attempts int           // that went out and count against Retry.MaxAttempts
	replayed bool          // after a refused token
	adopted  bool          // that token came from the store, so there is one more replay
	drawn    time.Duration // of the wait after the latest attempt, 0 if it is not yet

	ctx   context.Context // of the attempt under way, or of the last
	first attempt

	mu     sync.Mutex
	cancel context.CancelCauseFunc // of ctx
	ended  bool

	timer    *time.Timer // looks whether a limit has passed
	began    time.Time
	deadline atomic.Int64           // wall clock ns by which headers are due
	silent   atomic.Int64           // since when the product or the caller has been waited for, by clock; 0: is not
	upstart  atomic.Int64           // when the request's body began to flow, 0 if it does not
	answered atomic.Bool            // the attempt's headers are there
	dialed   atomic.Pointer[dialed] // the connection that the attempt had made, or nil

	slot   *slot
	handed bool // the answer is the caller's: timeout is over
	down   download
}

func (c *call) do() (*http.Response, error) {
	now := time.Now()
	c.began = now
	c.payload = newPayload(c.req, c.t.o.MaxReplayBody)
	c.deadline.Store(c.due(now))
	resp, err := c.attempt()
	c.budget().call(now.Unix())
	if wait, again := c.again(resp, err); again {
		resp, err = c.retry(resp, err, wait)
	}
	c.payload.finish()
	if err != nil {
		err = c.explain(err)
		c.end()
		return nil, err
	}
	resp.Request, c.handed = c.req, true
	if conn, ok := resp.Body.(io.ReadWriteCloser); ok && resp.StatusCode == http.StatusSwitchingProtocols {
		c.timer.Stop()
		resp.Body = &upgraded{conn, c} // a connection now, and the caller's
		return resp, nil
	}
	if resp.Body == http.NoBody {
		c.end()
		if resp.StatusCode/100 != 3 {
			return resp, nil
		}
	}
	c.down = download{answer{c, resp.Body}} // by which a redirect finds the call that led to it
	resp.Body = &c.down
	return resp, nil
}

func (c *call) budget() *budget {
	if c.origin == nil {
		return &c.t.elsewhere
	}
	return c.origin.budget
}

// attempt sends the request once, and once more if the product refuses the token and another can
// be had.
func (c *call) attempt() (*http.Response, error) {
	c.begin()
	tok, err := c.admit()
	if err != nil {
		return nil, err
	}
	c.attempts++
	resp, err := c.send(tok)
	if err != nil || tok == nil || !c.t.auth.Rejected(resp, tok) ||
		c.replayed || !c.payload.replayable() {
		return resp, err
	}
	// Where processes were without their store, their tokens may have ended each other's: one that
	// another process obtained may be refused without ours being.
	if c.replayed = c.adopted || !adopted.Is(tok); !c.replayed {
		c.adopted = true
	}
	c.uploaded()
	ctx, cancel := context.WithDeadline(c.ctx, time.Unix(0, c.deadline.Load()))
	fresh, err := c.t.auth.Token(ctx)
	cancel()
	if err != nil || fresh.AccessToken == tok.AccessToken || !c.fits(0, time.Now()) || !c.payload.abandon() {
		return resp, nil
	}
	discard(resp)
	c.attempts--
	return c.attempt()
}

// ended is a context that has: with it, Token gives only what is at hand.
var ended = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// admit waits for a slot of the limit and gives the token to send, nil if none is to be sent. No
// attempt leaves with a token that ended while it waited, and none holds a slot while it waits for
// a token: the exchange may need that very slot.
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
			if tok, err = c.t.auth.Token(ended); err != nil {
				slot.cancel()
				continue
			}
		}
		c.slot = slot
		return tok, nil
	}
}

// send lets one attempt out.
func (c *call) send(tok *oauth2.Token) (*http.Response, error) {
	ctx, slot := c.ctx, c.slot
	if slot != nil && c.t.o.Limiter.limited() {
		ctx = c.traced(ctx, slot)
	}
	out := c.req.WithContext(ctx)
	out.Response = nil
	out.Close = c.t.o.Close || c.req.Close || c.t.auth == nil // net/http logs what an idle connection brings
	out.Header = c.header(tok)
	if c.payload != nil {
		body, err := c.payload.next(c)
		if err != nil {
			slot.cancel()
			return nil, fmt.Errorf("reading the request's body again: %w", err)
		}
		out.Body, out.GetBody = body, nil // the repeats are ours
	}
	inner := c.t.inner
	if c.origin == nil {
		inner = c.t.bare
	}
	start := c.clock()
	c.silent.Store(start)
	resp, err := c.roundTrip(inner, out)
	if err = unquoted(err); err != nil && c.ctx.Err() != nil {
		err = context.Cause(c.ctx)
	}
	switch {
	case err == nil:
		slot.answered()
	case neverConnected(err), unsendable(err):
		slot.cancel()
	default:
		slot.failed()
	}
	if err != nil {
		c.payload.abandon()
		c.uploaded()
		slot.done()
	} else if c.origin != nil && c.t.auth != nil {
		slot.observe(resp.Header)
		c.pause(resp)
	}
	c.answered.Store(err == nil)
	c.silent.Store(0)
	if err == nil && resp.StatusCode >= 400 && resp.Body != http.NoBody { // part of it is read before the caller gets it
		resp.Body = &answer{c, resp.Body}
	}
	if c.t.o.Logger.Enabled(c.ctx, slog.LevelDebug) {
		c.log(resp, err, time.Duration(c.clock()-start))
	}
	return resp, err
}

// traced keeps slot's books. Before net/http sends the request again within the attempt, as it does if
// a connection that was idle broke, it takes another slot; without one that does not happen.
func (c *call) traced(ctx context.Context, slot *slot) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(got httptrace.GotConnInfo) {
			c.silent.Store(0)
			err := slot.again(ctx, time.Unix(0, c.deadline.Load()))
			c.silent.Store(c.clock())
			if err == nil {
				return
			}
			c.mu.Lock()
			c.cancel(err)
			c.mu.Unlock()
			// HTTP/1 would write to it, although ctx has ended. HTTP/2 does not, and others use its
			// connection.
			if t, ok := got.Conn.(*tls.Conn); !ok || t.ConnectionState().NegotiatedProtocol != "h2" {
				got.Conn.Close()
			}
		},
		WroteRequest: func(httptrace.WroteRequestInfo) { slot.wrote() },
	})
}

// roundTrip returns when the call ends, also where net/http would wait for a Read of the body.
func (c *call) roundTrip(inner http.RoundTripper, out *http.Request) (*http.Response, error) {
	if c.payload == nil || c.payload.getBody != nil {
		return whole(inner.RoundTrip(out))
	}
	trailer := out.Trailer         // is filled in while the body is read
	out = out.Clone(out.Context()) // inner may read it when the caller has it back
	out.Trailer = trailer
	type outcome struct {
		resp *http.Response
		err  error
	}
	done := make(chan outcome, 1)
	go func() {
		resp, err := whole(inner.RoundTrip(out))
		done <- outcome{resp, err}
	}()
	select {
	case a := <-done:
		return a.resp, a.err
	case <-c.ctx.Done():
		if c.fellSilent() { // net/http waits for nothing then
			a := <-done
			return a.resp, a.err
		}
		c.payload.interrupt()
		go func() {
			if a := <-done; a.err == nil {
				a.resp.Body.Close()
			}
		}()
		return nil, context.Cause(c.ctx)
	}
}

// whole gives a response a body: net/http always does, a Wrap need not.
func whole(resp *http.Response, err error) (*http.Response, error) {
	if err == nil && resp.Body == nil {
		resp.Body = http.NoBody
	}
	return resp, err
}

// header gives the headers of an attempt: the caller's, with the token's in place of any spelling
// of theirs. A request to another origin carries no credentials at all.
func (c *call) header(tok *oauth2.Token) http.Header {
	var ours []field
	if tok != nil {
		ours = c.t.fields(tok)
	}
	h := make(http.Header, len(c.req.Header)+len(ours)+1)
	bare := c.origin == nil
	for k, v := range c.req.Header {
		if !named(ours, k) && !(bare && c.private(k)) {
			h[k] = v
		}
	}
	for i := range ours {
		h[ours[i].name] = ours[i].values
	}
	if c.t.o.UserAgent != "" && !bare {
		if _, ok := h["User-Agent"]; !ok {
			h["User-Agent"] = []string{c.t.o.UserAgent}
		}
	}
	return h
}

// A field is a header as it is sent.
type field struct {
	name   string
	values []string
}

// carried is the header of one token, in the form that each request needs it.
type carried struct {
	tok    *oauth2.Token
	fields []field
}

// fields gives the token's headers. They are taken apart once a token.
func (t *roundTripper) fields(tok *oauth2.Token) []field {
	if c := t.carried.Load(); c != nil && c.tok == tok {
		return c.fields
	}
	c := &carried{tok: tok}
	for name, values := range t.auth.Header(tok) {
		c.fields = append(c.fields, field{name, values})
	}
	t.carried.Store(c)
	return c.fields
}

// named reports whether one of fields has that name, in any spelling.
func named(fields []field, name string) bool {
	for i := range fields {
		if len(fields[i].name) == len(name) && strings.EqualFold(fields[i].name, name) {
			return true
		}
	}
	return false
}

// private reports whether a header is not for other origins.
func (c *call) private(key string) bool {
	// Whatever this product calls its token's header: the values do not matter here.
	product := slices.Collect(maps.Keys(c.t.auth.Header(new(oauth2.Token))))
	return slices.ContainsFunc(append(product, "Authorization", "Cookie", "Cookie2", "Proxy-Authorization", "Referer", "access_token"),
		func(k string) bool { return strings.EqualFold(k, key) })
}

// discard reads what little there is left of a response and closes it, so that its connection can
// be used again.
func discard(resp *http.Response) {
	io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	resp.Body.Close()
}

// end gives back what the call holds.
func (c *call) end() {
	c.timer.Stop()
	c.slot.done()
	c.mu.Lock()
	c.ended = true
	c.cancel(nil)
	c.mu.Unlock()
	c.payload.interrupt()
}

// explain prefers the reason why the call was ended to what it looks like from below.
func (c *call) explain(err error) error {
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
	if errors.As(err, &n) && n.Timeout() && !errors.Is(err, context.DeadlineExceeded) { // that of a TLS handshake
		return &auth.Error{Connector: c.t.o.Connector, Op: "request", Err: timeoutError{what: err.Error()}}
	}
	return err
}

// errNotHTTP stands for errors of net/http that quote what the server sent, which may be anything:
// a reflected token, for one.
var errNotHTTP = fmt.Errorf("%w: the answer is not valid HTTP", auth.ErrProtocol)

// unquoted takes from err what a server had net/http quote.
func unquoted(err error) error {
	if err == nil {
		return nil
	}
	var bad textproto.ProtocolError
	var known net.Error
	switch {
	case strings.HasPrefix(err.Error(), "net/http: HTTP/1.x transport connection broken: http: ContentLength="): // the caller's
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
