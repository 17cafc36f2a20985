package authtest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/endpoint"
	"github.com/itsmauth/itsmauth/internal/peek"
)

// A Product is what a provider is tested against: an emulator, or the real product.
type Product struct {
	// Good returns a request to the API that gets 2xx with a valid token and changes nothing.
	Good func() *http.Request
	// Refused returns a request that gets 4xx for a reason other than its token, such as a record that
	// does not exist. nil skips the test.
	Refused func() *http.Request
	// Kill invalidates an access token at the product. nil skips the test.
	Kill func(accessToken string)
	// Login logs a person in on the page of an [auth.CodeFlow], and returns the authorization code. It
	// is only needed if the settings need a person's consent.
	Login func(t *testing.T, page string) (code string)
	// Secrets are all secrets in the settings. No error, URL or identity may show them.
	Secrets []string
	// Requests is how many requests an Exchange makes: 1 by default, more for a login in several steps,
	// [NoRequests] if there is no token endpoint, such as for a key that is the token. That is the default
	// for an [auth.Static].
	Requests int
}

// NoRequests is [Product.Requests] of a product without a token endpoint.
const NoRequests = -1

// requests is how many requests an exchange makes.
func (p *Product) requests() int { return max(0, cmp.Or(p.Requests, 1)) }

// TestProvider tests a provider against its product. open makes a new provider, with the same settings each
// time. If they need a person's consent, there must be no login yet. TestProvider makes a few
// exchanges with the product, and others with responses of its own that do not reach it.
// Each failure names the rule that is broken and what to do. The rules are:
//
//   - Exchange sends one request, with the client and the context that it is given, and no secret in the
//     URL. It returns a valid token, with the refresh token if the product sends one (RFC 6749 sections 5.1
//     and 6), keeps nothing and does not change prev. Without a consent that it needs, it sends nothing
//     and returns [auth.ErrConsentRequired].
//   - If that fails, Exchange neither tries again nor follows a redirect. The error is an [*auth.Error] with
//     the sentinel, status and Retry-After by which a Session decides what to do next; [auth.Send] and
//     [auth.ResponseError] return these. It shows no secret, even if the product repeats the request.
//   - Header depends on the token alone and carries it, each name once; that of an [auth.Static] carries the
//     credentials of the settings. What an [auth.Signer] signs is
//     accepted, if it is [auth.Challenged] by the second time.
//   - Rejects is true if the product refuses the token, and false if the request succeeds or fails for
//     another reason. It does not read resp.Body, which is the caller's.
//   - The identity ([auth.Identifier]) is always the same, and neither it nor the page of an
//     [auth.CodeFlow] shows a secret.
//   - Revoke revokes the token, if it makes a request, and succeeds again for a revoked one (RFC 7009
//     section 2.2).
//
// The client follows no redirect, and uses plain http to loopback alone, as in production.
func TestProvider(t *testing.T, open func(t *testing.T) auth.Provider, at Product) {
	if at.Good == nil {
		t.Fatal("the test needs Product.Good")
	}
	p := open(t)
	if isStatic(p) {
		at.Requests = NoRequests
	}
	k := &kit{at: at, open: open}
	k.settings(t, p)
	flow, verifier := codeFlow(p), oauth2.GenerateVerifier()
	var prev *oauth2.Token
	if flow != nil {
		prev = k.login(t, p, flow, verifier)
	}
	tok := k.exchange(t, p, prev)
	if at.requests() > 0 {
		k.state(t, p, flow)
	}
	k.header(t, p, tok)
	k.unrelated(t, p)
	k.call(t, p, tok, at.Good(), accepted)
	if at.Refused != nil {
		k.call(t, p, tok, at.Refused(), refused)
	}
	if at.Kill != nil {
		at.Kill(tok.AccessToken)
		k.call(t, p, tok, at.Good(), rejected)
	}
	if at.requests() == 0 {
		return
	}
	tok = k.exchange(t, open(t), tok) // in another process
	k.call(t, p, tok, at.Good(), accepted)
	k.fail(t, "Exchange", tok, flow != nil, func(ctx context.Context) (*oauth2.Token, error) { return p.Exchange(ctx, tok) })
	switch {
	case flow != nil:
		k.fail(t, "Redeem", nil, true, func(ctx context.Context) (*oauth2.Token, error) { return flow.Redeem(ctx, "code", verifier) })
	case tok.RefreshToken != "":
		k.fail(t, "Exchange without prev", nil, false, func(ctx context.Context) (*oauth2.Token, error) { return p.Exchange(ctx, nil) })
	}
	k.settings(t, p) // which no exchange changes
	k.revoke(t, p, tok)
}

