package remedytest

import (
	"crypto/rand"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

func (s *Server) routeSSO(mux *http.ServeMux) {
	mux.HandleFunc("GET /rsso/oauth2/authorize", s.authorize)
	mux.HandleFunc("POST /rsso/oauth2/authorize", s.decide)
	mux.HandleFunc("POST /rsso/oauth2/token", s.token)
	mux.HandleFunc("POST /rsso/oauth2/v1.1/token", s.token)
	mux.HandleFunc("POST /rsso/oauth2/revoke", s.revoke)
	mux.HandleFunc("GET /rsso/oauth2/jwks", s.jwks)
}

// An authRequest is a request to the authorization endpoint whose redirect URI is valid.
type authRequest struct {
	redirect     string // as it was sent
	state, scope string
	challenge    string
}

// A code can be redeemed once.
type code struct {
	request authRequest
	expires time.Time
	consent *consent // nil until the code is redeemed
}

// A page is a consent page that a browser shows.
type page struct {
	request authRequest
	browser string
	expires time.Time
}

const pageLifetime = 10 * time.Minute

// check checks an authorization request (RFC 6749 section 4.1.1). err is shown to the person, because
// the redirect URI is wrong; refusal is an error code to redirect with.
func (s *Server) check(q url.Values) (a authRequest, refusal string, err error) {
	switch {
	case len(q["client_id"]) != 1 || q.Get("client_id") != s.opts.ClientID:
		return a, "", fmt.Errorf("no client with this client_id is registered")
	case len(q["redirect_uri"]) != 1 || !slices.Contains(s.opts.RedirectURIs, q.Get("redirect_uri")):
		return a, "", fmt.Errorf("redirect_uri is not one that is registered for this client")
	}
	a = authRequest{q.Get("redirect_uri"), q.Get("state"), q.Get("scope"), q.Get("code_challenge")}
	switch {
	case repeated(q) != "":
		return a, "invalid_request", nil
	case q.Get("response_type") != "code":
		return a, "unsupported_response_type", nil
	case a.challenge == "" && (s.opts.RequirePKCE || q.Has("code_challenge_method")):
		return a, "invalid_request", nil
	case a.challenge != "" && (q.Get("code_challenge_method") != "S256" || len(a.challenge) != 43):
		return a, "invalid_request", nil
	}
	return a, "", nil
}

// repeated returns the name of a repeated parameter, which RFC 6749 section 3.1 forbids, or "".
func repeated(q url.Values) string {
	for name, values := range q {
		if len(values) > 1 {
			return name
		}
	}
	return ""
}

// redirectURL returns the redirect URI with the response to a added.
func (a authRequest) redirectURL(name, value string) string {
	q := url.Values{name: {value}}
	if a.state != "" {
		q.Set("state", a.state)
	}
	sep := "?"
	if strings.Contains(a.redirect, "?") {
		sep = "&"
	}
	return a.redirect + sep + q.Encode()
}

// allow returns the redirect URL for a person who allows access.
func (s *Server) allow(a authRequest) string {
	c := random()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.codes[c] = &code{request: a, expires: time.Now().Add(CodeLifetime)}
	return a.redirectURL("code", c)
}

func (a authRequest) deny() string { return a.redirectURL("error", "access_denied") }

// Consent acts as a person who opens authURL and allows access. It returns where the browser is sent:
// the redirect URI with code and state, or with error if the request was refused. It makes no HTTP
// request. It fails if the browser would show an error page instead.
func (s *Server) Consent(authURL string) (redirect *url.URL, err error) {
	return s.person(authURL, s.allow)
}

// Deny is like [Server.Consent], but the person denies access: the result has error=access_denied.
func (s *Server) Deny(authURL string) (redirect *url.URL, err error) {
	return s.person(authURL, authRequest.deny)
}

func (s *Server) person(authURL string, decision func(authRequest) string) (*url.URL, error) {
	u, err := url.Parse(authURL)
	if err != nil {
		return nil, err
	}
	if !strings.HasSuffix(u.Path, "/rsso/oauth2/authorize") {
		return nil, fmt.Errorf("remedytest: %s is not the authorization endpoint", u.Path)
	}
	a, refusal, err := s.check(u.Query())
	switch {
	case err != nil:
		return nil, fmt.Errorf("remedytest: %w", err)
	case refusal != "":
		return url.Parse(a.redirectURL("error", refusal))
	}
	return url.Parse(decision(a))
}

const browserCookie = "remedytest-rsso"

func (s *Server) authorize(w http.ResponseWriter, r *http.Request) {
	a, refusal, err := s.check(r.URL.Query())
	switch {
	case err != nil:
		show(w, http.StatusBadRequest, pageData{Problem: err.Error()})
		return
	case refusal != "":
		redirect(w, http.StatusFound, a.redirectURL("error", refusal))
		return
	case s.opts.AutoAllow:
		redirect(w, http.StatusFound, s.allow(a))
		return
	}
	browser := rand.Text()
	if c, err := r.Cookie(browserCookie); err == nil && c.Value != "" {
		browser = c.Value // from another tab
	} else {
		http.SetCookie(w, &http.Cookie{
			Name: browserCookie, Value: browser, Path: "/",
			HttpOnly: true, SameSite: http.SameSiteLaxMode,
		})
	}
	csrf, now := rand.Text(), time.Now()
	s.mu.Lock()
	for k, p := range s.pages {
		if now.After(p.expires) {
			delete(s.pages, k)
		}
	}
	s.pages[csrf] = page{a, browser, now.Add(pageLifetime)}
	s.mu.Unlock()

	d := pageData{Client: s.opts.ClientID, User: s.opts.Username, Scopes: strings.Fields(a.scope), CSRF: csrf}
	if u, err := url.Parse(a.redirect); err == nil {
		d.Return = u.Scheme + "://" + u.Host
	}
	show(w, http.StatusOK, d)
}

// decide handles the page's form. It accepts one decision, from the browser that got the page.
func (s *Server) decide(w http.ResponseWriter, r *http.Request) {
	f, problem := form(r)
	if problem != "" {
		show(w, http.StatusBadRequest, pageData{Problem: problem})
		return
	}
	c, err := r.Cookie(browserCookie)
	s.mu.Lock()
	p, ok := s.pages[f.Get("csrf")]
	ok = ok && err == nil && c.Value == p.browser && time.Now().Before(p.expires)
	decision := f.Get("decision")
	if ok && (decision == "allow" || decision == "deny") {
		delete(s.pages, f.Get("csrf"))
	}
	s.mu.Unlock()
	switch {
	case !ok:
		show(w, http.StatusForbidden, pageData{Problem: "this page was used before, is too old, or was opened in another browser"})
	case decision == "allow":
		redirect(w, http.StatusSeeOther, s.allow(p.request))
	case decision == "deny":
		redirect(w, http.StatusSeeOther, p.request.deny())
	default:
		show(w, http.StatusBadRequest, pageData{Problem: "neither Allow nor Deny was chosen"})
	}
}

// redirect sends the browser to a URI exactly as it is written. http.Redirect would clean it.
func redirect(w http.ResponseWriter, status int, to string) {
	w.Header().Set("Location", to)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Referrer-Policy", "no-referrer")
	w.WriteHeader(status)
}

var (
	//go:embed page.html
	pageHTML     string
	pageTemplate = template.Must(template.New("page").Parse(pageHTML))
)

// pageData is the data of the consent page or, with a Problem, of the error page.
type pageData struct {
	Problem            string
	Client, User, CSRF string
	Scopes             []string
	Return             string
}

func show(w http.ResponseWriter, status int, d pageData) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	// No form-action: browsers also apply it to the redirect after the form.
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'")
	w.WriteHeader(status)
	pageTemplate.Execute(w, d)
}

