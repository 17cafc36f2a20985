package generic

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/jsonbody"
)

// newError returns err as the request's error, with the product's description.
func (r *request) newError(err error) error {
	e := &auth.Error{Err: err}
	if inner, ok := errors.AsType[*auth.Error](err); ok { // do not nest two of these
		*e = *inner
	}
	e.Connector, e.Provider, e.Op = "", r.c.Provider, r.op
	e.Code, e.Status, e.Description = cmp.Or(r.code, e.Code), cmp.Or(e.Status, r.status), r.description()
	if r.then {
		e.Err = fmt.Errorf("then.url: %w", e.Err)
	}
	if r.proxy != "" && r.status != 0 {
		e.Err = fmt.Errorf("%w; the response came through %s", e.Err, r.proxy)
	}
	return e
}

// Hints say what to do about an error code (RFC 6749 section 5.2), or a status, that is about the request.
var (
	codeHints = map[string]string{
		"invalid_request":        "the endpoint did not understand the request; check encoding, credentials_in and params",
		"invalid_scope":          "the client may not have these scopes",
		"unsupported_grant_type": "the product does not know this grant, or did not find it in the request; check grant and encoding",
		"invalid_dpop_proof":     "the product did not accept the DPoP proof; check the clock of this machine, and that the product takes keys like that of dpop",
		useNonce:                 "the product wants another nonce in the DPoP proof each time",
	}
	statusHints = map[int]string{
		http.StatusNotAcceptable:        "check encoding and response.format",
		http.StatusUnsupportedMediaType: "check encoding and response.format",
	}
)

// responseError returns the error of an error response.
func (r *request) responseError() error {
	resp, body, code := *r.resp, r.body, r.code
	switch {
	case r.mapped: // what the response would be if the product kept to RFC 6749 section 5.2
		resp.StatusCode, body = http.StatusBadRequest, []byte("{}")
		if code == "temporarily_unavailable" {
			resp.StatusCode = http.StatusServiceUnavailable
		}
	case r.ok():
		code = cmp.Or(code, "an error that is not shown")
	}
	refused := auth.ErrCredentials
	switch {
	case r.refresh:
		refused = fmt.Errorf("%w: the refresh token was refused: expired, revoked or used before", auth.ErrConsentRequired)
	case r.op == "login" && code == "invalid_grant":
		refused = fmt.Errorf("%w: the authorization code was refused: expired, used before, or for another redirect_uri", auth.ErrConsentRequired)
	}
	e := auth.ResponseError(&resp, body, code, refused)
	refuses := slices.Contains([]int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden}, e.Status)
	hint := ""
	switch {
	case refuses && code == "" && resp.Header.Get("X-RateLimit-Remaining") == "0":
		e.Err = auth.ErrRateLimited // BeyondTrust does not document its response to requests over the limit
	case e.Err == auth.ErrCredentials && r.then:
		hint = "the product refuses its new token, or the user"
	case e.Err == auth.ErrCredentials:
		hint = r.credentialsHint()
	case e.Err == auth.ErrProtocol && (refuses || r.ok()):
		hint = codeHints[code]
		if code == "invalid_request" && r.c.assertionIsClient() { // from Ory, to an unknown key_id
			hint += "; " + r.assertionHint()
		}
	case e.Err == auth.ErrProtocol:
		hint = statusHints[e.Status]
	}
	if hint != "" {
		e.Err = fmt.Errorf("%w: %s", e.Err, hint)
	}
	e.Status = r.status
	return e
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
	if hint := r.assertionHint(); hint != "" || secret == "" || r.code == "invalid_grant" {
		return hint
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
	"unsupported_grant_type", "unsupported_token_type", "temporarily_unavailable", "server_error", "invalid_dpop_proof", useNonce}

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
