package config

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/providers"
)

func TestGet(t *testing.T) {
	t.Parallel()
	conns, err := parse1(t, "    probe: /ping\n  shop: {provider: acme, base_url: 'http://127.0.0.1:1', client_id: shop, client_secret: x}\n")
	if err != nil {
		t.Fatal(err)
	}
	defer conns.Close()
	if diff := cmp.Diff([]string{"a", "shop"}, conns.Names()); diff != "" {
		t.Error(diff)
	}
	a, err := conns.Get("a")
	if err != nil {
		t.Fatal(err)
	}
	if a.Name != "a" || a.Provider != "acme" || a.BaseURL.String() != "https://acme.example/api" || a.Probe != "/ping" {
		t.Errorf("%+v", a)
	}
	if _, ok := a.Authenticator().(*auth.Session); !ok || conns.Store() != "memory" {
		t.Errorf("%T over %s", a.Authenticator(), conns.Store())
	}
	for name, want := range map[string]string{
		"shup":      `t.yaml has no connector "shup"; did you mean shop?`,
		"elsewhere": `t.yaml has no connector "elsewhere"; known: a, shop`,
	} {
		if _, err := conns.Get(name); err == nil || err.Error() != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// api is a product whose responses repeat the request and its token.
func api(t *testing.T) *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s %s close=%v", r.Method, r.RequestURI, r.Header.Get("Authorization"), r.UserAgent(), r.Close)
	}))
	t.Cleanup(s.Close)
	return s
}

