package transport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/transport/internal/limit"
)

// attempt is one attempt of a call: it sends the request, and again what the server has not processed. It
// owns what belongs to it alone, so that a late Read of its body or a late dial cannot change the next
// attempt. It is the request's context.
type attempt struct {
	context.Context
	cancel context.CancelCauseFunc
	call   *call
	token  *oauth2.Token // nil: none is sent
	slot   *limit.Slot
	pause  time.Duration // the random pause that a 429 led to, reused as the retry's wait; 0: none

	waitingSince atomic.Int64           // start of the current silence, by clock; 0: none
	uploadSince  atomic.Int64           // when the request body began to move, in Unix ns; 0: it does not
	answered     atomic.Bool            // response headers have come
	conn         atomic.Pointer[dialed] // made for this attempt, or nil

	trace    atomic.Pointer[httptrace.ClientTrace] // nil: net/http has not asked for it
	sending  atomic.Pointer[sending]               // the latest
	proxy    atomic.Pointer[url.URL]               // nil: none
	local    atomic.Bool                           // may go to loopback addresses only
	tunneled atomic.Bool                           // the proxy has connected conn to the product
}

type attemptKey struct{}

// Value finds the attempt that a connection is dialed for.
func (a *attempt) Value(key any) any {
	if key == (attemptKey{}) {
		return a
	}
	return a.Context.Value(key)
}

// begin ends the latest attempt and starts the next. The first is part of the call, to save an
// allocation.
func (c *call) begin() *attempt {
	last, a := c.current, &c.first
	if last != nil {
		last.slot.Done()
		last.cancel(nil)
		a = new(attempt)
	}
	a.call = c
	a.Context, a.cancel = context.WithCancelCause(c.req.Context())
	c.mu.Lock()
	defer c.mu.Unlock()
	c.current = a
	if c.timer == nil {
		c.timer = time.AfterFunc(min(c.t.o.Timeout, c.t.o.AttemptTimeout), c.expire)
		if c.req.Response == nil { // the timer was set for all of Timeout
			return a
		}
	}
	c.checkLimitsLocked()
	return a
}

// ended is a context that has ended. Token with it returns a token only if it has one now.
var ended, _ = context.WithTimeout(context.Background(), 0)

// admit waits for the token to send and for a slot of the rate limit. After the wait it reads the token
// again. If that takes an exchange, it gives back the slot, which the exchange may need.
func (a *attempt) admit() error {
	c := a.call
	if a.Err() != nil {
		return context.Cause(a)
	}
	if c.origin == nil {
		return nil
	}
	exchange := c.t.auth == nil
	for {
		var err error
		if !exchange {
			if a.token, err = c.t.auth.Token(a); err != nil {
				return err
			}
		}
		var waited bool
		if a.slot, waited, err = c.t.limits.Acquire(a, exchange, c.due()); err != nil || !waited || exchange {
			return err
		}
		if a.token, err = c.t.auth.Token(ended); err == nil {
			return nil
		}
		a.slot.Cancel()
	}
}

// send sends the request and notes what became of it.
func (a *attempt) send() (*http.Response, error) {
	c := a.call
	start := c.clock()
	a.waitingSince.Store(start)
	out, err := a.request()
	if err != nil {
		a.waitingSince.Store(0)
		a.slot.Cancel()
		return nil, err
	}
	resp, err := a.roundTrip(out)
	for a.neverWritten(err) && c.body.abandon() {
		if out, err = a.request(); err == nil {
			resp, err = a.roundTrip(out)
		}
	}
	if err = a.redact(err); err != nil && a.Err() != nil {
		err = context.Cause(a)
	} else if err != nil {
		err = a.nameProxy(err)
	}
	if err != nil {
		if neverConnected(err) || invalidRequest(err) {
			a.slot.Cancel()
		}
		a.slot.Failed()
		a.slot.Done()
		c.body.abandon()
		a.creditUpload()
	} else {
		a.slot.Received()
		if c.origin != nil && c.t.auth != nil {
			a.slot.Observe(resp.Header)
			a.pauseIdentity(resp)
		}
		a.answered.Store(true)
		if resp.StatusCode >= 400 && resp.Body != http.NoBody { // Rejected reads part of it
			resp.Body = &timedBody{a, resp.Body}
		}
	}
	a.waitingSince.Store(0)
	if c.t.o.Logger.Enabled(a, slog.LevelDebug) {
		c.log(resp, err, time.Duration(c.clock()-start))
	}
	return resp, err
}

