package providers_test

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/config"
)

// counted counts events by kind, Op and Status.
type counted struct {
	mu     sync.Mutex
	events map[string]int
}

func (c *counted) Observe(_ context.Context, e auth.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.events == nil {
		c.events = map[string]int{}
	}
	if e.Kind == auth.EventTokenRejected {
		e.Status = 401 // AR and the others differ
	}
	c.events[strings.TrimSpace(fmt.Sprintln(e.Kind, e.Connector, e.Provider, e.Op, e.Status))]++
}

// TestEvents counts the events of each product in the life of a connector.
func TestEvents(t *testing.T) {
	t.Parallel()
	for _, p := range products(t) {
		t.Run(p.id(), func(t *testing.T) {
			t.Parallel()
			o := new(counted)
			conns := parse(t, p.yaml("desk", "transport: {retry: {min_backoff: 1ms, max_backoff: 2ms}, rate_limits: []}"), config.WithObserver(o))
			c := p.get(t, conns, "desk")
			call := func() {
				t.Helper()
				req, err := c.NewRequest(t.Context(), "GET", p.path, nil)
				if err != nil {
					t.Fatal(err)
				}
				resp, err := c.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				io.Copy(io.Discard, resp.Body)
				if resp.Body.Close(); resp.StatusCode != 200 {
					t.Fatal(resp.Status)
				}
			}
			call()
			p.revoke()
			call()
			failed := false
			p.breakAPI(func(w http.ResponseWriter, r *http.Request) bool {
				if failed {
					return false
				}
				failed = true
				w.WriteHeader(503)
				return true
			})
			call()
			p.breakAuth(func(w http.ResponseWriter, r *http.Request) bool { w.WriteHeader(501); return true })
			tok, err := c.Authenticator().Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			c.Session().Invalidate(tok)
			if _, err := c.Authenticator().Token(t.Context()); err == nil {
				t.Error("a token from a broken token endpoint")
			}
			conns.Close() // waits for the events
			provider := c.Provider
			want := map[string]int{
				"token_obtained desk " + provider + " exchange 0":    2,
				"token_rejected desk " + provider + "  401":          1,
				"call_retried desk " + provider + " replay 401":      1,
				"call_retried desk " + provider + " retry 503":       1,
				"exchange_failed desk " + provider + " exchange 501": 1,
			}
			if c.Session().CodeFlow() != nil {
				want["token_obtained desk "+provider+" exchange 0"] = 1
				want["token_obtained desk "+provider+" login 0"] = 1
			}
			if !maps.Equal(o.events, want) {
				t.Errorf("got  %v\nwant %v", o.events, want)
			}
		})
	}
}
