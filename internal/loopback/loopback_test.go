package loopback_test

import (
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/itsmauth/itsmauth/internal/emulator/memnet"
	"github.com/itsmauth/itsmauth/internal/loopback"
)

// hasIPv6 reports whether ::1 can be listened on.
func hasIPv6() bool {
	l, err := net.Listen("tcp", "[::1]:0")
	if err == nil {
		l.Close()
	}
	return err == nil
}

func TestListen(t *testing.T) {
	t.Parallel()
	both := 1
	if hasIPv6() {
		both = 2
	}
	for range 10 { // another program may have the ::1 half of the port
		listeners, err := loopback.Listen("localhost:0", "127.0.0.1:0")
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil || len(listeners) != both+1 {
			t.Fatalf("%d listeners, %v", len(listeners), err)
		}
		var ports []string
		for _, l := range listeners {
			defer l.Close()
			_, port, _ := net.SplitHostPort(l.Addr().String())
			ports = append(ports, port)
		}
		if ports[0] != ports[both-1] {
			t.Errorf("localhost has the ports %s", ports[:both])
		}

		// A taken port, also in second place, leaves nothing open.
		taken := listeners[0].Addr().String()
		if _, err := loopback.Listen("localhost:" + ports[0]); !errors.Is(err, syscall.EADDRINUSE) || !strings.HasPrefix(err.Error(), "cannot listen on localhost:"+ports[0]+": bind: ") {
			t.Error(err)
		}
		free := listeners[both].Addr().String()
		listeners[both].Close()
		if _, err := loopback.Listen(free, taken); !errors.Is(err, syscall.EADDRINUSE) {
			t.Error(err)
		}
		l, err := loopback.Listen(free, free)
		if err != nil || len(l) != 1 {
			t.Fatalf("%d listeners, %v", len(l), err)
		}
		l[0].Close()
		return
	}
	t.Fatal("no port is free on both addresses of localhost")
}

// stop lets a response finish, and does not wait for a connection that has sent nothing.
func TestServe(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		network := memnet.Listen()
		begun := make(chan struct{})
		_, stop := loopback.Serve([]net.Listener{network}, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			close(begun)
			time.Sleep(time.Second)
			io.WriteString(w, "whole")
		}))
		client := network.Client()
		unused, err := client.Transport.(*http.Transport).DialContext(t.Context(), "tcp", "")
		if err != nil {
			t.Fatal(err)
		}
		defer unused.Close()
		body := make(chan string, 1)
		go func() {
			resp, err := client.Get("http://127.0.0.1:8400")
			if err != nil {
				body <- err.Error()
				return
			}
			defer resp.Body.Close()
			b, _ := io.ReadAll(resp.Body)
			body <- string(b)
		}()
		<-begun
		start := time.Now()
		stop()
		if got := <-body; got != "whole" {
			t.Error(got)
		}
		if took := time.Since(start); took >= 2*time.Second {
			t.Errorf("stop took %s", took)
		}
		client.CloseIdleConnections()
	})
}

// A listener that fails is told of; the others go on until stop.
func TestServeFails(t *testing.T) {
	t.Parallel()
	listeners, err := loopback.Listen("127.0.0.1:0", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	failed, stop := loopback.Serve(slices.Clone(listeners), http.NotFoundHandler())
	defer stop()
	listeners[0].Close()
	if err := <-failed; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	resp, err := http.Get("http://" + listeners[1].Addr().String())
	if err != nil || resp.StatusCode != http.StatusNotFound {
		t.Error(resp, err)
	}
}

// Whoever holds connections open, in whatever way, keeps no other client out.
func TestServeManyConnections(t *testing.T) {
	t.Parallel()
	for name, held := range map[string]string{
		"nothing is sent":    "",
		"half a header":      "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nA: ",
		"half a body":        "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\nhalf",
		"nothing is read":    "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
		"an idle connection": "GET /empty HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				network := memnet.Listen()
				_, stop := loopback.Serve([]net.Listener{network}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					io.Copy(io.Discard, r.Body)
					if r.URL.Path != "/empty" {
						io.WriteString(w, strings.Repeat("large", 1<<10))
					}
				}))
				defer stop()
				ended := make(chan time.Duration, 300)
				start := time.Now()
				for range cap(ended) {
					c, err := network.Dial(t.Context(), "tcp", "")
					if err != nil {
						t.Fatal(err)
					}
					defer c.Close()
					if _, err := io.WriteString(c, held); err != nil {
						t.Fatal(err)
					}
					if name == "nothing is read" {
						continue
					}
					go func() {
						io.Copy(io.Discard, c)
						ended <- time.Since(start)
					}()
				}
				client := network.Client()
				resp, err := client.Get("http://127.0.0.1:8400/empty")
				if err != nil || resp.StatusCode != http.StatusOK {
					t.Error(resp, err)
				}
				if took := time.Since(start); took > 0 {
					t.Errorf("the response came after %s", took)
				}
				client.CloseIdleConnections()
				if name == "nothing is read" {
					return
				}
				for range cap(ended) {
					if took := <-ended; took > 10*time.Second {
						t.Errorf("a connection was open for %s", took)
					}
				}
			})
		})
	}
}

// A client that does not read holds its connection for 10 s. A handler may take longer to respond.
func TestServeTimeouts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		network := memnet.Listen()
		written := make(chan time.Duration, 1)
		_, stop := loopback.Serve([]net.Listener{network}, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(time.Minute)
			began := time.Now()
			io.WriteString(w, strings.Repeat("large", 1<<10))
			http.NewResponseController(w).Flush()
			written <- time.Since(began)
		}))
		defer stop()
		client := network.Client()
		resp, err := client.Get("http://127.0.0.1:8400")
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(resp.Body); err != nil || len(b) != 5<<10 {
			t.Error(len(b), err)
		}
		<-written
		client.CloseIdleConnections()

		c, err := network.Dial(t.Context(), "tcp", "")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
		if took := <-written; took != 10*time.Second {
			t.Errorf("the response was written for %s", took)
		}
	})
}
