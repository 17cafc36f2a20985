// Package remedytest emulates BMC Remedy for tests, like [net/http/httptest]. A [Server] is both Remedy
// Single Sign-On, under /rsso, which issues tokens, and the AR System server's REST API, under /api,
// which accepts them.
//
//	s := remedytest.NewServer(nil)
//	defer s.Close()
//	redirect, err := s.Consent(authURL) // what a person does on the page authURL
//
// It is as strict as the product, with the product's errors, and has hooks to revoke, expire, throttle
// and break. Everything is in memory.
//
// To use it in a [testing/synctest] bubble, make the Server in the bubble, with an Options.Listener in
// memory: a goroutine that waits for a socket stops the bubble's clock.
package remedytest

import (
	"cmp"
	"crypto/rand"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/itsmauth/itsmauth/internal/emulator"
)

// The defaults of [Options]. The credentials have characters that must be escaped in a form.
const (
	DefaultClientID        = "itsm-sync+/=&%"
	DefaultClientSecret    = "c0rrect+h0rse/battery=st&ple%2B"
	DefaultRedirectURI     = "http://127.0.0.1:8400/callback"
	DefaultUsername        = "Allen+/=&%"
	DefaultPassword        = "p@ss+w/o=r&d%25"
	DefaultRefreshParam    = "refresh_token"
	DefaultTokenLifetime   = time.Hour
	DefaultRefreshLifetime = 60 * 24 * time.Hour
)

// CodeLifetime is how long an authorization code can be redeemed.
const CodeLifetime = 180 * time.Second

// Options are the client's registration and the product's settings. The zero value of each field is its
// default.
type Options struct {
	// ClientID and ClientSecret are the registered client.
	ClientID, ClientSecret string
	// RedirectURIs are the client's redirect URIs, compared exactly. The default is DefaultRedirectURI.
	RedirectURIs []string
	// Username is the person who logs in. With Password it is also the account for /api/jwt/login.
	Username, Password string

	// TokenLifetime is how long access tokens and AR-JWTs are valid. Responses have it in whole seconds,
	// rounded down.
	TokenLifetime time.Duration
	// RefreshLifetime is how long each refresh token is valid.
	RefreshLifetime time.Duration
	// RefreshParam is the form field for the refresh token. The documentation of Remedy SSO 18.08 calls
	// it "refreshToken".
	RefreshParam string
	// ExpiresIn returns the expires_in of a token response. If it returns nil, there is none; a
	// [encoding/json.RawMessage] is sent as it is. The default returns seconds.
	ExpiresIn func(seconds int64) any
	// Basic takes the client's credentials from HTTP Basic, raw or form-encoded (RFC 6749 section
	// 2.3.1), instead of the form.
	Basic bool
	// RequirePKCE refuses authorization requests without an S256 code_challenge (RFC 7636).
	RequirePKCE bool
	// AutoAllow redirects at once, without a page, as if the person had allowed access before.
	AutoAllow bool

	// Listener is where to listen. The default is a free port on 127.0.0.1.
	Listener net.Listener
}

// A Request is a request as the server received it.
type Request = emulator.Request

// Stats count requests, also those that a hook answered. A login for an AR-JWT counts as an exchange. API
// calls are the requests under /api/arsys/.
type Stats struct {
	emulator.Stats     // Exchanges, TokenRequests, APICalls, Rejected, ReusedConnections, Throttled
	Rotations      int // refresh tokens exchanged for new ones
	Reuses         int // refresh tokens sent again after their exchange
	Writes         int // entries created or changed
}

// A Server is a running emulator. It is also an [http.Handler], to be mounted in another server.
//
// URL (the AR server), Close, the recorded requests (Requests, Raw) and the hooks Break, BreakToken,
// Delay and Throttle are the same for all emulators: see [emulator.Front]. The token endpoints are
// /rsso/oauth2/token, /rsso/oauth2/v1.1/token and /api/jwt/login.
type Server struct {
	*emulator.Front
	// SSOURL is the URL of Remedy SSO: URL + "/rsso".
	SSOURL string

	opts    Options
	mu      sync.Mutex
	stats   Stats
	secret  string
	pages   map[string]page
	codes   map[string]*code
	tokens  map[string]*token
	entries []entry
	busy    int
}

