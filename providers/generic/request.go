package generic

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/jsonbody"
	"github.com/itsmauth/itsmauth/internal/peererror"
)

// A request is a request to the token or the revocation endpoint, with its response.
type request struct {
	c       *Config
	op      string
	method  string
	url     *url.URL
	fields  url.Values
	header  http.Header
	refresh bool     // its grant is a refresh token
	then    bool     // it is the request of [Config.Then]
	secrets []string // sent, and must not appear in an error
	err     error    // why it cannot be sent

	key    *proofKey // of its DPoP proof, if there is one
	proves string    // the access token that the proof is for, or ""

	proxy  string // names what may have sent the response; empty if there is no proxy, or a tunnel through it
	resp   *http.Response
	status int
	body   []byte
	doc    any    // the body, if it is JSON
	said   any    // doc, or else the body's fields if it is a form
	code   string // the error code, if it may be shown
	mapped bool   // code is from [Response.Errors]
}

func (p *Provider) request(op string, u *url.URL, secrets ...string) *request {
	r := &request{c: &p.c, op: op, method: p.c.Method, url: u, fields: url.Values{}, header: http.Header{}, secrets: secrets}
	for name, s := range p.c.StaticHeaders {
		r.header[name] = []string{r.readSecret("static_headers."+name, s)}
	}
	r.secrets = slices.DeleteFunc(r.secrets, func(s string) bool { return len(s) < 3 }) // such as Accept-Language: en
	return r
}

// setDefaultHeader sets a header unless a static header has that name, in any spelling.
func (r *request) setDefaultHeader(name, value string) {
	for given := range r.header {
		if strings.EqualFold(given, name) {
			return
		}
	}
	r.header[name] = []string{value}
}

func (r *request) ok() bool { return r.status/100 == 2 }

// readSecret reads the secret of the setting key and adds it to secrets.
func (r *request) readSecret(key string, s auth.Secret) string {
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

// set adds a field, unless its value is empty.
func (r *request) set(field, value string) {
	if value != "" {
		r.fields.Set(field, value)
	}
}

// named returns the fields with the product's names for them.
func (r *request) named() url.Values {
	named := make(url.Values, len(r.fields))
	for field, values := range r.fields {
		named[cmp.Or(r.c.ParamNames[field], field)] = values
	}
	return named
}

// authenticate adds the client's credentials (RFC 6749 section 2.3.1).
func (p *Provider) authenticate(r *request) {
	c := &p.c
	id, secret := c.ClientID, r.readSecret("client_secret", c.ClientSecret)
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
	case c.assertionIsClient():
		r.setClientAssertion(r.assertion(c.clientParty()))
	case c.sendsClientAssertion():
		r.setClientAssertion(r.readSecret("client_assertion", c.ClientAssertion))
	default:
		r.set("client_id", id)
		r.set("client_secret", secret)
	}
}

// send sends the request and reads the response. An error response is an error.
func (p *Provider) send(ctx context.Context, r *request) error {
	if r.err != nil {
		return r.newError(r.err)
	}
	u, body := *r.url, []byte(nil)
	switch {
	case len(r.fields) == 0:
	case r.method == http.MethodGet:
		u.RawQuery = strings.TrimPrefix(u.RawQuery+"&"+r.named().Encode(), "&")
	case p.c.Encoding == "json":
		r.setDefaultHeader("Content-Type", "application/json")
		body = r.jsonBody()
	default:
		r.setDefaultHeader("Content-Type", "application/x-www-form-urlencoded")
		body = []byte(r.named().Encode())
	}
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), bytes.NewReader(body))
	if err != nil {
		return r.newError(fmt.Errorf("%w: %w", auth.ErrProtocol, peererror.Clean(err, r.url.Hostname())))
	}
	req.Header = r.header
	if p.dpop != nil {
		if err := r.prove(req, p.dpop); err != nil {
			return r.newError(err)
		}
	}
	if c, ok := ctx.Value(oauth2.HTTPClient).(*http.Client); ok && c != nil {
		if t, ok := c.Transport.(interface{ ProxyOf(*http.Request) string }); ok {
			r.proxy = t.ProxyOf(req)
		}
	}
	r.resp, r.body, err = auth.Send(req)
	if r.resp != nil {
		r.status = r.resp.StatusCode
	}
	if err != nil {
		return r.newError(err)
	}
	r.doc = jsonbody.Decode(r.body)
	if r.said = r.doc; r.doc == nil {
		r.said = decodeForm(r.body)
	}
	if r.readError() {
		return r.newError(r.responseError())
	}
	return nil
}

// jsonBody returns the fields as JSON, without escapes for & < >: not every server decodes \u0026.
func (r *request) jsonBody() []byte {
	object := make(map[string]any, len(r.fields))
	for field := range r.fields {
		name := cmp.Or(r.c.ParamNames[field], field)
		object[name] = r.fields.Get(field)
		if v := r.c.Params[field]; v != nil {
			if text, _ := paramText(v); text == object[name] {
				object[name] = v
			}
		}
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.Encode(object) // text, numbers and booleans, as paramText has shown: cannot fail
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// paramText returns v, text, a number or a boolean, as a form has it. ok is false if v is anything else.
func paramText(v any) (text string, ok bool) {
	if s, isString := v.(string); isString {
		return s, true
	}
	b, err := json.Marshal(v)
	return string(b), err == nil && !strings.ContainsAny(string(b[:1]), `"[{n`)
}
