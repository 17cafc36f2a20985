// Package consent logs a person in, once: the authorization-code flow (RFC 6749 section 4.1) in
// their browser, the tokens into the connector's [auth.Session], which keeps them alive from then
// on. [Login] is for a person at a terminal, [NewHandler] for the administrator of a service.
package consent

import (
	"cmp"
	"context"
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

// A Connector is what a person connects.
type Connector struct {
	// Name is the connector's, shown on pages and in errors.
	Name string
	// Provider is the adapter's name, such as "remedy".
	Provider string
	// Session takes the tokens. One without [auth.CodeFlow] needs no person.
	Session *auth.Session
}

// redirectURI is where the product sends the browser back to, without its query, which may be
// secret.
func (c Connector) redirectURI() (*url.URL, error) {
	code := c.Session.CodeFlow()
	if code == nil {
		return nil, errors.New("this grant needs no person")
	}
	u, err := url.Parse(code.RedirectURI)
	if err != nil {
		return nil, errors.New("redirect_uri is not a URI")
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host, Path: cmp.Or(u.Path, "/")}, nil
}

// A flow is one that a person was sent into. Whoever comes back from it brings its state.
type flow struct {
	connector       Connector
	redirect        *url.URL
	authURL         string // where the person allows access
	state, verifier string
	used            atomic.Bool

	// Of a handler's flow:
	browser string // the secret of the one that began it
	list    string // the path of the list, as the browser knows it
	began   time.Time
}

// begin makes a flow. Its state has 256 random bits, which nobody guesses.
func (c Connector) begin() (*flow, error) {
	redirect, err := c.redirectURI()
	if err != nil {
		return nil, err
	}
	f := &flow{connector: c, redirect: redirect, state: oauth2.GenerateVerifier(), verifier: oauth2.GenerateVerifier()}
	f.authURL = c.Session.CodeFlow().URL(f.state, f.verifier)
	return f, nil
}

// checkStore returns why a login could not be saved now. A record that cannot be read cannot be
// replaced either.
func (c Connector) checkStore(ctx context.Context) error {
	if _, err := c.Session.Status(ctx); err != nil {
		return err
	}
	return c.Session.CheckStore(ctx)
}

// has reports whether the state that came back is the flow's.
func (f *flow) has(q url.Values) bool {
	return len(q["state"]) == 1 && subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(f.state)) == 1
}

// finish redeems the code that came back, shows how it went, and returns why it failed.
func (f *flow) finish(ctx context.Context, w http.ResponseWriter, q url.Values) error {
	code, err := f.connector.code(q)
	if err == nil {
		err = inTime(ctx, f.connector.Session.Redeem(ctx, code, f.verifier), "the product to issue tokens")
	}
	f.show(w, outcome(f.connector.Name, err))
	return err
}

// inTime returns err, or a timeout in plain words if err is there because of [withTimeout].
func inTime(ctx context.Context, err error, waitingFor string) error {
	t, ok := context.Cause(ctx).(timedOut)
	if !ok || !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, auth.ErrStore) {
		return err
	}
	t.waitingFor = waitingFor
	return t
}

func withTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d, timedOut{after: d})
}

// timedOut is a [context.DeadlineExceeded] that says what took too long.
type timedOut struct {
	after      time.Duration
	waitingFor string
}

func (e timedOut) Error() string {
	after := e.after.String()
	if strings.HasSuffix(after, "m0s") {
		after = strings.TrimSuffix(after, "0s")
	}
	return fmt.Sprintf("timed out after %s waiting for %s", after, e.waitingFor)
}

func (timedOut) Unwrap() error { return context.DeadlineExceeded }

// show adds to p the way back to where the flow began.
func (f *flow) show(w http.ResponseWriter, p page) {
	p.Link, p.LinkText = f.list, "Back to connections"
	p.Terminal = f.list == ""
	p.write(w)
}

var (
	errRefused   = fmt.Errorf("%w: the person refused access", auth.ErrConsentRequired)
	errOther     = fmt.Errorf("%w: the authorization request was refused", auth.ErrProtocol)
	errNoCode    = fmt.Errorf("%w: the browser came back without an authorization code", auth.ErrProtocol)
	errorCode    = regexp.MustCompile(`^[a-z_]{1,40}$`)
	errorMeaning = map[string]error{
		"access_denied":           errRefused,
		"unauthorized_client":     fmt.Errorf("%w: the client may not use this grant", auth.ErrCredentials),
		"invalid_client":          auth.ErrCredentials,
		"invalid_scope":           fmt.Errorf("%w: the client may not have these scopes", auth.ErrProtocol),
		"server_error":            auth.ErrUnavailable,
		"temporarily_unavailable": auth.ErrUnavailable,
	}
)

// code is what the authorization endpoint granted, or why it did not (RFC 6749 sections 4.1.2 and
// 4.1.2.1). Anybody can write into the browser's address, so of an error's words only a plain code
// is shown.
func (c Connector) code(q url.Values) (string, error) {
	e := &auth.Error{Connector: c.Name, Provider: c.Provider, Op: "login", Err: errNoCode}
	switch {
	case q.Has("error"):
		e.Code = errorCode.FindString(q.Get("error"))
		e.Err = cmp.Or(errorMeaning[e.Code], errOther)
	case len(q["code"]) == 1 && q.Get("code") != "":
		return q.Get("code"), nil
	}
	return "", e
}
