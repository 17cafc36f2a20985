package config

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/providers/beyondtrust"
	"github.com/itsmauth/itsmauth/providers/generic"
	"github.com/itsmauth/itsmauth/transport"
)

// oauthServer is a product with a token endpoint, for any number of tenants.
type oauthServer struct {
	*httptest.Server
	exchanges atomic.Int32
	exchange  func(http.ResponseWriter) // instead of a token, if it is set
	call      func()                    // during a call, if it is set
}

func newOAuthServer(t *testing.T) *oauthServer {
	s := new(oauthServer)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path != "/token":
			if s.call != nil {
				s.call()
			}
			io.WriteString(w, r.Header.Get("Authorization"))
		case s.exchange != nil:
			s.exchanges.Add(1)
			s.exchange(w)
		default:
			fmt.Fprintf(w, `{"access_token": "token-%d", "expires_in": 3600}`, s.exchanges.Add(1))
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *oauthServer) settings(id, secret string) Settings {
	base, _ := url.Parse(s.URL)
	return Settings{BaseURL: base, Provider: func(env auth.Env) (auth.Provider, error) {
		return generic.New(generic.Config{TokenURL: env.BaseURL.JoinPath("token"), ClientID: id, ClientSecret: auth.SecretString(secret)}, env)
	}}
}

