package config

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

// What is made of a secret follows the secret's file within a second.
func TestSecretsAreFollowed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	one, two := auth.NewKey(), auth.NewKey()
	write("header", "first\n")
	write("key", one)
	store := new(auth.Memory)
	product := WithWrap(func(string, http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			body := `{"access_token": "t", "expires_in": 30}`
			if r.URL.Path != "/token" {
				body = fmt.Sprint(r.Header["X-Key"])
			}
			return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
		})
	})
	synctest.Test(t, func(t *testing.T) {
		conns, err := Parse(filepath.Join(dir, "t.yaml"), []byte(`
version: 1
token_store: {type: mine, encryption_keys: ["${file:key}", `+one+", "+two+`]}
connectors:
  a:
    provider: oauth2
    base_url: https://h
    token_url: https://h/token
    client_id: a
    client_secret: x
    static_headers: {X-Key: "${file:header}"}
`), product, WithStore("mine", func(struct{}) (auth.Store, error) { return store, nil }))
		if err != nil {
			t.Fatal(err)
		}
		defer conns.Close()
		a, err := conns.Get("a")
		if err != nil {
			t.Fatal(err)
		}
		for _, step := range []struct{ header, key, wantHeader, wantKey string }{
			{"first", one, "first", one},
			{"second\r\n", two, "second", one}, // the token was saved before
			{"", "no key", "second", one},
			{"third", two, "third", one},
			{"fourth", two, "fourth", two},
		} {
			if step.header == "fourth" {
				time.Sleep(time.Minute) // the token has expired
			}
			write("header", step.header)
			write("key", step.key)
			time.Sleep(time.Second)
			resp, err := a.Client().Get("https://h/x")
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if want := "[" + step.wantHeader + "]"; string(body) != want || err != nil {
				t.Errorf("%s, %v; want %s", body, err, want)
			}
			synctest.Wait() // until the token is saved
			key, err := auth.ParseKey(step.wantKey)
			if err != nil {
				t.Fatal(err)
			}
			if r, err := auth.Encrypt(store, key).Load(t.Context(), a.session.Key()); err != nil || r.Version == 0 {
				t.Errorf("%s: %v", step.header, err)
			}
		}
	})
}
