package authtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httputil"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
)

// A Product is what a provider is tested against: an emulator, or the real product.
type Product struct {
	Good    func() *http.Request                          // gets 2xx with a valid token; changes nothing
	Refused func() *http.Request                          // gets 4xx for a reason other than its token; may be nil
	Kill    func(accessToken string)                      // invalidates a token; may be nil
	Login   func(t *testing.T, page string) (code string) // logs in on the page of an [auth.CodeFlow]
	Secrets []string                                      // from the settings; no error or identity may show them
}

// TestProvider tests a provider against its product. open makes a new provider with the same settings
// each time. If they need a person's consent, there must be no login yet. TestProvider checks that
//   - Exchange makes one request with the client in its context, does not change prev, and returns a
//     valid token (RFC 6749 sections 5.1 and 6), or without consent [auth.ErrConsentRequired];
//   - Header carries the token, and depends only on the token and the settings;
//   - Rejects is true for an invalid token, and false for a call that succeeds or fails otherwise;
//   - Identity is always the same;
//   - Revoke revokes the token, if it makes a request, and succeeds for a revoked one (RFC 7009 section
//     2.2);
//   - if the product fails, Exchange fails after one request (or two, if a refresh token is expendable and
//     a 2xx response has no token). The error is an [*auth.Error] with the sentinel, status and Retry-After
//     that a Session needs (RFC 6749 section 5.2, RFC 9110 section 10.2.3), and has no secret, even if the
//     product echoes the request.
func TestProvider(t *testing.T, open func(t *testing.T) auth.Provider, at Product) {
	p := open(t)
	tok := exchange(t, p, login(t, p, at))
	h := open(t).Header(&oauth2.Token{AccessToken: tok.AccessToken, TokenType: tok.TokenType})
	if !strings.Contains(fmt.Sprint(h), tok.AccessToken) || !reflect.DeepEqual(h, p.Header(tok)) {
		t.Error("Header does not carry the token, or depends on more than access token and type")
	}
	if i, ok := p.(auth.Identifier); ok {
		if id := i.Identity(); !reflect.DeepEqual(id, open(t).(auth.Identifier).Identity()) || shows(fmt.Sprint(id), at.Secrets) {
			t.Errorf("Identity differs each time, or shows a secret: %q", id)
		}
	}
	call(t, p, tok, at.Good(), 2, false)
	if at.Refused != nil {
		call(t, p, tok, at.Refused(), 4, false)
	}
	if at.Kill != nil {
		at.Kill(tok.AccessToken)
		call(t, p, tok, at.Good(), 4, true)
		tok = exchange(t, p, tok)
		call(t, p, tok, at.Good(), 2, false)
	}
	for _, failure := range []struct {
		name, body string
		status     int // 0: no response
		want       error
	}{
		{"broken connection", "%s", 0, auth.ErrUnavailable},
		{"maintenance", "%s", 503, auth.ErrUnavailable},
		{"rate limit", "%s", 429, auth.ErrRateLimited},
		{"wrong secret", `{"error":"invalid_client","error_description":%q}`, 401, auth.ErrCredentials},
		{"redirect", "%s", 307, auth.ErrProtocol},
		{"a page", "<html>%s", 200, auth.ErrProtocol},
		{"nothing", "%.0s", 200, auth.ErrProtocol},
		{"no token", `{"ok":false,"echo":%q}`, 200, auth.ErrProtocol},
	} {
		t.Run(failure.name, func(t *testing.T) {
			ctx, n := through(t, func(r *http.Request) (*http.Response, error) {
				sent, _ := httputil.DumpRequest(r, true)
				body := fmt.Sprintf(failure.body, sent)
				if failure.status == 0 {
					return nil, errors.New(body)
				}
				h := http.Header{"Retry-After": {"7"}, "Location": {"https://elsewhere.invalid/"}}
				return &http.Response{StatusCode: failure.status, Header: h, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
			})
			got, err := p.Exchange(ctx, tok)
			var e *auth.Error
			most := 1
			if r, ok := p.(auth.Refresher); ok && r.Refresh().Expendable && failure.status == 200 {
				most = 2 // a refresh, and the full grant in its place
			}
			if got != nil || !errors.Is(err, failure.want) || !errors.As(err, &e) || e.Status != failure.status || *n < 1 || *n > most {
				t.Errorf("token %v, %v, after %d requests; want an *auth.Error of %q, HTTP %d, after %d", got != nil, err, *n, failure.want, failure.status, most)
			} else if failure.status == 429 && e.RetryAfter != 7*time.Second {
				t.Errorf("RetryAfter is %v, want 7s", e.RetryAfter)
			}
			if s := fmt.Sprintf("%v %+v %#v", err, err, err); shows(s, slices.Concat(at.Secrets, []string{tok.AccessToken, tok.RefreshToken})) {
				t.Errorf("the error shows a secret: %s", s)
			}
		})
	}
	if r, ok := p.(auth.Revoker); ok { // last, because it may end the consent
		ctx, n := through(t, http.DefaultTransport.RoundTrip)
		if err := errors.Join(r.Revoke(ctx, tok), r.Revoke(ctx, tok)); err != nil {
			t.Errorf("Revoke, and once more: %v", err)
		}
		if *n > 0 {
			call(t, p, tok, at.Good(), 4, true)
		}
	}
}

// login returns the token of a first login, or nil if none is needed.
func login(t *testing.T, p auth.Provider, at Product) *oauth2.Token {
	c, ok := p.(auth.Consenter)
	if !ok || c.CodeFlow() == nil {
		return nil
	}
	ctx, n := through(t, http.DefaultTransport.RoundTrip)
	if _, err := p.Exchange(ctx, nil); !errors.Is(err, auth.ErrConsentRequired) || *n != 0 {
		t.Errorf("Exchange without consent: %v after %d requests, want ErrConsentRequired and none", err, *n)
	}
	verifier := oauth2.GenerateVerifier()
	tok, err := c.CodeFlow().Redeem(ctx, at.Login(t, c.CodeFlow().URL("state", verifier)), verifier)
	if err != nil {
		t.Fatalf("Redeem: %v", err)
	}
	return tok
}

func exchange(t *testing.T, p auth.Provider, prev *oauth2.Token) *oauth2.Token {
	t.Helper()
	ctx, n := through(t, http.DefaultTransport.RoundTrip)
	before := fmt.Sprintf("%+v", prev)
	tok, err := p.Exchange(ctx, prev)
	if err != nil || tok.AccessToken == "" || tok.ExpiresIn < 0 || !tok.Expiry.IsZero() && tok.Expiry.Before(time.Now()) {
		t.Fatalf("Exchange returned no valid token: %v", err)
	}
	if *n != 1 || fmt.Sprintf("%+v", prev) != before {
		t.Errorf("Exchange made %d requests with the client in its context, want 1, or changed prev", *n)
	}
	return tok
}

// call sends r with tok, and checks the class of the response's status and what Rejects says of it.
func call(t *testing.T, p auth.Provider, tok *oauth2.Token, r *http.Request, class int, rejected bool) {
	t.Helper()
	maps.Copy(r.Header, p.Header(tok))
	resp, err := http.DefaultTransport.RoundTrip(r.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var body []byte
	if resp.StatusCode >= 400 { // others are streamed
		body, _ = io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	}
	if got := p.Rejects(resp, body); resp.StatusCode/100 != class || got != rejected {
		t.Errorf("%s %s: %s, Rejects is %v; want %dxx, %v", r.Method, r.URL.Path, resp.Status, got, class, rejected)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// through returns the context of an exchange whose requests go to answer, and their number.
func through(t *testing.T, answer roundTrip) (ctx context.Context, requests *int) {
	requests = new(int)
	counted := roundTrip(func(r *http.Request) (*http.Response, error) { *requests++; return answer(r) })
	return context.WithValue(t.Context(), oauth2.HTTPClient, &http.Client{Transport: counted}), requests
}

// shows reports whether s contains a secret, also form-encoded.
func shows(s string, secrets []string) bool {
	return slices.ContainsFunc(secrets, func(secret string) bool {
		return secret != "" && (strings.Contains(s, secret) || strings.Contains(s, url.QueryEscape(secret)))
	})
}
