package transport_test

import (
	"context"
	"crypto/tls"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/itsmauth/itsmauth/internal/testpki"
	"github.com/itsmauth/itsmauth/transport"
)

// An HTTP/2 connection that dies without being closed does not fail all later calls.
func TestDeadHTTP2Connection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ca := testpki.New(t)
		srv := serveInMemory(t, &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, "api.example.com", time.Now().Add(time.Hour))}},
			func(http.ResponseWriter, *http.Request) {})
		var n, dead atomic.Int64
		nat := func(ctx context.Context, network, addr string) (net.Conn, error) { // drops all data of the first connection
			there, err := srv.Dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			ours, here := net.Pipe()
			id := n.Add(1)
			pipe := func(dst, src net.Conn) {
				defer dst.Close()
				buf := make([]byte, 32<<10)
				for {
					k, err := src.Read(buf)
					if err != nil {
						return
					}
					if id > dead.Load() {
						dst.Write(buf[:k])
					}
				}
			}
			go pipe(here, there)
			go pipe(there, here)
			return ours, nil
		}
		c := client(t, new(product), "https://api.example.com", inMemory(nat, transport.Options{TLS: &tls.Config{RootCAs: ca.Pool()}}))
		for i := range 4 {
			resp, err := c.Get("https://api.example.com/")
			if err != nil {
				t.Fatalf("call %d: %v; %d connections made", i, err, n.Load())
			}
			if resp.Body.Close(); resp.ProtoMajor != 2 {
				t.Error(resp.Proto)
			}
			dead.Store(1)
		}
		if n.Load() != 2 {
			t.Errorf("%d connections, want 2", n.Load())
		}
	})
}

func TestExtremes(t *testing.T) {
	t.Parallel()
	var n atomic.Int64
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1) < 7 {
			w.WriteHeader(503)
		}
	})
	srv, tlsSrv := httptest.NewServer(h), httptest.NewTLSServer(h)
	defer srv.Close()
	defer tlsSrv.Close()
	for name, o := range map[string]transport.Options{
		"min_backoff as YAML permits": {Retry: transport.Retry{MinBackoff: 87600 * time.Hour, MaxBackoff: time.Millisecond, MaxAttempts: 8}},
		"Timeout":                     {Timeout: math.MaxInt64, Retry: transport.Retry{MinBackoff: 1, MaxAttempts: 8}},
		"AttemptTimeout":              {AttemptTimeout: math.MaxInt64, TLS: &tls.Config{InsecureSkipVerify: true}, Retry: transport.Retry{MinBackoff: 1, MaxAttempts: 8}},
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if r := recover(); r != nil {
					t.Error("panic:", r)
				}
			}()
			n.Store(0)
			at := srv.URL
			if o.TLS != nil {
				at = tlsSrv.URL
			}
			resp, err := client(t, new(product), at, o).Get(at)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != 200 {
				t.Error(resp.StatusCode)
			}
		})
	}
}
