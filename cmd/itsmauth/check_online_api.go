package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/peek"
	"github.com/itsmauth/itsmauth/internal/peererror"
	"github.com/itsmauth/itsmauth/internal/retryafter"
)

// checkStore reads the connector's record, and writes and removes a trial record.
func (c *onlineCheck) checkStore(ctx context.Context) {
	if c.static {
		return
	}
	c.progress("writing to the token store")
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	err := c.Connector.Session().CheckStore(ctx)
	if err == nil {
		c.ok("store", c.storeType+" can be read and written")
		return
	}
	message, fix := splitAdvice(err)
	c.failed("store", strings.TrimPrefix(message, c.Name+": store: "), fix, err)
}

// checkToken returns the stored token or a new one, or nil.
func (c *onlineCheck) checkToken(ctx context.Context) *oauth2.Token {
	c.progress("waiting for a token")
	ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
	defer cancel()
	tok, err := c.Authenticator().Token(ctx)
	if err != nil {
		message, fix := splitAdvice(err)
		message = strings.TrimPrefix(strings.TrimPrefix(message, c.Name+": exchange: "), c.Name+": token: ")
		c.failed("token", message, fix, err)
		return nil
	}
	if c.static {
		c.ok("token", strings.Join(c.Connector.Session().StaticCredentials(), ", ")+" can be read")
		return tok
	}
	st, _ := c.Connector.Session().Status(ctx)
	kind := "the stored token"
	if c.newToken = st.Obtained.After(c.started); c.newToken {
		kind = "a new token"
	}
	c.ok("token", kind+", valid for "+about(time.Until(tok.Expiry)))
	return tok
}

func (c *onlineCheck) checkConsent(ctx context.Context) {
	st, _ := c.Connector.Session().Status(ctx) // checkStore has reported the error
	end := loginEnd(c.Connector, st)
	fix := "run: itsmauth login " + c.Name
	if c.Connector.Session().CodeFlow() == nil {
		fix = "give another refresh_token"
	}
	switch left := time.Until(end); {
	case st.State == auth.StateConsentRequired:
		c.failed("consent", "the refresh token was refused, so there will be no other access token", fix, auth.ErrConsentRequired)
	case end.IsZero():
	case !st.Refreshable:
		c.found("consent", "warning", about(left)+" left: the product gave no refresh token", "usually the scope offline_access is missing: add it to scopes, and run: itsmauth login "+c.Name)
	case left < consentWarning:
		c.found("consent", "warning", about(left)+" left, unless it is used before", "run: itsmauth login "+c.Name)
	default:
		c.ok("consent", about(left)+" left")
	}
}

// get makes one attempt to GET path, with tok unless it is nil. It follows redirects within the origin and
// reads the first 64 KiB of the body.
func (c *onlineCheck) get(ctx context.Context, path string, tok *oauth2.Token) (*http.Response, []byte, error) {
	req, err := c.NewRequest(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, nil, err
	}
	if tok != nil {
		req.Header = c.Authenticator().Header(tok).Clone()
	}
	req.Header.Set("User-Agent", checkUserAgent)
	client := http.Client{Transport: c.signing(tok), CheckRedirect: func(next *http.Request, via []*http.Request) error {
		if _, err := c.NewRequest(ctx, http.MethodGet, next.URL.String(), nil); err != nil || len(via) > 10 {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := readBody(resp, 64<<10)
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, body, err
}

// signing is the transport of requests with tok, which are signed if the product wants that.
func (c *onlineCheck) signing(tok *oauth2.Token) http.RoundTripper {
	s := c.Connector.Session()
	if tok == nil || !s.Signs() {
		return c.transport
	}
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		for challenged := false; ; challenged = true {
			signed := req.Clone(req.Context())
			if err := s.Sign(signed, tok); err != nil {
				return nil, err
			}
			resp, err := c.transport.RoundTrip(signed)
			if err != nil || !s.Challenged(resp, peek.Body(resp)) || challenged {
				return resp, err
			}
			resp.Body.Close()
		}
	})
}

// readBody reads up to limit bytes. With status 101 the body is the connection, which may be silent for ever.
func readBody(resp *http.Response, limit int64) ([]byte, error) {
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return nil, nil
	}
	return io.ReadAll(io.LimitReader(resp.Body, limit))
}

// checkProbe sends a request to the API. If the product refuses the stored token, it tries a new one.
func (c *onlineCheck) checkProbe(ctx context.Context, path string, tok *oauth2.Token) {
	shown, _, _ := strings.Cut(path, "?")
	c.progress("requesting " + shown)
	limited, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	resp, body, err := c.get(limited, path, tok)
	if err != nil {
		c.failed("probe", "GET "+shown+": "+c.shortError(err), "check probe and base_url", err)
		return
	}
	if message, fix := c.refusalInHTTP(route{target: c.Connector.BaseURL, status: resp.StatusCode, body: body}); message != "" {
		c.failed("probe", message, fix, nil)
		return
	}
	response := resp.Status + string(body)
	// The session reports only the first of two refusals in a row.
	switch rejected := c.Authenticator().Rejected(resp, tok) || response == c.refusal; {
	case !rejected && !c.credentialsRefused():
		c.reportStatus(resp, shown)
		c.checkLimit(resp.Header)
	case rejected && c.refusal == "" && !c.newToken:
		c.refusal = response
		message := "the product refuses the stored token"
		if c.static {
			message = "the product refuses the credentials, which have changed since"
		}
		c.found("probe", "warning", message, "")
		if tok = c.checkToken(ctx); tok != nil {
			c.checkProbe(ctx, path, tok)
		}
	default:
		c.reportRefusal(limited, path, tok, resp, body)
	}
}

