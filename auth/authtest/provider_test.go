package authtest_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/authtest"
)

const secret = "s3cret+/of the=client"

// A desk is a product. Its refresh tokens are used once.
type desk struct {
	*httptest.Server
	mu    sync.Mutex
	n     int
	valid map[string]bool // access tokens, refresh tokens and codes
}

func newDesk(t *testing.T) *desk {
	d := &desk{valid: map[string]bool{}}
	d.Server = httptest.NewServer(d)
	t.Cleanup(d.Close)
	return d
}

// issue makes a token or a code. d.mu is locked, except in tests.
func (d *desk) issue(kind string) string {
	d.n++
	token := fmt.Sprintf("%s-token-number-%d", kind, d.n)
	d.valid[token] = true
	return token
}

func (d *desk) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	bearer := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	switch {
	case r.URL.Path == "/token":
		grant := cmp.Or(r.FormValue("refresh_token"), r.FormValue("code"))
		w.Header().Set("Content-Type", "application/json")
		if r.FormValue("client_secret") != secret || grant != "" && !d.valid[grant] {
			w.WriteHeader(400)
			io.WriteString(w, `{"error":"invalid_grant"}`)
			return
		}
		delete(d.valid, grant)
		json.NewEncoder(w).Encode(map[string]any{"access_token": d.issue("access"), "refresh_token": d.issue("refresh"), "expires_in": 3600})
	case r.URL.Path == "/revoke":
		delete(d.valid, r.FormValue("token"))
	case !d.valid[bearer]:
		w.WriteHeader(401)
	case r.URL.Path == "/forbidden":
		w.WriteHeader(403)
	}
}

func (d *desk) product(t *testing.T) authtest.Product {
	get := func(path string) func() *http.Request {
		return func() *http.Request { return httptest.NewRequest("GET", d.URL+path, nil) }
	}
	return authtest.Product{
		Good: get("/tickets"), Refused: get("/forbidden"), Secrets: []string{secret},
		Kill:  func(token string) { d.mu.Lock(); delete(d.valid, token); d.mu.Unlock() },
		Login: func(*testing.T, string) string { d.mu.Lock(); defer d.mu.Unlock(); return d.issue("code") },
	}
}

// A provider keeps all rules, unless one of its functions is replaced.
type provider struct {
	base   string
	secret auth.Secret
	kept   string // by some of the wrong ones
	count  int
	person bool // must log in
	limit  int

	exchange func(p *provider, ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error)
	parse    func(resp *http.Response, body []byte, refused error) (*oauth2.Token, error)
	header   func(p *provider, tok *oauth2.Token) http.Header
	rejects  func(resp *http.Response, body []byte) bool
	identity func(p *provider) []string
	page     func(state, verifier string) string
	revoke   func(p *provider, ctx context.Context, tok *oauth2.Token) error
	sign     func(req *http.Request) error // nil: it does not sign
	again    func(resp *http.Response) bool
}

func newProvider(base string) *provider {
	return &provider{
		base: base, secret: auth.SecretString(secret), limit: 1,
		exchange: exchange, parse: parse,
		header: func(_ *provider, tok *oauth2.Token) http.Header {
			return http.Header{"Authorization": {"Bearer " + tok.AccessToken}}
		},
		rejects:  func(resp *http.Response, _ []byte) bool { return resp.StatusCode == 401 },
		identity: func(p *provider) []string { return []string{p.base} },
		page: func(state, verifier string) string {
			return "https://desk.example/authorize?state=" + state + "&code_challenge=" + oauth2.S256ChallengeFromVerifier(verifier)
		},
		revoke: func(p *provider, ctx context.Context, tok *oauth2.Token) error {
			resp, body, err := auth.Send(p.request(ctx, "/revoke", "token", tok.AccessToken))
			if err == nil && resp.StatusCode != 200 {
				err = auth.ResponseError(resp, body, "", auth.ErrCredentials)
			}
			return err
		},
	}
}

