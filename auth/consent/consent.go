// Package consent logs a person in with the authorization-code flow (RFC 6749 section 4.1) in their
// browser. The connector's [auth.Session] stores the tokens and renews them, so one login is enough.
// [Login] is for a person at a terminal, [NewHandler] for the administrators of a service.
package consent

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
)

// A Connector is a connector that a person can log in.
type Connector struct {
	// Name is the connector's name, shown on pages and in errors.
	Name string
	// Provider is the provider's name, such as "remedy".
	Provider string
	// Session stores the tokens. If it has no [auth.CodeFlow], the connector needs no login.
	Session *auth.Session
}

// redirectURI returns the redirect URI without its query, which may be secret.
func (c Connector) redirectURI() (*url.URL, error) {
	codeFlow := c.Session.CodeFlow()
	if codeFlow == nil {
		return nil, errors.New("this grant needs no login")
	}
	u, err := url.Parse(codeFlow.RedirectURI)
	if err != nil {
		return nil, errors.New("redirect_uri is not a URI")
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host, Path: cmp.Or(u.Path, "/"), RawPath: u.RawPath}, nil
}

// A flow is one login. The browser brings its state back from the product.
type flow struct {
	connector       Connector
	redirect        *url.URL
	authURL         string // the product's sign-in page
	state, verifier string
	cookie          *http.Cookie // the browser's; nil if each browser that brings the state may complete the login
	used            atomic.Bool  // the browser has come back

	// Only for a flow of the handler:
	listPath string // the path of the list, as the browser knows it
	started  time.Time
}

// newFlow starts a login. Its state has 256 random bits.
func (c Connector) newFlow() (*flow, error) {
	redirect, err := c.redirectURI()
	if err != nil {
		return nil, err
	}
	f := &flow{connector: c, redirect: redirect, state: oauth2.GenerateVerifier(), verifier: oauth2.GenerateVerifier()}
	f.authURL = c.Session.CodeFlow().URL(f.state, f.verifier)
	return f, nil
}

// hasState reports whether q has the flow's state.
func (f *flow) hasState(q url.Values) bool {
	return len(q["state"]) == 1 && equal(q.Get("state"), f.state)
}

// form returns what a product that uses the Form Post Response Mode has the browser post to the redirect
// URI. For other requests it is empty.
func form(w http.ResponseWriter, r *http.Request) url.Values {
	if r.Method != http.MethodPost {
		return nil
	}
	r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
	_ = r.ParseForm() // without its state, the form is not a callback
	return r.PostForm
}

// redirectForm has the browser come back with q in the query. With a form of the product it does not send
// our cookie, which is SameSite=Lax.
func redirectForm(w http.ResponseWriter, q url.Values) {
	w.Header().Set("Location", "?"+q.Encode())
	w.Header().Set("Referrer-Policy", "no-referrer")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusSeeOther)
}

// newLoginCookie returns the cookie that binds a login to a browser. Its name is random, because browsers send
// cookies to all ports of a host: each login has a cookie of its own. Browsers do not send a Strict one when the
// product redirects back.
func newLoginCookie(redirect *url.URL) *http.Cookie {
	return &http.Cookie{Name: "itsmauth-login-" + rand.Text()[:8], Value: rand.Text(), Path: cookiePath(redirect),
		HttpOnly: true, SameSite: http.SameSiteLaxMode}
}

// cookiePath returns the path for a cookie that only u gets: browsers send cookies to all ports of a host.
func cookiePath(u *url.URL) string {
	path := u.EscapedPath()
	if i := strings.IndexByte(path, ';'); i >= 0 { // the path of a cookie has no semicolon
		path = path[:strings.LastIndexByte(path[:i], '/')+1]
	}
	return path
}

// fromItsBrowser reports whether r has the flow's cookie.
func (f *flow) fromItsBrowser(r *http.Request) bool {
	if f.cookie == nil {
		return true
	}
	sent, err := r.Cookie(f.cookie.Name)
	return err == nil && equal(sent.Value, f.cookie.Value)
}

// equal compares with a secret, in constant time.
func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// finish redeems the code in q and writes a page with the result.
func (f *flow) finish(ctx context.Context, w http.ResponseWriter, q url.Values) error {
	if err := f.redeem(ctx, q); err != nil {
		f.show(w, failedPage(f.connector.Name, err))
		return err
	}
	st, _ := f.connector.Session.Status(ctx) // if the store fails, Status returns what the session knows
	f.show(w, connectedPage(f.connector.Name, st, time.Now()))
	return nil
}

// redeem redeems the code in q.
func (f *flow) redeem(ctx context.Context, q url.Values) error {
	code, err := f.connector.code(q)
	if err != nil {
		return err
	}
	return describeTimeout(ctx, f.connector.Session.Redeem(ctx, code, f.verifier), "the product to issue tokens")
}

// describeTimeout returns err or, if the timeout of [withTimeout] caused it, an error that says what was
// waited for.
func describeTimeout(ctx context.Context, err error, waitingFor string) error {
	timeout, ok := context.Cause(ctx).(timeoutError)
	if !ok || !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, auth.ErrStore) {
		return err
	}
	timeout.waitingFor = waitingFor
	return timeout
}

func withTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d, timeoutError{after: d})
}

// timeoutError is a [context.DeadlineExceeded] that says what was waited for.
type timeoutError struct {
	after      time.Duration
	waitingFor string
}

func (e timeoutError) Error() string {
	after := strings.Replace(e.after.String(), "m0s", "m", 1)
	return fmt.Sprintf("timed out after %s waiting for %s", after, e.waitingFor)
}

func (timeoutError) Unwrap() error { return context.DeadlineExceeded }

// show writes p with the way back: a link to the list, or the hint to return to the terminal.
func (f *flow) show(w http.ResponseWriter, p page) {
	p.Link, p.LinkText = f.listPath, "Back to connections"
	p.Terminal = f.listPath == ""
	p.write(w)
}

var (
	errDenied    = fmt.Errorf("%w: the person refused access", auth.ErrConsentRequired)
	errRefused   = fmt.Errorf("%w: the authorization request was refused", auth.ErrProtocol)
	errNoCode    = fmt.Errorf("%w: the browser came back without an authorization code", auth.ErrProtocol)
	errorCode    = regexp.MustCompile(`^[a-z_]{1,40}$`)
	errorMeaning = map[string]error{
		"access_denied":           errDenied,
		"unauthorized_client":     fmt.Errorf("%w: the client may not use this grant", auth.ErrCredentials),
		"invalid_client":          auth.ErrCredentials,
		"invalid_scope":           fmt.Errorf("%w: the client may not have these scopes", auth.ErrProtocol),
		"server_error":            auth.ErrUnavailable,
		"temporarily_unavailable": auth.ErrUnavailable,
	}
)

// code returns the authorization code, or the product's error (RFC 6749 sections 4.1.2 and 4.1.2.1).
// Any website can send the browser here with text of its own, so only a well-formed error code is shown.
func (c Connector) code(q url.Values) (string, error) {
	e := &auth.Error{Connector: c.Name, Provider: c.Provider, Op: "login", Err: errNoCode}
	switch {
	case q.Has("error"):
		e.Code = errorCode.FindString(q.Get("error"))
		e.Err = cmp.Or(errorMeaning[e.Code], errRefused)
	case len(q["code"]) == 1 && q.Get("code") != "":
		return q.Get("code"), nil
	}
	return "", e
}
