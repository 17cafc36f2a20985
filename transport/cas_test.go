package transport_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/itsmauth/itsmauth/internal/testpki"
	"github.com/itsmauth/itsmauth/transport"
)

// The certificate authorities may change: then connections are verified with the new ones, and those made
// before are not used again. Otherwise connections are kept.
func TestRootCAsChange(t *testing.T) {
	t.Parallel()
	old, next := testpki.New(t), testpki.New(t)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.RemoteAddr) }))
	srv.EnableHTTP2 = true
	serve := testpki.Serve(t, srv, old)
	var trusted atomic.Pointer[x509.CertPool]
	o := transport.Options{TLS: &tls.Config{RootCAs: old.Pool()}, Retry: quick,
		RootCAs: func(context.Context) *x509.CertPool { return trusted.Load() }}
	exchanger := transport.NewExchanger(&o)
	defer exchanger.CloseIdleConnections()
	c := client(t, new(product), srv.URL, o)
	get := func(c *http.Client) (connection string, err error) {
		t.Helper()
		resp, err := c.Get(srv.URL)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		if resp.ProtoMajor != 2 {
			t.Error(resp.Proto)
		}
		b, err := io.ReadAll(resp.Body)
		return string(b), err
	}
	first, err := get(c)
	if err != nil {
		t.Fatal(err)
	}
	trusted.Store(old.Pool()) // another pool with the same authority
	serve(next)
	if again, err := get(c); again != first || err != nil {
		t.Errorf("connection %s, %v; want %s again", again, err, first)
	}
	if _, err := get(exchanger); !errors.As(err, new(*tls.CertificateVerificationError)) {
		t.Errorf("a certificate of another authority: %v", err)
	}
	trusted.Store(next.Pool())
	for _, c := range []*http.Client{c, exchanger} {
		if second, err := get(c); second == first || err != nil {
			t.Errorf("connection %s after %s, %v", second, first, err)
		}
	}
	trusted.Store(nil)
	if _, err := get(c); err != nil {
		t.Errorf("no change: %v", err)
	}
}
