// Package webcommandertest emulates a WebCommander store for tests, like [net/http/httptest]: the token
// endpoint and some resources of its API v4, as strict as the product.
//
//	s := webcommandertest.NewServer(nil)
//	defer s.Close()
//	// connect to s.URL with the Default constants
//
// It has:
//
//	POST /api/v4/oauth2/token               grant_type=client_credentials or refresh_token, as JSON
//	GET  /api/v4/products
//	GET  /api/v4/customers/ID               101 and 102 exist
//	POST /api/v4/customers/change-password  old_password and new_password
//
// To use it in a [testing/synctest] bubble, make the Server in the bubble, with an Options.Listener in
// memory: a goroutine that waits for a socket stops the bubble's clock.
//
// See https://developers.webcommander.com/webcommander-api-authentication.
package webcommandertest

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"mime"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/itsmauth/itsmauth/internal/emulator"
)

// The default application and user. All values but the URI have characters that a wrong encoding would
// change.
const (
	DefaultClientID     = "shop/sync+eu=1&50%2B"
	DefaultClientSecret = "Wc9/t+Y6%2Fz==&q%25M/n+"
	DefaultUsername     = "sync+eu/1=&%40@shop.example.com"
	DefaultPassword     = "p:w+d/7=&%25"
	DefaultRedirectURI  = "https://api.webcommander.com/oauth-callback"
)

const tokenPath = "/api/v4/oauth2/token"

// Options are the store's settings. The zero value of each field is its default.
type Options struct {
	// ClientID, ClientSecret and RedirectURI are the application. The defaults are those above.
	ClientID, ClientSecret, RedirectURI string
	// Username and Password are what auth_string must contain. The defaults are those above.
	Username, Password string
	// TokenLifetime is how long an access token is valid. The default is 1 h. Refresh tokens are valid
	// until they are used.
	TokenLifetime time.Duration
	// BearerToo accepts "Authorization: Bearer" as well as the access_token header, as newer stores do.
	BearerToo bool
	// Listener is where to listen. The default is a free port on loopback. With a
	// [crypto/tls.NewListener] the Server's URL still begins with http.
	Listener net.Listener
}

// A Request is a request as the server received it.
type Request = emulator.Request

// Stats count requests, also those that a hook answered.
type Stats struct {
	emulator.Stats       // Exchanges, TokenRequests, APICalls (others under /api/), Rejected, ReusedConnections, Throttled
	BadHeaders       int // API calls refused for an access_token header that is misspelled or repeated
	Refreshes        int // exchanges with a refresh token
	RefusedRefreshes int // token requests with a refresh token that was used, revoked or never issued
	WriteRequests    int // requests to change the password, with a valid token
	Writes           int // those that changed it
}

// A Server is a store on a loopback port. It is also an [http.Handler], to be mounted in another server.
// It then does not check the spelling of header names, because net/http has changed it.
//
// URL, Close, the recorded requests (Requests, Raw) and the hooks Break, BreakToken, Delay and Throttle
// are the same for all emulators: see [emulator.Front].
type Server struct {
	*emulator.Front

	opts    Options
	mu      sync.Mutex
	stats   Stats
	access  map[string]time.Time // expiry by token
	refresh map[string]bool
}

// NewServer starts a store. A nil opts is the defaults. It panics if it cannot listen.
func NewServer(opts *Options) *Server {
	s := &Server{access: make(map[string]time.Time), refresh: make(map[string]bool)}
	if opts != nil {
		s.opts = *opts
	}
	o := &s.opts
	o.ClientID = cmp.Or(o.ClientID, DefaultClientID)
	o.ClientSecret = cmp.Or(o.ClientSecret, DefaultClientSecret)
	o.RedirectURI = cmp.Or(o.RedirectURI, DefaultRedirectURI)
	o.Username = cmp.Or(o.Username, DefaultUsername)
	o.Password = cmp.Or(o.Password, DefaultPassword)
	o.TokenLifetime = cmp.Or(o.TokenLifetime, time.Hour)
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

// Revoke invalidates one access token or refresh token.
func (s *Server) Revoke(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.access, token)
	delete(s.refresh, token)
}

// RevokeAll invalidates all access tokens, but no refresh tokens.
func (s *Server) RevokeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.access)
}

// RevokeRefresh invalidates all refresh tokens, but no access tokens.
func (s *Server) RevokeRefresh() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.refresh)
}

// Expire ends the lifetime of all access tokens. They are refused like revoked ones.
func (s *Server) Expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for t := range s.access {
		s.access[t] = time.Now()
	}
}

