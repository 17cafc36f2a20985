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
	"sync/atomic"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/endpoint"
)

// roundTripper carries the calls of one connector, or its exchanges.
type roundTripper struct {
	auth      auth.Authenticator // nil: exchanges
	o         Options            // with their defaults
	origins   []origin           // for exchanges one, which stands for any
	elsewhere budget             // of what goes bare
	inner     http.RoundTripper
	bare      http.RoundTripper // to other origins: without client certificates
	idle      []*http.Transport
	carried   atomic.Pointer[carried]
}

// Format shows nothing of what changes while a client is printed.
func (t *roundTripper) Format(f fmt.State, _ rune) { io.WriteString(f, "transport.RoundTripper") }

// New gives the RoundTripper that sends a's token to the origins of o and nowhere else, and retries
// what may be retried. Its errors are an [*auth.Error] or those of net/http. A request to another
// origin is refused with [auth.ErrInsecure], unless it is the continuation of a GET's or HEAD's
// redirect, which is sent bare. Use [NewClient] unless you have a client of your own to put it into.
func New(a auth.Authenticator, o *Options) (http.RoundTripper, error) { return newRoundTripper(a, o) }

func newRoundTripper(a auth.Authenticator, o *Options) (*roundTripper, error) {
	t := base(a, o)
	if t.o.BaseURL == nil {
		return nil, t.fail("new", errors.New("Options.BaseURL is missing"))
	}
	for _, u := range append([]*url.URL{t.o.BaseURL}, t.o.AllowedOrigins...) {
		if err := t.secure(u); err != nil {
			return nil, err
		}
		t.origins = append(t.origins, origin{u.Scheme, u.Host, endpoint.Origin(u), new(budget)})
	}
	return t, nil
}

// NewClient gives a client over [New] that follows redirects to other origins only for GET and
// HEAD, and bare: without the token, without Referer, and without credentials that the caller set.
// Others are returned as they came.
func NewClient(a auth.Authenticator, o *Options) (*http.Client, error) {
	t, err := newRoundTripper(a, o)
	if err != nil {
		return nil, err
	}
	return &http.Client{Transport: t, CheckRedirect: t.checkRedirect}, nil
}

// NewExchanger gives the client for exchanges: it follows no redirect, goes ahead of calls in the
// Limiter's queue, and repeats a request only if the connection was never made.
func NewExchanger(o *Options) *http.Client {
	t := base(nil, o)
	t.origins = []origin{{budget: new(budget)}}
	return &http.Client{Transport: t, CheckRedirect: useLastResponse}
}