// credentialsRefused reports whether the product has refused the credentials of a connector without tokens.
func (c *onlineCheck) credentialsRefused() bool {
	st, _ := c.Connector.Session().Status(context.Background()) // reads nothing
	return c.static && errors.Is(st.Failure, auth.ErrCredentials)
}

// reportRefusal is for a new token that the product refuses. If a request without a token gets the same
// response, the token does not reach the product.
func (c *onlineCheck) reportRefusal(ctx context.Context, path string, tok *oauth2.Token, resp *http.Response, body []byte) {
	if c.static { // many products answer a wrong key and no key alike
		st, _ := c.Connector.Session().Status(ctx)
		_, fix := splitAdvice(st.Failure)
		c.failed("probe", "the product refuses the credentials ("+statusText(resp.StatusCode)+")", fix, st.Failure)
		return
	}
	bare, bareBody, err := c.get(ctx, path, nil)
	if err != nil || bare.StatusCode != resp.StatusCode || !bytes.Equal(bareBody, body) {
		c.failed("probe", "the product refuses a new token ("+statusText(resp.StatusCode)+")", "check that the account may use the API, and that no other program makes its tokens invalid", nil)
		return
	}
	name := slices.Collect(maps.Keys(c.Authenticator().Header(tok)))[0]
	fix := "check what the proxies in front of it do with that header"
	if strings.Contains(name, "_") {
		fix = "nginx drops names with _ unless told underscores_in_headers on; or set token_header: authorization if the product accepts it"
	}
	c.failed("probe", "the product answers alike with a new token and without one: something in front of it drops the header "+name, fix, nil)
}

// reportStatus reports the status of a response to the probe.
func (c *onlineCheck) reportStatus(resp *http.Response, path string) {
	var fix string
	var err error
	switch code := resp.StatusCode; {
	case code == http.StatusTooManyRequests:
		fix, err = "the account's rate limit is used up: send less, or wait a while", auth.ErrRateLimited
		if wait, ok := retryafter.Parse(resp.Header, time.Now()); ok {
			fix = strings.Replace(fix, "a while", about(wait), 1)
		}
	case code == http.StatusForbidden || code == http.StatusUnauthorized:
		fix = "the token is valid: give the account the permission, or set probe to a path that it may read"
	case code >= 300 && code < 400:
		fix = "it redirects elsewhere or in circles: set base_url to the URL that it redirects to"
	case code >= 400 && code < 500:
		fix = "check the path in base_url, or set probe to one that exists"
	case code >= 500:
		fix, err = "the product itself fails: see its log", auth.ErrUnavailable
	}
	message := "GET " + path + " answered " + statusText(resp.StatusCode)
	if fix == "" {
		c.ok("probe", message)
	} else {
		c.failed("probe", message, fix, err)
	}
}

// checkLimit reports what is left of the product's rate limit, if the response says so.
func (c *onlineCheck) checkLimit(h http.Header) {
	for _, prefix := range []string{"X-RateLimit-", "RateLimit-", "X-Rate-Limit-"} {
		left, err := number(h.Get(prefix + "Remaining"))
		if err != nil {
			continue
		}
		message := fmt.Sprintf("%d requests left", left)
		limit, err := number(h.Get(prefix + "Limit"))
		if err == nil {
			message = fmt.Sprintf("%d of %d requests left", left, limit)
		}
		if err == nil && left < limit/10 || left == 0 {
			c.found("rate limit", "warning", message, "find out which other program uses the account; transport.rate_limits slows this one down")
		} else {
			c.ok("rate limit", message)
		}
		return
	}
}

// number reads a number of at most 10 digits.
func number(s string) (int64, error) { return strconv.ParseInt(s[:min(len(s), 11)], 10, 35) }

// shortError returns err's message without what the finding says already, such as the URL, and without what
// a peer sent. Of names it may have those of the connector's hosts.
func (c *onlineCheck) shortError(err error) string {
	var names []string
	for _, u := range c.Endpoints() {
		names = append(names, u.Hostname())
		if proxy, _ := c.Proxy(u); proxy != nil {
			names = append(names, proxy.Hostname())
		}
	}
	if own, ok := errors.AsType[*auth.Error](err); ok && own.Err != nil {
		return own.Err.Error()
	}
	err = peererror.Clean(err, names...)
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Sprintf("no response within %s", requestTimeout)
	}
	if errors.Is(err, peererror.ErrNotHTTP) {
		return peererror.ErrBroken.Error()
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Err != nil {
		err = op.Err
	}
	return strings.TrimPrefix(err.Error(), "tls: failed to verify certificate: ")
}