func (p *provider) request(ctx context.Context, path string, fields ...string) *http.Request {
	text, _ := p.secret.Value()
	form := url.Values{"client_secret": {text}}
	for i := 0; i < len(fields); i += 2 {
		form.Set(fields[i], fields[i+1])
	}
	req, _ := http.NewRequestWithContext(ctx, "POST", p.base+path, strings.NewReader(form.Encode()))
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return req
}

func exchange(p *provider, ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
	if prev != nil && prev.RefreshToken != "" {
		tok, err := p.send(p.request(ctx, "/token", "refresh_token", prev.RefreshToken), auth.ErrConsentRequired)
		if p.person || !errors.Is(err, auth.ErrConsentRequired) {
			return tok, err
		}
	}
	if p.person {
		return nil, &auth.Error{Op: "exchange", Err: auth.ErrConsentRequired}
	}
	return p.send(p.request(ctx, "/token"), auth.ErrCredentials)
}

func (p *provider) send(req *http.Request, refused error) (*oauth2.Token, error) {
	resp, body, err := auth.Send(req)
	if err != nil {
		return nil, err
	}
	return p.parse(resp, body, refused)
}

func parse(resp *http.Response, body []byte, refused error) (*oauth2.Token, error) {
	var answer struct {
		AccessToken  string `json:"access_token"`
		RefreshToken string `json:"refresh_token"`
		ExpiresIn    int64  `json:"expires_in"`
		Error        string `json:"error"`
	}
	json.Unmarshal(body, &answer)
	if answer.AccessToken == "" {
		return nil, auth.ResponseError(resp, body, answer.Error, refused)
	}
	return &oauth2.Token{AccessToken: answer.AccessToken, RefreshToken: answer.RefreshToken, ExpiresIn: answer.ExpiresIn}, nil
}

func (p *provider) Exchange(ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
	return p.exchange(p, ctx, prev)
}
func (p *provider) Header(tok *oauth2.Token) http.Header              { return p.header(p, tok) }
func (p *provider) Rejects(resp *http.Response, body []byte) bool     { return p.rejects(resp, body) }
func (p *provider) Identity() []string                                { return p.identity(p) }
func (p *provider) Refresh() auth.Refresh                             { return auth.Refresh{Expendable: !p.person} }
func (p *provider) Revoke(ctx context.Context, t *oauth2.Token) error { return p.revoke(p, ctx, t) }
func (p *provider) Signs() bool                                       { return p.sign != nil }
func (p *provider) Sign(req *http.Request, _ *oauth2.Token) error     { return p.sign(req) }
func (p *provider) Challenged(resp *http.Response, _ []byte) bool {
	return p.again != nil && p.again(resp)
}

func (p *provider) Traffic() auth.Traffic {
	return auth.Traffic{Limits: []auth.Limit{{Requests: p.limit, Per: time.Second}}}
}

func (p *provider) CodeFlow() *auth.CodeFlow {
	if !p.person {
		return nil
	}
	return &auth.CodeFlow{URL: p.page, Redeem: func(ctx context.Context, code, verifier string) (*oauth2.Token, error) {
		tok, err := p.send(p.request(ctx, "/token", "code", code, "code_verifier", verifier), auth.ErrConsentRequired)
		if tok != nil && p.kept == "the login" {
			p.kept = tok.RefreshToken
		}
		return tok, err
	}}
}

func TestRightProviders(t *testing.T) {
	t.Parallel()
	for name, person := range map[string]bool{"by itself": false, "with a person": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			authtest.TestProvider(t, func(*testing.T) auth.Provider {
				p := newProvider(d.URL)
				p.person = person
				return p
			}, d.product(t))
		})
	}
}

// A signer is a provider whose signatures, not headers, carry the token.
type signer struct{ *provider }

