// Package consent logs a person in, once: the authorization-code flow (RFC 6749 section 4.1) in
// their browser, the tokens into the connector's [auth.Session], which keeps them alive from then
// on. [Login] is for a person at a terminal, [NewHandler] for the administrator of a service.
package consent

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"

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

// newState is 256 random bits, which nobody guesses.
func newState() string { return oauth2.GenerateVerifier() }

// finish takes what came back to the redirect URI, redeems the code in it and gives the page that
// says how it went. err is an [*auth.Error].
func (c Connector) finish(ctx context.Context, q url.Values, verifier string) (page, error) {
	code, err := c.code(q)
	if err == nil {
		err = c.Session.Redeem(ctx, code, verifier)
	}
	switch {
	case err == nil:
		return connected(c.Name), nil
	case q.Get("error") == "access_denied":
		return refused(c.Name), err
	}
	return failed(c.Name, err), err
}

var (
	errRefused   = fmt.Errorf("%w: the person refused access", auth.ErrConsentRequired)
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
	e := &auth.Error{Connector: c.Name, Provider: c.Provider, Op: "login"}
	refusal, codes := q["error"], q["code"]
	switch {
	case len(refusal) == 0 && len(codes) == 1 && codes[0] != "":
		return codes[0], nil
	case len(refusal) == 0:
		e.Err = fmt.Errorf("%w: the browser came back without an authorization code", auth.ErrProtocol)
	default:
		if errorCode.MatchString(refusal[0]) {
			e.Code = refusal[0]
		}
		if e.Err = errorMeaning[e.Code]; e.Err == nil {
			e.Err = fmt.Errorf("%w: the authorization request was refused", auth.ErrProtocol)
		}
	}
	return "", e
}

// cause is err without the connector's name and without the advice for a terminal, both of which
// a page has in its own words.
func cause(err error) string {
	var e *auth.Error
	if !errors.As(err, &e) {
		return err.Error()
	}
	switch s := e.Err.Error(); {
	case e.Status != 0 && e.Code != "":
		return fmt.Sprintf("%s (HTTP %d, %s)", s, e.Status, e.Code)
	case e.Status != 0:
		return fmt.Sprintf("%s (HTTP %d)", s, e.Status)
	case e.Code != "":
		return fmt.Sprintf("%s (%s)", s, e.Code)
	default:
		return s
	}
}
