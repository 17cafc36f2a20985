package consent

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/itsmauth/itsmauth/internal/endpoint"
)

// HandlerOptions configures [NewHandler]. The zero value of each field is its default.
type HandlerOptions struct {
	// Path ("/") is the path of the list as the handler sees it: under [http.StripPrefix], without
	// the prefix.
	Path string
	// Hosts are the host names, without ports, that the handler accepts in the Host header, as a
	// protection against DNS rebinding. The default is the hosts of the redirect URIs, localhost
	// and all loopback addresses.
	Hosts []string
}

// NewHandler returns a handler that lists the connectors with their states. Each connector that needs
// a login has a button that starts it. Mount the handler at Path and at the path of each redirect URI:
//
//	h := admins(consent.NewHandler(connectors, &consent.HandlerOptions{Path: "/connections"}))
//	mux.Handle("/connections", h)
//	mux.Handle("/callback", h) // redirect_uri: https://itsm.example.com/callback
//
// The handler lets every visitor connect every connector, so put the service's own authorization in
// front of it (admins, above). If that uses a cookie, the cookie must be SameSite=Lax: browsers do not
// send a Strict one when the product redirects back. Open the list under the host name of the
// redirect URI.
//
// A cookie of its own binds each login to the browser that started it. A login expires after 10 minutes
// and can be completed once. The browser is sent to the product only if the token store can be written.
// The latest 1,000 logins are kept in memory: if several processes serve one address, the process that
// started a login must also receive its callback. The cookie is Secure if the request came over TLS or
// all redirect URIs are https. Otherwise only the redirect URI gets it, and other ports of the host.
func NewHandler(connectors []Connector, o *HandlerOptions) http.Handler {
	if o == nil {
		o = new(HandlerOptions)
	}
	h := &handler{
		connectors:  connectors,
		path:        strings.TrimSuffix(o.Path, "/"),
		callbacks:   make(map[string]bool),
		hosts:       make(map[string]bool),
		anyLoopback: len(o.Hosts) == 0,
		https:       true,
		key:         []byte(rand.Text()),
	}
	for _, host := range o.Hosts {
		h.hosts[hostname(host)] = true
	}
	for _, c := range connectors {
		u, err := c.redirectURI()
		if err != nil {
			continue // the product cannot redirect to it
		}
		h.callbacks[u.Path] = true
		h.loopback = h.loopback || endpoint.Loopback(u.Hostname())
		h.https = h.https && u.Scheme == "https"
		if h.anyLoopback {
			h.hosts[hostname(u.Host)] = true
		}
	}
	if len(h.callbacks) == 0 {
		h.https, h.loopback = false, true
	}
	return h
}

type handler struct {
	connectors  []Connector
	path        string // of the list, without a trailing slash
	callbacks   map[string]bool
	hosts       map[string]bool
	anyLoopback bool
	https       bool   // all redirect URIs are https
	loopback    bool   // a redirect URI is on a loopback address, or there is none
	key         []byte // signs the CSRF tokens

	mu    sync.Mutex
	flows []*flow // the oldest first, with the completed ones, so that a second visit gets its own page
}

// Format hides the key and the flows' secrets from fmt.
func (h *handler) Format(f fmt.State, _ rune) { io.WriteString(f, "consent.Handler") }

const (
	flowLifetime = 10 * time.Minute
	maxFlows     = 1000
)

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	host := hostname(r.Host)
	isList := strings.TrimSuffix(r.URL.Path, "/") == h.path
	isCallback := h.callbacks[r.URL.Path] || h.callbacks[sentPath(r)]
	switch {
	case !h.hosts[host] && !(h.anyLoopback && endpoint.Loopback(host)):
		wrongHostPage.write(w)
	case isCallback && r.Method == http.MethodGet && (!isList || r.URL.Query().Has("state")):
		h.callback(w, r)
	case isList && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		h.list(w, r, http.StatusOK, "")
	case isCallback && h.find(form(w, r)) != nil:
		redirectForm(w, r.PostForm)
	case isList && r.Method == http.MethodPost:
		h.connect(w, r)
	case isList:
		writeWrongMethod(w, "GET, HEAD, POST")
	case isCallback:
		writeWrongMethod(w, "GET")
	default:
		unknownPage.write(w)
	}
}

// sentPath returns the path that the browser sent, which [http.StripPrefix] does not change.
func sentPath(r *http.Request) string {
	if u, err := url.ParseRequestURI(r.RequestURI); err == nil {
		return u.Path
	}
	return r.URL.Path
}

// hostname returns a Host header without its port, in lower case.
func hostname(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.ToLower(strings.Trim(host, "[]"))
}

