package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/transport/internal/limit"
)

// attempt is one sending of a call's request. It owns what belongs to that sending alone, so that a
// late Read of its body or a late dial cannot change the next attempt. It is the request's context.
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
	sending  atomic.Pointer[sending]               // the latest, if traced
	proxy    atomic.Pointer[url.URL]               // nil: none
	tunneled atomic.Bool                           // the proxy has connected conn to the product
}

type attemptKey struct{}

// Value finds the attempt that a connection is dialed for, and its trace. The trace is made when net/http
// asks for it: most attempts need none, and it costs five allocations.
func (a *attempt) Value(key any) any {
	switch {
	case key == (attemptKey{}):
		return a
	case key == traceKey && a.traced():
		return a.clientTrace()
	}
	return a.Context.Value(key)
}

// traceKey is httptrace's key for the trace of a context.
var traceKey = func() (key any) {
	httptrace.ContextClientTrace(keyRecorder{context.Background(), &key})
	return key
}()

// keyRecorder records the key that is asked for.
type keyRecorder struct {
	context.Context
	key *any
}

func (r keyRecorder) Value(key any) any {
	*r.key = key
	return nil
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
	out, err := a.request()
	if err != nil {
		a.slot.Cancel()
		return nil, err
	}
	start := c.clock()
	a.waitingSince.Store(start)
	resp, err := a.roundTrip(out)
	for a.neverWritten(err) && c.body.abandon() {
		if out, err = a.request(); err == nil {
			resp, err = a.roundTrip(out)
		}
	}
	if err = redactServerText(err); err != nil && a.Err() != nil {
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
	out := c.req.WithContext(a)
	out.Response = nil
	out.Close = c.t.o.Close || c.req.Close || c.t.auth == nil // net/http logs unexpected data on an idle connection
	out.Header = c.header(a.token)
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

// bodyAgain is GetBody for net/http, which resends a request that the server has not processed.
func (a *attempt) bodyAgain() (io.ReadCloser, error) {
	a.creditUpload()
	body := a.call.body
	if !body.abandon() {
		return nil, errors.New("the connection was closed, and the request body is too long to be sent again (max_replay_body)")
	}
	return body.next(a)
}

// sending is the connection on which net/http sends the request.
type sending struct {
	conn     net.Conn
	reused   bool
	wire     *dialed // below TLS; nil: not ours
	requests int64   // written to wire before
	answered atomic.Bool
}

func (s *sending) http2() bool {
	t, ok := s.conn.(*tls.Conn)
	return ok && t.ConnectionState().NegotiatedProtocol == "h2"
}

// unwritten reports whether nothing of the request has been written over HTTP/1.
func (s *sending) unwritten() bool {
	return !s.http2() && s.wire != nil && s.wire.requests.Load() == s.requests
}

// processed reports whether the server may have processed a request that net/http is to resend. Over
// HTTP/2 it resends only what the server has refused, over HTTP/1 also what is idempotent.
func (s *sending) processed() bool { return s.answered.Load() || !s.http2() && !s.unwritten() }

// traced reports whether the attempt must know its connection: for its slot, or because net/http itself
// does not resend the method when an idle connection has closed.
func (a *attempt) traced() bool {
	return a.limited() || !slices.Contains([]string{"", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace}, a.call.req.Method)
}

// limited reports whether the slot must know when the request is written.
func (a *attempt) limited() bool { return a.slot != nil && a.call.t.limits.Limited() }

// clientTrace returns the trace of the attempt, with the caller's.
func (a *attempt) clientTrace() *httptrace.ClientTrace {
	if a.trace.Load() == nil {
		a.trace.CompareAndSwap(nil, httptrace.ContextClientTrace(httptrace.WithClientTrace(a.Context, &httptrace.ClientTrace{
			GotConn:      a.gotConn,
			WroteRequest: func(httptrace.WroteRequestInfo) { a.slot.Wrote() },
			GotFirstResponseByte: func() {
				if s := a.sending.Load(); s != nil {
					s.answered.Store(true) // a Wrap may send the request again
				}
			},
		})))
	}
	return a.trace.Load()
}

// gotConn notes the connection. If net/http resends what the server may have processed, that takes another
// slot, or is canceled.
func (a *attempt) gotConn(got httptrace.GotConnInfo) {
	now := &sending{conn: got.Conn, reused: got.Reused, wire: below(got.Conn)}
	if now.wire != nil {
		now.requests = now.wire.requests.Load()
	}
	before := a.sending.Swap(now)
	if !a.limited() {
		return
	}
	a.waitingSince.Store(0)
	err := a.slot.Resend(a, a.call.due(), before == nil || before.processed())
	a.waitingSince.Store(a.call.clock())
	if err == nil {
		return
	}
	a.cancel(err)
	if !now.http2() { // HTTP/1 would still write the request. HTTP/2 does not, and its connection is shared.
		got.Conn.Close()
	}
}

// neverWritten reports whether the server closed an idle connection before any of the request was written
// to it. net/http does not resend a POST then.
func (a *attempt) neverWritten(err error) bool {
	s := a.sending.Load()
	return err != nil && s != nil && s.reused && s.unwritten() && idleClosed(err) && a.Err() == nil
}

// roundTrip returns when the attempt ends, even while net/http waits for a Read of the request body.
func (a *attempt) roundTrip(out *http.Request) (*http.Response, error) {
	inner, body := a.call.t.inner, a.call.body
	if a.call.origin == nil {
		inner = a.call.t.anonymous
	}
	if body == nil || body.getBody != nil {
		return withBody(inner.RoundTrip(out))
	}
	trailer := out.Trailer         // the caller fills it while the body is read
	out = out.Clone(out.Context()) // inner may still read it after we have returned
	out.Trailer = trailer
	var resp *http.Response
	var err error
	done := make(chan struct{})
	go func() {
		resp, err = withBody(inner.RoundTrip(out))
		close(done)
	}()
	select {
	case <-done:
	case <-a.Done():
		if !a.wasSilent() {
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

// withBody adds the body that a response from a Wrap may lack.
func withBody(resp *http.Response, err error) (*http.Response, error) {
	if err == nil && resp.Body == nil {
		resp.Body = http.NoBody
	}
	return resp, err
}

// wasSilent reports whether silence ended the attempt, which need not end the call.
func (a *attempt) wasSilent() bool {
	t, ok := errors.AsType[timeoutError](context.Cause(a))
	return ok && t.attempt
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
