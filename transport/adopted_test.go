package transport_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/transport"
)

// A call is replayed once after a rejected token, and once more if that token came from the store: another
// process may have invalidated it.
func TestAdoptedTokenLeavesTheReplay(t *testing.T) {
	t.Parallel()
	for name, own := range map[string]bool{"adopted": false, "own": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			var seen []string
			good := "Bearer T1"
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				if seen = append(seen, strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")); r.Header.Get("Authorization") != good {
					http.Error(w, "bad token", http.StatusUnauthorized)
				}
			}))
			t.Cleanup(server.Close)
			store, p := new(auth.Memory), new(product)
			process := func() *auth.Session {
				s := auth.New(p, &auth.Options{Connector: "it", Store: store})
				t.Cleanup(func() { s.Close(context.Background()) })
				return s
			}
			other, ours := process(), process()
			first, err := other.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			c, err := transport.NewClient(ours, &transport.Options{BaseURL: parse(t, server.URL)})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(c.CloseIdleConnections)
			call := func() int {
				t.Helper()
				resp, err := c.Get(server.URL)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				return resp.StatusCode
			}
			if status := call(); status != http.StatusOK {
				t.Fatalf("the adopted token: status %d", status)
			}
			if !own { // the other process goes on to T2
				other.Invalidate(first)
				if _, err := other.Token(t.Context()); err != nil {
					t.Fatal(err)
				}
				other.Close(t.Context()) // waits for the save
			}
			want, wantStatus := []string{"T1", "T2", "T3"}, http.StatusOK
			if own { // our own exchanges obtain T2 and T3
				ours.Invalidate(first)
				if _, err := ours.Token(t.Context()); err != nil {
					t.Fatal(err)
				}
				good = "Bearer T2"
				call()
				want, wantStatus = []string{"T2", "T3"}, http.StatusUnauthorized
			}
			mu.Lock()
			seen, good = nil, "Bearer T3"
			if own {
				good = "Bearer T4"
			}
			mu.Unlock()
			if status := call(); status != wantStatus || !slices.Equal(seen, want) {
				t.Errorf("status %d after %q, want %d after %q", status, seen, wantStatus, want)
			}
		})
	}
}
