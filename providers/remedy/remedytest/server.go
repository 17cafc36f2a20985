// Package remedytest is an emulator of BMC Remedy for tests, in the manner of
// [net/http/httptest]. One [Server] plays both halves: Remedy Single Sign-On under /rsso, which
// hands out tokens, and the AR System server's REST API under /api, which takes them.
//
//	s := remedytest.NewServer(nil)
//	defer s.Close()
//	redirect, err := s.Consent(authURL) // what a person would do at the page behind authURL
//
// It refuses what the product refuses, in the product's words, and has hooks to revoke, expire,
// throttle and break. Everything is in memory.
//
// In a [testing/synctest] bubble the Server is to be made within it, on an Options.Listener in
// memory: while anybody there waits for a socket, the bubble's clock stands still.
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

// What [Options] default to. The credentials hold characters that need escaping in a form.
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

// Options are the client's registration and the product's settings. The zero value of each field
// is its default.
type Options struct {
	// ClientID and ClientSecret are those of the one registered client.
	ClientID, ClientSecret string
	// RedirectURIs are the registered ones, compared exactly. The default is DefaultRedirectURI.
	RedirectURIs []string
	// Username is the person who allows access, and with Password the account of /api/jwt/login.
	Username, Password string

	// TokenLifetime is that of access tokens and of AR-JWTs. What clients are told is in whole
	// seconds, rounded down.
	TokenLifetime time.Duration
	// RefreshLifetime is that of refresh tokens, each counted from its own issue.
	RefreshLifetime time.Duration
	// RefreshParam is the one form field that a refresh token is taken from. The documentation of
	// Remedy SSO 18.08 writes "refreshToken".
	RefreshParam string
	// ExpiresIn makes the expires_in of the token endpoint's answer; nil is the number itself. If
	// it returns nil the answer has none; a [encoding/json.RawMessage] is sent as it is.
	ExpiresIn func(seconds int64) any
	// Basic takes the client's credentials from HTTP Basic, raw or form-encoded (RFC 6749 section
	// 2.3.1), in place of the form.
	Basic bool
	// RequirePKCE refuses authorization requests without an S256 code_challenge (RFC 7636).
	RequirePKCE bool
	// AutoAllow redirects at once, without a page, as if the person had allowed access before.
	AutoAllow bool

	// Listener is served in place of a port of its own on 127.0.0.1.
	Listener net.Listener
}

// A Request is one request as the server got it.
type Request = emulator.Request

// Stats are counts of requests, whoever answered them: the Server or a hook. A login for an AR-JWT
// is an exchange too; API calls are those under /api/arsys/.
type Stats struct {
	emulator.Stats     // Exchanges, TokenRequests, APICalls, Rejected, ReusedConnections, Throttled
	Rotations      int // refresh tokens spent for a new one
	Reuses         int // refresh tokens shown again after they had been spent
	Writes         int // entries created or changed
}

// A Server is a running emulator. As an [http.Handler] it can be mounted in another server as well.
//
// Its URL, which is the AR server's own, its Close, what it saw (Requests, Raw) and the hooks Break,
// BreakToken, Delay and Throttle are those of every emulator: see [emulator.Front]. The token
// endpoints there are /rsso/oauth2/token, /rsso/oauth2/v1.1/token and /api/jwt/login.
type Server struct {
	*emulator.Front
	// SSOURL is Remedy SSO's: URL + "/rsso".
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

// NewServer starts an emulator; o may be nil. It panics if it cannot listen. The caller closes it.
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

// Revoke kills one token, access or refresh or AR-JWT, as when somebody does so behind the
// client's back. Unlike the revocation endpoint it touches no other.
func (s *Server) Revoke(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tokens, token)
}

// RevokeAll kills all access tokens and AR-JWTs. Refresh tokens stay.
func (s *Server) RevokeAll() { s.forget(func(t *token) bool { return t.kind != refreshToken }) }

// RevokeRefresh kills all refresh tokens: consent is lost. Access tokens stay.
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

// Expire ends the life of all access tokens and AR-JWTs now, whatever their JWT says.
func (s *Server) Expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.tokens {
		if t.kind != refreshToken {
			t.expires = time.Now()
		}
	}
}

// SetSecret changes the client's secret, as the administrator's console does. Tokens stay.
func (s *Server) SetSecret(secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secret = secret
}

// MintRefresh returns the refresh token of a new consent, as if it had been obtained elsewhere.
func (s *Server) MintRefresh() string {
	return s.issue(refreshToken, &consent{user: s.opts.Username})
}

// Busy answers the next n API calls that have a good token with 500 and AR error 9093: the user is
// connected from elsewhere. It replaces an earlier Busy.
func (s *Server) Busy(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy = n
}

// count changes the counts.
func (s *Server) count(f func(*Stats)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.stats)
}

// random is an unguessable string with all that needs escaping in a query or a form.
func random() string { return rand.Text() + "+/=&%" }