// A kit tests the providers that open makes.
type kit struct {
	at   Product
	open func(t *testing.T) auth.Provider
	last *client // of the last exchange with the product
}

func codeFlow(p auth.Provider) *auth.CodeFlow {
	if c, ok := p.(auth.Consenter); ok {
		return c.CodeFlow()
	}
	return nil
}

// isStatic reports whether p has no token endpoint.
func isStatic(p auth.Provider) bool {
	s, ok := p.(auth.Static)
	return ok && s.StaticCredentials() != nil
}

// settings tests what depends on the settings alone.
func (k *kit) settings(t *testing.T, p auth.Provider) {
	t.Helper()
	if i, ok := p.(auth.Identifier); ok {
		id := i.Identity()
		switch {
		case len(id) == 0:
			t.Error("Identity is empty, so all connectors would share one token; list what tells two credentials apart")
		case shows(fmt.Sprintf("%q", id), k.at.Secrets):
			t.Error("Identity shows a secret; leave it out: a new secret is no new identity")
		case !reflect.DeepEqual(id, k.open(t).(auth.Identifier).Identity()):
			t.Errorf("Identity differs between two providers with the same settings (%q), so a restart would lose the token; make it of the settings alone", id)
		}
	}
	if s, ok := p.(auth.Shaped); ok {
		for _, l := range s.Traffic().Limits {
			if l.Requests < 1 || l.Per <= 0 {
				t.Errorf("Traffic has the limit %+v, which lets no request through", l)
			}
		}
	}
}

// login logs a person in.
func (k *kit) login(t *testing.T, p auth.Provider, flow *auth.CodeFlow, verifier string) *oauth2.Token {
	t.Helper()
	k.noConsent(t, p, "without a login")
	if k.at.Login == nil {
		t.Fatal("the provider has a CodeFlow, so the test needs Product.Login")
	}
	page := flow.URL("the-state", verifier)
	u, err := url.Parse(page)
	if err != nil || u.Query().Get("state") != "the-state" {
		t.Error("the page of CodeFlow.URL has no state, by which the login is recognized; put it into the query")
	}
	if shows(page, append([]string{verifier}, k.at.Secrets...)) {
		t.Error("the page of CodeFlow.URL shows a secret or the code verifier, which the browser keeps; send the verifier's S256 challenge")
	}
	code := k.at.Login(t, page)
	return k.obtain(t, p, "Redeem", func(ctx context.Context) (*oauth2.Token, error) { return flow.Redeem(ctx, code, verifier) }, code, verifier)
}

// noConsent tests that a person is asked for, and the product is not.
func (k *kit) noConsent(t *testing.T, p auth.Provider, when string) {
	t.Helper()
	c := k.connect(t, http.DefaultTransport.RoundTrip)
	if _, err := p.Exchange(c.ctx, nil); len(c.sent) > 0 && when == "without prev" {
		t.Error("Exchange keeps state: without prev it sent a request after a login; use prev.RefreshToken alone")
	} else if !errors.Is(err, auth.ErrConsentRequired) || len(c.sent) > 0 {
		t.Errorf("Exchange %s sent %d requests and returned %v; without prev.RefreshToken, send none and return auth.ErrConsentRequired", when, len(c.sent), err)
	}
}