func (signer) Header(*oauth2.Token) http.Header { return nil }
func (signer) Signs() bool                      { return true }
func (signer) Sign(req *http.Request, tok *oauth2.Token) error {
	req.Header.Set("Authorization", "Bearer "+tok.AccessToken)
	return nil
}

func TestSigner(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	authtest.TestProvider(t, func(*testing.T) auth.Provider { return signer{newProvider(d.URL)} }, d.product(t))
}

// A key is a provider without a token endpoint.
type key struct{ token string }

func (k key) Exchange(context.Context, *oauth2.Token) (*oauth2.Token, error) {
	return &oauth2.Token{AccessToken: k.token}, nil
}
func (key) Header(tok *oauth2.Token) http.Header {
	return http.Header{"Authorization": {"Bearer " + tok.AccessToken}}
}
func (key) Rejects(resp *http.Response, _ []byte) bool { return resp.StatusCode == 401 }

func TestKey(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	k, product := key{d.issue("key")}, d.product(t)
	product.Requests = authtest.NoRequests
	authtest.TestProvider(t, func(*testing.T) auth.Provider { return k }, product)
}

// changed returns an Exchange that changes the result of the right one.
func changed(change func(tok *oauth2.Token) (*oauth2.Token, error)) func(p *provider) {
	return func(p *provider) {
		p.exchange = func(p *provider, ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
			tok, err := exchange(p, ctx, prev)
			if err != nil {
				return nil, err
			}
			return change(tok)
		}
	}
}

// misjudged returns a provider that takes responses with this status for something else.
func misjudged(status int, as error) func(p *provider) {
	return func(p *provider) {
		p.parse = func(resp *http.Response, body []byte, refused error) (*oauth2.Token, error) {
			tok, err := parse(resp, body, refused)
			if resp.StatusCode == status && err != nil {
				err = &auth.Error{Op: "exchange", Status: status, Err: as}
			}
			return tok, err
		}
	}
}

// by returns a provider that makes its requests with another client.
func by(send func(req *http.Request, c *http.Client) (*http.Response, error)) func(p *provider) {
	return func(p *provider) {
		p.exchange = func(p *provider, ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
			req := p.request(ctx, "/token")
			resp, err := send(req, ctx.Value(oauth2.HTTPClient).(*http.Client))
			if e, ok := errors.AsType[*auth.Error](err); ok {
				return nil, e
			} else if err != nil {
				return nil, &auth.Error{Op: "exchange", Err: auth.ErrUnavailable}
			}
			defer resp.Body.Close()
			body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
			return parse(resp, body, auth.ErrCredentials)
		}
	}
}