// request returns the request as this attempt sends it.
func (a *attempt) request() (*http.Request, error) {
	c := a.call
	var ctx context.Context = a
	if a.needsTrace() {
		ctx = traced{a}
	}
	out := c.req.WithContext(ctx)
	out.Response = nil
	out.Close = c.t.o.Close || c.req.Close || c.t.auth == nil // net/http logs unexpected data on an idle connection
	out.Header = c.header(a.token)
	if c.t.signer != nil && a.token != nil {
		if err := a.sign(out); err != nil {
			return nil, err
		}
	}
	if c.body != nil {
		body, err := c.body.next(a)
		if err != nil {
			return nil, err
		}
		out.Body, out.GetBody = body, nil
		if c.t.auth != nil { // exchanges are not resent
			out.GetBody = a.bodyAgain
		}
	}
	return out, nil
}

// roundTrip returns when the attempt ends, even while net/http waits for a Read of the request body.
func (a *attempt) roundTrip(out *http.Request) (*http.Response, error) {
	inner, body := a.call.t.inner, a.call.body
	if a.call.origin == nil {
		inner = a.call.t.anonymous
	}
	if body == nil || body.getBody != nil {
		resp, err := inner.RoundTrip(out)
		return received(out, resp, err)
	}
	trailer := out.Trailer         // the caller fills it while the body is read
	out = out.Clone(out.Context()) // inner may still read it after we have returned
	out.Trailer = trailer
	var resp *http.Response
	var err error
	done := make(chan struct{})
	go func() {
		resp, err = inner.RoundTrip(out)
		resp, err = received(out, resp, err)
		close(done)
	}()
	select {
	case <-done:
	case <-a.Done():
		if !a.endedAlone() {
			body.interrupt()
			go func() {
				if <-done; err == nil {
					resp.Body.Close()
				}
			}()
			return nil, context.Cause(a)
		}
		<-done // no Read of the body is under way
	}
	return resp, err
}

var errUpgraded error = &auth.Error{Op: "request", Status: http.StatusSwitchingProtocols, Err: fmt.Errorf(
	"%w: the server switches to another protocol, which the request did not ask for", auth.ErrProtocol)}

// received adds the body that a response from a Wrap may lack. It refuses a status 101 that out did not ask for: its
// body would be the connection, which neither a context nor a time limit ends.
func received(out *http.Request, resp *http.Response, err error) (*http.Response, error) {
	switch {
	case err != nil:
	case resp.StatusCode == http.StatusSwitchingProtocols && out.Header.Get("Upgrade") == "":
		if resp.Body != nil {
			resp.Body.Close()
		}
		return nil, errUpgraded
	case resp.Body == nil:
		resp.Body = http.NoBody
	}
	return resp, err
}

// endedAlone reports whether the attempt ended for a reason that need not end the call.
func (a *attempt) endedAlone() bool {
	cause := context.Cause(a)
	t, ok := errors.AsType[timeoutError](cause)
	return ok && t.attempt || cause == errRefused
}

// uploading notes that the request body moves.
func (a *attempt) uploading() {
	if a.uploadSince.Load() == 0 && !a.answered.Load() {
		a.uploadSince.Store(time.Now().UnixNano())
	}
	a.touch()
}

// creditUpload adds the time that the upload has taken to the call's deadline.
func (a *attempt) creditUpload() {
	if start := a.uploadSince.Swap(0); start != 0 {
		a.call.deadline.Add(time.Now().UnixNano() - start)
		a.touch()
	}
}

// touch restarts the current silence, if there is one.
func (a *attempt) touch() {
	if since := a.waitingSince.Load(); since != 0 {
		a.waitingSince.CompareAndSwap(since, a.call.clock())
	}
}
