package servers

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v3"
	oauthserver "github.com/go-oauth2/oauth2/v4/server"
	"github.com/ory/fosite"

	"github.com/itsmauth/itsmauth/auth"
)

// Both servers read a client secret in the places that they know, whatever is in it. Fosite unescapes a Basic header
// as RFC 6749 section 2.3.1 says, go-oauth2 does not. Neither reads JSON.
func TestClientSecret(t *testing.T) {
	t.Parallel()
	f := newFosite(t)
	f.add(t, "form", "client_secret_post", nil)
	basic, form := newGoOAuth2(t, oauthserver.ClientBasicHandler), newGoOAuth2(t, oauthserver.ClientFormHandler)
	const wrong = "client_secret: wrong"
	for name, tc := range map[string]struct {
		s        *server
		settings []string
		refused  refused
	}{
		"fosite: basic":             {f.server, []string{setting("client_id", clientID)}, refused{}},
		"fosite: basic, raw":        {f.server, []string{setting("client_id", clientID), "credentials_encoding: raw"}, refused{auth.ErrCredentials, "invalid_client", ""}},
		"fosite: form":              {f.server, []string{"client_id: form", "credentials_in: form"}, refused{}},
		"fosite: the wrong place":   {f.server, []string{"client_id: form"}, refused{auth.ErrCredentials, "invalid_client", "credentials_in: form"}},
		"fosite: scopes":            {f.server, []string{setting("client_id", clientID), "scopes: [read, write]"}, refused{}},
		"fosite: another scope":     {f.server, []string{setting("client_id", clientID), "scopes: [read, admin]"}, refused{auth.ErrProtocol, "invalid_scope", "scopes"}},
		"fosite: another client":    {f.server, []string{"client_id: nobody"}, refused{auth.ErrCredentials, "invalid_client", ""}},
		"fosite: another secret":    {f.server, []string{setting("client_id", clientID), wrong}, refused{auth.ErrCredentials, "invalid_client", ""}},
		"fosite: JSON":              {f.server, []string{setting("client_id", clientID), "encoding: json"}, refused{auth.ErrProtocol, "invalid_request", "encoding"}},
		"go-oauth2: basic, raw":     {basic, []string{setting("client_id", clientID), "credentials_encoding: raw"}, refused{}},
		"go-oauth2: basic":          {basic, []string{"client_id: plain"}, refused{auth.ErrCredentials, "invalid_client", "credentials_encoding: raw"}},
		"go-oauth2: another secret": {basic, []string{"client_id: plain", wrong}, refused{auth.ErrCredentials, "invalid_client", ""}},
		// It answers an unknown client id with HTTP 500 and server_error.
		"go-oauth2: another client": {basic, []string{"client_id: nobody", "response: {errors: [{status: 500, pointer: /error, equals: server_error, means: invalid_client}]}"}, refused{auth.ErrCredentials, "invalid_client", ""}},
		"go-oauth2: form":           {form, []string{setting("client_id", clientID), "credentials_in: form"}, refused{}},
		"go-oauth2: scope":          {form, []string{setting("client_id", clientID), "credentials_in: form", "scopes: [read]"}, refused{}},
		"go-oauth2: wrong place":    {form, []string{setting("client_id", clientID)}, refused{auth.ErrCredentials, "invalid_client", "credentials_in: form"}},
		"go-oauth2: other scope":    {form, []string{setting("client_id", clientID), "credentials_in: form", "scopes: [admin]"}, refused{auth.ErrProtocol, "invalid_scope", "scopes"}},
		"go-oauth2: JSON":           {form, []string{setting("client_id", clientID), "encoding: json"}, refused{auth.ErrProtocol, "unsupported_grant_type", "encoding"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if !slices.Contains(tc.settings, wrong) {
				tc.settings = append(tc.settings, setting("client_secret", secret))
			}
			err := call(tc.s.connect(t, tc.settings...))
			switch {
			case tc.refused.is != nil:
				tc.refused.check(t, err)
			case err != nil:
				t.Error(err)
			}
		})
	}
}

// A keyPair has a name, by which servers find its public half.
type keyPair struct {
	private crypto.Signer
	public  *jose.JSONWebKey
}

