// Package transport sends authenticated requests: with the current token, within the rate limits, retried
// where that is safe, and to the connector's origins only.
package transport

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/endpoint"
	"github.com/itsmauth/itsmauth/transport/internal/limit"
)

// roundTripper sends the calls of one connector, or its exchanges.
type roundTripper struct {
	auth          auth.Authenticator // nil: exchanges
	signer        auth.Signer        // nil: requests are not signed
	challenged    auth.Challenged    // nil: as signer
	o             Options            // with defaults filled in
	origins       []origin           // for exchanges a single one, which stands for any
	limits        *limit.Queue
	foreignBudget budget // of requests to all other origins
	inner         http.RoundTripper
	anonymous     http.RoundTripper // to other origins: without client certificates
	pools         []connections
	mayUseProxy   bool
}

// Format prints a constant: printing the fields would race with calls that change them.
func (t *roundTripper) Format(f fmt.State, _ rune) { io.WriteString(f, "transport.RoundTripper") }

// New returns a RoundTripper that sends a's token to the origins of o and nowhere else, and retries
// requests that are safe to retry. Its errors are an [*auth.Error] or those of net/http. A request to
// another origin is refused with [auth.ErrInsecure], unless a GET or HEAD was redirected there: that is
// sent without credentials. Use [NewClient] unless you have an [http.Client] of your own to put it into.
func New(a auth.Authenticator, o *Options) (http.RoundTripper, error) { return newRoundTripper(a, o) }

func newRoundTripper(a auth.Authenticator, o *Options) (*roundTripper, error) {
	t := newBase(a, o)
	if t.o.BaseURL == nil {
		return nil, t.fail("new", errors.New("Options.BaseURL is missing"))
	}
	for _, u := range append([]*url.URL{t.o.BaseURL}, t.o.AllowedOrigins...) {
		if err := t.checkScheme(u); err != nil {
			return nil, err
		}
		t.origins = append(t.origins, origin{u.Scheme, u.Host, endpoint.Origin(u), new(budget)})
	}
	return t, nil
}

// NewClient returns a client over [New]. It follows 301 and 302 only for GET and HEAD, makes a GET after
// 303, and keeps method and body after 307 and 308 (RFC 9110 section 15.4). To another origin it follows
// only for GET and HEAD, and without credentials: no token, no Referer, no credentials that the caller
// set. Otherwise it returns the redirect response.
func NewClient(a auth.Authenticator, o *Options) (*http.Client, error) {
	t, err := newRoundTripper(a, o)
	if err != nil {
		return nil, err
	}
	return &http.Client{Transport: t, CheckRedirect: t.checkRedirect}, nil
}

// NewExchanger returns the client for exchanges. It follows no redirect, goes ahead of calls in the
// Limiter's queue, and retries a request only if the connection was never made.
func NewExchanger(o *Options) *http.Client {
	t := newBase(nil, o)
	t.origins = []origin{{budget: new(budget)}}
	return &http.Client{Transport: t, CheckRedirect: useLastResponse}
}

