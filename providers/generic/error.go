package generic

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/jsonbody"
	"github.com/itsmauth/itsmauth/internal/peererror"
)

// newError returns err as the request's error, with the product's description.
func (r *request) newError(err error) error {
	if r.proxy != "" && r.status != 0 {
		err = fmt.Errorf("%w; the response came through %s", err, r.proxy)
	}
	e := &auth.Error{Provider: r.c.Provider, Op: r.op, Code: r.code, Status: r.status, RetryAfter: r.retryAfter, Description: r.description(), Err: err}
	var inner *auth.Error // from the transport; do not nest two of these
	if errors.As(err, &inner) {
		e.Code, e.Status, e.RetryAfter, e.Err = inner.Code, cmp.Or(inner.Status, r.status), inner.RetryAfter, inner.Err
	}
	return e
}

// networkError returns an error for a request to u that was not sent or whose response was not read. It has no
// text of the server, which may repeat the credentials it was sent.
func networkError(ctx context.Context, u *url.URL, err error) error {
	if ours, ok := errors.AsType[*auth.Error](err); ok {
		return ours
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return context.Canceled
	}
	err = peererror.Clean(err, u.Hostname())
	op, _ := errors.AsType[*net.OpError](err)
	proxy, _ := errors.AsType[*peererror.Proxy](err)
	switch noTLS := errors.As(err, new(tls.RecordHeaderError)); {
	case errors.As(err, new(*tls.CertificateVerificationError)):
		return fmt.Errorf("%w: %w", auth.ErrInsecure, err)
	case noTLS && proxy != nil:
		return fmt.Errorf("%w: %s does not speak TLS; write http:// in proxy_url", auth.ErrUnavailable, proxy.Name)
	case noTLS:
		return fmt.Errorf("%w: the server does not speak TLS on this port", auth.ErrUnavailable)
	case op != nil && op.Op == "remote error": // a TLS alert
		return fmt.Errorf("%w: %w; the server may want another TLS version or cipher, or a client certificate: see transport.tls_config", auth.ErrUnavailable, op)
	}
	return fmt.Errorf("%w: %w", auth.ErrUnavailable, err)
}

// Hints say what to do about an error code (RFC 6749 section 5.2), or a status, that is about the request.
var (
	codeHints = map[string]string{
		"invalid_request":        "the endpoint did not understand the request; check encoding, credentials_in and params",
		"invalid_scope":          "the client may not have these scopes",
		"unsupported_grant_type": "the product does not know this grant, or did not find it in the request; check grant and encoding",
	}
	statusHints = map[int]string{
		http.StatusNotFound:             "this path does not exist",
		http.StatusMethodNotAllowed:     "the method is not allowed for this path; check the path, including its trailing slash",
		http.StatusNotAcceptable:        "check encoding and response.format",
		http.StatusUnsupportedMediaType: "check encoding and response.format",
		http.StatusProxyAuthRequired:    "the proxy requires credentials; set user and password in transport.proxy_url",
	}
)

// responseError returns the error of an error response. The status decides before the code: only in 400,
// 401, 403, or in a 2xx response with an error, did the endpoint refuse what was sent.
func (r *request) responseError() error {
	say := func(sentinel error, hint string) error { return fmt.Errorf("%w: %s", sentinel, hint) }
	if !r.mapped {
		switch status := r.status; {
		case status/100 == 3:
			return fmt.Errorf("%w: %w the credentials to the address it redirects to; set the URL to its final address", auth.ErrProtocol, auth.ErrInsecure)
		case status == http.StatusTooManyRequests:
			return auth.ErrRateLimited
		case status >= 500, status == http.StatusRequestTimeout:
			return auth.ErrUnavailable
		case statusHints[status] != "":
			return say(auth.ErrProtocol, statusHints[status])
		case !r.ok() && !slices.Contains([]int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden}, status):
			return auth.ErrProtocol
		case r.limitUsedUp && r.code == "" && !r.ok():
			return auth.ErrRateLimited // BeyondTrust does not document its response to requests over the limit
		}
		if foreign := r.foreign(); foreign != "" && !r.ok() {
			return say(auth.ErrProtocol, foreign)
		}
	}
	switch {
	case r.mapped && r.code == "temporarily_unavailable":
		return auth.ErrUnavailable
	case codeHints[r.code] != "":
		return say(auth.ErrProtocol, codeHints[r.code])
	case r.refresh && r.code != "invalid_client" && r.code != "unauthorized_client":
		return say(auth.ErrConsentRequired, "the refresh token was refused: expired, revoked or used before")
	case r.op == "login" && r.code == "invalid_grant":
		return say(auth.ErrConsentRequired, "the authorization code was refused: expired, used before, or for another redirect_uri")
	}
	if hint := r.credentialsHint(); hint != "" {
		return say(auth.ErrCredentials, hint)
	}
	return auth.ErrCredentials
}

