// Package beyondtrusttest emulates a BeyondTrust Remote Support appliance for tests, like
// [net/http/httptest]: its token endpoint and some of its APIs, as strict as the product.
//
//	s := beyondtrusttest.NewServer(nil)
//	defer s.Close()
//	// connect to s.URL with DefaultClientID and DefaultClientSecret
//
// It has:
//
//	POST /oauth2/token                             grant_type=client_credentials
//	GET  /api/command?action=get_api_info          XML
//	GET  /api/reporting?generate_report=SupportSession  XML
//	GET  /api/config/v1/jump-item                  JSON; name=... selects
//	POST /api/config/v1/jump-item                  JSON; name is required
//
// To use it in a [testing/synctest] bubble, make the Server in the bubble, with an Options.Listener in
// memory: a goroutine that waits for a socket stops the bubble's clock.
//
// See https://docs.beyondtrust.com/rs/docs/api.
package beyondtrusttest

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"mime"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/itsmauth/itsmauth/internal/emulator"
)

// The default API account. Both values have characters that a wrong encoding would change.
const (
	DefaultClientID     = "support/sync+eu=1&50%2B"
	DefaultClientSecret = "kZ8/q+W3%2Fx==&r%25T/y+"
)

const tokenPath = "/oauth2/token"

// Options are the appliance's settings. The zero value of each field is its default.
type Options struct {
	// ClientID and ClientSecret are the API account. The defaults are those above.
	ClientID, ClientSecret string
	// TokenLifetime is how long a token is valid. The default is 1 h.
	TokenLifetime time.Duration
	// MaxTokens is how many tokens are valid at a time. The default is 30; negative is any number.
	MaxTokens int
	// PerSecond and PerHour limit the requests in any second and any hour, including token requests,
	// but not those refused with 429. The defaults are 20 and 15000; negative is no limit.
	PerSecond, PerHour int
	// Listener is where to listen. The default is a free port on loopback. With a
	// [crypto/tls.NewListener] the Server's URL still begins with http.
	Listener net.Listener
}

// A Request is a request as the server received it.
type Request = emulator.Request

// Stats count requests, also those that a hook answered.
type Stats struct {
	emulator.Stats     // Exchanges, TokenRequests, APICalls (under /api/), Rejected, ReusedConnections, Throttled
	Killed         int // valid tokens that were invalidated because of MaxTokens
	Writes         int // Jump Items created
}

// A Server is an appliance on a loopback port. It is also an [http.Handler], to be mounted in another
// server.
//
// URL, Close, the recorded requests (Requests, Raw) and the hooks Break, BreakToken, Delay and Throttle
// are the same for all emulators: see [emulator.Front].
type Server struct {
	*emulator.Front

	opts   Options
	mu     sync.Mutex
	stats  Stats
	tokens []token     // oldest first
	calls  []time.Time // in the last hour
	items  []jumpItem
}

type token struct {
	value   string
	expires time.Time
}

// NewServer starts an appliance. A nil opts is the defaults. It panics if it cannot listen.
func NewServer(opts *Options) *Server {
	s := &Server{items: []jumpItem{
		{ID: 1, Name: "web-01", Hostname: "web-01.example.com", Tag: "production"},
		{ID: 2, Name: "db-01", Hostname: "db-01.example.com", Tag: "production"},
	}}
	if opts != nil {
		s.opts = *opts
	}
	o := &s.opts
	o.ClientID = cmp.Or(o.ClientID, DefaultClientID)
	o.ClientSecret = cmp.Or(o.ClientSecret, DefaultClientSecret)
	o.TokenLifetime = cmp.Or(o.TokenLifetime, time.Hour)
	o.MaxTokens = cmp.Or(o.MaxTokens, 30)
	o.PerSecond = cmp.Or(o.PerSecond, 20)
	o.PerHour = cmp.Or(o.PerHour, 15000)
	s.Front = emulator.Start(o.Listener, emulator.Product{
		Tokens: []string{tokenPath}, API: "/api/", Handler: s.answer, Mutex: &s.mu, Stats: &s.stats.Stats,
	})
	return s
}

// Stats returns the counts so far.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

// Revoke invalidates one token.
func (s *Server) Revoke(accessToken string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens = slices.DeleteFunc(s.tokens, func(t token) bool { return t.value == accessToken })
}

// RevokeAll invalidates all tokens, as when another client requests 30.
func (s *Server) RevokeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens = nil
}

// Expire ends the lifetime of all tokens. They are refused like revoked ones.
func (s *Server) Expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.tokens {
		s.tokens[i].expires = time.Now()
	}
}

// SetSecret changes the client secret, which invalidates all tokens.
func (s *Server) SetSecret(secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opts.ClientSecret, s.tokens = secret, nil
}

