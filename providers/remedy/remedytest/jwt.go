package remedytest

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"net/http"
	"sync"
	"time"
)

// The kinds of token. They are also the values of the tokenType claim.
const (
	accessToken  = "access_token"
	refreshToken = "refresh_token"
	arJWT        = "ar_jwt"
)

// A consent is one login. All tokens that were issued for it, also by refresh, point to it.
type consent struct {
	user, scope string
	revoked     bool // guarded by Server.mu
}

type token struct {
	kind    string
	expires time.Time
	spent   bool // a refresh token that was exchanged
	consent *consent
}

// validLocked reports whether t can be used.
func (t *token) validLocked() bool {
	return t != nil && !t.consent.revoked && time.Now().Before(t.expires)
}

// keyID is the id of the only signing key.
const keyID = "remedytest"

// key is made once per process, because making it is slow.
var key = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic("remedytest: " + err.Error())
	}
	return k
})

// issue issues a token, an RS256 JWT (RFC 7519).
func (s *Server) issue(kind string, c *consent) string {
	lifetime := s.opts.TokenLifetime
	if kind == refreshToken {
		lifetime = s.opts.RefreshLifetime
	}
	now := time.Now()
	claims := map[string]any{
		"sub":       c.user,
		"iat":       now.Unix(),
		"exp":       now.Unix() + seconds(lifetime),
		"jti":       rand.Text(),
		"tokenType": kind,
	}
	if c.scope != "" {
		claims["scope"] = c.scope
	}
	value := sign(claims)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens[value] = &token{kind: kind, expires: now.Add(lifetime), consent: c}
	return value
}

func seconds(d time.Duration) int64 { return int64(d / time.Second) }

func sign(claims map[string]any) string {
	part := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			panic("remedytest: " + err.Error())
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	signed := part(map[string]string{"alg": "RS256", "typ": "JWT", "kid": keyID}) + "." + part(claims)
	sum := sha256.Sum256([]byte(signed))
	sig, err := rsa.SignPKCS1v15(nil, key(), crypto.SHA256, sum[:])
	if err != nil {
		panic("remedytest: " + err.Error())
	}
	return signed + "." + base64.RawURLEncoding.EncodeToString(sig)
}

// jwks serves the key (RFC 7517).
func (s *Server) jwks(w http.ResponseWriter, _ *http.Request) {
	b64 := base64.RawURLEncoding.EncodeToString
	pub := key().PublicKey
	answer(w, http.StatusOK, map[string]any{"keys": []map[string]string{{
		"kty": "RSA", "use": "sig", "alg": "RS256", "kid": keyID,
		"n": b64(pub.N.Bytes()),
		"e": b64(big.NewInt(int64(pub.E)).Bytes()),
	}}})
}

// answer sends v as JSON.
func answer(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic("remedytest: " + err.Error())
	}
	w.Header().Set("Content-Type", "application/json;charset=UTF-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	w.Write(b)
}