// wrongProviders break one rule each.
var wrongProviders = []struct {
	name  string
	wrong func(p *provider)
	says  string // the first failure
}{
	{"returns a token it has", func(p *provider) {
		p.exchange = func(p *provider, ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
			if p.kept != "" {
				return &oauth2.Token{AccessToken: p.kept}, nil
			}
			tok, err := exchange(p, ctx, prev)
			if tok != nil {
				p.kept = tok.AccessToken
			}
			return tok, err
		}
	}, "Exchange keeps state: it returned a token without a request"},
	{"keeps the refresh token", func(p *provider) {
		p.exchange = func(p *provider, ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
			tok, err := exchange(p, ctx, &oauth2.Token{RefreshToken: p.kept})
			if tok != nil {
				p.kept = tok.RefreshToken
			}
			return tok, err
		}
	}, "Exchange keeps state: without prev it sent what an earlier response had"},
	{"keeps the login", func(p *provider) {
		p.person, p.kept = true, "the login"
		p.exchange = func(p *provider, ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
			if prev == nil && p.kept != "the login" {
				prev = &oauth2.Token{RefreshToken: p.kept}
			}
			return exchange(p, ctx, prev)
		}
	}, "Exchange keeps state: without prev it sent a request after a login"},
	{"mutates prev", func(p *provider) {
		p.exchange = func(p *provider, ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
			tok, err := exchange(p, ctx, prev)
			if prev == nil || err != nil {
				return tok, err
			}
			*prev = *tok
			return prev, nil
		}
	}, "Exchange changed prev"},
	{"retries", func(p *provider) {
		p.exchange = func(p *provider, ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
			tok, err := exchange(p, ctx, prev)
			if errors.Is(err, auth.ErrUnavailable) {
				return exchange(p, ctx, prev)
			}
			return tok, err
		}
	}, "Exchange sent 2 requests, want 1; do not try again"},
	{"asks first", func(p *provider) {
		p.exchange = func(p *provider, ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
			auth.Send(p.request(ctx, "/ping"))
			return exchange(p, ctx, prev)
		}
	}, "Exchange sent 2 requests, want 1; a Session makes all retries"},
	{"follows redirects", by(func(req *http.Request, c *http.Client) (*http.Response, error) {
		return (&http.Client{Transport: c.Transport}).Do(req)
	}), "Exchange followed a redirect"},
	{"uses its own client", by(func(req *http.Request, _ *http.Client) (*http.Response, error) {
		return http.DefaultClient.Do(req)
	}), "Exchange sent no request with the client in its context"},
	{"ignores its context", by(func(req *http.Request, c *http.Client) (*http.Response, error) {
		return c.Do(req.WithContext(context.Background()))
	}), "Exchange ignores its context"},
	{"leaves the body open", by(func(req *http.Request, c *http.Client) (*http.Response, error) {
		resp, err := c.Do(req)
		if err == nil {
			resp.Body = io.NopCloser(resp.Body)
		}
		return resp, err
	}), "Exchange did not close the body of a response"},
	{"returns nothing", changed(func(*oauth2.Token) (*oauth2.Token, error) { return nil, nil }), "Exchange returned neither a token nor an error"},
	{"returns an empty token", changed(func(*oauth2.Token) (*oauth2.Token, error) { return &oauth2.Token{}, nil }), "Exchange returned neither a token nor an error"},
	{"returns an expired token", changed(func(tok *oauth2.Token) (*oauth2.Token, error) {
		return &oauth2.Token{AccessToken: tok.AccessToken, Expiry: time.Now().Add(-time.Second)}, nil
	}), "Exchange returned a token that has expired"},
	{"drops the refresh token", func(p *provider) {
		p.exchange = func(p *provider, ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
			tok, err := exchange(p, ctx, prev)
			if prev != nil && tok != nil {
				tok.RefreshToken = ""
			}
			return tok, err
		}
	}, "Exchange dropped the refresh token"},
	{"drops the login", func(p *provider) {
		p.person = true
		p.parse = func(resp *http.Response, body []byte, refused error) (*oauth2.Token, error) {
			tok, err := parse(resp, body, refused)
			if tok != nil {
				tok.RefreshToken = ""
			}
			return tok, err
		}
	}, "Redeem dropped the refresh token"},
	{"puts the secret into the URL", func(p *provider) {
		p.exchange = func(p *provider, ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
			return p.send(p.request(ctx, "/token?secret="+url.QueryEscape(secret)), auth.ErrCredentials)
		}
	}, "Exchange puts a secret into the URL"},
	{"puts the refresh token into the URL", func(p *provider) {
		p.exchange = func(p *provider, ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
			if prev == nil {
				return exchange(p, ctx, nil)
			}
			return p.send(p.request(ctx, "/token?refresh="+prev.RefreshToken), auth.ErrCredentials)
		}
	}, "Exchange puts a secret into the URL"},
	{"puts the body into its error", func(p *provider) {
		p.parse = func(resp *http.Response, body []byte, refused error) (*oauth2.Token, error) {
			tok, err := parse(resp, body, refused)
			if e, ok := errors.AsType[*auth.Error](err); ok {
				e.Err = fmt.Errorf("%w: %s", e.Err, body)
			}
			return tok, err
		}
	}, "the error of Exchange shows a secret"},
	{"puts the status line into its error", func(p *provider) {
		p.parse = func(resp *http.Response, body []byte, refused error) (*oauth2.Token, error) {
			tok, err := parse(resp, body, refused)
			if e, ok := errors.AsType[*auth.Error](err); ok {
				e.Err = fmt.Errorf("%w: %s", e.Err, resp.Status)
			}
			return tok, err
		}
	}, "the error of Exchange shows a secret"},
	{"returns another error", func(p *provider) {
		p.parse = func(resp *http.Response, body []byte, refused error) (*oauth2.Token, error) {
			tok, err := parse(resp, body, refused)
			if err != nil {
				err = fmt.Errorf("%w", errors.Unwrap(err))
			}
			return tok, err
		}
	}, "want an *auth.Error with that status"},
	{"takes 401 for unavailable", misjudged(401, auth.ErrUnavailable), "(HTTP 401); want auth.ErrCredentials"},
	{"takes 429 for unavailable", misjudged(429, auth.ErrUnavailable), "(HTTP 429); want auth.ErrRateLimited"},
	{"takes 503 for its fault", misjudged(503, auth.ErrProtocol), "(HTTP 503); want auth.ErrUnavailable"},
	{"takes a proxy's page for a refusal", func(p *provider) {
		p.person = true
		misjudged(403, auth.ErrConsentRequired)(p)
	}, "(HTTP 403); want auth.ErrProtocol"},
	{"takes a redirect for unavailable", misjudged(307, auth.ErrUnavailable), "(HTTP 307); want auth.ErrProtocol"},
	{"takes a page for unavailable", misjudged(200, auth.ErrUnavailable), "(HTTP 200); want auth.ErrProtocol"},
	{"takes a dead login for wrong credentials", func(p *provider) {
		p.person = true
		misjudged(400, auth.ErrCredentials)(p)
	}, "(HTTP 400); want auth.ErrConsentRequired"},
	{"forgets Retry-After", misjudged(429, auth.ErrRateLimited), "with RetryAfter 0s; want the response's"},
	{"takes a broken connection for its fault", func(p *provider) {
		p.exchange = func(p *provider, ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
			tok, err := exchange(p, ctx, prev)
			if e, ok := errors.AsType[*auth.Error](err); ok && e.Status == 0 {
				err = &auth.Error{Op: "exchange", Err: auth.ErrProtocol}
			}
			return tok, err
		}
	}, "for a broken connection; want auth.ErrUnavailable"},
	{"takes any body for a token", func(p *provider) {
		p.parse = func(resp *http.Response, body []byte, refused error) (*oauth2.Token, error) {
			if tok, err := parse(resp, body, refused); err == nil || resp.StatusCode != 200 || len(body) == 0 {
				return tok, err
			}
			return &oauth2.Token{AccessToken: string(body)}, nil
		}
	}, "Exchange returned a token for a page"},
	{"sends a header twice", func(p *provider) {
		p.header = func(_ *provider, tok *oauth2.Token) http.Header {
			return http.Header{"Authorization": {"Bearer " + tok.AccessToken}, "authorization": {"Bearer " + tok.AccessToken}}
		}
	}, "Header has the name authorization twice, also as Authorization"},
	{"has two values", func(p *provider) {
		p.header = func(_ *provider, tok *oauth2.Token) http.Header {
			return http.Header{"Authorization": {"Bearer " + tok.AccessToken, "x"}}
		}
	}, "Header has 2 values for Authorization"},
	{"has no header", func(p *provider) {
		p.header = func(*provider, *oauth2.Token) http.Header { return nil }
	}, "Header has no header"},
	{"sends the key in place of the token", func(p *provider) {
		p.header = func(*provider, *oauth2.Token) http.Header { return http.Header{"X-Key": {"key"}} }
	}, "Header does not depend on the token"},
	{"numbers its headers", func(p *provider) {
		p.header = func(p *provider, tok *oauth2.Token) http.Header {
			p.count++
			return http.Header{"Authorization": {"Bearer " + tok.AccessToken}, "X-Count": {fmt.Sprint(p.count)}}
		}
	}, "Header is not always the same for one token"},
	{"sends the expiry", func(p *provider) {
		p.header = func(_ *provider, tok *oauth2.Token) http.Header {
			return http.Header{"Authorization": {"Bearer " + tok.AccessToken}, "X-Refresh": {fmt.Sprint(len(tok.RefreshToken))}}
		}
	}, "Header is not always the same for one token"},
	{"changes the token", func(p *provider) {
		p.header = func(_ *provider, tok *oauth2.Token) http.Header {
			tok.TokenType = "Bearer"
			return http.Header{"Authorization": {"Bearer " + tok.AccessToken}}
		}
	}, "Header changed tok"},
	{"reads the response", func(p *provider) {
		p.rejects = func(resp *http.Response, _ []byte) bool {
			io.ReadAll(resp.Body)
			return resp.StatusCode == 401
		}
	}, "Rejects consumes resp.Body"},
	{"closes the response", func(p *provider) {
		p.rejects = func(resp *http.Response, _ []byte) bool {
			resp.Body.Close()
			return resp.StatusCode == 401
		}
	}, "Rejects consumes resp.Body"},
	{"changes the response", func(p *provider) {
		p.rejects = func(resp *http.Response, _ []byte) bool {
			resp.Header.Set("X-Seen", "1")
			return resp.StatusCode == 401
		}
	}, "Rejects changes the response"},
	{"rejects all", func(p *provider) {
		p.rejects = func(*http.Response, []byte) bool { return true }
	}, "Rejects is true for HTTP 200"},
	{"rejects forbidden calls", func(p *provider) {
		p.rejects = func(resp *http.Response, _ []byte) bool { return resp.StatusCode == 401 || resp.StatusCode == 403 }
	}, "Rejects is true for HTTP 403, a call that is refused for another reason than its token"},
	{"rejects when the product is down", func(p *provider) {
		p.rejects = func(resp *http.Response, _ []byte) bool { return resp.StatusCode == 401 || resp.StatusCode == 503 }
	}, "Rejects is true for HTTP 503"},
	{"rejects nothing", func(p *provider) {
		p.rejects = func(*http.Response, []byte) bool { return false }
	}, "Rejects is false for HTTP 401, a call with a token that is no longer valid"},
	{"signs a request to elsewhere", func(p *provider) {
		p.sign = func(req *http.Request) error { req.URL.Host = "elsewhere.example"; return nil }
	}, "Sign changed the origin of the request"},
	{"cannot sign", func(p *provider) {
		p.sign = func(*http.Request) error { return errors.New("no key") }
	}, "a call with a valid token: Sign failed: no key"},
	{"takes failures for challenges", func(p *provider) {
		p.sign, p.again = func(*http.Request) error { return nil }, func(resp *http.Response) bool { return resp.StatusCode >= 400 }
	}, "Challenged is true for HTTP 429"},
	{"identifies itself by the secret", func(p *provider) {
		p.identity = func(p *provider) []string { return []string{p.base, secret} }
	}, "Identity shows a secret"},
	{"has a new identity each time", func(p *provider) {
		p.identity = func(p *provider) []string { return []string{fmt.Sprintf("%p", p)} }
	}, "Identity differs between two providers with the same settings"},
	{"has a new identity after an exchange", func(p *provider) {
		p.identity = func(p *provider) []string { return []string{p.base, fmt.Sprint(p.count)} }
		p.exchange = func(p *provider, ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
			p.count++
			return exchange(p, ctx, prev)
		}
	}, "Identity differs between two providers with the same settings"},
	{"has no identity", func(p *provider) {
		p.identity = func(*provider) []string { return nil }
	}, "Identity is empty"},
	{"lets nothing through", func(p *provider) { p.limit = 0 }, "Traffic has the limit"},
	{"has no state", func(p *provider) {
		p.person = true
		p.page = func(_, _ string) string { return "https://desk.example/authorize" }
	}, "the page of CodeFlow.URL has no state"},
	{"shows the verifier", func(p *provider) {
		p.person = true
		p.page = func(state, verifier string) string {
			return "https://desk.example/authorize?state=" + state + "&v=" + verifier
		}
	}, "the page of CodeFlow.URL shows a secret or the code verifier"},
	{"asks without a login", func(p *provider) {
		p.person = true
		p.exchange = func(p *provider, ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
			if prev == nil {
				return p.send(p.request(ctx, "/token", "refresh_token", "none"), auth.ErrConsentRequired)
			}
			return exchange(p, ctx, prev)
		}
	}, "Exchange without a login sent 1 requests"},
	{"revokes nothing", func(p *provider) {
		p.revoke = func(p *provider, ctx context.Context, _ *oauth2.Token) error {
			resp, body, err := auth.Send(p.request(ctx, "/revoke"))
			if err == nil && resp.StatusCode != 200 {
				err = auth.ResponseError(resp, body, "", auth.ErrCredentials)
			}
			return err
		}
	}, "a call with a token that Revoke has revoked (GET /tickets) gets 200 OK"},
	{"does not say that revoking failed", func(p *provider) {
		p.revoke = func(p *provider, ctx context.Context, tok *oauth2.Token) error {
			auth.Send(p.request(ctx, "/revoke", "token", tok.AccessToken))
			return nil
		}
	}, "Revoke returned <nil> for HTTP 503"},
	{"cannot revoke twice", func(p *provider) {
		revoke := p.revoke
		p.revoke = func(p *provider, ctx context.Context, tok *oauth2.Token) error {
			if p.kept == tok.AccessToken {
				return &auth.Error{Op: "revoke", Err: auth.ErrProtocol}
			}
			err := revoke(p, ctx, tok)
			if err == nil {
				p.kept = tok.AccessToken
			}
			return err
		}
	}, "Revoke of a revoked token failed"},
}