// form reads the body of a form POST. Problems are those of RFC 6749 section 3.2: a parameter in the URL,
// a repeated parameter, a body of another type.
func form(r *http.Request) (f url.Values, problem string) {
	if r.URL.RawQuery != "" {
		return nil, "parameters belong in the body, not in the URL"
	}
	if t, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); t != "application/x-www-form-urlencoded" {
		return nil, "Content-Type is not application/x-www-form-urlencoded"
	}
	b, err := io.ReadAll(r.Body)
	if err == nil {
		f, err = url.ParseQuery(string(b))
	}
	if err != nil {
		return nil, "the body is not a form"
	}
	if name := repeated(f); name != "" {
		return nil, "a parameter is repeated"
	}
	return f, ""
}

// An oauthError is an error response (RFC 6749 section 5.2).
type oauthError struct {
	Code        string `json:"error"`
	Description string `json:"error_description"`
}

func (s *Server) refuse(w http.ResponseWriter, e *oauthError) {
	status := http.StatusBadRequest
	if e.Code == "invalid_client" {
		status = http.StatusUnauthorized
		if s.opts.Basic {
			w.Header().Set("WWW-Authenticate", `Basic realm="Remedy SSO"`)
		}
	}
	answer(w, status, e)
}

// client checks the client's credentials and returns the form.
func (s *Server) client(r *http.Request) (url.Values, *oauthError) {
	f, problem := form(r)
	if problem != "" {
		return nil, &oauthError{"invalid_request", problem}
	}
	s.mu.Lock()
	secret := s.secret
	s.mu.Unlock()
	matches := func(id, pw string) bool { return id == s.opts.ClientID && pw == secret }
	ok := false
	if !s.opts.Basic {
		ok = matches(f.Get("client_id"), f.Get("client_secret"))
	} else if id, pw, given := r.BasicAuth(); given && !f.Has("client_secret") {
		ok = matches(id, pw)
		id, err1 := url.QueryUnescape(id)
		pw, err2 := url.QueryUnescape(pw)
		ok = ok || err1 == nil && err2 == nil && matches(id, pw)
	}
	if !ok {
		return nil, &oauthError{"invalid_client", "Client authentication failed"}
	}
	return f, nil
}

