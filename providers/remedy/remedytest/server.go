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
package remedytest

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
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

// A Server is a running emulator. Its methods are safe for concurrent use. It is also an
// [http.Handler], to be mounted elsewhere as well.
type Server struct {
	// URL is the base of everything, such as http://127.0.0.1:41234, without a trailing slash.
	// It is the AR server's own.
	URL string
	// SSOURL is Remedy SSO's: URL + "/rsso".
	SSOURL string

	opts     Options
	handler  http.Handler
	server   *http.Server
	inFlight sync.WaitGroup
	wire     wire

	mu         sync.Mutex
	closed     bool
	secret     string
	pages      map[string]page
	codes      map[string]*code
	tokens     map[string]*token
	entries    []entry
	stats      Stats
	requests   []*Request
	breaks     func(http.ResponseWriter, *http.Request) bool
	breakToken func(http.ResponseWriter, *http.Request) bool
	delay      time.Duration
	throttled  int
	retryAfter string
	busy       int
}

// Stats counts what a Server has seen since its start.
type Stats struct {
	Exchanges         int // token requests answered with a token, logins for an AR-JWT included
	TokenRequests     int // requests to a token endpoint, whatever came of them
	APICalls          int // requests to the AR System REST API, logins and logouts not included
	Rejected          int // API calls refused for their token
	ReusedConnections int // API calls on a connection that had carried a request before
	Rotations         int // refresh tokens spent for a new one
	Reuses            int // refresh tokens shown again after they had been spent
	Writes            int // entries created or changed
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
	s.handler = mux

	if d.Listener == nil {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			panic("remedytest: " + err.Error())
		}
		d.Listener = l
	}
	s.URL = "http://" + d.Listener.Addr().String()
	s.SSOURL = s.URL + "/rsso"
	s.server = &http.Server{Handler: s, ConnContext: connContext}
	s.inFlight.Go(func() { s.server.Serve(&wireListener{d.Listener, &s.wire}) })
	return s
}

// Close closes the listener and all connections and waits for the handlers, whose contexts end.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.server.Close()
	s.inFlight.Wait()
}

const maxBody = 1 << 20

// ServeHTTP implements [http.Handler]. A request that did not come through the Server's own
// listener is recorded with canonical header names, and its connection cannot be told from others.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		http.Error(w, "server closed", http.StatusServiceUnavailable)
		return
	}
	s.inFlight.Add(1)
	s.mu.Unlock()
	defer s.inFlight.Done()

	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	r.Body = io.NopCloser(bytes.NewReader(body))
	header, reused := received(r)
	rec := &Request{
		Time: time.Now(), Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery,
		Header: header, Body: body,
	}
	tokens, api := isToken(r.URL.Path), strings.HasPrefix(r.URL.Path, "/api/arsys/")

	s.mu.Lock()
	s.requests = append(s.requests, rec)
	if len(s.requests) > maxRequests {
		s.requests = s.requests[1:]
	}
	if tokens {
		s.stats.TokenRequests++
	}
	if api {
		s.stats.APICalls++
		if reused {
			s.stats.ReusedConnections++
		}
	}
	breaks, breakToken := s.breaks, s.breakToken
	s.mu.Unlock()

	out := &statusWriter{ResponseWriter: w, server: s, request: rec}
	if err != nil {
		http.Error(out, "request body: "+err.Error(), http.StatusRequestEntityTooLarge)
		return
	}
	switch {
	case breaks != nil && breaks(out, r):
	case tokens && breakToken != nil && breakToken(out, r):
	case (tokens || api) && s.throttle(out):
	default:
		s.handler.ServeHTTP(out, r)
	}
	if !out.hijacked {
		out.wrote(http.StatusOK)
	}
}

func isToken(path string) bool {
	return path == "/rsso/oauth2/token" || path == "/rsso/oauth2/v1.1/token" || path == "/api/jwt/login"
}

func (s *Server) throttle(w http.ResponseWriter) bool {
	s.mu.Lock()
	n, after := s.throttled, s.retryAfter
	s.throttled = max(0, n-1)
	s.mu.Unlock()
	if n <= 0 {
		return false
	}
	if after != "" {
		w.Header().Set("Retry-After", after)
	}
	http.Error(w, "Too Many Requests", http.StatusTooManyRequests)
	return true
}

// hold keeps a token endpoint's answer back for the Delay, once what it tells has happened.
func (s *Server) hold(ctx context.Context) {
	s.mu.Lock()
	d := s.delay
	s.mu.Unlock()
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
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

// Throttle answers the next n API and token requests with 429 and that Retry-After; "" leaves the
// header out. It replaces an earlier Throttle.
func (s *Server) Throttle(n int, retryAfter string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.throttled, s.retryAfter = n, retryAfter
}

// Busy answers the next n API calls that have a good token with 500 and AR error 9093: the user is
// connected from elsewhere. It replaces an earlier Busy.
func (s *Server) Busy(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy = n
}

// Break lets f see each request first, with its body to read. True means that f has answered it;
// f may also hang until the request's context ends, hijack the connection, or panic with
// [http.ErrAbortHandler]. nil ends it.
func (s *Server) Break(f func(http.ResponseWriter, *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.breaks = f
}

// BreakToken is [Server.Break] for the token endpoints only: /rsso/oauth2/token,
// /rsso/oauth2/v1.1/token and /api/jwt/login.
func (s *Server) BreakToken(f func(http.ResponseWriter, *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.breakToken = f
}

// Delay holds the answers of the token endpoints back for d. What they tell has happened by then:
// a client that leaves meanwhile has spent its refresh token. 0 ends it.
func (s *Server) Delay(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delay = d
}

// Stats returns the counts so far.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

// count changes the counts.
func (s *Server) count(f func(*Stats)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.stats)
}

// statusWriter notes the status in the request's record.
type statusWriter struct {
	http.ResponseWriter
	server   *Server
	request  *Request
	hijacked bool
}

func (w *statusWriter) wrote(status int) {
	w.server.mu.Lock()
	defer w.server.mu.Unlock()
	if w.request.Status < 200 {
		w.request.Status = status
	}
}

func (w *statusWriter) WriteHeader(status int) {
	w.wrote(status)
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(b []byte) (int, error) {
	w.wrote(http.StatusOK)
	return w.ResponseWriter.Write(b)
}

func (w *statusWriter) Flush() {
	w.wrote(http.StatusOK)
	http.NewResponseController(w.ResponseWriter).Flush()
}

func (w *statusWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	w.hijacked = true
	return http.NewResponseController(w.ResponseWriter).Hijack()
}

func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// random is an unguessable string with all that needs escaping in a query or a form.
func random() string { return rand.Text() + "+/=&%" }
