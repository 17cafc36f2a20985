package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"sync"
)

// connections are what a Wrap wraps.
type connections interface {
	http.RoundTripper
	CloseIdleConnections()
}

// renewed returns t with the authorities that RootCAs gives at each request, if it is set.
func (o *Options) renewed(t *http.Transport) connections {
	if o.RootCAs == nil {
		return t
	}
	if t.TLSClientConfig == nil {
		t.TLSClientConfig = new(tls.Config)
	}
	return &renewing{cas: o.RootCAs, trusted: t.TLSClientConfig.RootCAs, current: t}
}

// renewing is an [http.Transport] whose certificate authorities may change. It then has a new one, and the
// connections of the one before close when they are idle.
type renewing struct {
	cas func(context.Context) *x509.CertPool

	mu      sync.Mutex
	trusted *x509.CertPool
	current *http.Transport
}

func (r *renewing) RoundTrip(req *http.Request) (*http.Response, error) {
	cas := r.cas(req.Context())
	r.mu.Lock()
	if cas != nil && cas != r.trusted {
		if before := r.current; !cas.Equal(r.trusted) {
			r.current = before.Clone()
			r.current.TLSNextProto = nil // before's
			r.current.TLSClientConfig.RootCAs = cas
			enableHTTP2(r.current)
			before.CloseIdleConnections()
		}
		r.trusted = cas
	}
	t := r.current
	r.mu.Unlock()
	return t.RoundTrip(req)
}

func (r *renewing) CloseIdleConnections() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.current.CloseIdleConnections()
}
