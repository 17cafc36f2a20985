package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

// connections makes the net/http transport beneath everything.
func connections(o *Options) *http.Transport {
	dialer := &net.Dialer{Timeout: o.AttemptTimeout, KeepAlive: 30 * time.Second}
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, addr)
			if err != nil {
				return nil, &dialError{err}
			}
			return conn, nil
		},
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
		TLSHandshakeTimeout:   o.AttemptTimeout,
		ResponseHeaderTimeout: o.AttemptTimeout,
		ExpectContinueTimeout: time.Second,
	}
	if o.Proxy != nil {
		t.Proxy = o.Proxy
	}
	if o.TLS != nil {
		t.TLSClientConfig = o.TLS.Clone()
	}
	return t
}

var errProxyAuth = fmt.Errorf("%w: the proxy refused the user and password of proxy_url, or wants them", auth.ErrUnavailable)

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
		errors.Is(err, errProxyAuth)
}
