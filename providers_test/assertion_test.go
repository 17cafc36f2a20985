package providers_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/itsmauth/itsmauth/config"
	"github.com/itsmauth/itsmauth/internal/emulator/memnet"
)

// A keyedProduct accepts JWTs that are signed with one key, and the tokens that it issued for them.
type keyedProduct struct {
	mu       sync.Mutex
	name     string // of the key, in kid or x5t#S256
	key      crypto.PublicKey
	token    string
	accepted int
	refused  int
}

func (p *keyedProduct) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.URL.Path != "/token" {
		if r.Header.Get("Authorization") != "Bearer "+p.token {
			w.WriteHeader(http.StatusUnauthorized)
		}
		return
	}
	r.ParseForm()
	for _, field := range []string{"assertion", "client_assertion"} {
		if !r.PostForm.Has(field) {
			continue
		}
		signed, err := jose.ParseSignedCompact(r.PostForm.Get(field), []jose.SignatureAlgorithm{jose.ES256})
		if err == nil {
			_, err = signed.Verify(p.key)
		}
		if err != nil || signed.Signatures[0].Header.KeyID != p.name && signed.Signatures[0].Header.ExtraHeaders["x5t#S256"] != p.name {
			p.refused++
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprintf(w, `{"error":%q}`, map[string]string{"assertion": "invalid_grant", "client_assertion": "invalid_client"}[field])
			return
		}
	}
	p.accepted++
	p.token = fmt.Sprint("token-", p.accepted)
	fmt.Fprintf(w, `{"access_token":%q,"expires_in":86400}`, p.token)
}

// rotate makes the product trust this key alone, and refuse all earlier tokens.
func (p *keyedProduct) rotate(name string, key crypto.PublicKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.name, p.key, p.token = name, key, ""
}

func (p *keyedProduct) counts() [2]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return [2]int{p.accepted, p.refused}
}

// TestAssertionKeyRotates replaces a private key at the product, and seconds later in its file. In between, the old
// key is sent once. The new one is used within two seconds.
func TestAssertionKeyRotates(t *testing.T) {
	t.Parallel()
	inPEM := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	encode := base64.RawURLEncoding.EncodeToString
	for name, tc := range map[string]struct {
		yaml string // of the credentials
		// files are the contents of the files one and two for a key, and the name by which the product finds it.
		files func(t *testing.T, key *ecdsa.PrivateKey, n int) (one, two, name string)
	}{
		"a certificate": {
			"credentials_in: private_key_jwt\n    assertion: {private_key: '${file:one}', certificate: '${file:two}'}",
			func(t *testing.T, key *ecdsa.PrivateKey, n int) (one, two, name string) {
				template := &x509.Certificate{SerialNumber: big.NewInt(int64(n)), NotAfter: time.Now().Add(time.Hour)}
				cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
				if err != nil {
					t.Fatal(err)
				}
				der, err := x509.MarshalPKCS8PrivateKey(key)
				if err != nil {
					t.Fatal(err)
				}
				sum := sha256.Sum256(cert)
				return inPEM("PRIVATE KEY", der), inPEM("CERTIFICATE", cert), encode(sum[:])
			},
		},
		"a JSON Web Key, as grant and credential": {
			"grant: jwt_bearer\n    credentials_in: private_key_jwt\n    username: sync@example.com\n    assertion: {private_key: '${file:one}', claims: {tenant: 7}}",
			func(t *testing.T, key *ecdsa.PrivateKey, n int) (one, two, name string) {
				name = fmt.Sprint("key-", n)
				text, err := json.Marshal(jose.JSONWebKey{Key: key, KeyID: name})
				if err != nil {
					t.Fatal(err)
				}
				return string(text), "", name
			},
		},
		"a workload's identity": {
			"credentials_in: client_assertion\n    client_assertion: ${file:one}",
			func(t *testing.T, key *ecdsa.PrivateKey, n int) (one, two, name string) {
				name = fmt.Sprint("key-", n)
				signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: name}}, nil)
				if err != nil {
					t.Fatal(err)
				}
				signed, err := signer.Sign([]byte(`{"iss":"cluster","sub":"pod"}`))
				if err != nil {
					t.Fatal(err)
				}
				one, err = signed.CompactSerialize()
				if err != nil {
					t.Fatal(err)
				}
				return one, "", name
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				l, p := memnet.Listen(), &keyedProduct{}
				server := &httptest.Server{Listener: l, Config: &http.Server{Handler: p}}
				server.Start()
				defer server.Close()
				network := l.Client()
				defer network.CloseIdleConnections()
				write := func(one, two string) {
					t.Helper()
					for name, text := range map[string]string{"one": one, "two": two} {
						if err := os.WriteFile(filepath.Join(dir, name), []byte(text+"\n"), 0o600); err != nil {
							t.Fatal(err)
						}
					}
				}
				made := func(n int) (one, two string, atProduct func()) {
					t.Helper()
					key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
					if err != nil {
						t.Fatal(err)
					}
					one, two, name := tc.files(t, key, n)
					return one, two, func() { p.rotate(name, key.Public()) }
				}
				one, two, atProduct := made(1)
				write(one, two)
				atProduct()
				conns, err := config.Parse(filepath.Join(dir, "itsmauth.yaml"), []byte("version: 1\nconnectors:\n  test:\n    provider: oauth2\n    base_url: http://api.example.com\n"+
					"    token_url: http://api.example.com/token\n    client_id: itsm\n    transport: {allow_http: true}\n    "+tc.yaml+"\n"),
					config.WithWrap(func(string, http.RoundTripper) http.RoundTripper { return network.Transport }))
				if err != nil {
					t.Fatal(err)
				}
				defer conns.Close()
				c := get(t, conns, "test")
				call := func(want int) {
					t.Helper()
					req, err := c.NewRequest(t.Context(), "GET", "/api", nil)
					if err != nil {
						t.Fatal(err)
					}
					resp, err := c.Do(req)
					if err != nil {
						t.Fatal(err)
					}
					if resp.Body.Close(); resp.StatusCode != want {
						t.Errorf("HTTP %d, want %d, after %v", resp.StatusCode, want, p.counts())
					}
				}
				call(200)

				// The file first: no call fails.
				one, two, atProduct = made(2)
				write(one, two)
				atProduct()
				call(200)
				if got := p.counts(); got != [2]int{2, 0} {
					t.Errorf("accepted and refused: %v", got)
				}

				// The product first.
				one, two, atProduct = made(3)
				atProduct()
				for range 10 {
					if _, err := c.Authenticator().Token(t.Context()); err == nil {
						call(401)
					}
					time.Sleep(time.Second)
				}
				if got := p.counts(); got != [2]int{2, 1} {
					t.Errorf("accepted and refused: %v", got)
				}
				write(one, two)
				time.Sleep(2 * time.Second)
				call(200)
				if got := p.counts(); got != [2]int{3, 1} {
					t.Errorf("accepted and refused: %v", got)
				}
			})
		})
	}
}
