package generic

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/authtest"
)

// Keys of each kind, made once.
var (
	rsaKey = sync.OnceValue(func() *rsa.PrivateKey { return made(rsa.GenerateKey(rand.Reader, 2048)) })
	p256   = sync.OnceValue(func() *ecdsa.PrivateKey { return made(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) })
	p384   = sync.OnceValue(func() *ecdsa.PrivateKey { return made(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)) })
	p521   = sync.OnceValue(func() *ecdsa.PrivateKey { return made(ecdsa.GenerateKey(elliptic.P521(), rand.Reader)) })
	edKey  = sync.OnceValue(func() ed25519.PrivateKey {
		return ed25519.NewKeyFromSeed(made(io.ReadAll(io.LimitReader(rand.Reader, 32))))
	})
)

func made[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// pkcs8 is the key in PEM.
func pkcs8(key crypto.Signer) string {
	return inPEM("PRIVATE KEY", made(x509.MarshalPKCS8PrivateKey(key)))
}

func inPEM(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// jwk is the key as a JSON Web Key with further members.
func jwk(key crypto.Signer, more ...string) string {
	text := string(made(json.Marshal(jose.JSONWebKey{Key: key})))
	return strings.TrimSuffix(text, "}") + strings.Join(append([]string{""}, more...), ",") + "}"
}

// certificate is a certificate for the key, in PEM, and its thumbprint.
func certificate(key crypto.Signer) (text, thumbprint string) {
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "itsm"}, NotAfter: time.Now().Add(time.Hour)}
	der := made(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))
	sum := sha256.Sum256(der)
	return inPEM("CERTIFICATE", der), base64.RawURLEncoding.EncodeToString(sum[:])
}

// An issuer is a token endpoint that verifies assertions strictly (RFC 7523 section 3).
type issuer struct {
	url *url.URL

	mu       sync.Mutex
	keys     map[string]crypto.PublicKey // trusted, by kid or by x5t#S256
	seen     map[any]bool                // the jti of all assertions
	requests []url.Values
	said     map[string]map[string]any    // header and claims of the last assertion, by its field
	refuse   func(form url.Values) string // gives an error code, or ""
	nonce    string                       // that a DPoP proof must have, if not ""
}

func newIssuer(t testing.TB) *issuer {
	t.Helper()
	i := &issuer{seen: map[any]bool{}, said: map[string]map[string]any{}}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.mu.Lock()
		defer i.mu.Unlock()
		r.ParseForm()
		status, body := i.answer(r.PostForm)
		if proof := strings.Split(r.Header.Get("DPoP"), "."); i.nonce != "" && status == 200 {
			payload, _ := base64.RawURLEncoding.DecodeString(proof[min(1, len(proof)-1)])
			if body = strings.Replace(body, "{", `{"token_type":"DPoP",`, 1); !strings.Contains(string(payload), `"nonce":"`+i.nonce+`"`) {
				w.Header().Set("DPoP-Nonce", i.nonce)
				status, body = 400, `{"error":"use_dpop_nonce"}`
			}
		}
		w.WriteHeader(status)
		io.WriteString(w, body)
	}))
	s.Config.SetKeepAlivesEnabled(false)
	t.Cleanup(s.Close)
	i.url = made(url.Parse(s.URL + "/token"))
	return i
}

// trust makes i trust this key alone.
func (i *issuer) trust(name string, key crypto.Signer) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = map[string]crypto.PublicKey{name: key.Public()}
}

// last returns the last request, and what its assertion in the field says.
func (i *issuer) last(field string) (form url.Values, said map[string]any) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.requests[len(i.requests)-1], i.said[field]
}

func (i *issuer) answer(form url.Values) (status int, body string) {
	refused := func(code string, err error) (int, string) {
		return 400, fmt.Sprintf(`{"error":%q,"error_description":"no: %v"}`, code, err)
	}
	i.requests = append(i.requests, form)
	if i.refuse != nil {
		if code := i.refuse(form); code != "" {
			return refused(code, errors.New("told to"))
		}
	}
	if form.Has("client_assertion") {
		if kind := form.Get("client_assertion_type"); kind != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" {
			return refused("invalid_request", errors.New(kind))
		}
		claims, err := i.verify(form.Get("client_assertion"))
		if err == nil && (claims["iss"] != claims["sub"] || form.Get("client_id") != claims["sub"]) {
			err = errors.New("another client")
		}
		if err != nil {
			return refused("invalid_client", err)
		}
		i.said["client_assertion"] = claims
	}
	if form.Get("grant_type") == "urn:ietf:params:oauth:grant-type:jwt-bearer" {
		claims, err := i.verify(form.Get("assertion"))
		if err != nil {
			return refused("invalid_grant", err)
		}
		i.said["assertion"] = claims
	}
	return 200, fmt.Sprintf(`{"access_token":"AT%d","expires_in":3600}`, len(i.requests))
}

