package transport_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/transport"
)

// A status 101 that the request did not ask for is no response: the caller would read a connection that no context
// and no time limit ends.
func TestUninvitedUpgrade(t *testing.T) {
	t.Parallel()
	s := serveFaults(t, nil, func(s *faultServer, c *peer) {
		if c.act() {
			c.say("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
			<-s.gone
		}
	})
	for name, c := range map[string]*http.Client{
		"call": client(t, new(product), "http://"+s.addr, transport.Options{}), "exchange": transport.NewExchanger(nil),
	} {
		for _, body := range []io.Reader{nil, strings.NewReader("x"), io.LimitReader(strings.NewReader("x"), 1)} {
			before := s.acted.Load()
			req, _ := http.NewRequest("PUT", "http://"+s.addr, body)
			resp, err := c.Do(req)
			if !errors.Is(err, auth.ErrProtocol) || s.acted.Load() != before+1 {
				t.Errorf("%s: %v %v after %d requests", name, resp, err, s.acted.Load()-before)
			}
		}
	}
}

// A server cannot hold a call for longer than timeout with the body of a redirect, of which http.Client reads. Of an
// error's body, the Read that is under way may end later.
func TestSlowBodies(t *testing.T) {
	t.Parallel()
	for name, pause := range map[string]time.Duration{"slow": 7 * time.Second, "silent": time.Hour} {
		for _, media := range []string{"text/plain", "text/event-stream"} {
			for _, status := range []int{301, 307, 401, 404, 503} {
				t.Run(name+media+http.StatusText(status), func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) {
						l := serveInMemory(t, nil, func(w http.ResponseWriter, r *http.Request) {
							w.Header().Set("Content-Type", media)
							w.Header().Set("Location", "/again")
							w.WriteHeader(status)
							for r.Context().Err() == nil {
								io.WriteString(w, "x")
								w.(http.Flusher).Flush()
								select {
								case <-time.After(pause):
								case <-r.Context().Done():
								}
							}
						})
						const timeout = 20 * time.Second
						c := client(t, new(product), "http://api.example.com", inMemory(l.Dial, transport.Options{Timeout: timeout}))
						start := time.Now()
						resp, err := c.Get("http://api.example.com/")
						isRedirect, limit := status < 400, timeout
						if !isRedirect {
							limit += min(pause, 30*time.Second) // attempt_timeout
						}
						if took := time.Since(start); took > limit {
							t.Errorf("after %s: %v", took, err)
						}
						if isRedirect != errors.Is(err, context.DeadlineExceeded) {
							t.Error(err)
						}
						if err == nil {
							if resp.StatusCode != status {
								t.Errorf("status %d", resp.StatusCode)
							}
							resp.Body.Close()
						}
					})
				})
			}
		}
	}
}
