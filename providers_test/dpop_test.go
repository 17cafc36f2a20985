package providers_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/config"
	"github.com/itsmauth/itsmauth/internal/dpoptest"
)

// dpopConnector makes a connector to s, as a process does that starts.
func dpopConnector(t *testing.T, s *dpoptest.Server, store string, settings ...string) (c *config.Connector, end func()) {
	t.Helper()
	yaml := "  okta:\n    provider: oauth2\n    base_url: " + s.URL +
		"\n    token_url: " + s.URL + "/oauth2/token\n    revoke_url: " + s.URL + "/oauth2/revoke\n    client_id: id\n"
	for _, line := range append(settings, "transport: {retry: {min_backoff: 1ms}}") {
		yaml += "    " + line + "\n"
	}
	conns := parse(t, yaml+store)
	return get(t, conns, "okta"), func() { conns.Close() }
}

// fileStore is the part of a configuration for a store of files.
func fileStore(t *testing.T) string {
	return "token_store: {type: file, path: '" + filepath.Join(t.TempDir(), "tokens") + "'}\n"
}

// same checks what s answered since the last time.
func same(t *testing.T, s *dpoptest.Server, want ...string) {
	t.Helper()
	if got := s.Responses(); !slices.Equal(got, want) {
		t.Errorf("the product answered %q, want %q", got, want)
	}
}

// fine makes a call that must succeed.
func fine(t *testing.T, c *config.Connector, method, path, body string) {
	t.Helper()
	if status, answer, err := call(t.Context(), c, method, path, body); err != nil || status != 200 || !strings.Contains(answer, method) {
		t.Errorf("%s %s: %d %s %v", method, path, status, answer, err)
	}
}

// The server verifies each proof.
func TestDPoPProofs(t *testing.T) {
	t.Parallel()
	s := dpoptest.NewServer(t)
	c, _ := dpopConnector(t, s, "", "dpop: true")
	fine(t, c, "GET", "", "")
	fine(t, c, "GET", "/api/tickets?q=a%20b", "")
	fine(t, c, "POST", "/api/a%2Fb/{c}", `{"a":1}`)
	fine(t, c, "POST", "/moved", `{"a":1}`)
	same(t, s, "/oauth2/token 200", "/ 200", "/api/tickets 200", "/api/a/b/{c} 200", "/moved 307", "/api/a/b 200")
	s.Set(dpoptest.Rules{Fail: 503})
	fine(t, c, "GET", "/api", "")
	same(t, s, "/api 503 failed", "/api 200")
	s.Revoke()
	fine(t, c, "POST", "/api", `{"a":1}`)
	same(t, s, "/api 401 invalid_token", "/oauth2/token 200", "/api 200")
	tok, err := c.Authenticator().Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if h := c.Authenticator().Header(tok).Get("Authorization"); h != "DPoP "+tok.AccessToken || len(s.Keys()) != 1 {
		t.Errorf("Authorization: %s; %d keys", h, len(s.Keys()))
	}
}

func TestDPoPNonces(t *testing.T) {
	t.Parallel()
	s := dpoptest.NewServer(t)
	s.Set(dpoptest.Rules{NonceUses: 2})
	c, _ := dpopConnector(t, s, "", "dpop: true")
	for range 4 {
		fine(t, c, "POST", "/api", `{"a":1}`)
	}
	same(t, s, "/oauth2/token 400 use_dpop_nonce", "/oauth2/token 200",
		"/api 401 use_dpop_nonce", "/api 200", "/api 200", "/api 401 use_dpop_nonce", "/api 200", "/api 200")

	// A body that cannot be sent again: the response is the caller's, the token stays.
	post := func(body io.Reader) int {
		t.Helper()
		req, err := c.NewRequest(t.Context(), "POST", "/api", io.NopCloser(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	large := strings.Repeat("x", 2<<20)
	if got := []int{post(strings.NewReader(large)), post(strings.NewReader(large)), post(strings.NewReader("x")), post(strings.NewReader("x"))}; !slices.Equal(got, []int{401, 200, 200, 200}) {
		t.Errorf("POST without GetBody: %d", got)
	}
	same(t, s, "/api 401 use_dpop_nonce", "/api 200", "/api 200", "/api 401 use_dpop_nonce", "/api 200")

	// A retry and a replay are challenged anew.
	s.Set(dpoptest.Rules{NonceUses: 1, Fail: 503})
	fine(t, c, "GET", "/api", "")
	fine(t, c, "GET", "/api", "")
	s.Revoke()
	fine(t, c, "GET", "/api", "")
	if got := strings.Join(s.Responses(), ", "); strings.Contains(got, "invalid_dpop_proof") || !strings.HasSuffix(got, "/api 401 invalid_token, /oauth2/token 400 use_dpop_nonce, /oauth2/token 200, /api 401 use_dpop_nonce, /api 200") {
		t.Error(got)
	}

	// Callers who start without a nonce.
	s.Set(dpoptest.Rules{NonceUses: 1000})
	c, _ = dpopConnector(t, s, "", "dpop: true")
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 5 {
				fine(t, c, "GET", "/api", "")
			}
		})
	}
	wg.Wait()
}

