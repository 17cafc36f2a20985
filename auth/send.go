package auth

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/internal/peererror"
	"github.com/itsmauth/itsmauth/internal/retryafter"
)

// maxResponse is the largest body of a token response, in bytes.
const maxResponse = 1 << 20

// Send sends a token request for a [Provider], with the HTTP client in req's context, and reads the
// response, whatever its status. It follows no redirect, which would pass on the credentials. A body of
// more than 1 MiB is an [ErrProtocol], also if it is compressed.
//
// If there is no whole response, the error is an [*Error] that shows nothing of what a server said, because it
// may repeat the request: [ErrUnavailable], [ErrInsecure] if the server's certificate is not valid,
// [context.Canceled], or the client's own [*Error]. resp is nil unless the body alone could not be read; of a
// response that is an error by its status, what was read is returned without an error.
//
// Without a client in the context, as in a test, Send uses one that waits for 30 s.
func Send(req *http.Request) (resp *http.Response, body []byte, err error) {
	c := &http.Client{Timeout: 30 * time.Second}
	if given, ok := req.Context().Value(oauth2.HTTPClient).(*http.Client); ok && given != nil {
		*c = *given
	}
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err = c.Do(req)
	if err != nil {
		return nil, nil, networkError(req, 0, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusSwitchingProtocols { // whose body is the connection, which may be silent for ever
		body, err = io.ReadAll(io.LimitReader(resp.Body, maxResponse+1))
	}
	if z, notGzip := gzip.NewReader(bytes.NewReader(body)); notGzip == nil && err == nil {
		// A proxy has removed the Content-Encoding and left the body compressed.
		body, err = io.ReadAll(io.LimitReader(z, maxResponse+1))
	}
	if err != nil {
		err = networkError(req, resp.StatusCode, err)
	} else if len(body) > maxResponse {
		body = nil
		err = &Error{Op: "exchange", Status: resp.StatusCode, Err: fmt.Errorf("%w: the response is larger than 1 MiB", ErrProtocol)}
	}
	if resp.StatusCode/100 != 2 {
		err = nil
	}
	return resp, body, err
}

// networkError returns the error of a request that was not sent or whose response was not read.
func networkError(req *http.Request, status int, err error) error {
	if ours, ok := errors.AsType[*Error](err); ok {
		return ours
	}
	e := &Error{Op: "exchange", Status: status, Err: context.Canceled}
	if errors.Is(req.Context().Err(), context.Canceled) {
		return e
	}
	err = peererror.Clean(err, req.URL.Hostname())
	op, _ := errors.AsType[*net.OpError](err)
	proxy, _ := errors.AsType[*peererror.Proxy](err)
	switch noTLS := errors.As(err, new(tls.RecordHeaderError)); {
	case errors.As(err, new(*tls.CertificateVerificationError)):
		e.Err = fmt.Errorf("%w: %w", ErrInsecure, err)
	case noTLS && proxy != nil:
		e.Err = fmt.Errorf("%w: %s does not speak TLS; write http:// in proxy_url", ErrUnavailable, proxy.Name)
	case noTLS:
		e.Err = fmt.Errorf("%w: the server does not speak TLS on this port", ErrUnavailable)
	case op != nil && op.Op == "remote error": // a TLS alert
		e.Err = fmt.Errorf("%w: %w; the server may want another TLS version or cipher, or a client certificate: see transport.tls_config", ErrUnavailable, op)
	default:
		e.Err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return e
}

// errorCodes are the error codes of RFC 6749 section 5.2 and RFC 9449 section 12. No other code is shown: it may
// quote the request.
var errorCodes = []string{"invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type", "invalid_scope",
	"invalid_dpop_proof", "use_dpop_nonce"}

// ResponseError says what a response to a token request means that has no token. code is the product's error
// code (RFC 6749 section 5.2), in any case, or "". refused is what a refusal means: [ErrCredentials], or
// [ErrConsentRequired] if what was sent is a refresh token or an authorization code that only a person can
// replace. The status decides first:
//
//	429                              ErrRateLimited
//	408, 5xx                         ErrUnavailable
//	3xx, other 4xx                   ErrProtocol
//	2xx without a code               ErrProtocol
//	400, 401, 403, 2xx with a code   by the code:
//	    invalid_request, invalid_scope, unsupported_grant_type,
//	    invalid_dpop_proof, use_dpop_nonce                       ErrProtocol
//	    invalid_client, unauthorized_client                      ErrCredentials
//	    any other, or none                                       refused
//
// But 400, 401 and 403 refuse nothing if a server before the token endpoint has answered: an empty body or a
// page is an ErrProtocol, as is other text that is neither JSON nor a form, unless the status is 401 and
// refused is ErrCredentials.
//
// The error has the status, Retry-After, and the code if RFC 6749 or RFC 9449 defines it. It shows nothing of the body.
func ResponseError(resp *http.Response, body []byte, code string, refused error) *Error {
	e := &Error{Op: "exchange", Status: resp.StatusCode}
	e.RetryAfter, _ = retryafter.Parse(resp.Header, time.Now())
	if known := strings.ToLower(code); slices.Contains(errorCodes, known) {
		e.Code = known
	}
	say := func(hint string) error { return fmt.Errorf("%w: %s", ErrProtocol, hint) }
	switch foreign := notFromTokenEndpoint(resp, body, code != "", errors.Is(refused, ErrCredentials)); {
	case e.Status/100 == 3:
		e.Err = fmt.Errorf("%w: %w the credentials to the address it redirects to; set the URL to its final address", ErrProtocol, ErrInsecure)
	case e.Status == http.StatusTooManyRequests:
		e.Err = ErrRateLimited
	case e.Status >= 500, e.Status == http.StatusRequestTimeout:
		e.Err = ErrUnavailable
	case e.Status == http.StatusNotFound:
		e.Err = say("this path does not exist")
	case e.Status == http.StatusMethodNotAllowed:
		e.Err = say("the method is not allowed for this path; check the path, including its trailing slash")
	case e.Status == http.StatusProxyAuthRequired:
		e.Err = say("the proxy requires credentials; set user and password in transport.proxy_url")
	case !e.refuses():
		e.Err = ErrProtocol
	case e.Status/100 == 2 && code == "":
		e.Err = say("the response has no access token")
	case e.Status/100 != 2 && foreign != "":
		e.Err = say(foreign)
	case e.is("invalid_request"), e.is("invalid_scope"), e.is("unsupported_grant_type"), e.is("invalid_dpop_proof"), e.is("use_dpop_nonce"):
		e.Err = ErrProtocol
	case e.is("invalid_client"), e.is("unauthorized_client"):
		e.Err = ErrCredentials
	default:
		e.Err = refused
	}
	return e
}

// notFromTokenEndpoint returns what to say about a body that a server before the token endpoint has sent, and
// "" about one that the token endpoint may have sent. understood says that a code was found in it.
func notFromTokenEndpoint(resp *http.Response, body []byte, understood, credentials bool) string {
	body = bytes.TrimSpace(bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")))
	isForm := strings.HasPrefix(resp.Header.Get("Content-Type"), "application/x-www-form-urlencoded")
	understood = understood || isForm || json.Valid(body) && string(body) != "null"
	text := bytes.ToLower(body)
	for _, known := range []struct{ part, hint string }{
		{"http request was sent to https", "the server or a proxy expects TLS; use https in its URL"}, // nginx
		{"http request to an https", "the server or a proxy expects TLS; use https in its URL"},       // Go
		{"plain http to an ssl-enabled", "the server or a proxy expects TLS; use https in its URL"},   // Apache
		{"ssl certificate", "the server wants a client certificate; see transport.tls_config"},        // nginx
	} {
		if !understood && bytes.Contains(text, []byte(known.part)) {
			return known.hint
		}
	}
	const unknown = ", so it is not known what was refused"
	switch {
	case len(body) == 0 && !understood:
		return "the response is empty" + unknown
	case bytes.HasPrefix(body, []byte("<")):
		return "the response is an HTML page, perhaps of a proxy" + unknown
	case !understood && !(credentials && resp.StatusCode == http.StatusUnauthorized):
		return "the response is neither JSON nor a form" + unknown
	}
	return ""
}