func useLastResponse(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// newBase fills in the defaults and makes the connection pools.
func newBase(a auth.Authenticator, o *Options) *roundTripper {
	t := &roundTripper{auth: a}
	t.setSigner(a)
	if o != nil {
		t.o = *o
	}
	const longest = 87600 * time.Hour // YAML's maximum; sums and doubles of it do not overflow
	t.o.Timeout = min(cmp.Or(t.o.Timeout, time.Minute), longest)
	t.o.AttemptTimeout = min(cmp.Or(t.o.AttemptTimeout, 30*time.Second), longest)
	t.o.MaxReplayBody = cmp.Or(t.o.MaxReplayBody, 1<<20)
	t.o.Logger = cmp.Or(t.o.Logger, slog.New(slog.DiscardHandler))
	r := &t.o.Retry
	r.MaxAttempts = cmp.Or(r.MaxAttempts, 4)
	r.MinBackoff = cmp.Or(r.MinBackoff, 500*time.Millisecond)
	r.MaxBackoff = cmp.Or(r.MaxBackoff, 30*time.Second)
	r.MaxRetryAfter = cmp.Or(r.MaxRetryAfter, 30*time.Second)
	if t.o.Limiter != nil {
		t.limits = t.o.Limiter.queue
	}
	t.mayUseProxy = t.o.Proxy != nil || variable("HTTP_PROXY") != "" || variable("HTTPS_PROXY") != ""
	wrap := t.o.Wrap
	if wrap == nil {
		wrap = func(next http.RoundTripper) http.RoundTripper { return next }
	}
	own, foreign := newPool(&t.o), newPool(&t.o)
	if c := foreign.TLSClientConfig; c != nil {
		withoutIdentity(c)
	}
	t.pools = []connections{t.o.renewed(own), t.o.renewed(foreign)}
	t.inner, t.anonymous = wrap(t.pools[0]), wrap(t.pools[1])
	return t
}

// CloseIdleConnections is called by [http.Client.CloseIdleConnections].
func (t *roundTripper) CloseIdleConnections() {
	for _, p := range t.pools {
		p.CloseIdleConnections()
	}
}

// RoundTrip implements [http.RoundTripper].
func (t *roundTripper) RoundTrip(req *http.Request) (*http.Response, error) {
	o, err := t.destination(req)
	if err != nil {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, err
	}
	c := call{t: t, req: req, origin: o}
	return c.do()
}

// An origin is a scheme, host and port (RFC 6454) that credentials may be sent to.
type origin struct {
	scheme, host string // as configured: comparing them needs no allocation
	canonical    string
	budget       *budget
}

func (t *roundTripper) origin(u *url.URL) *origin {
	for i := range t.origins {
		o := &t.origins[i]
		if u.Scheme == o.scheme && u.Host == o.host {
			return o
		}
	}
	canonical := endpoint.Origin(u)
	for i := range t.origins {
		if o := &t.origins[i]; o.canonical == canonical {
			return o
		}
	}
	return nil
}

// destination returns the origin that req goes to with credentials, or nil if it goes without.
func (t *roundTripper) destination(req *http.Request) (*origin, error) {
	if req.URL == nil {
		return nil, t.fail("request", errors.New("the request has no URL"))
	}
	if t.auth == nil {
		return &t.origins[0], t.checkScheme(req.URL)
	}
	o, redirectable := t.origin(req.URL), mayLeaveOrigin(req)
	for r := req.Response; r != nil && r.Request != nil; r = r.Request.Response {
		if t.origin(r.Request.URL) == nil {
			o = nil // no credentials after a detour over another origin
		}
		redirectable = redirectable && mayLeaveOrigin(r.Request)
	}
	switch {
	case o == nil && (req.Response == nil || req.Response.Request == nil):
		return nil, t.fail("request", fmt.Errorf("%w to %s: it is neither base_url's origin nor in allowed_origins", auth.ErrInsecure, endpoint.Origin(req.URL)))
	case o == nil && !redirectable:
		return nil, t.fail("request", fmt.Errorf("%w: only a GET or HEAD may be redirected to another origin", auth.ErrInsecure))
	case req.URL.Opaque != "": // a proxy or the server may read another host from it than URL.Host
		return nil, t.fail("request", fmt.Errorf("%w: the URL is opaque", auth.ErrInsecure))
	case o != nil && req.Host != "" && req.Host != req.URL.Host && endpoint.Origin(&url.URL{Scheme: req.URL.Scheme, Host: req.Host}) != o.canonical:
		return nil, t.fail("request", fmt.Errorf("%w: the Host header names another host than the URL", auth.ErrInsecure))
	}
	return o, nil
}

// mayLeaveOrigin reports whether req may be redirected to another origin. A POST may not, although
// net/http would send a GET: the caller would take the other site's page for the product's response.
func mayLeaveOrigin(req *http.Request) bool {
	return (req.Method == "" || req.Method == http.MethodGet || req.Method == http.MethodHead) &&
		(req.Body == nil || req.Body == http.NoBody)
}

func (t *roundTripper) checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("stopped after 10 redirects")
	}
	if isLostWrite(req.Response.StatusCode, via[len(via)-1].Method) || t.origin(req.URL) == nil && slices.ContainsFunc(via, func(r *http.Request) bool { return !mayLeaveOrigin(r) }) {
		return http.ErrUseLastResponse
	}
	if b, ok := req.Response.Body.(*returnedBody); ok {
		b.attempt.call.follow()
	}
	return nil
}

// isLostWrite reports whether net/http makes a GET of the method after this status (RFC 9110 section 15.4.2
// permits it): the caller would take the page it leads to for the result of the write.
func isLostWrite(status int, method string) bool {
	return (status == http.StatusMovedPermanently || status == http.StatusFound) &&
		method != "" && method != http.MethodGet && method != http.MethodHead
}

// checkScheme refuses plain http, except to loopback or with AllowHTTP.
func (t *roundTripper) checkScheme(u *url.URL) error {
	switch strings.ToLower(u.Scheme) {
	case "https":
		return nil
	case "http":
		if t.o.AllowHTTP || t.o.local(u) {
			return nil
		}
		return t.fail("request", fmt.Errorf("%w over plain http to %s", auth.ErrInsecure, u.Host))
	}
	return t.fail("request", fmt.Errorf("%w over %q", auth.ErrInsecure, u.Scheme))
}

// fail returns an error that names the connector.
func (t *roundTripper) fail(op string, err error) error {
	return &auth.Error{Connector: t.o.Connector, Op: op, Err: err}
}