func TestClients(t *testing.T) {
	t.Parallel()
	server := api(t)
	var wrapped sync.Map
	wrap := func(connector string, next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			wrapped.Store(connector, true)
			return next.RoundTrip(r)
		})
	}
	data := strings.ReplaceAll(`
version: 1
connectors:
  a: {provider: acme, base_url: URL, client_id: id, client_secret: x, transport: {user_agent: me/1}}
  b: {provider: acme, base_url: URL/b/, client_id: id, client_secret: x, transport: {user_agent: me/1, connection: keepalive}}
  c: {provider: acme, base_url: URL, client_id: id, client_secret: y, account: other, transport: {user_agent: me/1}}
`, "URL", server.URL)
	var exchanges atomic.Int32
	conns, err := Parse("t.yaml", []byte(data), WithWrap(wrap), countExchanges(&exchanges))
	if err != nil {
		t.Fatal(err)
	}
	defer conns.Close()
	for name, want := range map[string]string{
		"a": "GET /x?y=1 Bearer token of idx me/1 close=true",
		"b": "GET /b/x?y=1 Bearer token of idx me/1 close=false",
		"c": "GET /x?y=1 Bearer token of idy me/1 close=true",
	} {
		conn, err := conns.Get(name)
		if err != nil {
			t.Fatal(err)
		}
		req, err := conn.NewRequest(t.Context(), "GET", "x?y=1", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := conn.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(body) != want || err != nil {
			t.Errorf("%s: %s, %v", name, body, err)
		}
		if _, ok := wrapped.Load(name); !ok {
			t.Errorf("%s was not wrapped", name)
		}
	}
	key := func(name string) string {
		conn, _ := conns.Get(name)
		return conn.Authenticator().(*auth.Session).Key()
	}
	if key("a") != key("b") || key("a") == key("c") || exchanges.Load() != 2 {
		t.Errorf("%s %s %s, %d exchanges", key("a"), key("b"), key("c"), exchanges.Load())
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// closingStore counts calls of Close.
type closingStore struct {
	auth.Memory
	closed int
}

func (s *closingStore) Close() error { s.closed++; return errors.New("closed badly") }

func TestStores(t *testing.T) {
	t.Parallel()
	store := new(closingStore)
	type settings struct {
		Path string `yaml:"path" required:"true"`
	}
	open := func(c settings) (auth.Store, error) {
		if c.Path != "/x" {
			t.Error(c)
		}
		return store, nil
	}
	const rest = "version: 1\nconnectors: {a: {provider: acme, base_url: 'https://h', client_id: a, client_secret: b}}\n"
	for range 2 {
		conns, err := Parse("t.yaml", []byte("token_store: {type: mine, path: /x}\n"+rest), append(testOptions(), WithStore("mine", open))...)
		if err != nil {
			t.Fatal(err)
		}
		if conns.Store() != "mine" {
			t.Error(conns.Store())
		}
		for range 2 {
			if err := conns.Close(); err == nil || err.Error() != "closed badly" {
				t.Error(err)
			}
		}
	}
	if store.closed != 2 {
		t.Errorf("closed %d times", store.closed)
	}

	fallback := WithDefaultStore("elsewhere", func() (auth.Store, error) { return nil, errors.New("no room") })
	_, err := Parse("t.yaml", []byte(rest), append(testOptions(), fallback)...)
	if err == nil || err.Error() != "t.yaml:1:1: token_store: no room" {
		t.Error(err)
	}
	conns, err := Parse("t.yaml", []byte("token_store: {type: memory}\n"+rest), append(testOptions(), fallback)...)
	if err != nil || conns.Store() != "memory" {
		t.Error(err)
	}
	conns.Close()

	redis := WithStore("redis", func(struct{}) (auth.Store, error) { return new(auth.Memory), nil })
	_, err = Parse("t.yaml", []byte("token_store: {type: redis}\n"+rest), append(testOptions(), redis)...)
	if want := "t.yaml:1:1: token_store.encryption_keys: missing; itsmauth keygen makes a key, or set encryption: none"; err == nil || err.Error() != want {
		t.Error(err)
	}
	_, err = Parse("t.yaml", []byte("token_store: {type: redis, unknown: x}\n"+rest), append(testOptions(), redis)...)
	if problems, _ := err.(Problems); len(problems) != 2 || problems[0].Path != "token_store.encryption_keys" || problems[1].Path != "token_store.unknown" {
		t.Error(err)
	}
	conns, err = Parse("t.yaml", []byte("token_store: {type: redis, encryption: none}\n"+rest), append(testOptions(), redis)...)
	if err != nil {
		t.Fatal(err)
	}
	conns.Close()
}

// A store is not opened if its settings are refused. If opening it returns nil, that is a problem.
func TestStoresNotOpened(t *testing.T) {
	t.Parallel()
	const rest = "version: 1\nconnectors: {a: {provider: acme, base_url: 'https://h', client_id: a, client_secret: b}}\n"
	dir := filepath.Join(t.TempDir(), "store")
	_, err := Parse("t.yaml", fmt.Appendf(nil, "token_store: {type: file, unknown: x, path: %q}\n%s", dir, rest), testOptions()...)
	if problems, _ := err.(Problems); len(problems) != 1 || problems[0].Path != "token_store.unknown" {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory was made: %v", err)
	}
	nothing := WithStore("nothing", func(struct{}) (auth.Store, error) { return nil, nil })
	_, err = Parse("t.yaml", []byte("token_store: {type: nothing}\n"+rest), append(testOptions(), nothing)...)
	if err == nil || err.Error() != "t.yaml:1:14: token_store: the store was opened as nil" {
		t.Error(err)
	}
}

// Not parallel: it sets the home directory, in which the store and a secret are.
func TestHomeDirectory(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	if err := os.WriteFile(filepath.Join(home, "secret"), []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	conns, err := Parse("t.yaml", []byte(`
version: 1
token_store: {type: file, path: ~/tokens}
connectors: {a: {provider: acme, base_url: 'https://h', client_id: a, client_secret: "${file:~/secret}"}}
`), testOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	defer conns.Close()
	if _, err := os.Stat(filepath.Join(home, "tokens")); err != nil {
		t.Error(err)
	}
}

// Two processes with one file make one exchange.
func TestFileStore(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var exchanges atomic.Int32
	for range 2 {
		conns, err := Parse("t.yaml", fmt.Appendf(nil, `
version: 1
token_store: {type: file, path: %q}
connectors: {a: {provider: acme, base_url: 'https://h', client_id: a, client_secret: b}}
`, dir), countExchanges(&exchanges))
		if err != nil {
			t.Fatal(err)
		}
		a, err := conns.Get("a")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Authenticator().Token(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := conns.Close(); err != nil {
			t.Error(err)
		}
	}
	if n := exchanges.Load(); n != 1 {
		t.Errorf("%d exchanges", n)
	}
}

func countExchanges(n *atomic.Int32) Option {
	return WithProvider(providers.Define("acme", func(c acme, _ auth.Env) (auth.Provider, error) {
		return countingProvider{acmeProvider{c}, n}, nil
	}))
}

type countingProvider struct {
	acmeProvider
	n *atomic.Int32
}

func (p countingProvider) Exchange(ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
	p.n.Add(1)
	return p.acmeProvider.Exchange(ctx, prev)
}

// With encryption_keys the stored record does not contain the token.
func TestEncryptedStore(t *testing.T) {
	t.Parallel()
	store := new(auth.Memory)
	open := func(struct{}) (auth.Store, error) { return store, nil }
	conns, err := Parse("t.yaml", []byte(`
version: 1
token_store: {type: mine, encryption_keys: [MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=]}
connectors: {a: {provider: acme, base_url: 'https://h', client_id: a, client_secret: b}}
`), append(testOptions(), WithStore("mine", open))...)
	if err != nil {
		t.Fatal(err)
	}
	defer conns.Close()
	a, err := conns.Get("a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Authenticator().Token(t.Context()); err != nil {
		t.Fatal(err)
	}
	conns.Close() // the save may come after the token
	r, err := store.Load(t.Context(), a.session.Key())
	if err != nil || r.Version == 0 || bytes.Contains(r.Data, []byte("token of")) {
		t.Errorf("%v %v", r, err)
	}
}