func (s *Server) token(w http.ResponseWriter, r *http.Request) {
	f, refusal := s.client(r)
	var c *consent
	if refusal == nil {
		c, refusal = s.grant(f)
	}
	if refusal != nil {
		s.refuse(w, refusal)
		return
	}
	out := map[string]any{
		"access_token":  s.issue(accessToken, c),
		"refresh_token": s.issue(refreshToken, c),
	}
	var expiresIn any = seconds(s.opts.TokenLifetime)
	if s.opts.ExpiresIn != nil {
		expiresIn = s.opts.ExpiresIn(seconds(s.opts.TokenLifetime))
	}
	if expiresIn != nil {
		out["expires_in"] = expiresIn
	}
	if strings.HasSuffix(r.URL.Path, "/v1.1/token") {
		out["token_type"] = "Bearer"
	}
	s.count(func(n *Stats) { n.Exchanges++ })
	answer(w, http.StatusOK, out)
}

// grant checks and invalidates a code or a refresh token (RFC 6749 sections 4.1.3 and 6).
func (s *Server) grant(f url.Values) (*consent, *oauthError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch f.Get("grant_type") {
	case "":
		return nil, &oauthError{"invalid_request", "grant_type is missing"}
	case "authorization_code":
		return s.redeem(f)
	case "refresh_token":
		value := f.Get(s.opts.RefreshParam)
		if value == "" {
			return nil, &oauthError{"invalid_request", s.opts.RefreshParam + " is missing"}
		}
		t := s.tokens[value]
		if t != nil && t.kind == refreshToken && t.spent {
			s.stats.Reuses++
			t.consent.revoked = true
		}
		if !t.validLocked() || t.kind != refreshToken {
			return nil, &oauthError{"invalid_grant", "Refresh token is invalid, expired or was used before"}
		}
		t.spent = true
		s.stats.Rotations++
		return t.consent, nil
	}
	return nil, &oauthError{"unsupported_grant_type", "grant_type is not supported"}
}

func (s *Server) redeem(f url.Values) (*consent, *oauthError) {
	if f.Get("code") == "" {
		return nil, &oauthError{"invalid_request", "code is missing"}
	}
	c := s.codes[f.Get("code")]
	switch {
	case c != nil && c.consent != nil:
		c.consent.revoked = true
		return nil, &oauthError{"invalid_grant", "Authorization code was used before"}
	case c == nil || !time.Now().Before(c.expires):
		return nil, &oauthError{"invalid_grant", "Authorization code is invalid or expired"}
	case f.Get("redirect_uri") != c.request.redirect:
		return nil, &oauthError{"invalid_grant", "redirect_uri is not that of the authorization request"}
	case challenge(f.Get("code_verifier")) != c.request.challenge:
		return nil, &oauthError{"invalid_grant", "code_verifier does not match"}
	}
	c.consent = &consent{user: s.opts.Username, scope: c.request.scope}
	return c.consent, nil
}

// challenge returns the S256 challenge (RFC 7636), or "" without a verifier.
func challenge(verifier string) string {
	if verifier == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(verifier))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// revoke implements RFC 7009. Revoking a refresh token revokes all tokens of its consent. Revoking an
// unknown token succeeds.
func (s *Server) revoke(w http.ResponseWriter, r *http.Request) {
	f, refusal := s.client(r)
	if refusal == nil && f.Get("token") == "" {
		refusal = &oauthError{"invalid_request", "token is missing"}
	}
	if refusal != nil {
		s.refuse(w, refusal)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.tokens[f.Get("token")]; t != nil && t.kind == refreshToken {
		t.consent.revoked = true
	}
	delete(s.tokens, f.Get("token"))
}
