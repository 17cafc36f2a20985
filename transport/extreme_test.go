package transport_test

import (
	"crypto/tls"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/transport"
)

// A connection of HTTP/2 that has died without a word does not take all calls with it.
func TestDeadHTTP2Connection(t *testing.T) {
	t.Parallel()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0") // a NAT that forgets its first connection
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var n, dead atomic.Int64
	go func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", srv.Listener.Addr().String())
			if err != nil {
				return
			}
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
			go pipe(a, b)
			go pipe(b, a)
		}
	}()
	at := "https://" + l.Addr().String()
	c := client(t, new(product), at, transport.Options{Retry: quick, Timeout: 10 * time.Second,
		AttemptTimeout: 300 * time.Millisecond, TLS: &tls.Config{InsecureSkipVerify: true}})
	for i := range 4 {
		resp, err := c.Get(at)
		if err != nil {
			t.Errorf("call %d: %v; %d connections made", i, err, n.Load())
			continue
		}
		resp.Body.Close()
		dead.Store(1)
	}
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