// A product that does not accept any nonce.
func TestDPoPEndlessChallenge(t *testing.T) {
	t.Parallel()
	s := dpoptest.NewServer(t)
	c, _ := dpopConnector(t, s, "", "dpop: true")
	fine(t, c, "GET", "/api", "")
	s.Responses()
	s.Set(dpoptest.Rules{NonceUses: -1})
	if status, _, err := call(t.Context(), c, "GET", "/api", ""); err != nil || status != 401 {
		t.Errorf("%d %v", status, err)
	}
	same(t, s, "/api 401 use_dpop_nonce", "/api 401 use_dpop_nonce")
	other, _ := dpopConnector(t, s, "", "dpop: true")
	_, err := other.Authenticator().Token(t.Context())
	if e, ok := errors.AsType[*auth.Error](err); !ok || !errors.Is(err, auth.ErrProtocol) || e.Code != "use_dpop_nonce" || e.Status != 400 {
		t.Error(err)
	}
	same(t, s, "/oauth2/token 400 use_dpop_nonce", "/oauth2/token 400 use_dpop_nonce")
}

// The key is kept with the token: after a restart, and for another process.
func TestDPoPKeyIsKept(t *testing.T) {
	t.Parallel()
	for name, store := range map[string]string{
		"file":      "token_store: {type: file, path: '%s'}\n",
		"encrypted": "token_store: {type: file, path: '%s', encryption_keys: ['" + auth.NewKey() + "']}\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := dpoptest.NewServer(t)
			store := fmt.Sprintf(store, filepath.Join(t.TempDir(), "tokens"))
			a, end := dpopConnector(t, s, store, "dpop: true")
			fine(t, a, "GET", "/api", "")
			end()
			b, _ := dpopConnector(t, s, store, "dpop: true")
			c, _ := dpopConnector(t, s, store, "dpop: true")
			fine(t, b, "GET", "/api", "")
			fine(t, c, "GET", "/api", "")
			same(t, s, "/oauth2/token 200", "/api 200", "/api 200", "/api 200")
			s.Revoke()
			fine(t, b, "GET", "/api", "")
			fine(t, c, "GET", "/api", "")
			same(t, s, "/api 401 invalid_token", "/oauth2/token 200", "/api 200", "/api 401 invalid_token", "/api 200")
			if len(s.Keys()) != 1 {
				t.Errorf("%d keys", len(s.Keys()))
			}
		})
	}
}

// Processes that start at once use one key.
func TestDPoPProcesses(t *testing.T) {
	t.Parallel()
	s := dpoptest.NewServer(t)
	store := fileStore(t)
	var wg sync.WaitGroup
	for range 8 {
		c, _ := dpopConnector(t, s, store, "dpop: true")
		wg.Go(func() {
			for range 3 {
				fine(t, c, "GET", "/api", "")
			}
		})
	}
	wg.Wait()
	if n := strings.Count(strings.Join(s.Responses(), " "), "/oauth2/token 200"); n != 1 || len(s.Keys()) != 1 {
		t.Errorf("%d token requests with %d keys", n, len(s.Keys()))
	}
}

// A login may begin in one process and end in another. The refresh token of a client without a secret is bound.
func TestDPoPLogin(t *testing.T) {
	t.Parallel()
	s := dpoptest.NewServer(t)
	s.Set(dpoptest.Rules{NonceUses: 5, Public: true})
	store := fileStore(t)
	settings := []string{"grant: authorization_code", "auth_url: " + s.URL + "/authorize", "redirect_uri: http://127.0.0.1:8400/callback", "dpop: true"}
	a, endA := dpopConnector(t, s, store, settings...)
	b, _ := dpopConnector(t, s, store, settings...)
	verifier := oauth2.GenerateVerifier()
	code := s.Allow(a.Session().CodeFlow().URL("state", verifier))
	if err := b.Session().Redeem(t.Context(), code, verifier); err != nil {
		t.Fatal(err)
	}
	fine(t, a, "GET", "/api", "")
	fine(t, b, "GET", "/api", "")
	s.Revoke()
	fine(t, a, "GET", "/api", "")
	endA()
	s.Revoke()
	c, _ := dpopConnector(t, s, store, settings...)
	fine(t, c, "GET", "/api", "")
	fine(t, b, "GET", "/api", "")
	if len(s.Keys()) != 1 {
		t.Errorf("%d keys after one login", len(s.Keys()))
	}
	if err := b.Session().Redeem(t.Context(), s.Allow(b.Session().CodeFlow().URL("state", verifier)), oauth2.GenerateVerifier()); !errors.Is(err, auth.ErrConsentRequired) {
		t.Errorf("a code for another key: %v", err)
	}
	verifier = oauth2.GenerateVerifier()
	if err := b.Session().Redeem(t.Context(), s.Allow(b.Session().CodeFlow().URL("state", verifier)), verifier); err != nil {
		t.Fatal(err)
	}
	fine(t, b, "GET", "/api", "")
	if err := b.Session().Revoke(t.Context()); err != nil {
		t.Error(err)
	}
}

