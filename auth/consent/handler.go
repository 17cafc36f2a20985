package consent

import (
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

// HandlerOptions shape [NewHandler]. The zero value of each field is its default.
type HandlerOptions struct {
	// Path ("/") is where the list is, as the handler sees it: below [http.StripPrefix] that is
	// without the prefix.
	Path string
	// Hosts are the host names, without ports, that the handler answers to, against DNS
	// rebinding. The default is those of the redirect URIs, localhost and loopback addresses.
	Hosts []string
}

// NewHandler shows the connectors, the state of each, and a button that has the administrator who
// presses it give consent. It is to be mounted at Path and at the path of each redirect URI, which
// may be below Path or anywhere else:
//
//	h := admins(consent.NewHandler(connectors, &consent.HandlerOptions{Path: "/connections"}))
//	mux.Handle("/connections", h)
//	mux.Handle("/callback", h) // redirect_uri: https://itsm.example.com/callback
//
// Whoever reaches it can connect any of the connectors, so the service puts its own authorization
// before it (admins, above). If that has a cookie, it must be SameSite=Lax: one that is Strict does
// not come along when the product sends the browser back. The list has to be opened under the host
// name of the redirect URI.
//
// A flow is bound to the browser that began it by a cookie, ends after 10 minutes and can be
// completed once. Before the browser is sent to the product, the token store is checked; if it cannot
// be written, a page says so. Flows are kept in memory, the latest 1,000: of several processes behind one
// address, the one that began a flow has to end it. The cookie is Secure where the request came
// over TLS or all redirect URIs are https.
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
			continue // the product will not send anybody there
		}
		h.callbacks[u.Path] = true
		h.https = h.https && u.Scheme == "https"
		if h.anyLoopback {
			h.hosts[hostname(u.Host)] = true
		}
	}
	return h
}

type handler struct {
	connectors  []Connector
	path        string // of the list, without a slash at its end
	callbacks   map[string]bool
	hosts       map[string]bool
	anyLoopback bool
	https       bool   // all redirect URIs are
	key         []byte // of the CSRF tokens

	mu    sync.Mutex
	flows []*flow // the oldest first; one that is over stays, so that its browser can be told
}

// Format keeps the key and the flows' secrets from being shown.
func (h *handler) Format(f fmt.State, _ rune) { io.WriteString(f, "consent.Handler") }

const (
	flowLifetime = 10 * time.Minute
	maxFlows     = 1000
	// redeemTimeout is how long a browser waits for its page, 10 s more if the tokens are being saved.
	redeemTimeout = 30 * time.Second
)

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	host := hostname(r.Host)
	isList := strings.TrimSuffix(r.URL.Path, "/") == h.path
	isCallback := h.callbacks[r.URL.Path] || h.callbacks[sentPath(r)]
	switch {
	case !h.hosts[host] && !(h.anyLoopback && endpoint.Loopback(host)):
		wrongHost.write(w)
	case isCallback && r.Method == http.MethodGet && (!isList || r.URL.Query().Has("state")):
		h.callback(w, r)
	case isList && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		h.list(w, r, http.StatusOK, "")
	case isList && r.Method == http.MethodPost:
		h.connect(w, r)
	case isList:
		wrongMethod(w, "GET, HEAD, POST")
	case isCallback:
		wrongMethod(w, "GET")
	default:
		unknown.write(w)
	}
}

// sentPath is the path as the browser sent it, also below [http.StripPrefix].
func sentPath(r *http.Request) string {
	if u, err := url.ParseRequestURI(r.RequestURI); err == nil {
		return u.Path
	}
	return r.URL.Path
}

// hostname is a Host header without its port, in lower case.
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
	var looking sync.WaitGroup
	for i, c := range h.connectors {
		looking.Go(func() {
			st, err := c.Session.Status(ctx)
			p.Rows[i] = newRow(c, st, err, time.Now())
		})
	}
	looking.Wait()
	p.write(w)
}

// connect begins a flow and sends the browser on.
func (h *handler) connect(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 4<<10)
	browser, site := h.cookie(r).Value, r.Header.Get("Sec-Fetch-Site")
	if browser == "" || !hmac.Equal([]byte(r.PostFormValue("csrf")), []byte(h.csrf(browser))) ||
		site != "" && site != "same-origin" {
		h.list(w, r, http.StatusForbidden, "That page was out of date, so nothing was done. Please press the button again.")
		return
	}
	name := r.PostFormValue("connector")
	var f *flow
	if i := slices.IndexFunc(h.connectors, func(c Connector) bool { return c.Name == name }); i >= 0 {
		f, _ = h.connectors[i].begin()
	}
	if f == nil {
		h.list(w, r, http.StatusNotFound, "There is no such connector to connect.")
		return
	}
	f.browser, f.began = browser, time.Now()
	f.list = (&url.URL{Path: "/" + strings.TrimLeft(sentPath(r), "/")}).String()
	if err := f.connector.checkStore(r.Context()); err != nil {
		f.show(w, outcome(name, err))
		return
	}
	h.keep(f)
	w.Header().Set("Refresh", "0; url="+f.authURL)
	leaving(name, f.authURL).write(w)
}

// callback ends a flow.
func (h *handler) callback(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	f := h.find(q)
	switch {
	case f == nil || f.redirect.Path != r.URL.Path && f.redirect.Path != sentPath(r): // or another product's answer
		foreign.write(w)
	case f.browser != h.cookie(r).Value:
		otherBrowser(f.connector.Name).write(w)
	case time.Since(f.began) > flowLifetime && !f.used.Load():
		f.show(w, expired(f.connector.Name))
	case f.used.Swap(true):
		f.show(w, used(f.connector.Name))
	default:
		// A browser that leaves does not end the login.
		ctx, cancel := withTimeout(context.WithoutCancel(r.Context()), redeemTimeout)
		defer cancel()
		_ = f.finish(ctx, w, q) // the page says it
	}
}

func (h *handler) keep(f *flow) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.flows) == maxFlows {
		h.flows = slices.Delete(h.flows, 0, 1)
	}
	h.flows = append(h.flows, f)
}

// find gives the flow that q is the answer to, or nil.
func (h *handler) find(q url.Values) *flow {
	h.mu.Lock()
	defer h.mu.Unlock()
	if i := slices.IndexFunc(h.flows, func(f *flow) bool { return f.has(q) }); i >= 0 {
		return h.flows[i]
	}
	return nil
}

// cookie holds the browser's own secret, or nothing if we have not met. With __Host- no other host
// of the domain can set it.
func (h *handler) cookie(r *http.Request) *http.Cookie {
	c := &http.Cookie{Name: "itsmauth-browser", Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode}
	if r.TLS != nil || h.https {
		c.Name, c.Secure = "__Host-itsmauth-browser", true
	}
	if sent, err := r.Cookie(c.Name); err == nil {
		c.Value = sent.Value
	}
	return c
}

// csrf is the token for the forms of a browser.
func (h *handler) csrf(browser string) string {
	mac := hmac.New(sha256.New, h.key)
	mac.Write([]byte(browser))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}
