package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
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
	attempts int  // sent, and counted against Retry.MaxAttempts
	replayed bool // after a rejected token
	adopted  bool // that token came from the store, so another replay is left

	began    time.Time
	deadline atomic.Int64 // when headers are due, in Unix ns
	timer    *time.Timer  // runs expire

	mu      sync.Mutex
	current *attempt // the latest
	first   attempt
	ended   bool

	returned bool // the caller has the response, so Timeout is over
	respBody returnedBody
}

func (c *call) do() (*http.Response, error) {
	now := time.Now()
	c.began = now
	c.body = newCallBody(c.req, c.t.o.MaxReplayBody)
	c.deadline.Store(c.headerDeadline(now))
	resp, err := c.makeAttempt()
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
		resp.Body = &upgraded{conn, c.current} // a connection now, which the caller owns
		return resp, nil
	}
	if resp.Body == http.NoBody {
		c.end()
		if resp.StatusCode/100 != 3 {
			return resp, nil
		}
	}
	c.respBody = returnedBody{timedBody{c.current, resp.Body}} // through which a redirect finds this call, see headerDeadline
	resp.Body = &c.respBody
	return resp, nil
}

func (c *call) budget() *budget {
	if c.origin == nil {
		return &c.t.foreignBudget
	}
	return c.origin.budget
}

// makeAttempt sends the request once, and again if the product rejects the token and another is
// obtained.
func (c *call) makeAttempt() (*http.Response, error) {
	a := c.begin()
	if err := a.admit(); err != nil {
		return nil, err
	}
	c.attempts++
	tok := a.token
	resp, err := a.send()
	if err != nil || tok == nil || !c.t.auth.Rejected(resp, tok) ||
		c.replayed || !c.body.replayable() {
		return resp, err
	}
	// While processes are without their store, their tokens may end each other's, so an adopted token
	// may be rejected although our own would not be.
	if c.replayed = c.adopted || !adopted.Is(tok); !c.replayed {
		c.adopted = true
	}
	a.creditUpload()
	ctx, cancel := context.WithDeadline(a, c.due())
	fresh, err := c.t.auth.Token(ctx)
	cancel()
	if err != nil || fresh.AccessToken == tok.AccessToken || !c.fitsDeadline(0, time.Now()) || !c.body.abandon() {
		return resp, nil
	}
	drain(resp)
	c.attempts--
	return c.makeAttempt()
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
	c.current.slot.done()
	c.mu.Lock()
	c.ended = true
	c.current.cancel(nil)
	c.mu.Unlock()
	c.body.interrupt()
}

// callError returns why the call ended (our time limit, the caller's context) instead of the network
// error that resulted.
func (c *call) callError(err error) error {
	var t timeoutError
	if errors.As(context.Cause(c.current), &t) && !errors.Is(err, auth.ErrStore) {
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
	c.t.o.Logger.LogAttrs(c.current, slog.LevelDebug, "attempt", attrs...)
}