// SetSecret changes the client secret. Tokens stay valid.
func (s *Server) SetSecret(secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opts.ClientSecret = secret
}

type handler = func(*emulator.Response, *http.Request)

func (s *Server) answer(w *emulator.Response, r *http.Request) {
	var resource handler
	switch route := r.Method + " " + r.URL.Path; {
	case route == "POST "+tokenPath:
		resource = s.exchange
	case route == "POST /api/v4/customers/change-password":
		resource = s.authorized(s.changePassword)
	case route == "GET /api/v4/products":
		resource = s.authorized(s.products)
	case strings.HasPrefix(route, "GET /api/v4/customers/"):
		resource = s.authorized(s.customer)
	default:
		emulator.WriteJSON(w, http.StatusOK, map[string]any{"isSuccess": false, "message": "There is nothing at this URL."})
		return
	}
	if w.Throttled() {
		refuse(w, http.StatusTooManyRequests, "too_many_requests", "Too many requests.")
		return
	}
	resource(w, r)
}

func (s *Server) exchange(w *emulator.Response, r *http.Request) {
	params, problems := fields(w, r, "grant_type", "client_id", "client_secret", "redirect_uri")
	var user string
	switch grant := params["grant_type"]; grant {
	case "":
	case "client_credentials":
		more, missing := fields(w, r, "auth_string")
		problems = append(problems, missing...)
		decoded, err := base64.StdEncoding.Strict().DecodeString(more["auth_string"])
		user = string(decoded)
		if len(missing) == 0 && (err != nil || !strings.Contains(user, ":")) {
			problems = append(problems, fieldError{"auth_string", "invalid", "auth_string must be base64 of username:password."})
		}
	case "refresh_token":
		more, missing := fields(w, r, "refresh_token")
		problems = append(problems, missing...)
		params["refresh_token"] = more["refresh_token"]
	default:
		problems = append(problems, fieldError{"grant_type", "invalid", "grant_type must be client_credentials or refresh_token."})
	}

	s.mu.Lock()
	opts := s.opts
	s.mu.Unlock()
	if uri := params["redirect_uri"]; uri != "" && uri != opts.RedirectURI {
		problems = append(problems, fieldError{"redirect_uri", "invalid", "redirect_uri is not the application's."})
	}
	switch {
	case len(problems) > 0:
		refuse(w, http.StatusBadRequest, "validation_failed", "The request is not valid.", problems...)
	case params["client_id"] != opts.ClientID || params["client_secret"] != opts.ClientSecret:
		refuse(w, http.StatusUnauthorized, "invalid_client", "The client credentials are invalid.",
			fieldError{"client_secret", "invalid", "client_id or client_secret is wrong."})
	case params["grant_type"] == "refresh_token":
		s.grant(w, params["refresh_token"])
	case user != opts.Username+":"+opts.Password:
		refuse(w, http.StatusUnauthorized, "invalid_grant", "The user's credentials are invalid.",
			fieldError{"auth_string", "invalid", "username or password is wrong."})
	default:
		s.grant(w, "")
	}
}

// grant responds with new tokens. It invalidates the refresh token spent, unless that is "".
func (s *Server) grant(w http.ResponseWriter, spent string) {
	access, refresh, now := emulator.NewToken(), emulator.NewToken(), time.Now()
	s.mu.Lock()
	known := spent == "" || s.refresh[spent]
	switch {
	case !known:
		s.stats.RefusedRefreshes++
	case spent != "":
		delete(s.refresh, spent)
		s.stats.Refreshes++
		fallthrough
	default:
		maps.DeleteFunc(s.access, func(_ string, expires time.Time) bool { return !now.Before(expires) })
		s.access[access] = now.Add(s.opts.TokenLifetime)
		s.refresh[refresh] = true
		s.stats.Exchanges++
	}
	s.mu.Unlock()
	if !known {
		refuse(w, http.StatusUnauthorized, "invalid_grant", "The refresh token is invalid.",
			fieldError{"refresh_token", "invalid", "refresh_token is unknown or was used before."})
		return
	}
	emulator.WriteJSON(w, http.StatusCreated, map[string]any{
		"access_token":  access,
		"refresh_token": refresh,
		"expires_in":    s.opts.TokenLifetime.Seconds(),
	})
}