// exchange returns the token of an exchange with the product.
func (k *kit) exchange(t *testing.T, p auth.Provider, prev *oauth2.Token) *oauth2.Token {
	t.Helper()
	var before oauth2.Token
	var secrets []string
	if prev != nil {
		before, secrets = *prev, []string{prev.AccessToken, prev.RefreshToken}
	}
	tok := k.obtain(t, p, "Exchange", func(ctx context.Context) (*oauth2.Token, error) { return p.Exchange(ctx, prev) }, secrets...)
	if prev != nil && !reflect.DeepEqual(before, *prev) {
		t.Error("Exchange changed prev, which others may be reading; return a new token")
		*prev = before
	}
	if tok.RefreshToken == "" && prev != nil && !expendable(p) {
		tok.RefreshToken = prev.RefreshToken // as a Session does
	}
	return tok
}

// obtain returns the token that p's method obtains from the product by do. secrets are those of this request.
func (k *kit) obtain(t *testing.T, p auth.Provider, method string, do func(context.Context) (*oauth2.Token, error), secrets ...string) *oauth2.Token {
	t.Helper()
	var tok *oauth2.Token
	c, err := k.reach(t, p, func(ctx context.Context) (err error) { tok, err = do(ctx); return err })
	k.last = c
	c.check(t, method, append(secrets, k.at.Secrets...))
	switch n := k.at.requests(); {
	case len(c.sent) == 0 && n > 0 && err == nil:
		t.Fatalf("%s sent no request with the client in its context; use auth.Send, or the client under oauth2.HTTPClient", method)
	case err != nil:
		t.Fatalf("%s failed after %d requests: %v", method, len(c.sent), err)
	case tok == nil || tok.AccessToken == "":
		t.Fatalf("%s returned neither a token nor an error; return auth.ResponseError if the response has no token", method)
	case tok.ExpiresIn < 0 || !tok.Expiry.IsZero() && tok.Expiry.Before(time.Now()):
		t.Fatalf("%s returned a token that has expired; set ExpiresIn or Expiry to what the product says, or neither", method)
	case len(c.sent) != n:
		t.Errorf("%s sent %d requests, want %d; a Session makes all retries (if the product needs more requests, set Product.Requests)", method, len(c.sent), n)
	}
	spent := method == "Redeem" || len(secrets) > 1 && shows(strings.Join(c.dumps, ""), secrets[1:])
	if r := refreshToken(c.received); spent && r != "" && tok.RefreshToken != r {
		t.Errorf("%s dropped the refresh token that the product sent, and the one it had is spent; put it into RefreshToken of the token", method)
	}
	return tok
}

// reach calls do with a client of p that reaches the product: once more if a response challenges it, as a Session
// does.
func (k *kit) reach(t *testing.T, p auth.Provider, do func(context.Context) error) (*client, error) {
	for again := false; ; again = true {
		c := k.connect(t, http.DefaultTransport.RoundTrip)
		c.challenged = challenged(p)
		if err := do(c.ctx); err == nil || !c.again || again {
			return c, err
		}
	}
}

// state tests that the provider keeps nothing of earlier exchanges.
func (k *kit) state(t *testing.T, p auth.Provider, flow *auth.CodeFlow) {
	t.Helper()
	if flow != nil {
		k.noConsent(t, p, "without prev")
		return
	}
	c := k.connect(t, http.DefaultTransport.RoundTrip)
	switch _, err := p.Exchange(c.ctx, nil); {
	case err != nil:
		t.Errorf("Exchange failed when it was called again: %v", err)
	case len(c.sent) == 0:
		t.Error("Exchange keeps state: it returned a token without a request; request one each time, a Session keeps it")
	case c.repeats(k.last):
		t.Error("Exchange keeps state: without prev it sent what an earlier response had; use prev alone")
	}
}

