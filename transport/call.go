package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/tokenextra"
)

// call is one RoundTrip, with all its attempts, until the response's body is read.
type call struct {
	t        *roundTripper
	req      *http.Request // the caller's; never changed
	origin   *origin       // nil: sent without credentials
	body     *callBody
	attempts int  // sent, and counted against Retry.MaxAttempts
	replayed bool // after a rejected token
	adopted  bool // a rejected token that came from the store has been replayed
	resent   bool // after a challenge, in this attempt

	began    time.Time
	deadline atomic.Int64 // when headers are due, in Unix ns
	timer    *time.Timer  // runs expire

	mu      sync.Mutex
	current *attempt // the latest
	first   attempt
	ended   bool
	endless bool // no limit ends the response's body
	leads   bool // http.Client follows the response, a redirect

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
	for wait, again := c.shouldRetry(resp, err); again; wait, again = c.shouldRetry(resp, err) {
		resp, err = c.retry(resp, wait)
	}
	c.body.finish()
	if err == nil {
		resp.Request = c.req
		err = c.checkLocation(resp)
	}
	if err != nil {
		err = c.callError(err)
		c.end()
		return nil, err
	}
	c.returned = true
	if resp.StatusCode == http.StatusSwitchingProtocols || isEventStream(resp) {
		c.endLimits()
	}
	if conn, ok := resp.Body.(io.ReadWriteCloser); ok && resp.StatusCode == http.StatusSwitchingProtocols {
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

// checkLocation keeps from http.Client a Location that does not parse, which its error would quote.
func (c *call) checkLocation(resp *http.Response) error {
	switch resp.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther:
	case http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		if c.body != nil && c.body.getBody == nil { // http.Client does not follow it
			return nil
		}
	default:
		return nil
	}
	if _, err := resp.Location(); err == nil || err == http.ErrNoLocation {
		return nil
	}
	if c.t.auth == nil || isLostWrite(resp.StatusCode, c.req.Method) { // not followed
		resp.Header.Del("Location")
		return nil
	}
	resp.Body.Close()
	return &auth.Error{Op: "request", Status: resp.StatusCode, Err: fmt.Errorf("%w: a redirect with an unreadable Location", auth.ErrProtocol)}
}

func (c *call) budget() *budget {
	if c.origin == nil {
		return &c.t.foreignBudget
	}
	return c.origin.budget
}

// makeAttempt sends the request once, again if the product challenges it, and again if the product rejects
// the token and another is obtained.
func (c *call) makeAttempt() (*http.Response, error) {
	a := c.begin()
	if err := a.admit(); err != nil {
		return nil, err
	}
	c.attempts++
	tok := a.token
	resp, err := a.send()
	if err != nil || tok == nil {
		return resp, err
	}
	if c.isChallenged(resp) {
		a.creditUpload()
		c.resent = true
		return c.sendAgain(resp)
	}
	if !c.t.auth.Rejected(resp, tok) || c.replayed || !c.body.replayable() {
		return resp, nil
	}
	// While processes are without their store, their tokens may end each other's, so an adopted token
	// may be rejected although our own would not be.
	c.replayed = c.adopted || !tokenextra.Adopted(tok)
	c.adopted = true
	a.creditUpload()
	ctx, cancel := context.WithDeadline(a, c.due())
	fresh, err := c.t.auth.Token(ctx)
	cancel()
	if err != nil || fresh.AccessToken == tok.AccessToken || !c.canSendAgain() {
		return resp, nil
	}
	c.resent = false
	return c.sendAgain(resp)
}

// sendAgain drops resp and makes the attempt again.
func (c *call) sendAgain(resp *http.Response) (*http.Response, error) {
	drain(resp, 64<<10)
	c.attempts--
	return c.makeAttempt()
}

// retry drops resp, if there is one, and makes another attempt after wait.
func (c *call) retry(resp *http.Response, wait time.Duration) (*http.Response, error) {
	c.t.o.Logger.LogAttrs(c.current, slog.LevelDebug, "retry", slog.String("connector", c.t.o.Connector),
		slog.Int("attempt", c.attempts+1), slog.Duration("wait", wait))
	if resp != nil {
		drain(resp, 4<<10)
	}
	c.current.slot.Done()
	c.resent = false
	select {
	case <-time.After(wait):
	case <-c.req.Context().Done(): // which ends the attempt too
	}
	return c.makeAttempt()
}

// drain closes a response after reading up to limit bytes, so that its connection can be reused.
func drain(resp *http.Response, limit int64) {
	io.Copy(io.Discard, io.LimitReader(resp.Body, limit))
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
	if t, ok := errors.AsType[timeoutError](context.Cause(c.current)); ok && !errors.Is(err, auth.ErrStore) {
		return &auth.Error{Connector: c.t.o.Connector, Op: "request", Err: t}
	}
	if ctx := c.req.Context(); ctx.Err() != nil && !errors.Is(err, ctx.Err()) {
		return context.Cause(ctx)
	}
	if e, ok := errors.AsType[*auth.Error](err); ok && e.Connector == "" {
		named := *e
		named.Connector = c.t.o.Connector
		return &named
	}
	if n, ok := errors.AsType[net.Error](err); ok && n.Timeout() && !errors.Is(err, context.DeadlineExceeded) { // of a TLS handshake
		return &auth.Error{Connector: c.t.o.Connector, Op: "request", Err: timeoutError{what: err.Error()}}
	}
	return err
}