// authorized returns a handler that calls h if the request has one valid token.
func (s *Server) authorized(h handler) handler {
	return func(w *emulator.Response, r *http.Request) {
		token, problem := s.credential(w.Request)
		s.mu.Lock()
		expires, known := s.access[token]
		valid := known && time.Now().Before(expires)
		switch {
		case problem != "":
			s.stats.BadHeaders++
		case !valid:
			s.stats.Rejected++
		}
		s.mu.Unlock()
		switch {
		case problem != "":
			refuse(w, http.StatusBadRequest, "invalid_header", problem, fieldError{"access_token", "invalid", problem})
		case !valid:
			refuse(w, http.StatusUnauthorized, "unauthorized", "The access token is invalid or has expired.")
		default:
			h(w, r)
		}
	}
}

// credential returns the token of a request, or what is wrong with its header. Both are "" without one.
func (s *Server) credential(req *Request) (token, problem string) {
	spelled := "access_token"
	if req.Wire == nil {
		spelled = http.CanonicalHeaderKey(spelled)
	}
	for name := range req.Header {
		if name != spelled && strings.EqualFold(strings.ReplaceAll(name, "-", "_"), spelled) {
			return "", fmt.Sprintf("The header must be spelled access_token, not %s.", name)
		}
	}
	switch values := req.Header[spelled]; {
	case len(values) > 1:
		return "", fmt.Sprintf("The header access_token must come once, not %d times.", len(values))
	case len(values) == 1:
		return values[0], ""
	}
	if s.opts.BearerToo {
		for name, values := range req.Header {
			if strings.EqualFold(name, "Authorization") && len(values) == 1 {
				if scheme, value, _ := strings.Cut(values[0], " "); strings.EqualFold(scheme, "Bearer") {
					return value, ""
				}
			}
		}
	}
	return "", ""
}

func (s *Server) products(w *emulator.Response, _ *http.Request) {
	type product struct {
		ID        int     `json:"id"`
		Name      string  `json:"name"`
		SKU       string  `json:"sku"`
		BasePrice float64 `json:"base_price"`
	}
	succeed(w, []product{
		{239, "Espresso machine", "PRODUCT-9911C0FB", 500},
		{240, "Burr grinder", "PRODUCT-17A20CE4", 129.5},
	})
}

func (s *Server) customer(w *emulator.Response, r *http.Request) {
	type customer struct {
		CustomerID int    `json:"customer_id"`
		FirstName  string `json:"first_name"`
		Email      string `json:"email"`
		Status     string `json:"status"`
	}
	switch strings.TrimPrefix(r.URL.Path, "/api/v4/customers/") {
	case "101":
		succeed(w, customer{101, "Ada", "ada@example.com", "active"})
	case "102":
		succeed(w, customer{102, "Grace", "grace@example.com", "active"})
	default:
		refuse(w, http.StatusNotFound, "not_found", "There is no such customer.")
	}
}

func (s *Server) changePassword(w *emulator.Response, r *http.Request) {
	params, problems := fields(w, r, "old_password", "new_password")
	s.mu.Lock()
	s.stats.WriteRequests++
	known := params["old_password"] == s.opts.Password
	if len(problems) == 0 && known {
		s.opts.Password = params["new_password"]
		s.stats.Writes++
	}
	s.mu.Unlock()
	switch {
	case len(problems) > 0:
		refuse(w, http.StatusBadRequest, "validation_failed", "The request is not valid.", problems...)
	case !known:
		refuse(w, http.StatusUnauthorized, "invalid_password", "The password was not changed.",
			fieldError{"old_password", "invalid", "old_password is wrong."})
	default:
		succeed(w, nil)
	}
}

// fields reads required string fields from the JSON body. Like the product, it treats a body that is not
// a JSON object as one without fields.
func fields(w *emulator.Response, r *http.Request, names ...string) (values map[string]string, missing []fieldError) {
	var body map[string]any
	if t, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); t == "application/json" {
		json.Unmarshal(w.Request.Body, &body)
	}
	values = make(map[string]string)
	for _, name := range names {
		if v, _ := body[name].(string); v != "" {
			values[name] = v
		} else {
			missing = append(missing, fieldError{name, "required", name + " is required."})
		}
	}
	return values, missing
}

type fieldError struct {
	Field   string `json:"field"`
	Code    string `json:"code"`
	Message string `json:"message"`
}

func refuse(w http.ResponseWriter, status int, reason, message string, problems ...fieldError) {
	emulator.WriteJSON(w, status, map[string]any{
		"status":  "error",
		"code":    status,
		"message": message,
		"error":   reason,
		"errors":  append([]fieldError{}, problems...), // [] instead of null
	})
}

func succeed(w http.ResponseWriter, data any) {
	emulator.WriteJSON(w, http.StatusOK, map[string]any{"status": "success", "code": http.StatusOK, "data": data})
}