func (s *Server) answer(w *emulator.Response, r *http.Request) {
	api := strings.HasPrefix(r.URL.Path, "/api/")
	exchange := strings.TrimSuffix(r.URL.Path, "/") == tokenPath
	if !api && !exchange {
		refuse(w, http.StatusNotFound, "not_found", "There is nothing at this URL.")
		return
	}
	within, remaining := s.count(time.Now())
	if api && s.opts.PerHour > 0 {
		w.Header().Set("X-RateLimit-Limit", strconv.Itoa(s.opts.PerHour))
		w.Header().Set("X-RateLimit-Remaining", strconv.Itoa(remaining))
	}
	switch {
	case !within || w.Throttled():
		refuse(w, http.StatusTooManyRequests, "too_many_requests", "The rate limit of this API account is exceeded.")
	case exchange:
		s.exchange(w, r)
	default:
		s.api(w, r)
	}
}

// count counts a request in the windows that end now, unless one of them is full.
func (s *Server) count(now time.Time) (within bool, remaining int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = s.calls[after(s.calls, now.Add(-time.Hour)):]
	second := len(s.calls) - after(s.calls, now.Add(-time.Second))
	within = (s.opts.PerSecond < 0 || second < s.opts.PerSecond) && (s.opts.PerHour < 0 || len(s.calls) < s.opts.PerHour)
	if within {
		s.calls = append(s.calls, now)
	} else {
		s.stats.Throttled++
	}
	return within, s.opts.PerHour - len(s.calls)
}

// after returns the index of the first of the sorted times that is after t.
func after(times []time.Time, t time.Time) int {
	i, _ := slices.BinarySearchFunc(times, t, func(e, t time.Time) int {
		if e.After(t) {
			return 1
		}
		return -1
	})
	return i
}

func (s *Server) exchange(w *emulator.Response, r *http.Request) {
	if r.URL.Path != tokenPath || r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		refuse(w, http.StatusMethodNotAllowed, "method_not_allowed", "The token endpoint is POST "+tokenPath+".")
		return
	}
	s.mu.Lock()
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte(s.opts.ClientID+":"+s.opts.ClientSecret))
	s.mu.Unlock()
	if !slices.Equal(r.Header["Authorization"], []string{want}) {
		refuse(w, http.StatusUnauthorized, "invalid_client", "The client credentials are invalid.")
		return
	}
	form, err := url.ParseQuery(string(w.Request.Body))
	if t, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/x-www-form-urlencoded" {
		refuse(w, http.StatusBadRequest, "invalid_request", "The body is not a form.")
		return
	}
	switch grant := form["grant_type"]; {
	case len(grant) != 1:
		refuse(w, http.StatusBadRequest, "invalid_request", "grant_type must be given once.")
		return
	case grant[0] != "client_credentials":
		refuse(w, http.StatusBadRequest, "unsupported_grant_type", "grant_type must be client_credentials.")
		return
	}
	emulator.WriteJSON(w, http.StatusOK, map[string]any{
		"access_token": s.mint(time.Now()),
		"token_type":   "Bearer",
		"expires_in":   s.opts.TokenLifetime.Seconds(),
	})
}

// mint makes a token, and invalidates the oldest if there are too many.
func (s *Server) mint(now time.Time) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens = slices.DeleteFunc(s.tokens, func(t token) bool { return !now.Before(t.expires) })
	if s.opts.MaxTokens > 0 && len(s.tokens) >= s.opts.MaxTokens {
		s.tokens = s.tokens[1:]
		s.stats.Killed++
	}
	t := token{emulator.NewToken(), now.Add(s.opts.TokenLifetime)}
	s.tokens = append(s.tokens, t)
	s.stats.Exchanges++
	return t.value
}

func (s *Server) api(w *emulator.Response, r *http.Request) {
	if !s.authorized(r.Header["Authorization"], time.Now()) {
		refuse(w, http.StatusUnauthorized, "access_denied", "The access token is invalid or has expired.")
		return
	}
	var params []string
	var get func(http.ResponseWriter, url.Values)
	var post func(*emulator.Response, *http.Request)
	switch r.URL.Path {
	case "/api/command":
		params, get = []string{"action"}, s.command
	case "/api/reporting":
		params = []string{"generate_report", "start_date", "start_time", "end_date", "end_time", "duration", "limit", "report_type", "lsid", "lsids"}
		get = s.reporting
	case "/api/config/v1/jump-item":
		params, get, post = []string{"name"}, s.list, s.create
	default:
		refuse(w, http.StatusNotFound, "not_found", "There is nothing at this URL.")
		return
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		refuse(w, http.StatusUnauthorized, "invalid_request", "The query cannot be read.")
		return
	}
	for name := range query {
		if !slices.Contains(params, name) {
			refuse(w, http.StatusUnauthorized, "invalid_request", "The query has an unknown parameter.")
			return
		}
	}
	switch {
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		get(w, query)
	case r.Method == http.MethodPost && post != nil:
		post(w, r)
	default:
		w.Header().Set("Allow", "GET, HEAD")
		if post != nil {
			w.Header().Set("Allow", "GET, HEAD, POST")
		}
		refuse(w, http.StatusMethodNotAllowed, "method_not_allowed", "This resource has no such method.")
	}
}