func get(t *testing.T, c *Connector) string {
	t.Helper()
	req, err := c.NewRequest(t.Context(), "GET", "/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func add(t *testing.T, conns *Connectors, name string, s Settings) *Connector {
	t.Helper()
	c, err := conns.Add(name, s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Connectors with the same credentials share a token, whether they are added or come from a file.
func TestAddShares(t *testing.T) {
	t.Parallel()
	s := newOAuthServer(t)
	conns, err := Parse("t.yaml", fmt.Appendf(nil, "version: 1\nconnectors: {file: {provider: oauth2, base_url: %[1]q, token_url: %q, client_id: one, client_secret: x}}\n", s.URL, s.URL+"/token"))
	if err != nil {
		t.Fatal(err)
	}
	defer conns.Close()
	settings := s.settings("one", "x")
	a, b := add(t, conns, "a", settings), add(t, conns, "b", settings)
	settings.Account = "other"
	other := add(t, conns, "other", settings)
	file, err := conns.Get("file")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		conn *Connector
		want string
	}{{a, "Bearer token-1"}, {b, "Bearer token-1"}, {file, "Bearer token-1"}, {other, "Bearer token-2"}} {
		if got := get(t, tt.conn); got != tt.want {
			t.Errorf("%s: %s", tt.conn.Name, got)
		}
	}
	if a.Session().Key() != file.Session().Key() || a.Provider != "oauth2" {
		t.Errorf("%s %s %s", a.Session().Key(), file.Session().Key(), a.Provider)
	}
	if st, err := b.Status(t.Context()); err != nil || st.State != auth.StateFresh {
		t.Errorf("%+v %v", st, err)
	}
	if got := conns.Names(); !slices.Equal(got, []string{"a", "b", "file", "other"}) {
		t.Error(got)
	}
}

// An added connector gets the product's own limits, its connection rule, WithWrap and its own Wrap.
func TestAddIsComplete(t *testing.T) {
	t.Parallel()
	var seen []string
	wrap := func(what string) func(http.RoundTripper) http.RoundTripper {
		return func(next http.RoundTripper) http.RoundTripper {
			return roundTripper(func(r *http.Request) (*http.Response, error) {
				seen = append(seen, what)
				return next.RoundTrip(r)
			})
		}
	}
	server := api(t)
	base, _ := url.Parse(server.URL + "//")
	conns := New(WithWrap(func(name string, next http.RoundTripper) http.RoundTripper { return wrap("all " + name)(next) }))
	defer conns.Close()
	newProvider := func(auth.Env) (auth.Provider, error) {
		return acmeProvider{acme{ClientID: "id", Secret: auth.SecretString("s")}}, nil
	}
	c := add(t, conns, "a", Settings{BaseURL: base, Provider: newProvider, Probe: "/ping", Transport: transport.Options{Wrap: wrap("own")}})
	if got, want := get(t, c), "GET /x Bearer token of ids itsmauth/devel close=true"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if !slices.Equal(seen, []string{"all a", "own"}) || c.Probe != "/ping" || conns.Store() != "memory" {
		t.Errorf("%v %s %s", seen, c.Probe, conns.Store())
	}
	own := add(t, conns, "b", Settings{BaseURL: base, Account: "b", Provider: newProvider, Transport: transport.Options{
		UserAgent: "me/1", Limiter: transport.NewLimiter([]auth.Limit{{Requests: 1, Per: time.Hour}}, 0), Timeout: time.Second, Retry: transport.Retry{MaxAttempts: 1}}})
	if got := get(t, own); !strings.Contains(got, "me/1") {
		t.Error(got)
	}
	req, _ := own.NewRequest(t.Context(), "GET", "/", nil)
	if _, err := own.Do(req); !errors.Is(err, auth.ErrRateLimited) {
		t.Errorf("the second request of the hour: %v", err)
	}
}

func TestAddRefuses(t *testing.T) {
	t.Parallel()
	s := newOAuthServer(t)
	good := s.settings("one", "x")
	base := func(text string) Settings {
		u, _ := url.Parse(text)
		return Settings{BaseURL: u, Provider: good.Provider}
	}
	conns := New()
	defer conns.Close()
	add(t, conns, "a", good)
	for name, tt := range map[string]struct {
		name     string
		settings Settings
		want     string
	}{
		"no name":        {"", good, `connector "": a connector needs a name on one line`},
		"taken":          {"a", good, `connector "a": there is one with this name already`},
		"no URL":         {"b", Settings{Provider: good.Provider}, `connector "b": Settings.BaseURL and Settings.Provider are required`},
		"no provider":    {"b", Settings{BaseURL: good.BaseURL}, `connector "b": Settings.BaseURL and Settings.Provider are required`},
		"not a URL":      {"b", base("host"), `connector "b": Settings.BaseURL must be an absolute http or https URL`},
		"query":          {"b", base("https://h/?a"), `connector "b": Settings.BaseURL must not have a query or a fragment`},
		"user":           {"b", base("https://u:p@h"), `connector "b": Settings.BaseURL must not hold a user or a password`},
		"two schemes":    {"b", base("https://https://h"), `connector "b": Settings.BaseURL must have one scheme, not two`},
		"plain http":     {"b", base("http://h.invalid"), "refused to send over plain http to h.invalid"},
		"another secret": {"b", s.settings("one", "y"), `connector "b": it conflicts with connector a (same credentials, shared token); use equal secrets, or set a different Account`},
		"refused": {"b", Settings{BaseURL: good.BaseURL, Provider: func(env auth.Env) (auth.Provider, error) {
			return beyondtrust.New(beyondtrust.Config{}, env)
		}}, "client_id"},
		"nothing": {"b", Settings{BaseURL: good.BaseURL, Provider: func(auth.Env) (auth.Provider, error) { return nil, nil }}, `connector "b": Settings.Provider returned no provider`},
	} {
		c, err := conns.Add(tt.name, tt.settings)
		if c != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := conns.Names(); !slices.Equal(got, []string{"a"}) {
		t.Error(got)
	}
	conns.Close()
	if _, err := conns.Add("b", good); !errors.Is(err, auth.ErrClosed) {
		t.Error(err)
	}
}

// A store that cannot be opened is Add's error. The next Add tries again.
func TestAddOpensTheStore(t *testing.T) {
	t.Parallel()
	s := newOAuthServer(t)
	store := new(closingStore)
	fails := true
	conns := New(WithDefaultStore("mine", func() (auth.Store, error) {
		if fails {
			return nil, errors.New("no room")
		}
		return store, nil
	}))
	if _, err := conns.Add("a", s.settings("a", "x")); !errors.Is(err, auth.ErrStore) || !strings.Contains(err.Error(), "no room") {
		t.Error(err)
	}
	fails = false
	c := add(t, conns, "a", s.settings("a", "x"))
	get(t, c)
	if r, err := store.Load(t.Context(), c.Session().Key()); err != nil || r.Version == 0 || conns.Store() != "mine" {
		t.Errorf("%v %v %s", r, err, conns.Store())
	}
	if err := conns.Close(); err == nil || store.closed != 1 {
		t.Errorf("%v, closed %d times", err, store.closed)
	}
}

func TestRemove(t *testing.T) {
	t.Parallel()
	s := newOAuthServer(t)
	entered, leave := make(chan struct{}), make(chan struct{})
	var calls atomic.Int32
	s.call = func() {
		if calls.Add(1) == 1 {
			close(entered)
			<-leave
		}
	}
	conns := New()
	defer conns.Close()
	settings := s.settings("one", "x")
	a, b := add(t, conns, "a", settings), add(t, conns, "b", settings)

	under := make(chan string, 1)
	go func() { under <- get(t, a) }()
	<-entered
	if err := conns.Remove("a"); err != nil {
		t.Fatal(err)
	}
	req, _ := a.NewRequest(t.Context(), "POST", "/", strings.NewReader("x"))
	var e *auth.Error
	if _, err := a.Do(req); !errors.Is(err, auth.ErrClosed) || !errors.As(err, &e) || e.Connector != "a" {
		t.Error(err)
	}
	if err := conns.Remove("a"); err == nil || err.Error() != `config.Connectors has no connector "a"; did you mean b?` {
		t.Error(err)
	}
	if got := get(t, b); got != "Bearer token-1" {
		t.Errorf("another connector with these credentials: %s", got)
	}
	if err := conns.Remove("b"); err != nil { // a's call is still under way
		t.Fatal(err)
	}
	close(leave)
	if got := <-under; got != "Bearer token-1" {
		t.Errorf("the call under way: %s", got)
	}
	if again := add(t, conns, "a", settings); get(t, again) != "Bearer token-1" || s.exchanges.Load() != 1 {
		t.Errorf("the stored token is not used: %d exchanges", s.exchanges.Load())
	}
}

// A connector of a file can be removed, too, and its name used again.
func TestRemoveFromFile(t *testing.T) {
	t.Parallel()
	s := newOAuthServer(t)
	conns, err := parse1(t, "")
	if err != nil {
		t.Fatal(err)
	}
	defer conns.Close()
	if err := conns.Remove("a"); err != nil {
		t.Fatal(err)
	}
	if _, err := conns.Get("a"); err == nil {
		t.Error("a is still there")
	}
	get(t, add(t, conns, "a", s.settings("a", "x")))
}

// A token request that is under way when its connector is removed is finished and saved, and Shutdown waits for it.
func TestRemoveDuringExchange(t *testing.T) {
	t.Parallel()
	s := newOAuthServer(t)
	entered, leave := make(chan struct{}), make(chan struct{})
	s.exchange = func(w http.ResponseWriter) {
		close(entered)
		<-leave
		io.WriteString(w, `{"access_token": "late", "expires_in": 3600}`)
	}
	store := new(auth.Memory)
	conns := New(WithDefaultStore("mine", func() (auth.Store, error) { return store, nil }))
	a := add(t, conns, "a", s.settings("a", "x"))
	ctx, cancel := context.WithCancel(t.Context())
	go a.Session().Token(ctx)
	<-entered
	cancel()
	if err := conns.Remove("a"); err != nil {
		t.Fatal(err)
	}
	down := make(chan error, 1)
	go func() { down <- conns.Shutdown(t.Context()) }()
	select {
	case err := <-down:
		t.Fatalf("Shutdown did not wait: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	close(leave)
	if err := <-down; err != nil {
		t.Error(err)
	}
	if r, err := store.Load(t.Context(), a.Session().Key()); err != nil || r.Version == 0 {
		t.Errorf("%v %v", r, err)
	}
}

// Shutdown leaves when ctx ends.
func TestShutdownIsPatientOnlyWithCtx(t *testing.T) {
	t.Parallel()
	s := newOAuthServer(t)
	entered, leave := make(chan struct{}, 2), make(chan struct{})
	s.exchange = func(http.ResponseWriter) {
		entered <- struct{}{}
		<-leave
	}
	defer close(leave)
	conns := New()
	for _, name := range []string{"kept", "removed"} {
		go add(t, conns, name, s.settings(name, "x")).Session().Token(t.Context())
		<-entered
	}
	if err := conns.Remove("removed"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := conns.Shutdown(ctx)
	if !errors.Is(err, context.Canceled) || conns.Close() == nil {
		t.Errorf("%v, then %v", err, conns.Close())
	}
}

func TestNilConnectors(t *testing.T) {
	t.Parallel()
	var conns *Connectors
	if err := errors.Join(conns.Close(), conns.Shutdown(t.Context())); err != nil {
		t.Error(err)
	}
}

func TestWarm(t *testing.T) {
	t.Parallel()
	good, bad := newOAuthServer(t), newOAuthServer(t)
	bad.exchange = func(w http.ResponseWriter) { http.Error(w, `{"error": "invalid_client"}`, http.StatusUnauthorized) }
	conns := New()
	defer conns.Close()
	add(t, conns, "a", good.settings("one", "x"))
	add(t, conns, "b", good.settings("one", "x"))
	add(t, conns, "refused", bad.settings("one", "x"))
	add(t, conns, "person", person(t, good))
	err := conns.Warm(t.Context())
	if !errors.Is(err, auth.ErrCredentials) || !strings.Contains(err.Error(), "refused: ") || strings.Contains(err.Error(), "person: ") {
		t.Error(err)
	}
	if n := good.exchanges.Load(); n != 1 {
		t.Errorf("%d exchanges", n)
	}
}

// person is a connector that a person has to log in.
func person(t *testing.T, s *oauthServer) Settings {
	settings := s.settings("person", "x")
	settings.Provider = func(env auth.Env) (auth.Provider, error) {
		return generic.New(generic.Config{Grant: "authorization_code", TokenURL: env.BaseURL.JoinPath("token"), AuthURL: env.BaseURL.JoinPath("auth"),
			ClientID: "person", ClientSecret: auth.SecretString("x"), RedirectURI: "http://127.0.0.1:8400/cb"}, env)
	}
	return settings
}

func TestHealth(t *testing.T) {
	t.Parallel()
	s := newOAuthServer(t)
	var status atomic.Int32
	down := newOAuthServer(t)
	down.exchange = func(w http.ResponseWriter) { http.Error(w, `{"error": "invalid_client"}`, int(status.Load())) }
	store := &brokenStore{}
	conns := New(WithDefaultStore("mine", func() (auth.Store, error) { return store, nil }))
	defer conns.Close()
	unused, working := add(t, conns, "unused", s.settings("unused", "x")), add(t, conns, "working", s.settings("working", "x"))
	get(t, working)
	if err := conns.Health(t.Context()); err != nil {
		t.Error(err)
	}
	passing := add(t, conns, "passing", down.settings("passing", "x"))
	status.Store(503)
	if _, err := passing.Session().Token(t.Context()); err == nil {
		t.Error("a token")
	}
	if err := conns.Health(t.Context()); err != nil {
		t.Errorf("what passes needs no repair: %v", err)
	}
	refused := add(t, conns, "refused", down.settings("refused", "x"))
	status.Store(401)
	if _, err := refused.Session().Token(t.Context()); err == nil {
		t.Error("a token")
	}
	add(t, conns, "person", person(t, s))
	err := conns.Health(t.Context())
	if !errors.Is(err, auth.ErrCredentials) || !errors.Is(err, auth.ErrConsentRequired) || strings.Count(err.Error(), "\n") != 1 {
		t.Error(err)
	}
	n := s.exchanges.Load()
	store.broken.Store(true)
	if err := conns.Health(t.Context()); !errors.Is(err, auth.ErrStore) || strings.Contains(err.Error(), "working") || strings.Contains(err.Error(), "unused") {
		t.Error(err)
	}
	if s.exchanges.Load() != n {
		t.Errorf("Health made an exchange")
	}
	_ = unused
}

type brokenStore struct {
	auth.Memory
	broken atomic.Bool
}

func (s *brokenStore) Load(ctx context.Context, key string) (auth.Record, error) {
	if s.broken.Load() {
		return auth.Record{}, fmt.Errorf("%w: the disk is gone", auth.ErrStore)
	}
	return s.Memory.Load(ctx, key)
}

// tenants adds and removes connectors while calls are made with others, and reports what is left over.
func tenants(t *testing.T, n int) {
	s := newOAuthServer(t)
	conns := New()
	steady := add(t, conns, "steady", s.settings("steady", "x"))
	get(t, steady)
	stop := make(chan struct{})
	var calling sync.WaitGroup
	for range 4 {
		calling.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					if got := get(t, steady); got != "Bearer token-1" {
						t.Error(got)
						return
					}
				}
			}
		})
	}
	before := runtime.NumGoroutine()
	var adding sync.WaitGroup
	for worker := range 8 {
		adding.Go(func() {
			for i := worker; i < n; i += 8 {
				name := fmt.Sprint("tenant-", i)
				c, err := conns.Add(name, s.settings(name, "x"))
				if err != nil {
					t.Error(err)
					return
				}
				if got := get(t, c); !strings.HasPrefix(got, "Bearer token-") {
					t.Error(got)
				}
				if err := conns.Remove(name); err != nil {
					t.Error(err)
				}
			}
		})
	}
	adding.Wait()
	close(stop)
	calling.Wait()
	conns.removing.Wait()
	if len(conns.identities) != 1 || len(conns.byName) != 1 {
		t.Errorf("%d identities, %d connectors", len(conns.identities), len(conns.byName))
	}
	for end := time.Now().Add(time.Minute); runtime.NumGoroutine() > before+20; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
	if err := conns.Close(); err != nil {
		t.Error(err)
	}
}

func TestTenants(t *testing.T) { tenants(t, 200) } // not parallel: it counts goroutines
