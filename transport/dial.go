package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

// newPool returns the [http.Transport] that makes and keeps the connections.
func newPool(o *Options) *http.Transport {
	via := &routes{o: o}
	t := &http.Transport{
		Proxy:                  via.note,
		DialContext:            via.dialTo(recordDial(via.dial)),
		OnProxyConnectResponse: onConnect,
		ForceAttemptHTTP2:      true,
		MaxIdleConns:           128,
		MaxIdleConnsPerHost:    128, // a connector has one host
		IdleConnTimeout:        90 * time.Second,
		TLSHandshakeTimeout:    2 * o.AttemptTimeout, // AttemptTimeout ends the attempt sooner; this ends the connection
		ExpectContinueTimeout:  time.Second,
		// Without pings, a dead HTTP/2 connection would stay in the pool and fail every attempt.
		HTTP2: &http.HTTP2Config{SendPingTimeout: o.AttemptTimeout / 3, PingTimeout: o.AttemptTimeout / 3},
	}
	if o.TLS != nil {
		t.TLSClientConfig = o.TLS.Clone()
	}
	enableHTTP2(t)
	return t
}

// enableHTTP2 gives t the HTTP/2 client of golang.org/x/net. That of Go 1.26 resends any request after a
// RST_STREAM with PROTOCOL_ERROR, although the server may have processed it.
func enableHTTP2(t *http.Transport) {
	//lint:ignore SA1019 see above
	if err := http2.ConfigureTransport(t); err != nil { // t has HTTP/2 already
		panic(err)
	}
}

type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// recordDial records, in the attempt, the connection that dial makes for it.
func recordDial(dial dialFunc) dialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		latest := new(atomic.Pointer[dialed]) // unused if a Wrap sends a request of its own
		if a, ok := ctx.Value(attemptKey{}).(*attempt); ok {
			latest = &a.conn
		}
		dialing := new(dialed)
		latest.Store(dialing)
		conn, err := dial(ctx, network, addr)
		if err != nil {
			latest.CompareAndSwap(dialing, nil)
			return nil, err
		}
		made := &dialed{Conn: conn, made: time.Now()}
		latest.CompareAndSwap(dialing, made)
		return made, nil
	}
}

// dialed is a connection that was made for an attempt, or is being made. Silence counts from the last
// write to it, whether of the TLS handshake or of the request.
type dialed struct {
	net.Conn // nil: it is being made, which the dialer limits itself
	made     time.Time
	last     atomic.Int64 // write, in ns since made
	requests atomic.Int64 // parts of requests that were written
}

// longestAlert is the size of the longest TLS record with an alert. A request begins with a longer write.
const longestAlert = 75

// below returns the connection below conn's TLS, or nil if recordDial has not made it.
func below(conn net.Conn) *dialed {
	for {
		t, ok := conn.(*tls.Conn)
		if !ok {
			d, _ := conn.(*dialed)
			return d
		}
		conn = t.NetConn()
	}
}

// lastWrite returns when this attempt last wrote to the connection, at most limit after it was made: other
// HTTP/2 streams may write later.
func (d *dialed) lastWrite(limit time.Duration) time.Time {
	switch {
	case d == nil:
		return time.Time{}
	case d.Conn == nil:
		return time.Now()
	}
	return d.made.Add(min(time.Duration(d.last.Load()), limit))
}

func (d *dialed) Write(b []byte) (int, error) {
	request := len(b) > longestAlert
	if request {
		d.requests.Add(1) // before the server can close the connection because of it
	}
	n, err := d.Conn.Write(b)
	d.last.Store(int64(time.Since(d.made)))
	if request && n == 0 {
		d.requests.Add(-1)
	}
	return n, err
}

// neverConnected reports whether the connection was never made, so that no server has seen the request.
func neverConnected(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && (op.Op == "dial" || neverConnected(op.Err)) // of a proxy, in an error of its own
}
