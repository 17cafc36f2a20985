package consent

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
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
// completed once. Flows are kept in memory, the latest 1,000: of several processes behind one
// address, the one that began a flow has to end it. The cookie is Secure where the request came
// over TLS or all redirect URIs are https.
func NewHandler(connectors []Connector, o *HandlerOptions) http.Handler {
	h := &handler{
		connectors: connectors,
		callbacks:  make(map[string]bool),
		hosts:      make(map[string]bool),
		https:      true,
		flows:      make(map[string]*flow),
	}
	rand.Read(h.key[:])
	if o != nil {
		h.path = strings.TrimSuffix(o.Path, "/")
		for _, host := range o.Hosts {
			h.hosts[hostname(host)] = true
		}
	}
	h.anyLoopback = len(h.hosts) == 0
	for _, c := range connectors {
		f := c.Session.CodeFlow()
		if f == nil {
			continue
		}
		u, err := url.Parse(f.RedirectURI)
		if err != nil {
			continue // the product will not send anybody there
		}
		h.callbacks[cmp.Or(u.Path, "/")] = true
		h.https = h.https && u.Scheme == "https"
		if h.anyLoopback {
			h.hosts[hostname(u.Host)] = true
		}
	}
	h.https = h.https && len(h.callbacks) > 0
	return h
}

type handler struct {
	connectors  []Connector
	path        string // of the list, without a slash at its end
	callbacks   map[string]bool
	hosts       map[string]bool
	anyLoopback bool
	https       bool     // all redirect URIs are
	key         [32]byte // of the CSRF tokens

	mu    sync.Mutex
	flows map[string]*flow // by state
}

const (
	flowLifetime = 10 * time.Minute
	maxFlows     = 1000
)

// A flow is one that a browser has begun. It stays when it is over, so that it can be told why.
type flow struct {
	connector Connector
	redirect  string // the path of the redirect URI
	browser   string
	list      string // the path of the list, as the browser knows it
	verifier  string
	began     time.Time
	used      bool
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	isList := strings.TrimSuffix(r.URL.Path, "/") == h.path
	isCallback := h.callbacks[r.URL.Path] || h.callbacks[sentPath(r)]
	switch {
	case !h.serves(r.Host):
		wrongHost().write(w)
	case isCallback && r.Method == http.MethodGet && (!isList || r.URL.Query().Has("state")):
		h.callback(w, r)
	case isList && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		h.list(w, r, http.StatusOK, "")
	case isList && r.Method == http.MethodPost:
		h.connect(w, r)
	case isList:
		wrongMethod(w, http.MethodGet, http.MethodHead, http.MethodPost)
	case isCallback:
		wrongMethod(w, http.MethodGet)
	default:
		unknown().write(w)
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

func (h *handler) serves(host string) bool {
	host = hostname(host)
	return h.hosts[host] || h.anyLoopback && isLoopback(host)
}

func (h *handler) list(w http.ResponseWriter, r *http.Request, status int, notice string) {
	browser := h.browser(r)
	if browser == "" {
		browser = h.meet(w, r)
	}
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	p := page{Status: status, Title: "Connections", List: true, Notice: notice, CSRF: h.csrf(browser),
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
	browser, site := h.browser(r), r.Header.Get("Sec-Fetch-Site")
	if browser == "" || !hmac.Equal([]byte(r.PostFormValue("csrf")), []byte(h.csrf(browser))) ||
		site != "" && site != "same-origin" {
		h.list(w, r, http.StatusForbidden, "That page was out of date, so nothing was done. Please press the button again.")
		return
	}
	name := r.PostFormValue("connector")
	i := slices.IndexFunc(h.connectors, func(c Connector) bool { return c.Name == name })
	var code *auth.CodeFlow
	if i >= 0 {
		code = h.connectors[i].Session.CodeFlow()
	}
	if code == nil {
		h.list(w, r, http.StatusNotFound, "There is no such connector to connect.")
		return
	}
	f := &flow{
		connector: h.connectors[i], browser: browser, verifier: oauth2.GenerateVerifier(), began: time.Now(),
		list: (&url.URL{Path: "/" + strings.TrimLeft(sentPath(r), "/")}).String(),
	}
	if u, err := url.Parse(code.RedirectURI); err == nil {
		f.redirect = cmp.Or(u.Path, "/")
	}
	state := h.begin(f)
	to := code.URL(state, f.verifier)
	host := "the product"
	if u, err := url.Parse(to); err == nil && u.Host != "" {
		host = u.Host
	}
	w.Header().Set("Refresh", "0; url="+to)
	leaving(name, to, host).write(w)
}

// callback ends a flow.
func (h *handler) callback(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	f, refusal := h.end(r, q["state"])
	if refusal != nil {
		refusal.write(w)
		return
	}
	p, _ := f.connector.finish(r.Context(), q, f.verifier)
	p.back(f.list).write(w)
}

func (h *handler) begin(f *flow) (state string) {
	state = newState()
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(h.flows) >= maxFlows {
		var oldest string
		for s, f := range h.flows {
			if oldest == "" || f.began.Before(h.flows[oldest].began) {
				oldest = s
			}
		}
		delete(h.flows, oldest)
	}
	h.flows[state] = f
	return state
}

// end takes the flow with that state, once, or gives the page that says why it cannot be had.
func (h *handler) end(r *http.Request, state []string) (*flow, *page) {
	refuse := func(p page) (*flow, *page) { return nil, &p }
	if len(state) != 1 {
		return refuse(foreign(""))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	f := h.flows[state[0]]
	switch {
	case f == nil || f.redirect != r.URL.Path && f.redirect != sentPath(r): // or another product's answer
		return refuse(foreign(""))
	case f.browser != h.browser(r):
		return refuse(foreign(f.connector.Name))
	case f.used:
		return refuse(used(f.connector.Name).back(f.list))
	case time.Since(f.began) > flowLifetime:
		return refuse(expired(f.connector.Name).back(f.list))
	}
	f.used = true
	return f, nil
}

// cookie is the name of the one that tells browsers apart. With __Host- no other host of the
// domain can set it.
func (h *handler) cookie(r *http.Request) (name string, secure bool) {
	if r.TLS != nil || h.https {
		return "__Host-itsmauth-browser", true
	}
	return "itsmauth-browser", false
}

// browser is the browser's own secret, or "" if we have not met.
func (h *handler) browser(r *http.Request) string {
	name, _ := h.cookie(r)
	if c, err := r.Cookie(name); err == nil {
		return c.Value
	}
	return ""
}

func (h *handler) meet(w http.ResponseWriter, r *http.Request) string {
	name, secure := h.cookie(r)
	browser := rand.Text()
	http.SetCookie(w, &http.Cookie{
		Name: name, Value: browser, Path: "/",
		HttpOnly: true, Secure: secure, SameSite: http.SameSiteLaxMode,
	})
	return browser
}

// csrf is the token for the forms of a browser.
func (h *handler) csrf(browser string) string {
	mac := hmac.New(sha256.New, h.key[:])
	mac.Write([]byte(browser))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}