func (k *kit) header(t *testing.T, p auth.Provider, tok *oauth2.Token) {
	t.Helper()
	before := *tok
	h := p.Header(tok)
	names := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(h)) {
		if twin, ok := names[strings.ToLower(name)]; ok {
			t.Errorf("Header has the name %s twice, also as %s; header names differ in more than case", name, twin)
		}
		if names[strings.ToLower(name)] = name; len(h[name]) != 1 {
			t.Errorf("Header has %d values for %s, want one", len(h[name]), name)
		}
	}
	other := p.Header(&oauth2.Token{AccessToken: tok.AccessToken + "x", TokenType: tok.TokenType})
	bare := &oauth2.Token{AccessToken: tok.AccessToken, TokenType: tok.TokenType}
	switch {
	case len(h) == 0 && !signs(p):
		t.Error("Header has no header; return those that carry the token")
	case reflect.DeepEqual(h, other) && !signs(p) && !isStatic(p):
		t.Error("Header does not depend on the token that it is given; make it of tok")
	case !reflect.DeepEqual(h, p.Header(tok)), !reflect.DeepEqual(h, p.Header(bare)), !reflect.DeepEqual(h, k.open(t).Header(bare)):
		t.Error("Header is not always the same for one token; make it of tok.AccessToken, tok.TokenType and the settings alone")
	case tok.RefreshToken != "" && shows(fmt.Sprint(h), []string{tok.RefreshToken}):
		t.Error("Header shows the refresh token, which API calls must not carry")
	}
	if !reflect.DeepEqual(before, *tok) {
		t.Error("Header changed tok, which others may be reading")
		*tok = before
	}
}

// unrelated tests responses that say nothing about a token.
func (k *kit) unrelated(t *testing.T, p auth.Provider) {
	t.Helper()
	for _, status := range []int{200, 429, 503} {
		resp := &http.Response{StatusCode: status, Header: http.Header{"Content-Type": {"text/html"}}, Request: k.at.Good()}
		k.judge(t, p, resp, []byte("<html>"), false, "a page")
		if c := challenged(p); c != nil && c.Challenged(resp, []byte("<html>")) {
			t.Errorf("Challenged is true for HTTP %d, a page, so each such call would be sent twice; look at status and body", status)
		}
	}
}

// An outcome is what a call comes to.
type outcome struct {
	call     string
	rejected bool
	class    int // of the status; 0 is any but 2
	hint     string
}

var (
	accepted = outcome{"a call with a valid token", false, 2, "look at Header, and at Product.Good"}
	refused  = outcome{"a call that is refused for another reason than its token", false, 4, "look at Product.Refused"}
	rejected = outcome{"a call with a token that is no longer valid", true, 0, "look at Product.Kill"}
	revoked  = outcome{"a call with a token that Revoke has revoked", true, 0, "return an error if the token is not revoked"}
)

// call sends r with tok, and tests what Rejects says of the response.
func (k *kit) call(t *testing.T, p auth.Provider, tok *oauth2.Token, r *http.Request, want outcome) {
	t.Helper()
	resp, body := k.send(t, p, tok, r.Clone(t.Context()), want)
	if c := challenged(p); c != nil && c.Challenged(resp, peeked(resp, body)) && resp.StatusCode >= 400 {
		resp, body = k.send(t, p, tok, r.Clone(t.Context()), want)
	}
	if class := resp.StatusCode / 100; class != want.class && (want.class != 0 || class == 2) {
		t.Errorf("%s (%s %s) gets %s; %s", want.call, r.Method, r.URL.Path, resp.Status, want.hint)
		return
	}
	k.judge(t, p, resp, body, want.rejected, want.call)
}

