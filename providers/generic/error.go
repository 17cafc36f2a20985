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

// fail makes an error of what went wrong with the request.
func (r *request) fail(err error) error {
	e := &auth.Error{Provider: r.provider, Op: r.op, Code: r.code, Status: r.status, RetryAfter: r.retryAfter, Err: err}
	var inner *auth.Error // of the transport: one sentence is enough
	if errors.As(err, &inner) {
		e.Code, e.Status, e.RetryAfter, e.Err = inner.Code, cmp.Or(inner.Status, r.status), inner.RetryAfter, inner.Err
	}
	return e
}

// network is a failure to send a request or to read its answer. Of a cause that may quote the
// URL or the server nothing is kept: what a server says may be what it was sent.
func network(ctx context.Context, err error) error {
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
		return fmt.Errorf("%w: no TLS is spoken there", auth.ErrUnavailable)
	case errors.As(err, &netError):
		return fmt.Errorf("%w: %w", auth.ErrUnavailable, netError)
	}
	for _, known := range []error{io.ErrUnexpectedEOF, io.EOF, http.ErrSchemeMismatch} {
		if errors.Is(err, known) {
			return fmt.Errorf("%w: %w", auth.ErrUnavailable, known)
		}
	}
	return fmt.Errorf("%w: the connection broke, or the answer was not HTTP", auth.ErrUnavailable)
}

// refusal says what a status and an error code mean (RFC 6749 section 5.2).
func (r *request) refusal() error {
	say := func(sentinel error, hint string) error { return fmt.Errorf("%w: %s", sentinel, hint) }
	switch status := r.status; {
	case status/100 == 3:
		return fmt.Errorf("%w: %w the credentials on to where it redirects; set the URL to its final address", auth.ErrProtocol, auth.ErrInsecure)
	case status == http.StatusTooManyRequests:
		return auth.ErrRateLimited
	case status >= 500, status == http.StatusRequestTimeout:
		return auth.ErrUnavailable
	}
	switch r.code {
	case "temporarily_unavailable", "server_error":
		return auth.ErrUnavailable
	case "invalid_request":
		return say(auth.ErrProtocol, "the request was not understood; see encoding, credentials_in and params")
	case "invalid_scope":
		return say(auth.ErrProtocol, "the client may not have these scopes")
	case "unsupported_grant_type":
		return say(auth.ErrProtocol, "the product does not know this grant")
	case "invalid_grant", "invalid_token": // RFC 6750's word: the request held no other token
		if r.refresh {
			return say(auth.ErrConsentRequired, "the refresh token was refused: expired, revoked or used before")
		}
		if r.op == "login" && r.code == "invalid_grant" {
			return say(auth.ErrConsentRequired, "the authorization code was refused: expired, used before, or for another redirect_uri")
		}
	}
	switch r.status {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden:
		// BeyondTrust does not say how it answers over the limit; this one says nothing else.
		if r.exhausted && r.code == "" {
			return auth.ErrRateLimited
		}
		return auth.ErrCredentials
	case http.StatusNotFound:
		return say(auth.ErrProtocol, "there is nothing at that path")
	case http.StatusMethodNotAllowed:
		return say(auth.ErrProtocol, "the method is not allowed there; see the path, down to a trailing slash")
	case http.StatusNotAcceptable, http.StatusUnsupportedMediaType:
		return say(auth.ErrProtocol, "see encoding and response.format")
	case http.StatusProxyAuthRequired:
		return say(auth.ErrProtocol, "the proxy asks for credentials")
	}
	if r.ok() {
		return auth.ErrCredentials
	}
	return auth.ErrProtocol
}

// publicCodes are those that decide something, and no secret whatever they look like.
var publicCodes = []string{"invalid_request", "invalid_client", "invalid_grant", "invalid_token", "invalid_scope", "unsupported_grant_type",
	"unsupported_token_type", "temporarily_unavailable", "server_error"}

var errorCode = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)

// readCode reads an answer's error code and reports whether there is one, shown or not: an
// endpoint may echo a secret there, whole or in part, so what has to do with one is not shown. In
// a successful answer only a string is a code, not a flag or a count.
func (p *Provider) readCode(r *request) bool {
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
	// It need not be of this request: the endpoint has seen the others, too.
	secrets := append(r.secrets, first(r.doc, p.c.Response.AccessToken, str), first(r.doc, p.c.Response.RefreshToken, str))
	own := []auth.Secret{p.c.ClientSecret, p.c.Password, p.c.RefreshToken}
	for _, s := range slices.AppendSeq(own, maps.Values(p.c.SecretParams)) {
		v, _ := s.Value()
		secrets = append(secrets, v)
	}
	for _, s := range secrets {
		plain, _ := base64.StdEncoding.DecodeString(s) // of user:password
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
