package generic

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/retryafter"
)

// maxAnswer is more than any token, and little enough to hold.
const maxAnswer = 1 << 20

// A request is one to the token endpoint or one of its neighbours, with its answer.
type request struct {
	provider, op string
	url          *url.URL
	fields       map[string]string
	header       http.Header
	refresh      bool     // it spends a refresh token
	secrets      []string // what is in it and must not come back in an error
	err          error    // why it cannot be made

	status     int
	retryAfter time.Duration
	exhausted  bool // the limit that it shows has no room left
	body       []byte
	doc        any // the body, if it is JSON
	refused    bool
	code       string // why, if that can be shown
}

func (p *Provider) request(op string, u *url.URL, secrets ...string) *request {
	r := &request{provider: p.c.Provider, op: op, url: u, fields: map[string]string{}, header: http.Header{}, secrets: secrets}
	for name, s := range p.c.StaticHeaders {
		r.header[name] = []string{r.read("static_headers."+name, s)}
	}
	return r
}

// says sets a header that describes the request, unless a static one does, in whatever spelling.
func (r *request) says(name, value string) {
	for given := range r.header {
		if strings.EqualFold(given, name) {
			return
		}
	}
	r.header[name] = []string{value}
}

func (r *request) ok() bool { return r.status/100 == 2 }

// read reads a secret and remembers that it was sent.
func (r *request) read(key string, s auth.Secret) string {
	v, err := s.Value()
	switch {
	case err == nil:
	case r.err == nil:
		r.err = fmt.Errorf("%w: %s cannot be read: %w", auth.ErrUnavailable, key, err)
	default:
		r.err = fmt.Errorf("%w; %s cannot be read: %w", r.err, key, err)
	}
	r.secrets = append(r.secrets, v)
	return v
}

// set adds a field, if there is something to say.
func (r *request) set(field, value string) {
	if value != "" {
		r.fields[field] = value
	}
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
		r.set("client_id", id)
		r.set("client_secret", secret)
	}
}

// send makes the request and reads its answer, unless that is an error.
func (p *Provider) send(ctx context.Context, r *request) error {
	if r.err != nil {
		return r.fail(r.err)
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
		r.says("Content-Type", "application/json")
		body = jsonBody(r.fields)
	default:
		r.says("Content-Type", "application/x-www-form-urlencoded")
		body = []byte(form(r.fields))
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return r.fail(network(ctx, err))
	}
	req.Header = r.header
	resp, err := client(ctx).Do(req)
	if err != nil {
		return r.fail(network(ctx, err))
	}
	defer resp.Body.Close()
	r.status = resp.StatusCode
	r.retryAfter, _ = retryafter.Parse(resp.Header, time.Now())
	r.exhausted = resp.Header.Get("X-RateLimit-Remaining") == "0"
	r.body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		err = network(ctx, err)
	} else if len(r.body) > maxAnswer {
		r.body, err = nil, fmt.Errorf("%w: it is larger than 1 MiB", auth.ErrProtocol)
	}
	if err != nil && r.ok() {
		return r.fail(err)
	}
	r.doc = decode(r.body)
	if r.refused = p.readCode(r) || !r.ok(); r.refused {
		return r.fail(r.refusal())
	}
	return nil
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