// send sends r with tok, signed if p signs.
func (k *kit) send(t *testing.T, p auth.Provider, tok *oauth2.Token, r *http.Request, want outcome) (*http.Response, []byte) {
	t.Helper()
	maps.Copy(r.Header, p.Header(tok))
	if signer, ok := p.(auth.Signer); ok && signs(p) {
		origin := endpoint.Origin(r.URL)
		if err := signer.Sign(r, tok); err != nil {
			t.Fatalf("%s: Sign failed: %v", want.call, err)
		}
		if endpoint.Origin(r.URL) != origin {
			t.Fatal("Sign changed the origin of the request, to which the token then would go; it may set headers and the query")
		}
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatalf("%s: %v", want.call, err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		t.Fatalf("%s: %v", want.call, err)
	}
	return resp, body
}

// peeked is what a provider is shown of body.
func peeked(resp *http.Response, body []byte) []byte {
	return peek.Body(&http.Response{StatusCode: resp.StatusCode, Header: resp.Header, Body: io.NopCloser(bytes.NewReader(body))})
}

// judge tests what Rejects says of a response to what, and that it leaves the response as it is.
func (k *kit) judge(t *testing.T, p auth.Provider, resp *http.Response, body []byte, want bool, what string) {
	t.Helper()
	left := &notedBody{Reader: bytes.NewReader(body)}
	resp.Body = left
	status, header := resp.StatusCode, resp.Header.Clone()
	switch got := p.Rejects(resp, peeked(resp, body)); {
	case got && !want:
		t.Errorf("Rejects is true for HTTP %d, %s, so a valid token would be thrown away and the call sent twice; look at status and body", status, what)
	case want && !got:
		t.Errorf("Rejects is false for HTTP %d, %s, so calls would fail until the token expires; look at status and body", status, what)
	}
	if rest, _ := io.ReadAll(left.Reader); left.closed || len(rest) != len(body) {
		t.Error("Rejects consumes resp.Body, which the caller then misses; look at the argument body")
	}
	if resp.StatusCode != status || !reflect.DeepEqual(resp.Header, header) {
		t.Error("Rejects changes the response, which is the caller's")
	}
}

// revoke revokes tok, and so may end the consent.
func (k *kit) revoke(t *testing.T, p auth.Provider, tok *oauth2.Token) {
	t.Helper()
	r, ok := p.(auth.Revoker)
	if !ok {
		return
	}
	secrets := append([]string{tok.AccessToken, tok.RefreshToken}, k.at.Secrets...)
	broken := k.connect(t, func(r *http.Request) (*http.Response, error) { return response(r, 503, "%s") })
	if err := r.Revoke(broken.ctx, tok); len(broken.sent) > 0 {
		broken.check(t, "Revoke", secrets)
		if !errors.Is(err, auth.ErrUnavailable) {
			t.Errorf("Revoke returned %v for HTTP 503; return auth.ErrUnavailable, as auth.ResponseError does", err)
		}
		k.checkError(t, "Revoke", err, append(secrets, broken.credentials()...))
	}
	revoke := func(ctx context.Context) error { return r.Revoke(ctx, tok) }
	c, err := k.reach(t, p, revoke)
	if err != nil {
		t.Errorf("Revoke failed: %v", err)
	}
	c.check(t, "Revoke", secrets)
	if len(c.sent) == 0 {
		return
	}
	k.call(t, p, tok, k.at.Good(), revoked)
	if _, err := k.reach(t, p, revoke); err != nil {
		t.Errorf("Revoke of a revoked token failed: %v; the token is invalid, so report no error (RFC 7009 section 2.2)", err)
	}
}

// signs reports whether p signs requests.
func signs(p auth.Provider) bool {
	_, ok := p.(auth.Signer)
	s, limited := p.(interface{ Signs() bool })
	return ok && (!limited || s.Signs())
}

// challenged returns p if it looks for challenges, or nil.
func challenged(p auth.Provider) auth.Challenged {
	c, ok := p.(auth.Challenged)
	if s, limited := p.(interface{ Signs() bool }); !ok || limited && !s.Signs() {
		return nil
	}
	return c
}

func expendable(p auth.Provider) bool {
	r, ok := p.(auth.Refresher)
	return ok && r.Refresh().Expendable
}

// refreshToken finds a refresh token in a token response, by its name: refresh_token, refreshToken and so on.
func refreshToken(body []byte) (found string) {
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, e := range v {
				walk(e)
			}
		case map[string]any:
			for name, e := range v {
				if s, ok := e.(string); ok && strings.NewReplacer("_", "", "-", "").Replace(strings.ToLower(name)) == "refreshtoken" {
					found = s
				}
				walk(e)
			}
		}
	}
	var doc any
	json.Unmarshal(body, &doc) // a token response that is not JSON has none
	walk(doc)
	return found
}