// NewServer starts an emulator; o may be nil. It panics if it cannot listen. The caller must close it.
func NewServer(o *Options) *Server {
	s := &Server{
		pages:   make(map[string]page),
		codes:   make(map[string]*code),
		tokens:  make(map[string]*token),
		entries: seed(),
	}
	if o != nil {
		s.opts = *o
	}
	d := &s.opts
	d.ClientID = cmp.Or(d.ClientID, DefaultClientID)
	d.RedirectURIs = slices.Clone(d.RedirectURIs)
	if len(d.RedirectURIs) == 0 {
		d.RedirectURIs = []string{DefaultRedirectURI}
	}
	d.Username = cmp.Or(d.Username, DefaultUsername)
	d.Password = cmp.Or(d.Password, DefaultPassword)
	d.TokenLifetime = cmp.Or(d.TokenLifetime, DefaultTokenLifetime)
	d.RefreshLifetime = cmp.Or(d.RefreshLifetime, DefaultRefreshLifetime)
	d.RefreshParam = cmp.Or(d.RefreshParam, DefaultRefreshParam)
	s.secret = cmp.Or(d.ClientSecret, DefaultClientSecret)

	mux := http.NewServeMux()
	s.routeSSO(mux)
	s.routeAR(mux)
	s.Front = emulator.Start(d.Listener, emulator.Product{
		Tokens: []string{"/rsso/oauth2/token", "/rsso/oauth2/v1.1/token", "/api/jwt/login"},
		API:    "/api/arsys/",
		Handler: func(w *emulator.Response, r *http.Request) {
			if w.Throttled() {
				http.Error(w, "Too Many Requests", http.StatusTooManyRequests)
				return
			}
			mux.ServeHTTP(w, r)
		},
		Mutex: &s.mu, Stats: &s.stats.Stats,
	})
	s.SSOURL = s.URL + "/rsso"
	return s
}

// Stats returns the counts so far.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

// Revoke invalidates one access token, refresh token or AR-JWT. Unlike the revocation endpoint, it
// invalidates no other token with it.
func (s *Server) Revoke(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tokens, token)
}

// RevokeAll invalidates all access tokens and AR-JWTs, but no refresh tokens.
func (s *Server) RevokeAll() { s.forget(func(t *token) bool { return t.kind != refreshToken }) }

// RevokeRefresh invalidates all refresh tokens, so that somebody must log in again. Access tokens stay
// valid.
func (s *Server) RevokeRefresh() { s.forget(func(t *token) bool { return t.kind == refreshToken }) }

func (s *Server) forget(which func(*token) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for v, t := range s.tokens {
		if which(t) {
			delete(s.tokens, v)
		}
	}
}

// Expire ends the lifetime of all access tokens and AR-JWTs, whatever their exp claim says.
func (s *Server) Expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.tokens {
		if t.kind != refreshToken {
			t.expires = time.Now()
		}
	}
}

// SetSecret changes the client's secret. Tokens stay valid.
func (s *Server) SetSecret(secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secret = secret
}

// MintRefresh returns a refresh token of a new login.
func (s *Server) MintRefresh() string {
	return s.issue(refreshToken, &consent{user: s.opts.Username})
}

// Busy answers the next n API calls that have a valid token with 500 and AR error 9093, which means that
// the user is connected from elsewhere. It replaces an earlier Busy.
func (s *Server) Busy(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy = n
}

// count calls f to change the counts.
func (s *Server) count(f func(*Stats)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.stats)
}

// random returns an unguessable string with all characters that must be escaped in a query or a form.
func random() string { return rand.Text() + "+/=&%" }
