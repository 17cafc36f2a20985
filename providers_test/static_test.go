package providers_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/consent"
	"github.com/itsmauth/itsmauth/config"
)

// A desk is a product that takes a key in a header, or Basic, and has no token endpoint.
type desk struct {
	*httptest.Server
	requests atomic.Int64
	mu       sync.Mutex
	accepts  []string // values of a header
	refused  string   // the body of a refusal
}

func newDesk(t *testing.T, accepts string) *desk {
	d := &desk{accepts: []string{accepts}, refused: `{"code":"invalid_credentials"}`}
	d.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d.requests.Add(1)
		body, _ := io.ReadAll(r.Body)
		d.mu.Lock()
		accepts := slices.Contains(d.accepts, r.Header.Get("X-Api-Key"))
		d.mu.Unlock()
		if !accepts {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnauthorized)
			io.WriteString(w, d.refused)
			return
		}
		fmt.Fprintf(w, "%s %s", r.Method, body)
	}))
	t.Cleanup(d.Close)
	return d
}

func (d *desk) accept(values ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.accepts = values
}

// neverUsed is a store that fails the test when it is used.
type neverUsed struct{ t *testing.T }

func (s neverUsed) Load(context.Context, string) (auth.Record, error) {
	s.t.Error("a store was read for a key")
	return auth.Record{}, nil
}

func (s neverUsed) Save(context.Context, string, auth.Record) error {
	s.t.Error("a store was written for a key")
	return nil
}

func (s neverUsed) Delete(context.Context, string, uint64) error {
	s.t.Error("a record was deleted for a key")
	return nil
}

func (s neverUsed) Lock(context.Context, string) (func(), error) {
	s.t.Error("a store was locked for a key")
	return func() {}, nil
}

// connectDesk makes the connectors of a configuration whose store must not be used.
func connectDesk(t *testing.T, connectors string, opts ...config.Option) *config.Connectors {
	t.Helper()
	opts = append(opts, config.WithStore("never", func(struct{}) (auth.Store, error) { return neverUsed{t}, nil }))
	text := "version: 1\ntoken_store: {type: never, encryption_keys: [MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=]}\nconnectors:\n" + connectors
	conns, err := config.Parse("t.yaml", []byte(text), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conns.Close() })
	return conns
}

// TestStaticRotation changes the key under load. The old one ends as soon as the new one is in the file. No call fails,
// and each is sent twice at most.
func TestStaticRotation(t *testing.T) {
	t.Parallel()
	for name, lay := range map[string]func(string) volume{"kubernetes": kubernetes, "overwritten": plain} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, v := newDesk(t, "key-0"), lay(t.TempDir())
			write := func(key string) {
				if err := v.write(key); err != nil {
					t.Error(err)
				}
			}
			write("key-0")
			c := get(t, connectDesk(t, fmt.Sprintf("  desk: {provider: static, base_url: '%s', headers: {X-Api-Key: '${file:%s}'}}\n", d.URL, v.path)), "desk")
			const workers, rotations, callsBetween = 8, 20, 2
			var calls atomic.Int64
			var made [workers]atomic.Int64
			done := make(chan struct{})
			var wg sync.WaitGroup
			for w := range workers {
				wg.Go(func() {
					for ; ; made[w].Add(1) {
						select {
						case <-done:
							return
						default:
						}
						status, body, err := call(context.Background(), c, "POST", "/tickets", "once")
						if err != nil || status != 200 || body != "POST once" {
							t.Errorf("a call failed: HTTP %d %s, %v", status, body, err)
						}
						calls.Add(1)
					}
				})
			}
			for i := range rotations {
				for w := range workers { // no call sees two rotations
					for until := made[w].Load() + callsBetween; made[w].Load() < until; {
						time.Sleep(time.Millisecond)
					}
				}
				old, key := fmt.Sprintf("key-%d", i), fmt.Sprintf("key-%d", i+1)
				d.accept(old, key)
				write(key)
				d.accept(key)
			}
			close(done)
			wg.Wait()
			if n := d.requests.Load(); n > calls.Load()+rotations*workers {
				t.Errorf("%d requests for %d calls and %d rotations", n, calls.Load(), rotations)
			}
		})
	}
}

