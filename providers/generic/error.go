package generic

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/itsmauth/itsmauth/auth"
)

// newError returns err as the error of the request.
func (r *request) newError(err error) error {
	e := &auth.Error{Provider: r.provider, Op: r.op, Code: r.code, Status: r.status, RetryAfter: r.retryAfter, Err: err}
	var inner *auth.Error // from the transport; do not nest two of these
	if errors.As(err, &inner) {
		e.Code, e.Status, e.RetryAfter, e.Err = inner.Code, cmp.Or(inner.Status, r.status), inner.RetryAfter, inner.Err
	}
	return e
}

// networkError returns an error for a request that was not sent or whose response was not read. It drops
// causes that may quote the URL or the server, which may repeat the credentials it was sent.
func networkError(ctx context.Context, err error) error {
	for u := (*url.Error)(nil); errors.As(err, &u); {
		err = u.Err
	}
	var (
		ours     *auth.Error
		cert     *tls.CertificateVerificationError
		noTLS    tls.RecordHeaderError
		netError net.Error
	)
	switch {
	case errors.As(err, &ours):
		return ours
	case errors.Is(ctx.Err(), context.Canceled):
		return context.Canceled
	case errors.As(err, &cert):
		return fmt.Errorf("%w: %w", auth.ErrInsecure, cert)
	case errors.As(err, &noTLS):
		return fmt.Errorf("%w: the server does not speak TLS on this port", auth.ErrUnavailable)
	case errors.As(err, &netError):
		return fmt.Errorf("%w: %w", auth.ErrUnavailable, netError)
	}
	for _, known := range []error{io.ErrUnexpectedEOF, io.EOF, http.ErrSchemeMismatch} {
		if errors.Is(err, known) {
			return fmt.Errorf("%w: %w", auth.ErrUnavailable, known)
		}
	}
	return fmt.Errorf("%w: the connection broke, or the response was not HTTP", auth.ErrUnavailable)
}

// hints say what to do about an error code (RFC 6749 section 5.2) or a status that is about the request.
var (
	codeHints = map[string]string{
		"invalid_request":        "the endpoint did not understand the request; check encoding, credentials_in and params",
		"invalid_scope":          "the client may not have these scopes",
		"unsupported_grant_type": "the product does not know this grant",
	}
	statusHints = map[int]string{
		http.StatusNotFound:             "this path does not exist",
		http.StatusMethodNotAllowed:     "the method is not allowed for this path; check the path, including its trailing slash",
		http.StatusNotAcceptable:        "check encoding and response.format",
		http.StatusUnsupportedMediaType: "check encoding and response.format",
		http.StatusProxyAuthRequired:    "the proxy requires credentials; set user and password in transport.proxy_url",
	}
)

// responseError returns the error for a status and an error code.
func (r *request) responseError() error {
	say := func(sentinel error, hint string) error { return fmt.Errorf("%w: %s", sentinel, hint) }
	refused := r.ok() || slices.Contains([]int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden}, r.status)
	refusedGrant := r.code == "invalid_grant" || r.refresh && r.code == "invalid_token" // RFC 6750; no other token was sent
	switch status := r.status; {
	case status/100 == 3:
		return fmt.Errorf("%w: %w the credentials to the address it redirects to; set the URL to its final address", auth.ErrProtocol, auth.ErrInsecure)
	case status == http.StatusTooManyRequests:
		return auth.ErrRateLimited
	case status >= 500, status == http.StatusRequestTimeout, r.code == "temporarily_unavailable", r.code == "server_error":
		return auth.ErrUnavailable
	case codeHints[r.code] != "":
		return say(auth.ErrProtocol, codeHints[r.code])
	case refusedGrant && r.refresh:
		return say(auth.ErrConsentRequired, "the refresh token was refused: expired, revoked or used before")
	case refusedGrant && r.op == "login":
		return say(auth.ErrConsentRequired, "the authorization code was refused: expired, used before, or for another redirect_uri")
	case statusHints[status] != "":
		return say(auth.ErrProtocol, statusHints[status])
	case !refused:
		return auth.ErrProtocol
	case r.limitUsedUp && r.code == "" && !r.ok():
		return auth.ErrRateLimited // BeyondTrust does not document its response to requests over the limit
	}
	return auth.ErrCredentials
}

// publicCodes are the error codes that this package knows. They are shown even if a secret contains them.
var publicCodes = []string{"invalid_request", "invalid_client", "invalid_grant", "invalid_token", "invalid_scope", "unsupported_grant_type",
	"unsupported_token_type", "temporarily_unavailable", "server_error"}

var errorCode = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)

// readErrorCode reports whether the response has an error code, and sets r.code if it may be shown. A
// code that contains a secret or a part of one is not shown, because an endpoint may echo secrets. In a
// 2xx response only a string is an error code, not a flag or a count.
func (p *Provider) readErrorCode(r *request) bool {
	code := first(r.doc, p.c.Response.Error, str)
	if code == "" && !r.ok() {
		code = first(r.doc, p.c.Response.Error, text)
	}
	if code == "" {
		return false
	}
	if slices.Contains(publicCodes, code) {
		r.code = code
		return true
	}
	// The endpoint may also echo secrets of earlier requests.
	secrets := append(r.secrets, first(r.doc, p.c.Response.AccessToken, str), first(r.doc, p.c.Response.RefreshToken, str))
	own := []auth.Secret{p.c.ClientSecret, p.c.Password, p.c.RefreshToken}
	for _, s := range slices.AppendSeq(own, maps.Values(p.c.SecretParams)) {
		v, _ := s.Value()
		secrets = append(secrets, v)
	}
	for _, s := range secrets {
		plain, _ := base64.StdEncoding.DecodeString(s) // user:password
		_, password, _ := strings.Cut(string(plain), ":")
		for _, s := range []string{s, password} {
			if s != "" && (strings.Contains(code, s) || strings.Contains(s, code)) {
				return true
			}
		}
	}
	if errorCode.MatchString(code) {
		r.code = code
	}
	return true
}
