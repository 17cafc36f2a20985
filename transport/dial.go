package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

// connections makes the net/http transport beneath everything.
func connections(o *Options) *http.Transport {
	dialer := &net.Dialer{Timeout: o.AttemptTimeout, KeepAlive: 30 * time.Second}
	t := &http.Transport{
		Proxy:       http.ProxyFromEnvironment,
		DialContext: noted(dialer.DialContext),
		OnProxyConnectResponse: func(_ context.Context, _ *url.URL, _ *http.Request, resp *http.Response) error {
			switch resp.StatusCode {
			case http.StatusProxyAuthRequired, http.StatusUnauthorized: // tinyproxy says 401 to a wrong password
				return &auth.Error{Op: "request", Status: resp.StatusCode, Err: errProxyAuth}
			}
			return nil
		},
		ForceAttemptHTTP2:     true,
		MaxIdleConns:          128,
		MaxIdleConnsPerHost:   128, // one connector, one host
		IdleConnTimeout:       90 * time.Second,
		TLSHandshakeTimeout:   2 * o.AttemptTimeout, // of one that nobody waits for any more
		ExpectContinueTimeout: time.Second,
		// A dead connection of HTTP/2 would stay in the pool and take every attempt.
		HTTP2: &http.HTTP2Config{SendPingTimeout: o.AttemptTimeout / 3, PingTimeout: o.AttemptTimeout / 3},
	}
	if o.Proxy != nil {
		t.Proxy = o.Proxy
	}
	if o.TLS != nil {
		t.TLSClientConfig = o.TLS.Clone()
	}
	return t
}

type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// noted records in the call the connection that dial makes for it.
func noted(dial dialFunc) dialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		latest := new(atomic.Pointer[dialed]) // nobody's, if a Wrap sends a request of its own
		if c, ok := ctx.Value(callKey{}).(*call); ok {
			latest = &c.dialed
		}
		dialing := new(dialed)
		latest.Store(dialing)
		conn, err := dial(ctx, network, addr)
		if err != nil {
			latest.CompareAndSwap(dialing, nil)
			return nil, &dialError{err}
		}
		made := &dialed{Conn: conn, made: time.Now()}
		latest.CompareAndSwap(dialing, made)
		return made, nil
	}
}

// errProxyAuth is not for Session to repeat: proxies lock accounts.
var errProxyAuth = fmt.Errorf("%w: the proxy refused the user and password of proxy_url, or wants them", auth.ErrProtocol)

// dialed is a connection that a call had made, or is having made. Silence counts from the last write
// to it, be that its handshake's or the request's.
type dialed struct {
	net.Conn // nil: it is being made, and the dialer has a limit of its own
	made     time.Time
	last     atomic.Int64 // write, since made
}

func (d *dialed) wrote() { d.last.Store(int64(time.Since(d.made))) }

// flowed is when there was no silence yet. Other streams of HTTP/2 write to the connection too: what
// is later than limit is theirs.
func (d *dialed) flowed(limit time.Duration) time.Time {
	switch {
	case d == nil:
		return time.Time{}
	case d.Conn == nil:
		return time.Now()
	}
	return d.made.Add(min(time.Duration(d.last.Load()), limit))
}

func (d *dialed) Write(b []byte) (int, error) {
	n, err := d.Conn.Write(b)
	d.wrote()
	return n, err
}

// dialError is a connection that was never made: nobody has seen the request.
type dialError struct{ error }

func (e *dialError) Unwrap() error { return e.error }

// Timeout and Temporary make it the [net.Error] that it wraps.
func (e *dialError) Timeout() bool {
	var n net.Error
	return errors.As(e.error, &n) && n.Timeout()
}

func (e *dialError) Temporary() bool { return e.Timeout() }

func neverConnected(err error) bool {
	var d *dialError
	return errors.As(err, &d)
}

// hopeless reports whether the same request would fail in the same way.
func hopeless(err error) bool {
	var (
		dns    *net.DNSError
		cert   *tls.CertificateVerificationError
		alert  *net.OpError
		record tls.RecordHeaderError
	)
	return errors.As(err, &dns) && dns.IsNotFound ||
		errors.As(err, &cert) || errors.As(err, &alert) && alert.Op == "remote error" || errors.As(err, &record) ||
		errors.Is(err, errProxyAuth) || unsendable(err)
}

// unsendable reports whether net/http refused to write the request: its method, a header or a trailer.
func unsendable(err error) bool { return strings.HasPrefix(err.Error(), "net/http: invalid ") }
