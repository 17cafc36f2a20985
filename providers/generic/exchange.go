package generic

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
)

// maxAnswer is more than any token, and little enough to hold.
const maxAnswer = 1 << 20

// Exchange refreshes if there is a refresh token, in prev or else in the settings, and makes the
// full grant if there is none or, where the grant needs no person, if it is refused.
func (p *Provider) Exchange(ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
	c := &p.c
	r := p.request("exchange", c.TokenURL)
	var spend string
	if prev != nil {
		spend = prev.RefreshToken
		r.secrets = append(r.secrets, prev.AccessToken)
	}
	if spend == "" {
		spend = r.read("refresh_token", c.RefreshToken)
	}
	switch {
	case r.err != nil:
		return nil, r.fail(r.err)
	case spend != "" && c.Method != http.MethodGet:
		tok, err := p.refresh(ctx, r, spend)
		if err == nil || !p.mends(err) {
			return tok, err
		}
		spent := r.secrets
		r = p.request("exchange", c.TokenURL)
		r.secrets = append(r.secrets, spent...)
	case c.interactive():
		return nil, r.fail(fmt.Errorf("%w: there is no refresh token", auth.ErrConsentRequired))
	}
	if c.Grant != "none" {
		r.fields["grant_type"] = c.Grant
	}
	if c.Username != "" {
		r.fields["username"] = c.Username
	}
	if !c.Password.IsZero() {
		r.fields["password"] = r.read("password", c.Password)
	}
	if len(c.Scopes) > 0 {
		r.fields["scope"] = strings.Join(c.Scopes, " ")
	}
	p.addParams(r)
	return p.obtain(ctx, r)
}

func (p *Provider) refresh(ctx context.Context, r *request, spend string) (*oauth2.Token, error) {
	c := &p.c
	r.refresh = true
	r.secrets = append(r.secrets, spend)
	r.fields["grant_type"] = "refresh_token"
	r.fields[c.Refresh.Param] = spend
	for _, f := range c.Refresh.Fields {
		if s, ok := c.SecretParams[f]; ok {
			r.fields[f] = r.read("secret_params."+f, s)
		} else if v, ok := c.Params[f]; ok {
			r.fields[f] = v
		} else if f == "scope" && len(c.Scopes) > 0 {
			r.fields[f] = strings.Join(c.Scopes, " ")
		} else if f == "redirect_uri" && c.RedirectURI != "" {
			r.fields[f] = c.RedirectURI
		}
	}
	tok, err := p.obtain(ctx, r)
	if err == nil && tok.RefreshToken == "" {
		tok.RefreshToken = spend // not rotated (RFC 6749 section 6)
	}
	return tok, err
}

// mends reports whether the full grant may succeed after err refused the refresh.
func (p *Provider) mends(err error) bool {
	var e *auth.Error
	return p.c.Refresh.Fallback == "grant" && errors.As(err, &e) && e.Code != "invalid_client" &&
		(errors.Is(err, auth.ErrConsentRequired) || errors.Is(err, auth.ErrCredentials) || errors.Is(err, auth.ErrProtocol) && e.Code != "")
}

// addParams adds what every grant but a refresh sends.
func (p *Provider) addParams(r *request) {
	for k, v := range p.c.Params {
		r.fields[k] = v
	}
	for k, s := range p.c.SecretParams {
		r.fields[k] = r.read("secret_params."+k, s)
	}
	if p.c.RedirectURI != "" {
		r.fields["redirect_uri"] = p.c.RedirectURI
	}
}

// A request is one to the token endpoint or one of its neighbours.
type request struct {
	provider, op string
	url          *url.URL
	fields       map[string]string
	header       http.Header
	refresh      bool     // it spends a refresh token
	secrets      []string // what is in it and must not come back in an error
	err          error    // why it cannot be made
}

func (p *Provider) request(op string, u *url.URL) *request {
	r := &request{provider: p.c.Provider, op: op, url: u, fields: map[string]string{}, header: http.Header{}}
	for name, s := range p.c.StaticHeaders {
		r.header[name] = []string{r.read("static_headers."+name, s)}
	}
	return r
}