// authorized reports whether header is exactly one valid bearer token (RFC 6750 section 2.1).
func (s *Server) authorized(header []string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(header) == 1 {
		scheme, value, _ := strings.Cut(header[0], " ")
		for _, t := range s.tokens {
			if strings.EqualFold(scheme, "Bearer") && value == t.value && now.Before(t.expires) {
				return true
			}
		}
	}
	s.stats.Rejected++
	return false
}

func (s *Server) command(w http.ResponseWriter, query url.Values) {
	const namespace = "https://www.beyondtrust.com/namespaces/API/command"
	if query.Get("action") != "get_api_info" {
		writeXML(w, http.StatusBadRequest, xmlError{xml.Name{Space: namespace, Local: "error"}, "Unknown action."})
		return
	}
	type permission struct {
		Name  string `xml:"name,attr"`
		Value string `xml:",chardata"`
	}
	writeXML(w, http.StatusOK, struct {
		XMLName     xml.Name
		APIVersion  string       `xml:"api_version"`
		CompanyName string       `xml:"company_name"`
		Timestamp   int64        `xml:"timestamp"`
		Permissions []permission `xml:"permissions>permission"`
	}{
		xml.Name{Space: namespace, Local: "get_api_info"}, "1.24.1", "Example", time.Now().Unix(),
		[]permission{{"perm_command", "full"}, {"perm_configuration", "1"}, {"perm_reporting_support", "1"}},
	})
}

func (s *Server) reporting(w http.ResponseWriter, query url.Values) {
	const namespace = "https://www.beyondtrust.com/namespaces/API/reporting"
	if query.Get("generate_report") != "SupportSession" {
		writeXML(w, http.StatusBadRequest, xmlError{xml.Name{Space: namespace, Local: "error"}, "Unknown report."})
		return
	}
	type session struct {
		LSID      string `xml:"lsid,attr"`
		Type      string `xml:"session_type"`
		StartTime string `xml:"start_time"`
		Duration  string `xml:"duration"`
	}
	writeXML(w, http.StatusOK, struct {
		XMLName  xml.Name
		Sessions []session `xml:"session"`
	}{
		xml.Name{Space: namespace, Local: "session_list"}, []session{
			{"0f3a5c7e9b1d4f60a2c4e6f80b1d3f50", "support", "2026-03-02T09:14:07+00:00", "00:21:40"},
			{"1e2d4c6b8a9f40718293a4b5c6d7e8f9", "support", "2026-03-02T10:02:55+00:00", "00:03:12"},
		},
	})
}

type jumpItem struct {
	ID       int    `json:"id"`
	Name     string `json:"name"`
	Hostname string `json:"hostname"`
	Tag      string `json:"tag"`
}

func (s *Server) list(w http.ResponseWriter, query url.Values) {
	s.mu.Lock()
	items := slices.Clone(s.items)
	s.mu.Unlock()
	if query.Has("name") {
		items = slices.DeleteFunc(items, func(i jumpItem) bool { return i.Name != query.Get("name") })
	}
	emulator.WriteJSON(w, http.StatusOK, items)
}

func (s *Server) create(w *emulator.Response, r *http.Request) {
	var item jumpItem
	if t, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); t != "application/json" || json.Unmarshal(w.Request.Body, &item) != nil {
		refuse(w, http.StatusBadRequest, "invalid_request", "The body is not the JSON of a Jump Item.")
		return
	}
	if item.Name == "" {
		refuse(w, http.StatusUnprocessableEntity, "invalid_request", "name is required.")
		return
	}
	s.mu.Lock()
	item.ID = len(s.items) + 1
	s.items = append(s.items, item)
	s.stats.Writes++
	s.mu.Unlock()
	emulator.WriteJSON(w, http.StatusCreated, item)
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	emulator.WriteJSON(w, status, map[string]string{"error": code, "message": message})
}

type xmlError struct {
	XMLName xml.Name
	Message string `xml:",chardata"`
}

func writeXML(w http.ResponseWriter, status int, v any) {
	b, err := xml.Marshal(v)
	if err != nil {
		panic(err)
	}
	w.Header().Set("Content-Type", "text/xml; charset=utf-8")
	w.WriteHeader(status)
	fmt.Fprintf(w, "%s%s\n", xml.Header, b)
}