// verify returns the header and the claims. It verifies the signature with the library and without it.
func (i *issuer) verify(token string) (map[string]any, error) {
	all := []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA}
	signed, err := jose.ParseSignedCompact(token, all)
	if err != nil {
		return nil, err
	}
	parts := strings.Split(token, ".")
	said := map[string]any{}
	for _, part := range parts[:2] {
		text, err := base64.RawURLEncoding.DecodeString(part)
		if err := errors.Join(err, json.Unmarshal(text, &said)); err != nil {
			return nil, err
		}
	}
	name, ok := said["x5t#S256"].(string)
	if !ok {
		name, _ = said["kid"].(string)
	}
	key := i.keys[name]
	if key == nil {
		return nil, fmt.Errorf("no key %q", name)
	}
	if _, err := signed.Verify(key); err != nil {
		return nil, err
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil || !verified(said["alg"].(string), key, parts[0]+"."+parts[1], signature) {
		return nil, fmt.Errorf("the signature is wrong: %v", err)
	}
	jti, _ := said["jti"].(string)
	iat, _ := said["iat"].(float64)
	exp, _ := said["exp"].(float64)
	now := float64(time.Now().Unix())
	switch {
	case len(jti) < 22 || i.seen[jti]:
		return nil, errors.New("not a fresh jti")
	case iat < now-60 || iat > now || exp <= now || exp > now+3600:
		return nil, errors.New("not valid now")
	case said["typ"] != "JWT" || said["iss"] == "" || said["sub"] == "":
		return nil, errors.New("incomplete")
	}
	i.seen[jti] = true
	return said, nil
}

// verified verifies a signature with the standard library alone (RFC 7518 section 3, RFC 8037 section 3.1).
func verified(algorithm string, key crypto.PublicKey, signed string, signature []byte) bool {
	if algorithm == "EdDSA" {
		return ed25519.Verify(key.(ed25519.PublicKey), []byte(signed), signature)
	}
	hash := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}[algorithm[2:]]
	h := hash.New()
	h.Write([]byte(signed))
	switch digest := h.Sum(nil); algorithm[:2] {
	case "RS":
		return rsa.VerifyPKCS1v15(key.(*rsa.PublicKey), hash, digest, signature) == nil
	case "PS":
		return rsa.VerifyPSS(key.(*rsa.PublicKey), hash, digest, signature, &rsa.PSSOptions{SaltLength: hash.Size()}) == nil
	default:
		public := key.(*ecdsa.PublicKey)
		size := (public.Params().BitSize + 7) / 8
		return len(signature) == 2*size && ecdsa.Verify(public, digest, new(big.Int).SetBytes(signature[:size]), new(big.Int).SetBytes(signature[size:]))
	}
}

