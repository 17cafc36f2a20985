// Package dpoptest is a product for tests that binds its tokens to keys (RFC 9449) and verifies every proof.
package dpoptest

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// A Server has the token endpoint /oauth2/token, /oauth2/revoke, an API at all other paths, and /moved, which
// redirects to the API.
type Server struct {
	URL string

	mu        sync.Mutex
	rules     Rules
	nonce     map[string]nonce  // what is valid, of "token" and "api"
	used      map[string]bool   // each jti
	tokens    map[string]string // the thumbprint of the key by token
	codes     map[string]string // the thumbprint and the code_challenge by code
	keys      []string          // thumbprints, in the order of their first use
	responses []string
	wrong     []string
}

// Rules are what a server does otherwise than by default.
type Rules struct {
	NonceUses int    // how often each nonce can be used; 0: none is wanted
	Public    bool   // refresh tokens are bound too, as those of clients without a secret are
	TokenType string // in the token response, in place of DPoP
	Fail      int    // the status of the next API response that would be 200
}

type nonce struct{ number, left int }

// NewServer starts a server. When the test ends it fails for each proof that was wrong.
func NewServer(t testing.TB) *Server {
	s := &Server{nonce: map[string]nonce{}, used: map[string]bool{}, tokens: map[string]string{}, codes: map[string]string{}}
	srv := httptest.NewServer(http.HandlerFunc(s.serve))
	s.URL = srv.URL
	t.Cleanup(func() {
		srv.Close()
		for _, w := range s.wrong {
			t.Error(w)
		}
	})
	return s
}

// Set changes the rules.
func (s *Server) Set(r Rules) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rules = r
}

// Revoke makes all access tokens invalid.
func (s *Server) Revoke() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for token := range s.tokens {
		if strings.HasPrefix(token, "access-") {
			delete(s.tokens, token)
		}
	}
}

// Allow is a person's visit to the authorization page.
func (s *Server) Allow(page string) (code string) {
	u, _ := url.Parse(page)
	s.mu.Lock()
	defer s.mu.Unlock()
	code = rand.Text()
	s.codes[code] = u.Query().Get("dpop_jkt") + " " + u.Query().Get("code_challenge")
	return code
}

// Keys returns the thumbprints of the keys that were used.
func (s *Server) Keys() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.keys)
}

// Responses returns path, status and error of each response since it was last called.
func (s *Server) Responses() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.responses
	s.responses = nil
	return list
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	form, _ := url.ParseQuery(string(b))
	s.mu.Lock()
	defer s.mu.Unlock()
	var status int
	var answer map[string]any
	switch {
	case strings.HasPrefix(r.URL.Path, "/oauth2/"):
		status, answer = s.token(w, r, form)
	case r.URL.Path == "/moved":
		w.Header().Set("Location", "/api/a%2Fb?from=moved")
		status = http.StatusTemporaryRedirect
	default:
		status, answer = s.api(w, r)
	}
	text := fmt.Sprint(r.URL.Path, " ", status)
	if answer["error"] != nil {
		text += fmt.Sprint(" ", answer["error"])
	}
	s.responses = append(s.responses, text)
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(answer)
}

func (s *Server) token(w http.ResponseWriter, r *http.Request, form url.Values) (int, map[string]any) {
	key, fault := s.proof(w, r, "token", "")
	refuse := func(code string) (int, map[string]any) { return 400, map[string]any{"error": code} }
	switch grant := form.Get("grant_type"); {
	case fault != "":
		return refuse(fault)
	case r.URL.Path == "/oauth2/revoke":
		if bound := s.tokens[form.Get("token")]; bound != "" && bound != key {
			s.wrong = append(s.wrong, "a revocation has a proof by another key")
		}
		delete(s.tokens, form.Get("token"))
		return 200, nil
	case grant == "client_credentials":
	case grant == "refresh_token":
		bound, known := s.tokens[form.Get("refresh_token")]
		if !known || s.rules.Public && bound != key {
			return refuse("invalid_grant")
		}
		delete(s.tokens, form.Get("refresh_token"))
	case grant == "authorization_code":
		sum := sha256.Sum256([]byte(form.Get("code_verifier")))
		want := s.codes[form.Get("code")]
		delete(s.codes, form.Get("code"))
		if want != key+" "+base64.RawURLEncoding.EncodeToString(sum[:]) {
			return refuse("invalid_grant")
		}
	default:
		return refuse("unsupported_grant_type")
	}
	answer := map[string]any{"access_token": "access-" + rand.Text(), "token_type": "DPoP", "expires_in": 3600}
	if s.rules.TokenType != "" {
		answer["token_type"] = s.rules.TokenType
	}
	s.tokens[answer["access_token"].(string)] = key
	if form.Get("grant_type") != "client_credentials" {
		answer["refresh_token"] = "refresh-" + rand.Text()
		s.tokens[answer["refresh_token"].(string)] = key
	}
	return 200, answer
}