// read reads a secret and remembers that it was sent.
func (r *request) read(key string, s auth.Secret) string {
	v, err := s.Value()
	if err != nil {
		r.err = errors.Join(r.err, fmt.Errorf("%w: %s cannot be read: %w", auth.ErrUnavailable, key, err))
	}
	if v != "" {
		r.secrets = append(r.secrets, v)
	}
	return v
}

// authenticate adds the client's credentials (RFC 6749 section 2.3.1).
func (p *Provider) authenticate(r *request) {
	c := &p.c
	id, secret := c.ClientID, r.read("client_secret", c.ClientSecret)
	switch {
	case c.CredentialsIn == "headers":
		expand(r.header, c.CredentialHeaders, "{client_id}", id, "{client_secret}", secret)
	case c.CredentialsIn == "basic" && !c.ClientSecret.IsZero():
		if c.CredentialsEncoding == "rfc6749" {
			id, secret = url.QueryEscape(id), url.QueryEscape(secret)
		}
		basic := base64.StdEncoding.EncodeToString([]byte(id + ":" + secret))
		r.secrets = append(r.secrets, basic)
		r.header["Authorization"] = []string{"Basic " + basic}
	default:
		if id != "" {
			r.fields["client_id"] = id
		}
		if !c.ClientSecret.IsZero() {
			r.fields["client_secret"] = secret
		}
	}
}

// obtain exchanges r for a token.
func (p *Provider) obtain(ctx context.Context, r *request) (*oauth2.Token, error) {
	p.authenticate(r)
	if p.c.Response.Format == "json" {
		r.header["Accept"] = []string{"application/json"}
	}
	start := time.Now()
	a, err := p.send(ctx, r)
	if err != nil {
		return nil, err
	}
	tok, err := p.token(a, start)
	if err != nil {
		return nil, a.fail(err)
	}
	return tok, nil
}

// send makes the one request and returns its answer, unless that is an error.
func (p *Provider) send(ctx context.Context, r *request) (*answer, error) {
	if r.err != nil {
		return nil, r.fail(r.err)
	}
	u, body, method := *r.url, []byte(nil), p.c.Method
	if r.op == "revoke" {
		method = http.MethodPost
	}
	switch {
	case len(r.fields) == 0:
	case method == http.MethodGet:
		u.RawQuery = strings.TrimPrefix(u.RawQuery+"&"+form(r.fields), "&")
	case p.c.Encoding == "json":
		r.header["Content-Type"] = []string{"application/json"}
		body = jsonBody(r.fields)
	default:
		r.header["Content-Type"] = []string{"application/x-www-form-urlencoded"}
		body = []byte(form(r.fields))
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, r.fail(network(ctx, err))
	}
	req.Header = r.header
	resp, err := client(ctx).Do(req)
	if err != nil {
		return nil, r.fail(network(ctx, err))
	}
	defer resp.Body.Close()
	a := &answer{request: r, status: resp.StatusCode, header: resp.Header}
	a.body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	ok := a.status/100 == 2
	switch {
	case len(a.body) > maxAnswer:
		a.body = nil
		if ok {
			return nil, a.fail(fmt.Errorf("%w: it is larger than 1 MiB", auth.ErrProtocol))
		}
	case err != nil && ok:
		return nil, a.fail(network(ctx, err))
	}
	a.doc = decode(a.body)
	if refused := p.readCode(a); refused || !ok {
		return nil, a.fail(a.refusal())
	}
	return a, nil
}

// client is the context's, but that it follows no redirect: that would hand the credentials on.
func client(ctx context.Context) *http.Client {
	c := &http.Client{Timeout: 30 * time.Second}
	if given, ok := ctx.Value(oauth2.HTTPClient).(*http.Client); ok && given != nil {
		*c = *given
	}
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return c
}

func form(fields map[string]string) string {
	v := make(url.Values, len(fields))
	for k, f := range fields {
		v.Set(k, f)
	}
	return v.Encode()
}

// jsonBody leaves & < > as they are: not every server reads \u0026.
func jsonBody(fields map[string]string) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.Encode(fields) // strings cannot fail
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}
