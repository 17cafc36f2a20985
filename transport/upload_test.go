package transport_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/transport"
)

// inbound sends part of a body to a server that forwards it to up, and returns that server's result. It
// cannot run in a synctest bubble: Close of such a body waits for its Read with a mutex.
func inbound(t *testing.T, c *http.Client, up string) (got string, err error) {
	done := make(chan struct{})
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(done)
		req, _ := http.NewRequest("POST", up, r.Body)
		req.ContentLength = r.ContentLength
		var resp *http.Response
		if resp, err = c.Do(req); err != nil {
			return
		}
		defer resp.Body.Close()
		var b []byte
		b, err = io.ReadAll(resp.Body)
		got = fmt.Sprint(resp.StatusCode, " ", string(b))
	}))
	defer front.Close()
	conn, failed := net.Dial("tcp", front.Listener.Addr().String())
	if failed != nil {
		t.Fatal(failed)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nabc")
	<-done
	return got, err
}

func TestInboundBodyStalls(t *testing.T) {
	t.Parallel()
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }))
	defer up.Close()
	c := client(t, new(product), up.URL, transport.Options{AttemptTimeout: 300 * time.Millisecond, Timeout: time.Hour})
	if got, err := inbound(t, c, up.URL); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(got, err)
	}
}

func TestEarlyAnswerToInboundBody(t *testing.T) {
	t.Parallel()
	stop := make(chan struct{})
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.ReadFull(r.Body, make([]byte, 3))
		w.Header().Set("Connection", "close")
		w.Header().Set("Content-Length", "8")
		w.WriteHeader(413)
		io.WriteString(w, "too much")
		w.(http.Flusher).Flush()
		<-stop
	}))
	defer up.Close()
	defer close(stop)
	for name, c := range map[string]*http.Client{
		"net/http": {Transport: new(http.Transport)},
		"ours":     client(t, new(product), up.URL, transport.Options{}),
	} {
		if got, err := inbound(t, c, up.URL); got != "413 too much" || err != nil {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
}

// After a failure the caller may change the request, as with net/http. The race detector finds a goroutine
// that still reads it.
func TestRequestAfterFailure(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }))
	defer srv.Close()
	rt := client(t, new(product), srv.URL, transport.Options{}).Transport
	for range 200 {
		ctx, cancel := context.WithCancel(t.Context())
		req, _ := http.NewRequestWithContext(ctx, "POST", srv.URL, io.NopCloser(strings.NewReader("hello")))
		req.Header.Set("X-A", "b")
		time.AfterFunc(time.Duration(rand.IntN(300))*time.Microsecond, cancel)
		if resp, err := rt.RoundTrip(req); err == nil {
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		} else { // no response: the caller may change the request
			req.URL.RawQuery = "a=b"
			req.Header["X-A"][0] = "c"
		}
		cancel()
	}
}

func TestWaitForSlotIsNoSilence(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int64
		up := serveInMemory(t, nil, func(w http.ResponseWriter, r *http.Request) {
			if n.Add(1) == 1 { // responds before the body has come
				w.Header().Set("Connection", "close")
				http.Error(w, "token", http.StatusUnauthorized)
				return
			}
			io.Copy(io.Discard, r.Body)
		})
		c := client(t, new(product), "http://api.example.com", inMemory(up.Dial, transport.Options{
			Limiter: transport.NewLimiter([]auth.Limit{{Requests: 1, Per: time.Minute}}, 0), Timeout: time.Hour}))
		data := make([]byte, 1<<20)
		pr, pw := io.Pipe()
		defer pw.Close()
		go pw.Write(data[:100])
		req, _ := http.NewRequest("POST", "http://api.example.com/", pr)
		req.ContentLength = 1 << 20
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
		resp, err := c.Do(req)
		if err != nil {
			t.Fatalf("%v; %d requests", err, n.Load())
		}
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Error(resp.Status)
		}
	})
}

// A wrong Content-Length is reported as the caller's mistake, not as a bad response.
func TestCallersContentLength(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }))
	defer srv.Close()
	req, _ := http.NewRequest("POST", srv.URL, strings.NewReader("hello"))
	req.ContentLength = 10
	_, err := client(t, new(product), srv.URL, transport.Options{}).Do(req)
	if errors.Is(err, auth.ErrProtocol) || !strings.Contains(fmt.Sprint(err), "ContentLength=10") {
		t.Error(err)
	}
}