// keys are private keys of each kind, as they are in files.
func keys(t *testing.T) map[string]string {
	t.Helper()
	p256, err1 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p384, err2 := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	_, ed, err3 := ed25519.GenerateKey(rand.Reader)
	rsa2048, err4 := rsa.GenerateKey(rand.Reader, 2048)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for name, key := range map[string]any{"ES256": p256, "ES384": p384, "EdDSA": ed, "RS256": rsa2048} {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		all[name] = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	}
	jwk, err := json.Marshal(jose.JSONWebKey{Key: rsa2048, KeyID: "k", Algorithm: "PS256", Use: "sig"})
	if err != nil {
		t.Fatal(err)
	}
	all["a JSON Web Key for PS256"] = string(jwk)
	return all
}

func TestDPoPGivenKey(t *testing.T) {
	t.Parallel()
	for name, key := range keys(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := dpoptest.NewServer(t)
			dir := t.TempDir()
			file, tokens := filepath.Join(dir, "key"), filepath.Join(dir, "tokens")
			if err := os.WriteFile(file, []byte(key), 0o600); err != nil {
				t.Fatal(err)
			}
			c, _ := dpopConnector(t, s, "token_store: {type: file, path: '"+tokens+"'}\n", "dpop: {private_key: '${file:"+file+"}'}")
			fine(t, c, "GET", "/api", "")
			fine(t, c, "POST", "/api", "{}")
			if len(s.Keys()) != 1 {
				t.Errorf("%d keys", len(s.Keys()))
			}
			files, _ := filepath.Glob(filepath.Join(tokens, "*"))
			for _, f := range files {
				if b, _ := os.ReadFile(f); strings.Contains(string(b), "signing_key") || strings.Contains(string(b), "PRIVATE KEY") {
					t.Errorf("%s has a key: %s", f, b)
				}
			}
		})
	}
}

// A key that is replaced replaces the token, and ends the consent of a client without a secret.
func TestDPoPKeyChanges(t *testing.T) {
	t.Parallel()
	for name, settings := range map[string][]string{
		"client_credentials": nil,
		"authorization_code": {"grant: authorization_code", "auth_url: https://h/authorize", "redirect_uri: http://127.0.0.1:8400/callback"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := dpoptest.NewServer(t)
			s.Set(dpoptest.Rules{Public: true})
			file, store, all := filepath.Join(t.TempDir(), "key"), fileStore(t), keys(t)
			settings := append(settings, "dpop: {private_key: '${file:"+file+"}'}")
			os.WriteFile(file, []byte(all["ES256"]), 0o600)
			c, end := dpopConnector(t, s, store, settings...)
			if session := c.Session(); session.CodeFlow() != nil {
				if err := session.Redeem(t.Context(), s.Allow(session.CodeFlow().URL("state", "verifier")), "verifier"); err != nil {
					t.Fatal(err)
				}
			}
			fine(t, c, "GET", "/api", "")
			end()
			os.WriteFile(file, []byte(all["ES384"]), 0o600)
			s.Responses()
			c, _ = dpopConnector(t, s, store, settings...)
			if name == "client_credentials" {
				fine(t, c, "GET", "/api", "")
				same(t, s, "/api 401 invalid_token", "/oauth2/token 200", "/api 200")
				return
			}
			if status, _, err := call(t.Context(), c, "GET", "/api", ""); status != 401 || err != nil { // the product's own response
				t.Errorf("%d %v", status, err)
			}
			if _, err := c.Authenticator().Token(t.Context()); !errors.Is(err, auth.ErrConsentRequired) {
				t.Error(err)
			}
			same(t, s, "/api 401 invalid_token", "/oauth2/token 400 invalid_grant")
		})
	}
}

func TestDPoPTokenType(t *testing.T) {
	t.Parallel()
	for _, other := range []string{"Bearer", "<b>"} {
		s := dpoptest.NewServer(t)
		s.Set(dpoptest.Rules{TokenType: other})
		c, _ := dpopConnector(t, s, "", "dpop: true")
		_, err := c.Authenticator().Token(t.Context())
		if !errors.Is(err, auth.ErrProtocol) || other == "Bearer" && !strings.Contains(err.Error(), "token_type DPoP") {
			t.Error(err)
		}
	}
	s := dpoptest.NewServer(t)
	s.Set(dpoptest.Rules{TokenType: "dpop"})
	c, _ := dpopConnector(t, s, "", "dpop: true")
	fine(t, c, "GET", "/api", "")
}

// A caller's own header DPoP is replaced, in any spelling.
func TestDPoPHeaderOfTheCaller(t *testing.T) {
	t.Parallel()
	s := dpoptest.NewServer(t)
	c, _ := dpopConnector(t, s, "", "dpop: true")
	for _, name := range []string{"DPoP", "Dpop", "dpop"} {
		req, err := c.NewRequest(t.Context(), "GET", "/api", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header[name] = []string{"x"}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if resp.Body.Close(); resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", name, resp.Status)
		}
	}
}