func (s *Server) api(w http.ResponseWriter, r *http.Request) (int, map[string]any) {
	if r.Header.Get("Authorization") == "" {
		return 401, map[string]any{"error": "invalid_request"}
	}
	access, ok := strings.CutPrefix(r.Header.Get("Authorization"), "DPoP ")
	key, fault := s.proof(w, r, "api", access)
	if !ok || s.tokens[access] == "" || fault == "" && s.tokens[access] != key {
		fault = "invalid_token"
	}
	if fault != "" {
		w.Header().Set("WWW-Authenticate", `DPoP error="`+fault+`", algs="ES256"`)
		return 401, map[string]any{"error": fault}
	}
	if status := s.rules.Fail; status != 0 {
		s.rules.Fail = 0
		return status, map[string]any{"error": "failed"}
	}
	return 200, map[string]any{"method": r.Method}
}

// proof verifies the proof in r for an access token, or "" (RFC 9449 section 4.3). It returns the thumbprint
// of its key, and what is wrong with it.
func (s *Server) proof(w http.ResponseWriter, r *http.Request, where, access string) (key, fault string) {
	wrong := func(why any) (string, string) {
		s.wrong = append(s.wrong, fmt.Sprintf("the proof for %s %s: %v", r.Method, r.URL.Path, why))
		return "", "invalid_dpop_proof"
	}
	proofs := r.Header.Values("DPoP")
	if len(proofs) != 1 {
		return wrong(fmt.Sprintf("there are %d", len(proofs)))
	}
	token, err := jwt.ParseSigned(proofs[0], []jose.SignatureAlgorithm{jose.ES256, jose.ES384, jose.RS256, jose.PS256, jose.EdDSA})
	if err != nil {
		return wrong(err)
	}
	header := token.Headers[0]
	if header.JSONWebKey == nil || !header.JSONWebKey.IsPublic() || header.ExtraHeaders["typ"] != "dpop+jwt" {
		return wrong(fmt.Sprintf("its header is %v", header))
	}
	var claims struct {
		ID     string  `json:"jti"`
		Method string  `json:"htm"`
		URL    string  `json:"htu"`
		Issued float64 `json:"iat"`
		Token  string  `json:"ath"`
		Nonce  string  `json:"nonce"`
	}
	if err := token.Claims(header.JSONWebKey.Key, &claims); err != nil {
		return wrong(err)
	}
	thumbprint, err := header.JSONWebKey.Thumbprint(crypto.SHA256)
	if err != nil {
		return wrong(err)
	}
	if key = base64.RawURLEncoding.EncodeToString(thumbprint); !slices.Contains(s.keys, key) {
		s.keys = append(s.keys, key)
	}
	ath := ""
	if access != "" {
		sum := sha256.Sum256([]byte(access))
		ath = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	switch age := time.Since(time.Unix(int64(claims.Issued), 0)); {
	case len(claims.ID) < 16 || s.used[claims.ID]:
		return wrong(fmt.Sprintf("jti %q is short, or was used before", claims.ID))
	case claims.Method != r.Method:
		return wrong("htm " + claims.Method)
	case claims.URL != "http://"+r.Host+r.URL.EscapedPath():
		return wrong("htu " + claims.URL)
	case claims.Token != ath:
		return wrong("ath " + claims.Token)
	case age > time.Minute || age < -5*time.Second:
		return wrong(fmt.Sprintf("it is %s old", age))
	}
	s.used[claims.ID] = true
	if s.rules.NonceUses == 0 {
		return key, ""
	}
	valid := s.nonce[where]
	ok := valid.left > 0 && claims.Nonce == fmt.Sprint(where, valid.number)
	if ok {
		valid.left--
	}
	if valid.left <= 0 && (!ok || where == "token") { // the API gives a new one only when it is missed
		valid = nonce{valid.number + 1, s.rules.NonceUses}
	}
	if !ok || where == "token" {
		w.Header().Set("DPoP-Nonce", fmt.Sprint(where, valid.number))
	}
	s.nonce[where] = valid
	if !ok {
		return key, "use_dpop_nonce"
	}
	return key, ""
}