func useLastResponse(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// base fills in the defaults and makes the connections' side.
func base(a auth.Authenticator, o *Options) *roundTripper {
	t := &roundTripper{auth: a}
	if o != nil {
		t.o = *o
	}
	const longest = 87600 * time.Hour // as in YAML: sums and doubles of it do not overflow
	t.o.Timeout = min(cmp.Or(t.o.Timeout, time.Minute), longest)
	t.o.AttemptTimeout = min(cmp.Or(t.o.AttemptTimeout, 30*time.Second), longest)
	t.o.MaxReplayBody = cmp.Or(t.o.MaxReplayBody, 1<<20)
	t.o.Logger = cmp.Or(t.o.Logger, slog.New(slog.DiscardHandler))
	r := &t.o.Retry
	r.MaxAttempts = cmp.Or(r.MaxAttempts, 4)
	r.MinBackoff = cmp.Or(r.MinBackoff, 500*time.Millisecond)
	r.MaxBackoff = cmp.Or(r.MaxBackoff, 30*time.Second)
	r.MaxRetryAfter = cmp.Or(r.MaxRetryAfter, 30*time.Second)
	ours := connections(&t.o)
	t.inner, t.idle = ours, []*http.Transport{ours}
	if a != nil {
		bare := connections(&t.o)
		if c := bare.TLSClientConfig; c != nil {
			c.Certificates, c.GetClientCertificate, c.ServerName = nil, nil, ""
		}
		t.bare, t.idle = bare, append(t.idle, bare)
	}
	if t.o.Wrap != nil {
		t.inner = t.o.Wrap(t.inner)
		if t.bare != nil {
			t.bare = t.o.Wrap(t.bare)
		}
	}
	return t
}

// CloseIdleConnections is what [http.Client.CloseIdleConnections] calls.
func (t *roundTripper) CloseIdleConnections() {
	for _, c := range t.idle {
		c.CloseIdleConnections()
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

// An origin is a scheme, host and port (RFC 6454) that credentials may go to.
type origin struct {
	scheme, host string // as configured, for the quick comparison
	canonical    string
	budget       *budget
}

func (t *roundTripper) origin(u *url.URL) *origin {
	for i := range t.origins {
		if o := &t.origins[i]; u.Scheme == o.scheme && u.Host == o.host {
			return o
		}
	}
	at := endpoint.Origin(u)
	for i := range t.origins {
		if o := &t.origins[i]; at == o.canonical {
			return o
		}
	}
	return nil
}

// destination gives the origin that req goes to with credentials, or nil if it goes bare.
func (t *roundTripper) destination(req *http.Request) (*origin, error) {
	if req.URL == nil {
		return nil, t.fail("request", errors.New("the request has no URL"))
	}
	if t.auth == nil {
		return &t.origins[0], t.secure(req.URL)
	}
	o, stays := t.origin(req.URL), !leaves(req)
	for r := req.Response; r != nil && r.Request != nil; r = r.Request.Response {
		if t.origin(r.Request.URL) == nil {
			o = nil // a chain of redirects that has left does not come back
		}
		stays = stays || !leaves(r.Request)
	}
	switch {
	case o == nil && (req.Response == nil || req.Response.Request == nil):
		return nil, t.fail("request", fmt.Errorf("%w to %s: it is not an origin of this connector", auth.ErrInsecure, endpoint.Origin(req.URL)))
	case o == nil && stays:
		return nil, t.fail("request", fmt.Errorf("%w: a redirect to another origin, of more than a GET or HEAD", auth.ErrInsecure))
	case req.URL.Opaque != "": // may name another host than Host, to a proxy or the server
		return nil, t.fail("request", fmt.Errorf("%w: the URL is opaque", auth.ErrInsecure))
	case o != nil && req.Host != "" && req.Host != req.URL.Host && endpoint.Origin(&url.URL{Scheme: req.URL.Scheme, Host: req.Host}) != o.canonical:
		return nil, t.fail("request", fmt.Errorf("%w: the Host header names another host than the URL", auth.ErrInsecure))
	}
	return o, nil
}

// leaves reports whether a request may be redirected to another origin. A POST may not, although it
// is made into a GET: its caller would take somebody else's page for the product's answer.
func leaves(req *http.Request) bool {
	return (req.Method == "" || req.Method == http.MethodGet || req.Method == http.MethodHead) &&
		(req.Body == nil || req.Body == http.NoBody)
}

func (t *roundTripper) checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("stopped after 10 redirects")
	}
	if t.origin(req.URL) == nil && slices.ContainsFunc(via, func(r *http.Request) bool { return !leaves(r) }) {
		return http.ErrUseLastResponse
	}
	return nil
}

// secure refuses plain http where it would cross a network.
func (t *roundTripper) secure(u *url.URL) error {
	switch strings.ToLower(u.Scheme) {
	case "https":
		return nil
	case "http":
		if t.o.AllowHTTP || endpoint.Loopback(u.Hostname()) {
			return nil
		}
		return t.fail("request", fmt.Errorf("%w over plain http to %s", auth.ErrInsecure, u.Host))
	}
	return t.fail("request", fmt.Errorf("%w over %q", auth.ErrInsecure, u.Scheme))
}

// fail makes an error of this connector.
func (t *roundTripper) fail(op string, err error) error {
	return &auth.Error{Connector: t.o.Connector, Op: op, Err: err}
}
