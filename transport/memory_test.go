package transport_test

import (
	"context"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"testing"

	"github.com/itsmauth/itsmauth/internal/emulator/memnet"
	"github.com/itsmauth/itsmauth/transport"
)

// inMemory makes a client of o reach every host through dial, which works in a synctest bubble.
func inMemory(dial func(ctx context.Context, network, addr string) (net.Conn, error), o transport.Options) transport.Options {
	o.AllowHTTP = true
	if o.Proxy == nil {
		o.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil } // not the environment's
	}
	wrap := o.Wrap
	o.Wrap = func(next http.RoundTripper) http.RoundTripper {
		next.(*http.Transport).DialContext = transport.RecordDial(dial)
		if wrap != nil {
			next = wrap(next)
		}
		return next
	}
	return o
}

// serveInMemory serves HTTPS, or HTTP if config is nil, until the bubble ends.
func serveInMemory(t testing.TB, config *tls.Config, h http.HandlerFunc) *memnet.Listener {
	l := memnet.Listen()
	srv := &http.Server{Handler: h, TLSConfig: config, ErrorLog: log.New(io.Discard, "", 0)}
	if config == nil {
		go srv.Serve(l)
	} else {
		go srv.ServeTLS(l, "", "")
	}
	t.Cleanup(func() { srv.Close() })
	return l
}
