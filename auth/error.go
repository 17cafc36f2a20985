package auth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// What went wrong, for [errors.Is]. Every failure of this module is an [*Error] around one of
// these, or around the error of the caller's own context or of a provider.
var (
	// ErrCredentials: the product refused the client's or the user's credentials.
	ErrCredentials = errors.New("credentials refused")
	// ErrConsentRequired: a person has to log in before there can be a token.
	ErrConsentRequired = errors.New("consent required")
	// ErrRateLimited: the product's rate limit, or the configured one, leaves no room in time.
	ErrRateLimited = errors.New("rate limited")
	// ErrUnavailable: the product cannot be reached or cannot answer now.
	ErrUnavailable = errors.New("unavailable")
	// ErrProtocol: the response is not what the protocol or the settings say.
	ErrProtocol = errors.New("unexpected answer")
	// ErrStore: the token store failed.
	ErrStore = errors.New("token store failed")
	// ErrConflict: the record was changed after it was loaded.
	ErrConflict = errors.New("record changed meanwhile")
	// ErrInsecure: the request was not sent, to keep a secret or a token safe.
	ErrInsecure = errors.New("refused to send")
	// ErrSecret: a secret was read and cannot be used, such as text in UTF-16 or an encrypted key.
	ErrSecret = errors.New("unusable secret")
	// ErrNoRefreshToken: the product returned no refresh token for a sign-in. An earlier login has one, and
	// stays in force.
	ErrNoRefreshToken = errors.New("the product returned no refresh token for this sign-in, so the earlier login stays in force")
)

// advice says what to do about each of them.
var advice = []struct {
	is  error
	say string
}{
	{ErrCredentials, "check the client id, the secret and the account in the product"},
	{ErrRateLimited, "send less, or try again later"},
	{ErrUnavailable, "try again later; if it lasts, check the URL, the network and the product"},
	{ErrProtocol, "check the URL and the settings against the product's version"},
	{ErrStore, "check token_store"},
	{ErrInsecure, "check base_url, allowed_origins, allow_http and tls_config"},
}

// Error is a failure of one connector. Its message names the connector, what happened and what to
// do, and holds no secret, token, code or query string.
type Error struct {
	// Connector is the connector's name, "" outside a configuration.
	Connector string
	// Provider is the adapter's name, such as "beyondtrust".
	Provider string
	// Op is what failed: "exchange", "token", "request", "sign", "revoke", "login", "store", "close".
	Op string
	// Code is the product's own error code, such as "invalid_client" (RFC 6749 section 5.2), or "".
	Code string
	// Status is the HTTP status of the response, 0 if there was none.
	Status int
	// RetryAfter is how long to wait before another try, 0 if that is unknown.
	RetryAfter time.Duration
	// Description is what the product says about it (error_description, RFC 6749 section 5.2), on one line
	// and without secrets, or "".
	Description string
	// Err is the cause. It wraps one of the sentinels, or a context's error.
	Err error

	seeded      bool     // the refresh token comes from the settings, and the grant has no login
	credentials []string // the settings with the credentials of a [Static] provider
}

func (e *Error) Error() string {
	var b strings.Builder
	for _, s := range []string{cmp.Or(e.Connector, e.Provider), e.Op} {
		if s != "" {
			b.WriteString(s + ": ")
		}
	}
	if e.Err != nil {
		b.WriteString(withoutQueries(e.Err.Error(), e.Err))
	}
	if e.Description != "" {
		fmt.Fprintf(&b, "; the product says %q", e.Description)
	}
	switch {
	case e.Status != 0 && e.Code != "":
		fmt.Fprintf(&b, " (HTTP %d, %s)", e.Status, e.Code)
	case e.Status != 0:
		fmt.Fprintf(&b, " (HTTP %d)", e.Status)
	case e.Code != "":
		fmt.Fprintf(&b, " (%s)", e.Code)
	}
	if e.RetryAfter > 0 {
		fmt.Fprintf(&b, "; retry after %s", e.RetryAfter.Round(time.Second))
	}
	if advice := e.Advice(); advice != "" {
		b.WriteString("; " + advice)
	}
	return b.String()
}

// Advice says what to do, such as "run: itsmauth login remedy", or is "" if Err is none of the
// sentinels above that have advice. [Error.Error] ends with it, after a semicolon and a space.
func (e *Error) Advice() string {
	switch {
	case errors.Is(e.Err, ErrNoRefreshToken):
		return strings.TrimSpace("usually the scope offline_access is missing; to replace the earlier login, first run: itsmauth logout " + e.Connector)
	case e.credentials != nil && errors.Is(e.Err, ErrUnavailable) && e.Status == 0:
		return "" // the cause says which setting cannot be read
	case e.credentials != nil && errors.Is(e.Err, ErrCredentials):
		return "check " + strings.Join(e.credentials, ", ") + " and the account in the product"
	case !errors.Is(e.Err, ErrConsentRequired):
	case e.seeded:
		return "give another refresh_token"
	case e.Connector != "":
		return "run: itsmauth login " + e.Connector
	default:
		return "a person must log in"
	}
	for _, a := range advice {
		if errors.Is(e.Err, a.is) && !(a.is == ErrStore && strings.Contains(e.Err.Error(), "token_store")) { // which says more
			return a.say
		}
	}
	return ""
}

// withoutQueries takes from err's text those of the URLs that net/http put there.
func withoutQueries(text string, err error) string {
	if u, ok := err.(*url.Error); ok {
		at, _, _ := strings.Cut(u.URL, "?")
		text = strings.ReplaceAll(text, strconv.Quote(u.URL), strconv.Quote(at))
	}
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		return withoutQueries(text, e.Unwrap())
	case interface{ Unwrap() []error }:
		for _, err := range e.Unwrap() {
			text = withoutQueries(text, err)
		}
	}
	return text
}

func (e *Error) Unwrap() error { return e.Err }

// asError returns a copy of the [*Error] in err, or err as one. op is its Op, unless it has one.
func asError(op string, err error) *Error {
	var own *Error
	if !errors.As(err, &own) {
		return &Error{Op: op, Err: err}
	}
	e := *own
	e.Op = cmp.Or(e.Op, op)
	return &e
}

// is reports whether e's error code is code (RFC 6749 section 5.2), which some products write in capitals.
func (e *Error) is(code string) bool { return strings.EqualFold(e.Code, code) }

// refuses reports whether e's status says that something was refused. With another status, the error code
// does not count.
func (e *Error) refuses() bool {
	return e.Status/100 == 2 || e.Status == 400 || e.Status == 401 || e.Status == 403
}

// Timeout reports whether a time limit was the cause; [net/url.Error] asks for it.
func (e *Error) Timeout() bool {
	var t net.Error
	return errors.Is(e.Err, context.DeadlineExceeded) || errors.As(e.Err, &t) && t.Timeout()
}

// Temporary is a method of [net.Error]. It returns the same as Timeout.
func (e *Error) Temporary() bool { return e.Timeout() }