func (h *handler) list(w http.ResponseWriter, r *http.Request, status int, notice string) {
	cookie := h.cookie(r)
	if cookie.Value == "" {
		cookie.Value = rand.Text()
		http.SetCookie(w, cookie)
	}
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	p := page{Status: status, Title: "Connections", Notice: notice, CSRF: h.csrf(cookie.Value),
		Rows: make([]row, len(h.connectors))}
	var reading sync.WaitGroup
	for i, c := range h.connectors {
		reading.Go(func() {
			st, err := c.Session.Status(ctx)
			p.Rows[i] = newRow(c, st, err, time.Now())
		})
	}
	reading.Wait()
	p.write(w)
}

// connect starts a login and sends the browser to the product.
func (h *handler) connect(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 4<<10)
	browser, site := h.cookie(r).Value, r.Header.Get("Sec-Fetch-Site")
	if browser == "" || !hmac.Equal([]byte(r.PostFormValue("csrf")), []byte(h.csrf(browser))) ||
		site != "" && site != "same-origin" {
		h.list(w, r, http.StatusForbidden, "The page was out of date, and nothing was changed. Please press the button again.")
		return
	}
	name := r.PostFormValue("connector")
	var f *flow
	if i := slices.IndexFunc(h.connectors, func(c Connector) bool { return c.Name == name }); i >= 0 {
		f, _ = h.connectors[i].newFlow()
	}
	if f == nil {
		h.list(w, r, http.StatusNotFound, "There is no such connector that needs a login.")
		return
	}
	f.started, f.cookie = time.Now(), newLoginCookie(f.redirect)
	f.cookie.MaxAge = int(flowLifetime.Seconds())
	h.secure(r, f.cookie)
	f.listPath = (&url.URL{Path: "/" + strings.TrimLeft(sentPath(r), "/")}).String()
	if err := f.connector.Session.CheckStore(r.Context()); err != nil {
		f.show(w, failedPage(name, err))
		return
	}
	h.add(f)
	http.SetCookie(w, f.cookie)
	w.Header().Set("Refresh", "0; url="+f.authURL)
	continuePage(name, f.authURL).write(w)
}

// callback completes a login.
func (h *handler) callback(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	f := h.find(q)
	switch {
	case f == nil || f.redirect.Path != r.URL.Path && f.redirect.Path != sentPath(r): // the second: another product's callback
		foreignPage.write(w)
	case time.Since(f.started) > flowLifetime && !f.used.Load(): // the browser has dropped the cookie
		f.show(w, expiredPage(f.connector.Name))
	case !f.fromItsBrowser(r):
		otherBrowserPage(f.connector.Name).write(w)
	case f.used.Swap(true):
		f.show(w, usedPage(f.connector.Name))
	default:
		// The login goes on if the browser disconnects. Session.Redeem takes up to 10 s more to save the tokens.
		ctx, cancel := withTimeout(context.WithoutCancel(r.Context()), f.connector.Session.ExchangeTimeout())
		defer cancel()
		_ = f.finish(ctx, w, q) // the page shows the error
	}
}

func (h *handler) add(f *flow) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.flows) == maxFlows {
		h.flows = slices.Delete(h.flows, 0, 1)
	}
	h.flows = append(h.flows, f)
}

// find returns the flow whose state q has, or nil.
func (h *handler) find(q url.Values) *flow {
	h.mu.Lock()
	defer h.mu.Unlock()
	if i := slices.IndexFunc(h.flows, func(f *flow) bool { return f.hasState(q) }); i >= 0 {
		return h.flows[i]
	}
	return nil
}

// cookie returns the list's cookie, with an empty value if the request has none. Unless other ports of the host
// may belong to other users, all pages get it, so that lists at several paths are one.
func (h *handler) cookie(r *http.Request) *http.Cookie {
	c := &http.Cookie{Name: "itsmauth-browser", Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode}
	if h.loopback {
		c.Path = cmp.Or(cookiePath(&url.URL{Path: strings.TrimSuffix(sentPath(r), "/")}), "/")
	}
	h.secure(r, c)
	if sent, err := r.Cookie(c.Name); err == nil {
		c.Value = sent.Value
	}
	return c
}

// secure makes c a Secure cookie, if the request came over TLS or all redirect URIs are https. The prefix __Host-
// keeps other hosts of the domain from setting it.
func (h *handler) secure(r *http.Request, c *http.Cookie) {
	if r.TLS != nil || h.https {
		c.Name, c.Path, c.Secure = "__Host-"+c.Name, "/", true
	}
}

// csrf returns the CSRF token for the browser with this cookie.
func (h *handler) csrf(browser string) string {
	mac := hmac.New(sha256.New, h.key)
	mac.Write([]byte(browser))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}