func newKey(t *testing.T, id, algorithm string) keyPair {
	t.Helper()
	var private crypto.Signer
	var err error
	switch algorithm {
	case "ES256":
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ES384":
		private, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	default:
		private, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	return keyPair{private, &jose.JSONWebKey{Key: private.Public(), KeyID: id, Algorithm: algorithm, Use: "sig"}}
}

// inPEM and inJWK are the key as settings have it.
func (k keyPair) inPEM(t *testing.T) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(k.private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func (k keyPair) inJWK(t *testing.T) string {
	t.Helper()
	text, err := json.Marshal(jose.JSONWebKey{Key: k.private, KeyID: k.public.KeyID, Algorithm: k.public.Algorithm})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// assertion is the setting of that name.
func assertion(key string, more ...string) string {
	line := "assertion: {" + setting("private_key", key)
	for _, m := range more {
		line += ", " + m
	}
	return line + "}"
}

// Fosite verifies signature, issuer, subject, audience, times and jti, and that each JWT comes once.
func TestPrivateKeyJWT(t *testing.T) {
	t.Parallel()
	f := newFosite(t)
	keys := map[string]keyPair{}
	for _, algorithm := range []string{"RS256", "RS512", "PS256", "ES256", "ES384"} {
		k := newKey(t, "key-"+algorithm, algorithm)
		f.add(t, algorithm, "private_key_jwt", k.public)
		keys[algorithm] = k
	}
	other := newKey(t, "key-ES256", "ES256")
	for name, tc := range map[string]struct {
		client, assertion string
		refused           refused
	}{
		"RS256":             {"RS256", assertion(keys["RS256"].inPEM(t), "key_id: key-RS256"), refused{}},
		"RS512":             {"RS512", assertion(keys["RS512"].inPEM(t), "key_id: key-RS512", "algorithm: RS512"), refused{}},
		"PS256":             {"PS256", assertion(keys["PS256"].inPEM(t), "key_id: key-PS256", "algorithm: PS256"), refused{}},
		"PS256, as a JWK":   {"PS256", assertion(keys["PS256"].inJWK(t)), refused{}},
		"ES256":             {"ES256", assertion(keys["ES256"].inPEM(t), "key_id: key-ES256"), refused{}},
		"ES256, no kid":     {"ES256", assertion(keys["ES256"].inPEM(t)), refused{}},
		"ES384":             {"ES384", assertion(keys["ES384"].inPEM(t), "key_id: key-ES384"), refused{}},
		"ES384, as a JWK":   {"ES384", assertion(keys["ES384"].inJWK(t)), refused{}},
		"another key":       {"ES256", assertion(other.inJWK(t)), refused{auth.ErrCredentials, "invalid_client", "assertion.private_key"}},
		"another kid":       {"ES256", assertion(keys["ES256"].inPEM(t), "key_id: key-2"), refused{auth.ErrProtocol, "invalid_request", "key_id"}},
		"another algorithm": {"PS256", assertion(keys["PS256"].inPEM(t), "key_id: key-PS256"), refused{auth.ErrCredentials, "invalid_client", "algorithm"}},
		"another audience":  {"ES256", assertion(keys["ES256"].inJWK(t), "audience: https://login.example.com"), refused{auth.ErrCredentials, "invalid_client", "audience"}},
		"another issuer":    {"ES256", assertion(keys["ES256"].inJWK(t), "issuer: me"), refused{auth.ErrCredentials, "invalid_client", "issuer"}},
		"another client":    {"nobody", assertion(keys["ES256"].inJWK(t)), refused{auth.ErrCredentials, "invalid_client", "assertion"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := f.connect(t, "client_id: "+tc.client, "credentials_in: private_key_jwt", tc.assertion, "scopes: [read]")
			if tc.refused.is != nil {
				tc.refused.check(t, call(c))
				return
			}
			mustCall(t, c)
			f.mustRenew(t, c) // with another JWT: fosite refuses a jti that it knows
		})
	}
}

// A JWT that something else signs, in a file. Fosite takes each once, so the file has to be renewed before the token ends.
func TestClientAssertion(t *testing.T) {
	t.Parallel()
	f, key := newFosite(t), newKey(t, "key-1", "ES256")
	f.add(t, "signed", "private_key_jwt", key.public)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key.private, KeyID: "key-1"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	claims, _ := json.Marshal(map[string]any{"iss": "signed", "sub": "signed", "aud": f.URL + "/token", "jti": "1", "exp": time.Now().Add(time.Hour).Unix()})
	signed, err := signer.Sign(claims)
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "jwt")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	settings := []string{"client_id: signed", "credentials_in: client_assertion", "client_assertion: ${file:" + path + "}"}
	mustCall(t, f.connect(t, settings...))
	refused{auth.ErrCredentials, "jti_known", "client_assertion"}.check(t, call(f.connect(t, settings...)))
}

// The grant, with each way in which fosite lets the client authenticate, or with none.
func TestJWTBearer(t *testing.T) {
	t.Parallel()
	key := newKey(t, "key-1", "ES256")
	named := func(s *fositeServer, issuer string) *fositeServer {
		s.trust(issuer, "sync@example.com", key.public)
		return s
	}
	f := named(newFosite(t), clientID)
	f.add(t, "signs", "private_key_jwt", key.public)
	named(f, "signs")
	noClient := named(newFosite(t, func(c *fosite.Config) { c.GrantTypeJWTBearerCanSkipClientAuth = true }), "issuer")
	withSecret := []string{setting("client_id", clientID), setting("client_secret", secret)}
	for name, tc := range map[string]struct {
		s        *fositeServer
		settings []string
		refused  refused
	}{
		"with a secret":    {f, append(withSecret, "username: sync@example.com", "scopes: [read]", assertion(key.inJWK(t))), refused{}},
		"with two JWTs":    {f, []string{"client_id: signs", "credentials_in: private_key_jwt", "username: sync@example.com", assertion(key.inJWK(t))}, refused{}},
		"no client":        {noClient, []string{assertion(key.inJWK(t), "issuer: issuer", "subject: sync@example.com")}, refused{}},
		"another user":     {f, append(withSecret, "username: other@example.com", assertion(key.inJWK(t))), refused{auth.ErrCredentials, "invalid_grant", "subject"}},
		"another scope":    {f, append(withSecret, "username: sync@example.com", "scopes: [write]", assertion(key.inJWK(t))), refused{auth.ErrProtocol, "invalid_scope", "scopes"}},
		"another audience": {f, append(withSecret, "username: sync@example.com", assertion(key.inJWK(t), "audience: a")), refused{auth.ErrCredentials, "invalid_grant", "audience"}},
		"too long a life":  {f, append(withSecret, "username: sync@example.com", assertion(key.inJWK(t), "lifetime: 48h")), refused{auth.ErrCredentials, "invalid_grant", "assertion"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := tc.s.connect(t, append([]string{"grant: jwt_bearer"}, tc.settings...)...)
			if tc.refused.is != nil {
				tc.refused.check(t, call(c))
				return
			}
			mustCall(t, c)
			tc.s.mustRenew(t, c)
		})
	}
}