// A dead key makes one request a call. The caller gets the product's response as it came, nothing is remembered, and
// the log names the key. When the file has another one, the next call uses it.
func TestStaticDeadKey(t *testing.T) {
	t.Parallel()
	d, file := newDesk(t, "good-key"), filepath.Join(t.TempDir(), "key")
	write := func(key string) {
		if err := os.WriteFile(file, []byte(key), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("dead-key")
	d.refused += strings.Repeat(" ", 100_000)
	var log lockedBuffer
	conns := connectDesk(t, fmt.Sprintf("  desk: {provider: static, base_url: '%s', headers: {x-api-key: '${file:%s}'}, probe: /}\n", d.URL, file),
		config.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
	c := get(t, conns, "desk")
	session := c.Session()
	for i := range 20 {
		status, body, err := call(t.Context(), c, "GET", "/tickets", "")
		if err != nil || status != 401 || body != d.refused {
			t.Fatalf("HTTP %d, %d bytes, %v", status, len(body), err)
		}
		if n := d.requests.Load(); n != int64(i+1) {
			t.Fatalf("%d requests for %d calls", n, i+1)
		}
	}
	st, err := session.Status(t.Context())
	if err != nil || st.State != auth.StateFresh || !errors.Is(st.Failure, auth.ErrCredentials) || !st.NextTry.IsZero() {
		t.Errorf("%+v, %v", st, err)
	}
	page := func() string {
		w := httptest.NewRecorder()
		consent.NewHandler([]consent.Connector{{Name: "desk", Session: session}}, nil).ServeHTTP(w, httptest.NewRequest("GET", "http://localhost/", nil))
		return w.Body.String()
	}
	if err := conns.Health(t.Context()); !errors.Is(err, auth.ErrCredentials) {
		t.Errorf("Health: %v", err)
	}
	if p := page(); !strings.Contains(p, "To repair it, check headers.x-api-key and the account in the product.") || strings.Contains(p, "token") {
		t.Error(p)
	}
	if n := strings.Count(log.String(), "desk: request: credentials refused (HTTP 401); check headers.x-api-key and the account in the product"); n != 1 || strings.Contains(log.String(), "dead-key") {
		t.Errorf("logged %d times: %s", n, log.String())
	}
	write("good-key")
	for status := 0; status != 200; { // on a machine that is not overloaded, the first call
		if status, _, err = call(t.Context(), c, "GET", "/tickets", ""); err != nil {
			t.Fatal(err)
		}
	}
	if st, _ := session.Status(t.Context()); st.Failure != nil || conns.Health(t.Context()) != nil {
		t.Error(st.Failure)
	}
	if p := page(); !strings.Contains(p, "It sends credentials of the configuration.") {
		t.Error(p)
	}
	// Another key that is wrong, too: one replay.
	write("wrong-key")
	d.accept()
	for _, most := range []int64{2, 1} {
		d.requests.Store(0)
		if status, _, err := call(t.Context(), c, "GET", "/tickets", ""); err != nil || status != 401 || d.requests.Load() > most {
			t.Errorf("HTTP %d, %v, %d requests", status, err, d.requests.Load())
		}
	}
}

// A key from a secret source is read there once a second while the product refuses it, and not for each call.
func TestStaticSecretSource(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var key atomic.Value
		key.Store("key-0")
		var reads, requests atomic.Int64
		vault := config.WithSecretSource("vault", func(context.Context, string) (string, error) {
			reads.Add(1)
			return key.Load().(string), nil
		})
		product := inMemory{http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			requests.Add(1)
			if r.Header.Get("X-Api-Key") != "key-1" {
				w.WriteHeader(http.StatusUnauthorized)
			}
		})}
		wrap := config.WithWrap(func(string, http.RoundTripper) http.RoundTripper { return product })
		conns, err := config.Parse("t.yaml", []byte("version: 1\nconnectors:\n  desk: {provider: static, base_url: 'https://h', headers: {X-Api-Key: '${vault:k}'}}\n"), vault, wrap)
		if err != nil {
			t.Fatal(err)
		}
		defer conns.Close()
		c := get(t, conns, "desk")
		for range 100 {
			if status, _, err := call(t.Context(), c, "GET", "/", ""); err != nil || status != 401 {
				t.Errorf("HTTP %d, %v", status, err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if reads.Load() > 11 || requests.Load() != 100 {
			t.Errorf("%d reads in 10 s, %d requests for 100 calls", reads.Load(), requests.Load())
		}
		time.Sleep(time.Second)
		key.Store("key-1")
		if status, _, err := call(t.Context(), c, "GET", "/", ""); err != nil || status != 200 {
			t.Errorf("HTTP %d, %v", status, err)
		}
	})
}

// Retries and rate limits are as with tokens. A redirect elsewhere carries no key.
func TestStaticTransport(t *testing.T) {
	t.Parallel()
	var leaked atomic.Bool
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		leaked.Store(r.Header.Get("X-Key") != "" || r.Header.Get("Authorization") != "")
		io.WriteString(w, "elsewhere")
	}))
	defer elsewhere.Close()
	var requests atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		switch n := requests.Add(1); {
		case r.Header.Get("X-Key") != "hunter2" || user != "me" || password != "":
			t.Errorf("%v", r.Header)
		case r.URL.Path == "/away":
			http.Redirect(w, r, elsewhere.URL, http.StatusFound)
		case n == 1:
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer s.Close()
	yaml := fmt.Sprintf("  a: {provider: static, base_url: '%s', username: me, headers: {X-Key: hunter2}, transport: {retry: {min_backoff: 1ms}, rate_limits: [{requests: 4, per: 1h}], timeout: 1s}}\n", s.URL)
	conns := connectDesk(t, yaml+strings.Replace(yaml, "  a:", "  b:", 1))
	for _, name := range []string{"a", "b"} {
		if status, _, err := call(t.Context(), get(t, conns, name), "GET", "/", ""); err != nil || status != 200 {
			t.Errorf("HTTP %d, %v", status, err)
		}
	}
	if n := requests.Load(); n != 3 {
		t.Errorf("%d requests, want two calls and a retry", n)
	}
	req, _ := get(t, conns, "a").NewRequest(t.Context(), "GET", "/away", nil)
	req.Header.Set("Authorization", "mine")
	resp, err := get(t, conns, "a").Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if leaked.Load() {
		t.Error("the key was sent elsewhere")
	}
	if _, _, err := call(t.Context(), get(t, conns, "b"), "GET", "/", ""); !errors.Is(err, auth.ErrRateLimited) {
		t.Errorf("the limit of both is used up: %v", err)
	}
}
