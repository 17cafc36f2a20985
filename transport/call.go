package transport

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-retryablehttp"

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

// retry makes the attempts after the first. go-retryablehttp runs the loop over an empty request;
// attempts, bodies and responses are the call's own, and the first response is the loop's first round.
func (c *call) retry(resp *http.Response, err error, wait time.Duration) (*http.Response, error) {
	first := true
	client := &retryablehttp.Client{
		HTTPClient: &http.Client{
			Transport: rounds(func() (*http.Response, error) {
				if !first {
					resp, err = c.makeAttempt()
				}
				return resp, err
			}),
			CheckRedirect: useLastResponse,
		},
		RetryMax: c.t.o.Retry.MaxAttempts, // shouldRetry counts
		CheckRetry: func(context.Context, *http.Response, error) (bool, error) {
			again := first
			if first = false; !again {
				wait, again = c.shouldRetry(resp, err)
			}
			return again, nil
		},
		Backoff: func(time.Duration, time.Duration, int, *http.Response) time.Duration {
			c.t.o.Logger.LogAttrs(c.current, slog.LevelDebug, "retry", slog.String("connector", c.t.o.Connector),
				slog.Int("attempt", c.attempts+1), slog.Duration("wait", wait))
			c.current.slot.Done()
			return wait
		},
		ErrorHandler: retryablehttp.PassthroughErrorHandler,
	}
	shell := http.Request{Method: http.MethodGet, URL: &url.URL{Scheme: c.req.URL.Scheme, Host: c.req.URL.Host}, Header: http.Header{}}
	ctx := c.req.Context()
	_, lerr := client.Do(&retryablehttp.Request{Request: shell.WithContext(ctx)})
	if ctx.Err() != nil && err == nil && lerr != nil { // ended during a wait: the response is drained
		return nil, context.Cause(ctx)
	}
	return resp, err
}

type rounds func() (*http.Response, error)

func (r rounds) RoundTrip(*http.Request) (*http.Response, error) { return r() }

// drain reads up to 64 KiB of a response and closes it, so that its connection can be reused.
func drain(resp *http.Response) {
	io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	resp.Body.Close()
}

// end releases what the call holds.
func (c *call) end() {
	c.timer.Stop()
	c.current.slot.Done()
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
