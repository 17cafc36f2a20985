package config

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

// vault is a secret source that counts its reads.
type vault struct {
	value atomic.Pointer[string]
	reads atomic.Int32
	fails atomic.Bool
	hang  chan struct{} // closed when reads go on, or nil
}

func newVault(value string) *vault {
	v := new(vault)
	v.value.Store(&value)
	return v
}

func (v *vault) read(ctx context.Context, ref string) (string, error) {
	v.reads.Add(1)
	if v.hang != nil {
		select {
		case <-v.hang:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	if v.fails.Load() {
		return "", errors.New("sealed")
	}
	return *v.value.Load() + " of " + ref + "\n", nil
}

// The secret is read at load, after a minute when it is used, and once a second while the product refuses it.
func TestSecretSource(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v := newVault("one")
		accepted, refused := "one of kv/itsm#secret", 0
		product := WithWrap(func(string, http.RoundTripper) http.RoundTripper {
			return roundTripper(func(r *http.Request) (*http.Response, error) {
				status, body := 200, `{"access_token": "t", "expires_in": 30}`
				if _, secret, _ := r.BasicAuth(); r.URL.Path == "/token" && secret != accepted {
					status, body, refused = 401, `{"error": "invalid_client"}`, refused+1
				}
				return &http.Response{StatusCode: status, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
			})
		})
		conns, err := Parse("t.yaml", []byte(`
version: 1
connectors:
  a: {provider: oauth2, base_url: https://h, token_url: https://h/token, client_id: a, client_secret: "${vault:kv/itsm#secret}", credentials_encoding: raw}
  b: {provider: oauth2, base_url: https://h, token_url: https://h/token, client_id: a, client_secret: "${vault:kv/itsm#secret}", credentials_encoding: raw}
`), product, WithSecretSource("vault", v.read))
		if err != nil {
			t.Fatal(err)
		}
		defer conns.Close()
		if n := v.reads.Load(); n != 1 {
			t.Errorf("%d reads when loading", n)
		}
		a, err := conns.Get("a")
		if err != nil {
			t.Fatal(err)
		}
		call := func() error {
			resp, err := a.Client().Get("https://h/x")
			if err == nil {
				resp.Body.Close()
			}
			return err
		}
		for range 59 {
			if err := call(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		if n := v.reads.Load(); n != 1 {
			t.Errorf("%d reads in the first minute", n)
		}
		v.fails.Store(true) // the vault is sealed: the last value is used
		time.Sleep(time.Minute)
		if err := call(); err != nil || v.reads.Load() < 2 {
			t.Errorf("%v after %d reads", err, v.reads.Load())
		}

		// The product has a new secret. The vault gets it 10 s later.
		v.fails.Store(false)
		accepted = "two of kv/itsm#secret"
		time.Sleep(29 * time.Second) // the token has nearly expired, and a value of this minute is kept
		before := v.reads.Load()
		for i := range 10 {
			if err := call(); i > 2 && !errors.Is(err, auth.ErrCredentials) {
				t.Errorf("%d: %v", i, err)
			}
			time.Sleep(time.Second)
		}
		if n := v.reads.Load() - before; n < 5 || n > 11 {
			t.Errorf("%d reads in 10 s of refusals", n)
		}
		two := "two"
		v.value.Store(&two)
		time.Sleep(time.Second)
		if err := call(); err != nil {
			t.Errorf("a second after the rotation: %v", err)
		}
		if refused > 2 {
			t.Errorf("refused credentials were sent %d times", refused)
		}
	})
}

func TestSecretSourceFaults(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hung := newVault("")
		hung.hang = make(chan struct{})
		defer close(hung.hang)
		give := func(value string, err error) func(context.Context, string) (string, error) {
			return func(context.Context, string) (string, error) { return value, err }
		}
		start := time.Now()
		_, err := Parse("t.yaml", []byte(`
version: 1
connectors:
  a:
    provider: acme
    base_url: https://h
    client_id: ${good:x}
    client_secret: ${hung:x}
    password: ${hung:y}
  b:
    provider: oauth2
    base_url: https://h
    token_url: https://h/token
    client_secret: ${fails:kv/x}
    password: ${empty:x}
    static_headers: {A: "${lines:x}", B: "${good:}", C: "${vault:x}", D: "Key ${good:x}"}
`), append(testOptions(), WithSecretSource("hung", hung.read), WithSecretSource("good", give("x", nil)), WithSecretSource("fails", give("", errors.New("no such path"))),
			WithSecretSource("empty", give("", nil)), WithSecretSource("lines", give("a\nb", nil)), WithSecretSource("env", give("", errors.New("built in"))))...)
		const want = `t.yaml:7:16: connectors.a.client_id: ${good: } gives secrets, and this setting is none
t.yaml:8:20: connectors.a.client_secret: hung:x does not answer
t.yaml:9:15: connectors.a.password: hung:y does not answer
t.yaml:10:3: connectors.b.client_id: required for grant client_credentials
t.yaml:14:20: connectors.b.client_secret: fails:kv/x: no such path
t.yaml:15:15: connectors.b.password: empty:x is empty
t.yaml:16:25: connectors.b.static_headers.A: unusable secret: lines:x has several lines, which only a key or a certificate may have
t.yaml:16:42: connectors.b.static_headers.B: ${good: } needs a reference
t.yaml:16:57: connectors.b.static_headers.C: unknown reference; write ${env:NAME}, ${env:NAME:-default}, ${empty:REF}, ${fails:REF}, ${good:REF}, ${hung:REF}, ${lines:REF} or ${file:PATH}, or $${ for a literal ${`
		if err == nil || err.Error() != want {
			t.Errorf("%v", err)
		}
		if took := time.Since(start).Round(time.Second); took != 10*time.Second {
			t.Errorf("after %s", took)
		}
	})
}

// A secret of a vault that rotates.
func ExampleWithSecretSource() {
	secrets := map[string]string{"kv/itsm#secret": "s3cret"} // a client of your vault
	conns, err := Parse("itsmauth.yaml", []byte(`
version: 1
connectors:
  support:
    provider: beyondtrust
    base_url: https://support.example.com
    client_id: sync
    client_secret: ${vault:kv/itsm#secret}
`), WithSecretSource("vault", func(_ context.Context, ref string) (string, error) {
		secret, ok := secrets[ref]
		if !ok {
			return "", errors.New("the vault has no such secret")
		}
		return secret, nil
	}))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conns.Close()
	fmt.Println(conns.Names())
	// Output: [support]
}