// exchanged makes two exchanges, both of which i must accept.
func (i *issuer) exchanged(t *testing.T, c Config) *Provider {
	t.Helper()
	c.TokenURL = i.url
	p := must(t, c)
	for range 2 {
		if _, err := p.Exchange(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// TestAssertion tests what is signed, and how.
func TestAssertion(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		key       crypto.Signer
		text      string // the private key
		algorithm string
		want      string
	}{
		"RSA":                      {rsaKey(), pkcs8(rsaKey()), "", "RS256"},
		"RSA in PKCS#1":            {rsaKey(), inPEM("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey())), "", "RS256"},
		"RS384":                    {rsaKey(), pkcs8(rsaKey()), "RS384", "RS384"},
		"RS512":                    {rsaKey(), pkcs8(rsaKey()), "RS512", "RS512"},
		"PS256":                    {rsaKey(), pkcs8(rsaKey()), "PS256", "PS256"},
		"PS384":                    {rsaKey(), pkcs8(rsaKey()), "PS384", "PS384"},
		"PS512":                    {rsaKey(), pkcs8(rsaKey()), "PS512", "PS512"},
		"P-256":                    {p256(), pkcs8(p256()), "", "ES256"},
		"P-256 in SEC 1":           {p256(), inPEM("EC PRIVATE KEY", made(x509.MarshalECPrivateKey(p256()))), "ES256", "ES256"},
		"P-384":                    {p384(), pkcs8(p384()), "", "ES384"},
		"P-521":                    {p521(), pkcs8(p521()), "", "ES512"},
		"Ed25519":                  {edKey(), pkcs8(edKey()), "", "EdDSA"},
		"a JWK, RSA":               {rsaKey(), jwk(rsaKey()), "", "RS256"},
		"a JWK for PS256":          {rsaKey(), jwk(rsaKey(), `"alg":"PS256"`, `"use":"sig"`), "", "PS256"},
		"a JWK, P-256":             {p256(), jwk(p256()), "", "ES256"},
		"a JWK, P-384":             {p384(), jwk(p384(), `"alg":"ES384"`), "ES384", "ES384"},
		"a JWK, Ed25519":           {edKey(), jwk(edKey()) + "\n", "", "EdDSA"},
		"under a wrong name":       {p256(), strings.ReplaceAll(pkcs8(p256()), "PRIVATE KEY", "RSA PRIVATE KEY"), "", "ES256"},
		"with its certificate":     {rsaKey(), ownCertificate() + pkcs8(rsaKey()), "", "RS256"},
		"in one line, as a secret": {rsaKey(), strings.ReplaceAll(pkcs8(rsaKey()), "\n", `\n`), "", "RS256"},
		"with CRLF":                {rsaKey(), strings.ReplaceAll(pkcs8(rsaKey()), "\n", "\r\n"), "", "RS256"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i := newIssuer(t)
			i.trust("k1", tc.key)
			i.exchanged(t, Config{CredentialsIn: "private_key_jwt", ClientID: "itsm", Assertion: Assertion{PrivateKey: auth.SecretString(tc.text), Algorithm: tc.algorithm, KeyID: "k1"}})
			if _, said := i.last("client_assertion"); said["alg"] != tc.want {
				t.Errorf("%v", said)
			}
		})
	}
}

func ownCertificate() string {
	text, _ := certificate(rsaKey())
	return text
}

// TestAssertionClaims tests what the JWTs say, and which other fields are sent.
func TestAssertionClaims(t *testing.T) {
	t.Parallel()
	key := auth.SecretString(pkcs8(p256()))
	full := Assertion{PrivateKey: key, KeyID: "k1", Issuer: "iss", Subject: "sub", Audience: "https://aud/", Lifetime: 30 * time.Second,
		Claims: map[string]any{"text": "a&b", "number": json.Number("9007199254740993"), "flag": true}}
	const grant, client = "assertion", "client_assertion"
	type object = map[string]any
	for name, tc := range map[string]struct {
		config Config
		fields string // besides the assertions
		said   map[string]object
	}{
		"a client": {
			Config{CredentialsIn: "private_key_jwt", ClientID: "itsm", Scopes: []string{"a"}, Assertion: Assertion{PrivateKey: key, KeyID: "k1"}},
			"client_assertion_type client_id grant_type scope",
			map[string]object{client: {"iss": "itsm", "sub": "itsm", "aud": "TOKEN_URL", "life": 180.0}},
		},
		"a client and a user": {
			Config{Grant: "password", Username: "u", Password: auth.SecretString(password), CredentialsIn: "private_key_jwt", ClientID: "itsm", Assertion: Assertion{PrivateKey: key, KeyID: "k1"}},
			"client_assertion_type client_id grant_type password username",
			map[string]object{client: {"iss": "itsm", "sub": "itsm", "aud": "TOKEN_URL", "life": 180.0}},
		},
		"a grant": {
			Config{Grant: "jwt_bearer", ClientID: "itsm", Assertion: Assertion{PrivateKey: key, KeyID: "k1"}},
			"client_id grant_type",
			map[string]object{grant: {"iss": "itsm", "sub": "itsm", "aud": "TOKEN_URL", "life": 180.0}},
		},
		"a grant for a user": {
			Config{Grant: "jwt_bearer", ClientID: "itsm", Username: "u@x", ClientSecret: auth.SecretString(secret), CredentialsIn: "form", Assertion: Assertion{PrivateKey: key, KeyID: "k1"}},
			"client_id client_secret grant_type",
			map[string]object{grant: {"iss": "itsm", "sub": "u@x", "aud": "TOKEN_URL", "life": 180.0}},
		},
		"a grant without a client": {
			Config{Grant: "jwt_bearer", Params: map[string]any{"resource": "r"}, Assertion: full},
			"grant_type resource",
			map[string]object{grant: {"iss": "iss", "sub": "sub", "aud": "https://aud/", "life": 30.0, "text": "a&b", "number": 9007199254740993.0, "flag": true}},
		},
		"both": {
			Config{Grant: "jwt_bearer", CredentialsIn: "private_key_jwt", ClientID: "itsm", Username: "u@x", Assertion: full},
			"client_assertion_type client_id grant_type",
			map[string]object{
				grant:  {"iss": "iss", "sub": "sub", "aud": "https://aud/", "life": 30.0, "text": "a&b", "number": 9007199254740993.0, "flag": true},
				client: {"iss": "itsm", "sub": "itsm", "aud": "https://aud/", "life": 30.0},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i := newIssuer(t)
			i.trust("k1", p256())
			i.exchanged(t, tc.config)
			for _, field := range []string{grant, client} {
				form, said := i.last(field)
				if said != nil {
					said["life"] = said["exp"].(float64) - said["iat"].(float64)
					maps.DeleteFunc(said, func(name string, _ any) bool {
						return slices.Contains([]string{"typ", "alg", "kid", "jti", "iat", "exp"}, name)
					})
				}
				want := tc.said[field]
				if want != nil && want["aud"] == "TOKEN_URL" {
					want["aud"] = i.url.String()
				}
				if d := gocmp.Diff(want, object(said)); d != "" {
					t.Errorf("%s: %s", field, d)
				}
				if form.Has(field) != (want != nil) {
					t.Errorf("sent %v", form)
				}
				form.Del(field)
				if field == client && strings.Join(slices.Sorted(maps.Keys(form)), " ") != tc.fields {
					t.Errorf("sent %v, want %s", form, tc.fields)
				}
			}
			if form, _ := i.last(grant); tc.config.Grant == "" && form.Get("grant_type") != "client_credentials" {
				t.Errorf("sent %v", form)
			}
		})
	}
}

// TestAssertionCertificate tests that the thumbprint is that of the key's certificate, in a chain too.
func TestAssertionCertificate(t *testing.T) {
	t.Parallel()
	own, thumbprint := certificate(rsaKey())
	other, _ := certificate(p256())
	i := newIssuer(t)
	i.trust(thumbprint, rsaKey())
	for _, text := range []string{own, other + own + other, pkcs8(rsaKey()) + own} {
		i.exchanged(t, Config{CredentialsIn: "private_key_jwt", ClientID: "itsm",
			Assertion: Assertion{PrivateKey: auth.SecretString(pkcs8(rsaKey())), Certificate: auth.SecretString(text), Algorithm: "PS256"}})
		if _, said := i.last("client_assertion"); said["x5t#S256"] != thumbprint || said["kid"] != nil || said["alg"] != "PS256" {
			t.Errorf("%v", said)
		}
	}
}

// TestAssertionKeyID tests that a JSON Web Key names itself, unless key_id does.
func TestAssertionKeyID(t *testing.T) {
	t.Parallel()
	key := auth.SecretString(jwk(p256(), `"kid":"own"`))
	i := newIssuer(t)
	for id, want := range map[string]string{"": "own", "set": "set"} {
		i.trust(want, p256())
		i.exchanged(t, Config{CredentialsIn: "private_key_jwt", ClientID: "itsm", Assertion: Assertion{PrivateKey: key, KeyID: id}})
	}
}

// A device signs as an HSM does: its key stays in it.
type device struct {
	crypto.Signer
	err  error
	used int
}

func (d *device) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if d.used++; d.err != nil {
		return nil, d.err
	}
	return d.Signer.Sign(rand, digest, opts)
}

func TestAssertionSigner(t *testing.T) {
	t.Parallel()
	for algorithm, key := range map[string]crypto.Signer{"": p384(), "ES256": p256(), "RS256": rsaKey(), "PS256": rsaKey(), "EdDSA": edKey()} {
		i := newIssuer(t)
		text, thumbprint := certificate(key)
		i.trust(thumbprint, key)
		d := &device{Signer: key}
		c := Config{CredentialsIn: "private_key_jwt", ClientID: "itsm", Assertion: Assertion{Signer: d, Algorithm: algorithm, Certificate: auth.SecretString(text)}}
		p := i.exchanged(t, c)
		if d.used != 2 {
			t.Errorf("%s: used %d times for two exchanges", algorithm, d.used)
		}
		down := errors.New("the KMS is down")
		d.err = down
		_, err := p.Exchange(t.Context(), nil)
		checkError(t, err, "", 0, auth.ErrUnavailable)
		if !errors.Is(err, down) || !errors.Is(err, auth.ErrSecret) || !strings.Contains(err.Error(), "assertion: cannot sign: the KMS is down") {
			t.Error(err)
		}
	}
}

// A device may be set to another key than the one it says, also a longer one.
func TestAssertionSignerSwapped(t *testing.T) {
	t.Parallel()
	otherEd, otherRSA := ed25519.NewKeyFromSeed(make([]byte, 32)), made(rsa.GenerateKey(rand.Reader, 2048))
	for name, d := range map[string]swapped{"EC": {p521(), p384().Public()}, "Ed25519": {otherEd, edKey().Public()}, "RSA": {otherRSA, rsaKey().Public()}} {
		_, err := must(t, Config{TokenURL: &url.URL{Scheme: "https", Host: "x.invalid"}, CredentialsIn: "private_key_jwt", ClientID: "itsm", Assertion: Assertion{Signer: d}}).Exchange(t.Context(), nil)
		if checkError(t, err, "", 0, auth.ErrUnavailable); !errors.Is(err, auth.ErrSecret) || !strings.Contains(err.Error(), "assertion: cannot sign") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// swapped signs with another key than it says.
type swapped struct {
	crypto.Signer
	public crypto.PublicKey
}

func (s swapped) Public() crypto.PublicKey { return s.public }

// A Signer may be a key, and settings are printed.
func TestAssertionPrinted(t *testing.T) {
	t.Parallel()
	c := Config{TokenURL: &url.URL{Scheme: "https", Host: "x"}, CredentialsIn: "private_key_jwt", ClientID: "itsm", Assertion: Assertion{Signer: edKey(), KeyID: "k1"}}
	encoded, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	shown := string(encoded)
	for _, v := range []any{c, &c, c.Assertion, must(t, c), *must(t, c)} {
		shown += fmt.Sprintf("%v %+v %#v %d %x", v, v, v, v, v)
	}
	if !strings.Contains(shown, "k1") {
		t.Error(shown)
	}
	for _, part := range []string{fmt.Sprintf("%d", edKey().Seed()[:8]), fmt.Sprintf("%x", edKey().Seed()[:8]), base64.StdEncoding.EncodeToString(edKey().Seed())[:12]} {
		if strings.Contains(shown, strings.Trim(part, "[]")) {
			t.Errorf("%s in %s", part, shown)
		}
	}
}

// TestAssertionRefused tests that the error of a refused assertion is about the credentials, and names the setting.
func TestAssertionRefused(t *testing.T) {
	t.Parallel()
	text := pkcs8(p256())
	signs := Assertion{PrivateKey: auth.SecretString(text), KeyID: "k1", Audience: "https://aud.example/"}
	soon, past := signedElsewhere(t, time.Now().Add(time.Hour)), signedElsewhere(t, time.Now().Add(-time.Hour))
	const (
		key   = "assertion.private_key"
		trust = "the product may not trust the issuer of client_assertion"
	)
	grant := Config{Grant: "jwt_bearer", ClientID: "itsm", Assertion: signs}
	client := Config{CredentialsIn: "private_key_jwt", ClientID: "itsm", Assertion: signs}
	confidential, both, elsewhere := grant, grant, grant
	confidential.ClientSecret = auth.SecretString("a1.b2")
	both.CredentialsIn = "private_key_jwt"
	elsewhere.CredentialsIn, elsewhere.ClientAssertion = "client_assertion", auth.SecretString(soon)
	for name, tc := range map[string]struct {
		config Config
		code   string
		want   error
		names  string
	}{
		"the grant":               {grant, "invalid_grant", auth.ErrCredentials, key},
		"the issuer":              {grant, "invalid_client", auth.ErrCredentials, key},
		"a product's code":        {grant, "invalid_app_access", auth.ErrCredentials, key},
		"the client":              {client, "invalid_client", auth.ErrCredentials, key},
		"not this client":         {client, "unauthorized_client", auth.ErrCredentials, key},
		"of both, the grant":      {both, "invalid_grant", auth.ErrCredentials, key},
		"of both, the client":     {both, "invalid_client", auth.ErrCredentials, key},
		"not the secret":          {confidential, "invalid_grant", auth.ErrCredentials, key},
		"the secret":              {confidential, "invalid_client", auth.ErrCredentials, "credentials_in: form"},
		"signed elsewhere":        {Config{CredentialsIn: "client_assertion", ClientID: "itsm", ClientAssertion: auth.SecretString(soon)}, "invalid_client", auth.ErrCredentials, trust},
		"expired":                 {Config{CredentialsIn: "client_assertion", ClientID: "itsm", ClientAssertion: auth.SecretString(past)}, "invalid_client", auth.ErrCredentials, "client_assertion expired at "},
		"the grant, not the file": {elsewhere, "invalid_grant", auth.ErrCredentials, key},
		"the file, not the grant": {elsewhere, "invalid_client", auth.ErrCredentials, trust},
		"the request":             {grant, "invalid_request", auth.ErrProtocol, "check encoding"},
		"the client, by Ory":      {client, "invalid_request", auth.ErrProtocol, key},
		"the scope":               {client, "invalid_scope", auth.ErrProtocol, "scopes"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i := newIssuer(t)
			sent := ""
			i.refuse = func(form url.Values) string {
				sent = form.Get("assertion") + form.Get("client_assertion")
				return tc.code
			}
			tc.config.TokenURL = i.url
			_, err := must(t, tc.config).Exchange(t.Context(), nil)
			checkError(t, err, tc.code, 400, tc.want)
			said := err.Error()
			if !strings.Contains(said, tc.names) || strings.Contains(said, "assertion") != strings.Contains(tc.names, "assertion") {
				t.Errorf("%v, want %s", err, tc.names)
			}
			for _, part := range []string{sent[:20], text[60:80], "aud.example"} {
				if strings.Contains(said, part) {
					t.Errorf("%s in %v", part, err)
				}
			}
		})
	}
}

// signedElsewhere is a JWT that ends at expiry.
func signedElsewhere(t testing.TB, expiry time.Time) string {
	t.Helper()
	s := &signing{key: privateKey{Signer: p384()}, algorithm: jose.ES384, header: map[jose.HeaderKey]any{"typ": "JWT", "kid": "cluster"}}
	now := time.Now()
	token, err := s.sign(map[string]any{"iss": "itsm", "sub": "itsm", "aud": "aud", "iat": now.Unix(), "exp": expiry.Unix(), "jti": fmt.Sprint(now.UnixNano(), expiry.UnixNano())})
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// TestDescriptionOfAssertion tests that an error does not show what an assertion says.
func TestDescriptionOfAssertion(t *testing.T) {
	t.Parallel()
	for _, said := range []string{"the-issuer", "the-subject", "https://the-audience", "the-key", "the-claim", "12345"} {
		base, _ := serve(t, say(400, `{"error":"invalid_grant","error_description":"no: `+said+`"}`))
		_, err := must(t, Config{TokenURL: base, Grant: "jwt_bearer", Assertion: Assertion{PrivateKey: auth.SecretString(pkcs8(p256())), Issuer: "the-issuer",
			Subject: "the-subject", Audience: "https://the-audience", KeyID: "the-key", Claims: map[string]any{"a": "the-claim", "b": json.Number("12345")}}}).Exchange(t.Context(), nil)
		if err == nil || strings.Contains(err.Error(), said) {
			t.Error(err)
		}
	}
}

// session is a session of the provider, in which each refused token leads to an exchange.
func session(t *testing.T, p *Provider) *auth.Session {
	t.Helper()
	s := auth.New(p, &auth.Options{Secrets: p.Secrets(), Client: &http.Client{}})
	t.Cleanup(func() { s.Close(context.Background()) })
	return s
}

// TestAssertionRotates tests that each exchange signs with the key and the certificate of then, and that a key that
// changes while the old one is refused is used at once.
func TestAssertionRotates(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	i := newIssuer(t)
	rotate := func(key crypto.Signer) {
		t.Helper()
		text, thumbprint := certificate(key)
		write("cert.pem", text)
		write("key.pem", pkcs8(key))
		i.trust(thumbprint, key)
	}
	rotate(rsaKey())
	both := Config{TokenURL: i.url, Grant: "jwt_bearer", CredentialsIn: "private_key_jwt", ClientID: "itsm", Assertion: Assertion{
		PrivateKey: auth.SecretFile(filepath.Join(dir, "key.pem")), Certificate: auth.SecretFile(filepath.Join(dir, "cert.pem"))}}
	p := must(t, both)
	s := session(t, p)
	for n, key := range []crypto.Signer{rsaKey(), p256(), edKey()} {
		rotate(key)
		tok, err := s.Token(t.Context())
		if err != nil {
			t.Fatal(n, err)
		}
		s.Invalidate(tok)
	}

	// The new certificate is there before the new key.
	text, _ := certificate(p384())
	write("cert.pem", text)
	_, err := p.Exchange(t.Context(), nil)
	checkError(t, err, "", 0, auth.ErrUnavailable)
	if want := "assertion.certificate: does not belong to the private key"; !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %s", err, want)
	}
	write("key.pem", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")
	if _, err = p.Exchange(t.Context(), nil); !errors.Is(err, auth.ErrUnavailable) || !strings.Contains(err.Error(), "assertion.private_key: is encrypted") {
		t.Error(err)
	}

	// The product has the new key first, and the file changes while the old one is refused.
	rotate(p256())
	i.refuse = func(url.Values) string {
		i.refuse = nil
		i.mu.Unlock()
		defer i.mu.Lock()
		rotate(p384())
		return "invalid_client"
	}
	before := len(i.requests)
	if _, err := session(t, p).Token(t.Context()); err != nil || len(i.requests) != before+2 {
		t.Errorf("%v after %d requests", err, len(i.requests)-before)
	}
}

// TestClientAssertion tests that a JWT from elsewhere is sent as it is then.
func TestClientAssertion(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "token")
	i := newIssuer(t)
	i.trust("cluster", p384())
	var p *Provider
	for n := range 2 {
		if err := os.WriteFile(file, []byte(signedElsewhere(t, time.Now().Add(time.Hour))+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if p == nil {
			p = must(t, Config{TokenURL: i.url, CredentialsIn: "client_assertion", ClientID: "itsm", ClientAssertion: auth.SecretFile(file)})
		}
		if _, err := p.Exchange(t.Context(), nil); err != nil {
			t.Fatal(n, err)
		}
	}
	if got := len(p.Secrets()); got != 1 {
		t.Errorf("%d secrets", got)
	}
	if form, _ := i.last("client_assertion"); form.Get("client_id") != "itsm" || form.Has("client_secret") {
		t.Errorf("%v", form)
	}

	// With a grant of our own, too.
	other := newIssuer(t)
	other.keys = map[string]crypto.PublicKey{"cluster": p384().Public(), "k1": p256().Public()}
	c := Config{TokenURL: other.url, Grant: "jwt_bearer", CredentialsIn: "client_assertion", ClientID: "itsm", Username: "u",
		ClientAssertion: auth.SecretFunc(func() (string, error) { return signedElsewhere(t, time.Now().Add(time.Hour)), nil }),
		Assertion:       Assertion{PrivateKey: auth.SecretString(pkcs8(p256())), KeyID: "k1"}}
	other.exchanged(t, c)
	if _, said := other.last("assertion"); said["sub"] != "u" || said["iss"] != "itsm" {
		t.Errorf("%v", said)
	}
}

// TestAssertionElsewhere tests that an assertion authenticates the client when it redeems a code, refreshes and
// revokes, and that a refused refresh token is one, whatever the grant.
func TestAssertionElsewhere(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	i.trust("k1", p256())
	c := Config{TokenURL: i.url, AuthURL: i.url, RevokeURL: i.url, Grant: "authorization_code", ClientID: "itsm", RedirectURI: "http://127.0.0.1/cb",
		CredentialsIn: "private_key_jwt", Assertion: Assertion{PrivateKey: auth.SecretString(pkcs8(p256())), KeyID: "k1"}}
	p := must(t, c)
	_, redeemed := p.CodeFlow().Redeem(t.Context(), "code", "verifier")
	_, refreshed := p.Exchange(t.Context(), &oauth2.Token{RefreshToken: "RT"})
	revoked := p.Revoke(t.Context(), &oauth2.Token{AccessToken: "AT", RefreshToken: "RT"})
	if err := errors.Join(redeemed, refreshed, revoked); err != nil || len(i.requests) != 4 || len(i.seen) != 4 {
		t.Errorf("%v, %d requests, %d assertions", err, len(i.requests), len(i.seen))
	}
	i.refuse = func(url.Values) string { return "invalid_grant" }
	_, err := p.Exchange(t.Context(), &oauth2.Token{RefreshToken: "RT"})
	checkError(t, err, "invalid_grant", 400, auth.ErrConsentRequired)

	// A grant that needs no person is made in place of a refresh.
	i.refuse = func(form url.Values) string {
		if form.Has("refresh_token") {
			return "invalid_grant"
		}
		return ""
	}
	c = Config{TokenURL: i.url, Grant: "jwt_bearer", ClientID: "itsm", Assertion: c.Assertion}
	if _, err := must(t, c).Exchange(t.Context(), &oauth2.Token{RefreshToken: "RT"}); err != nil {
		t.Error(err)
	}
}

func TestAssertionIdentity(t *testing.T) {
	t.Parallel()
	base := Config{TokenURL: &url.URL{Scheme: "https", Host: "x"}, Grant: "jwt_bearer", CredentialsIn: "private_key_jwt", ClientID: "itsm", Assertion: Assertion{
		PrivateKey: auth.SecretString(pkcs8(p256())), KeyID: "k1", Claims: map[string]any{"b": true, "a": 1}}}
	want := []string{"token_url=https://x", "client_id=itsm", "grant=jwt_bearer", "username=", "scope=", "assertion.issuer=itsm", "assertion.subject=itsm",
		"assertion.audience=", "assertion.key_id=k1", "assertion.claims.a=1", "assertion.claims.b=true"}
	if d := gocmp.Diff(want, must(t, base).Identity()); d != "" {
		t.Error(d)
	}
	seen := map[string]bool{}
	for _, change := range []func(*Config){
		func(*Config) {},
		func(c *Config) { c.Assertion.Issuer = "i" },
		func(c *Config) { c.Assertion.Subject = "s" },
		func(c *Config) { c.Username = "u" },
		func(c *Config) { c.Assertion.Audience = "a" },
		func(c *Config) { c.Assertion.KeyID = "k2" },
		func(c *Config) { c.Assertion.Claims = nil },
	} {
		c := base
		change(&c)
		id := strings.Join(must(t, c).Identity(), "\n")
		if seen[id] || strings.Contains(id, "PRIVATE KEY") {
			t.Error(id)
		}
		seen[id] = true
	}
	other := base // the key rotates
	other.Assertion.PrivateKey = auth.SecretString(pkcs8(p384()))
	if d := gocmp.Diff(want, must(t, other).Identity()); d != "" {
		t.Error(d)
	}
}

func TestAssertionNewRefuses(t *testing.T) {
	t.Parallel()
	x := &url.URL{Scheme: "https", Host: "x", Path: "/token"}
	key, s := auth.SecretString(pkcs8(p256())), auth.SecretString(secret)
	otherCert, _ := certificate(rsaKey())
	for name, tc := range map[string]struct {
		config Config
		want   string
	}{
		"no assertion": {Config{Grant: "jwt_bearer", CredentialsIn: "private_key_jwt"},
			"assertion.private_key: required\nclient_id: required for credentials_in private_key_jwt"},
		"a grant of nobody": {Config{Grant: "jwt_bearer", Assertion: Assertion{PrivateKey: key}},
			"assertion.issuer: required without client_id\nassertion.subject: required without username and client_id"},
		"not used": {Config{ClientID: "id", ClientSecret: s, ClientAssertion: s, Assertion: Assertion{KeyID: "k1"}},
			"assertion: only used by grant jwt_bearer and credentials_in private_key_jwt\nclient_assertion: only used by credentials_in client_assertion"},
		"a signer that is not used": {Config{ClientID: "id", Assertion: Assertion{Signer: p256()}}, "assertion: only used by grant jwt_bearer and credentials_in private_key_jwt"},
		"two credentials":           {Config{ClientID: "id", ClientSecret: s, CredentialsIn: "private_key_jwt", Assertion: Assertion{PrivateKey: key}}, "client_secret: not used by credentials_in private_key_jwt"},
		"a password":                {Config{ClientID: "id", Grant: "jwt_bearer", Password: s, Assertion: Assertion{PrivateKey: key}}, "password: not used by grant jwt_bearer"},
		"two keys":                  {Config{ClientID: "id", CredentialsIn: "private_key_jwt", Assertion: Assertion{PrivateKey: key, Signer: p256()}}, "assertion.private_key: not used with a Signer"},
		"no client assertion":       {Config{ClientID: "id", CredentialsIn: "client_assertion"}, "client_assertion: required for credentials_in client_assertion"},
		"a path":                    {Config{ClientID: "id", CredentialsIn: "client_assertion", ClientAssertion: auth.SecretString("/var/run/token")}, "client_assertion: is not a JWT"},
		"unusable text":             {Config{ClientID: "id", CredentialsIn: "client_assertion", ClientAssertion: auth.SecretString("a\nb")}, "client_assertion: unusable secret: it has several lines, which only a key or a certificate may have"},
		"not there yet":             {Config{ClientID: "id", Grant: "jwt_bearer", CredentialsIn: "client_assertion", ClientAssertion: auth.SecretFile("/nonexistent/a"), Assertion: Assertion{PrivateKey: auth.SecretFile("/nonexistent/b")}}, ""},
		"words":                     {Config{ClientID: "id", CredentialsIn: "private_key_jwt", Assertion: Assertion{PrivateKey: key, Algorithm: "HS256"}}, "assertion.algorithm: must be one of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA"},
		"another algorithm":         {Config{ClientID: "id", CredentialsIn: "private_key_jwt", Assertion: Assertion{PrivateKey: key, Algorithm: "RS256"}}, "assertion.algorithm: does not fit the private key, which is for ES256"},
		"another algorithm of RSA":  {Config{ClientID: "id", CredentialsIn: "private_key_jwt", Assertion: Assertion{Signer: rsaKey(), Algorithm: "ES256"}}, "assertion.algorithm: does not fit the private key, which is for RS256 RS384 RS512 PS256 PS384 PS512"},
		"another than the JWK's":    {Config{ClientID: "id", CredentialsIn: "private_key_jwt", Assertion: Assertion{PrivateKey: auth.SecretString(jwk(rsaKey(), `"alg":"RS256"`)), Algorithm: "PS256"}}, "assertion.algorithm: does not fit the private key, which is for RS256"},
		"another certificate":       {Config{ClientID: "id", CredentialsIn: "private_key_jwt", Assertion: Assertion{PrivateKey: key, Certificate: auth.SecretString(otherCert)}}, "assertion.certificate: does not belong to the private key"},
		"no certificate":            {Config{ClientID: "id", CredentialsIn: "private_key_jwt", Assertion: Assertion{PrivateKey: key, Certificate: key}}, "assertion.certificate: holds no certificate in PEM"},
		"a damaged certificate":     {Config{ClientID: "id", CredentialsIn: "private_key_jwt", Assertion: Assertion{PrivateKey: key, Certificate: auth.SecretString(inPEM("CERTIFICATE", []byte("x")))}}, "assertion.certificate: holds a damaged certificate"},
		"a short lifetime":          {Config{ClientID: "id", CredentialsIn: "private_key_jwt", Assertion: Assertion{PrivateKey: key, Lifetime: time.Millisecond}}, "assertion.lifetime: must be at least 1s"},
		"a negative lifetime":       {Config{ClientID: "id", CredentialsIn: "private_key_jwt", Assertion: Assertion{PrivateKey: key, Lifetime: -1}}, "assertion.lifetime: must not be negative"},
		"claims": {Config{ClientID: "id", CredentialsIn: "private_key_jwt", Assertion: Assertion{PrivateKey: key, Claims: map[string]any{"aud": "x", "jti": 1, "tenant": "t"}}},
			"assertion.claims.aud: has a setting of its own: assertion.audience\nassertion.claims.jti: is set for each JWT"},
		"what is not JSON": {Config{ClientID: "id", CredentialsIn: "private_key_jwt", Assertion: Assertion{PrivateKey: key, Claims: map[string]any{"f": func() {}}}}, "assertion.claims: cannot be written as JSON"},
		"GET": {Config{ClientID: "id", Method: "GET", Grant: "jwt_bearer", CredentialsIn: "private_key_jwt", Assertion: Assertion{PrivateKey: key}},
			"credentials_in: would be sent in the URL with method GET\ngrant: would be sent in the URL with method GET"},
		"params": {Config{ClientID: "id", Grant: "jwt_bearer", CredentialsIn: "private_key_jwt", Assertion: Assertion{PrivateKey: key}, Params: map[string]any{"assertion": "x", "client_assertion_type": "x"}},
			"params.assertion: has a setting of its own: assertion\nparams.client_assertion_type: has a setting of its own: credentials_in"},
		"headers": {Config{ClientID: "id", CredentialsIn: "private_key_jwt", Assertion: Assertion{PrivateKey: key}, CredentialHeaders: []Header{{"A", "{client_id}"}}}, "credential_headers: only used by credentials_in headers"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tc.config.TokenURL = x
			_, err := New(tc.config, auth.Env{})
			got := ""
			if err != nil {
				got = err.Error()
			}
			if d := gocmp.Diff(tc.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestAssertionProvider tests the whole provider with a client that signs.
func TestAssertionProvider(t *testing.T) {
	t.Parallel()
	for _, grant := range []string{"client_credentials", "jwt_bearer"} {
		i := newIssuer(t)
		i.trust("k1", p256())
		text := pkcs8(p256())
		authtest.TestProvider(t, func(t *testing.T) auth.Provider {
			return must(t, Config{TokenURL: i.url, Grant: grant, CredentialsIn: "private_key_jwt", ClientID: "itsm", Assertion: Assertion{PrivateKey: auth.SecretString(text), KeyID: "k1"}})
		}, authtest.Product{
			Good: func() *http.Request {
				r, _ := http.NewRequest("GET", i.url.JoinPath("api").String(), nil)
				return r
			},
			Secrets: []string{text, strings.Split(text, "\n")[1]},
		})
	}
}

// TestAssertionWithDPoP tests that a token request that is sent once more, with a nonce, has an assertion of its own:
// the first one was used.
func TestAssertionWithDPoP(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	i.trust("k1", p256())
	i.nonce = "n1"
	p := must(t, Config{TokenURL: i.url, Grant: "jwt_bearer", CredentialsIn: "private_key_jwt", ClientID: "itsm", DPoP: &DPoP{},
		Assertion: Assertion{PrivateKey: auth.SecretString(pkcs8(p256())), KeyID: "k1"}})
	if _, err := session(t, p).Token(t.Context()); err != nil || len(i.requests) != 2 || len(i.seen) != 4 {
		t.Errorf("%v, %d requests, %d assertions", err, len(i.requests), len(i.seen))
	}
}