// foreign returns what to say about a body that a server in front of the token endpoint sent, which says
// nothing about the credentials. If the token endpoint sent it, foreign returns "".
func (r *request) foreign() string {
	body := bytes.ToLower(trim(r.body))
	for text, hint := range map[string]string{
		"http request was sent to https": "the server expects TLS; use https in the URL",                    // nginx
		"http request to an https":       "the server expects TLS; use https in the URL",                    // Go
		"plain http to an ssl-enabled":   "the server expects TLS; use https in the URL",                    // Apache
		"ssl certificate":                "the server wants a client certificate; see transport.tls_config", // nginx
	} {
		if r.said == nil && bytes.Contains(body, []byte(text)) {
			if r.proxy != "" && strings.Contains(hint, "expects TLS") {
				return "the server or the proxy expects TLS; use https in the URL or in proxy_url"
			}
			return hint
		}
	}
	switch {
	case len(body) == 0:
		return "the response is empty, so it is not known what was refused"
	case bytes.HasPrefix(body, []byte("<")):
		return "the response is an HTML page, perhaps of a proxy, so it is not known what was refused"
	case r.said == nil && (r.refresh || r.status != http.StatusUnauthorized):
		return "the response is neither JSON nor a form, so it is not known what was refused"
	}
	return ""
}

// credentialsHint names the credential that was probably copied with a stray character. Else it names the
// settings that say how the client's credentials are sent, if they are defaults that may be wrong.
func (r *request) credentialsHint() string {
	secret, _ := r.c.ClientSecret.Value()
	password, _ := r.c.Password.Value()
	for _, c := range [][2]string{{"client_id", r.c.ClientID}, {"client_secret", secret}, {"username", r.c.Username}, {"password", password}} {
		if stray(c[1]) {
			return c[0] + " begins or ends with a space, or has an invisible character or a typographic quote: copy it again"
		}
	}
	if secret == "" || r.code == "invalid_grant" {
		return ""
	}
	var try []string
	if r.c.DefaultCredentialsIn {
		try = append(try, "credentials_in: "+map[string]string{"basic": "form", "form": "basic", "json": "basic"}[r.c.CredentialsIn])
	}
	plain := r.c.ClientID + secret
	if r.c.CredentialsIn == "basic" && r.c.CredentialsEncoding == "rfc6749" && url.QueryEscape(plain) != plain {
		try = append(try, "credentials_encoding: raw")
	}
	if len(try) == 0 {
		return ""
	}
	return "if the client id and secret are right, they may have to be sent in another way; try " + strings.Join(try, " or ")
}

// stray reports whether s has a character that copying may add: a space at an end, an invisible character or a
// typographic quote.
func stray(s string) bool {
	return strings.TrimSpace(s) != s || strings.ContainsFunc(s, func(r rune) bool {
		return r != ' ' && unicode.In(r, unicode.Cf, unicode.Z, unicode.Pi, unicode.Pf)
	})
}

// knownCodes are the error codes that this package knows (RFC 6749 section 5.2, RFC 6750, RFC 7009). They
// are shown even if a secret contains them.
var knownCodes = []string{"invalid_request", "invalid_client", "invalid_grant", "invalid_token", "invalid_scope", "unauthorized_client",
	"unsupported_grant_type", "unsupported_token_type", "temporarily_unavailable", "server_error"}

var errorCode = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)

// readError reports whether the response is an error response. It sets r.code to what [ResponseError] says, else
// to the response's error code if that may be shown. A known code is in lower case.
func (r *request) readError() bool {
	for _, e := range r.c.Response.Errors {
		if e.matches(r.status, r.said) {
			r.code, r.mapped = e.Means, true
			return true
		}
	}
	code := r.errorCode()
	switch known := strings.ToLower(code); {
	case slices.Contains(knownCodes, known):
		r.code = known
	case errorCode.MatchString(code) && !r.quotesSent(code):
		r.code = code
	}
	return code != "" || !r.ok() || r.saysFailed()
}

// errorCode returns the error code, which some products put into an object. In a 2xx response only text is an
// error code: a number or a boolean may mean something else.
func (r *request) errorCode() string {
	at := r.c.Response.Error
	code := cmp.Or(first(r.said, at, str), first(r.said, at+"/code", str))
	if code == "" && !r.ok() {
		code = cmp.Or(first(r.said, at, jsonbody.Text), first(r.said, at+"/code", jsonbody.Text))
	}
	return code
}

// saysFailed reports whether a response has no token, and a boolean or a number that means failure.
func (r *request) saysFailed() bool {
	says := jsonbody.Find(r.doc, r.c.Response.Error)
	object, _ := r.doc.(map[string]any)
	for name, v := range object {
		switch strings.ToLower(name) {
		case "error":
			says = append(says, v)
		case "success":
			says = append(says, v == false)
		}
	}
	return first(r.doc, r.c.Response.AccessToken, token) == "" && slices.ContainsFunc(says, func(v any) bool {
		_, isObject := v.(map[string]any)
		return isObject || !slices.Contains([]string{"", "0", "false"}, jsonbody.Text(v))
	})
}