const inChild = "AUTHTEST_WRONG"

// TestWrongProviders runs the tests of the wrong providers in a process of their own, where they fail.
func TestWrongProviders(t *testing.T) {
	if os.Getenv(inChild) != "" {
		for _, w := range wrongProviders {
			t.Run(w.name, func(t *testing.T) {
				d := newDesk(t)
				authtest.TestProvider(t, func(*testing.T) auth.Provider {
					p := newProvider(d.URL)
					w.wrong(p)
					return p
				}, d.product(t))
			})
		}
		return
	}
	t.Parallel()
	cmd := exec.Command(os.Args[0], "-test.run=^TestWrongProviders$", "-test.v")
	cmd.Env = append(os.Environ(), inChild+"=1")
	out, err := cmd.CombinedOutput()
	if err == nil || bytes.Contains(out, []byte("panic")) {
		t.Fatalf("the wrong providers: %v\n%s", err, out)
	}
	for _, w := range wrongProviders {
		name := strings.ReplaceAll(w.name, " ", "_")
		_, of, _ := strings.Cut(string(out), "=== RUN   TestWrongProviders/"+name+"\n")
		if next := regexp.MustCompile(`(?m)^=== RUN   TestWrongProviders/[^/]+$`).FindStringIndex(of); next != nil {
			of = of[:next[0]]
		}
		failures := regexp.MustCompile(`(?m)^ +\w+\.go:\d+: (.*)$`).FindAllStringSubmatch(of, -1)
		if len(failures) == 0 {
			t.Errorf("%s: not caught\n%s", w.name, of)
		} else if !strings.Contains(failures[0][1], w.says) {
			t.Errorf("%s: caught as %q, want %q", w.name, failures[0][1], w.says)
		}
	}
}
