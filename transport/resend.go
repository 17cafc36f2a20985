package transport

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"

	"github.com/itsmauth/itsmauth/auth"
)

// A request that the server has not processed is resent in the same attempt. net/http does most of it, if the
// request has GetBody. A trace tells what it did, and prevents resends that are not safe or too many: they are
// left to the retry policy.

// maxResends bounds the resends of an attempt over new connections. If many calls share the connections of a
// server that ends each after a few requests, a call may meet several ends in a row.
const maxResends = 50

// errRefused ends an attempt, not the call: the server has processed none of the sendings, or the method is
// idempotent.
var errRefused error = &auth.Error{Op: "request", Err: fmt.Errorf(
	"%w: the server ended the connections, or refused the HTTP/2 streams, without a response", auth.ErrUnavailable)}

var errTooLong error = &auth.Error{Op: "request", Err: fmt.Errorf(
	"%w: the connection was closed, and the request body is too long to be sent again (max_replay_body)", auth.ErrUnavailable)}

// bodyAgain is GetBody for net/http, which resends a request that the server has not processed.
func (a *attempt) bodyAgain() (io.ReadCloser, error) {
	a.creditUpload()
	body := a.call.body
	if !body.abandon() {
		return nil, errTooLong
	}
	return body.next(a)
}

// sending is the connection on which net/http sends the request.
type sending struct {
	conn     net.Conn
	reused   bool
	wire     *dialed // below TLS; nil: not ours
	requests int64   // written to wire before
	resends  int     // before
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

// limited reports whether the slot must know when the request is written.
func (a *attempt) limited() bool { return a.slot != nil && a.call.t.limits.Limited() }

// needsTrace reports whether the attempt must know what net/http does with the request. If a GET or HEAD
// is sent several times, that harms nobody but a rate limit.
func (a *attempt) needsTrace() bool {
	c := a.call
	safe := c.body == nil && (c.req.Method == "" || c.req.Method == http.MethodGet || c.req.Method == http.MethodHead)
	return !safe || a.limited() || c.t.mayUseProxy || c.t.signer != nil
}

// traced is the context of a request that has the attempt's trace. The trace is made when net/http asks for
// it: a Wrap that sends nothing does not pay for it.
type traced struct{ *attempt }

func (t traced) Value(key any) any {
	if key == traceKey {
		return t.clientTrace()
	}
	return t.attempt.Value(key)
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

// clientTrace returns the trace of the attempt, with the caller's.
func (a *attempt) clientTrace() *httptrace.ClientTrace {
	if a.trace.Load() == nil {
		a.trace.CompareAndSwap(nil, httptrace.ContextClientTrace(httptrace.WithClientTrace(a.Context, &httptrace.ClientTrace{
			TLSHandshakeStart: func() { a.tunneled.Store(true) }, // not called for TLS to a proxy
			GotConn:           a.gotConn,
			WroteRequest:      func(httptrace.WroteRequestInfo) { a.slot.Wrote() },
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
	a.tunneled.Store(true)
	now := &sending{conn: got.Conn, reused: got.Reused, wire: below(got.Conn)}
	if now.wire != nil {
		now.requests = now.wire.requests.Load()
	}
	before := a.sending.Swap(now)
	var err error
	switch {
	case before == nil || before.answered.Load(): // a Wrap may send the request again
	case before.resends > 0 && (before.processed() || before.conn == now.conn), before.resends == maxResends,
		before.processed() && a.call.t.signer != nil: // the server would see the signature, and the nonce in it, twice
		err = errRefused
	default:
		now.resends = before.resends + 1
	}
	if err == nil && a.limited() {
		a.waitingSince.Store(0)
		err = a.slot.Resend(a, a.call.due(), before == nil || before.processed())
		a.waitingSince.Store(a.call.clock())
	}
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
