package authtest

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/endpoint"
)

// exchangeTimeout is how long an exchange may take, as in a Session.
const exchangeTimeout = 30 * time.Second

// A client is the HTTP client of one exchange. Like that of package transport, it follows no redirect and sends
// nothing over plain http, except to loopback.
type client struct {
	ctx    context.Context // has the client
	answer roundTrip

	challenged auth.Challenged // is shown the responses, unless it is nil

	mu       sync.Mutex
	sent     []*http.Request
	dumps    []string // of sent, with their bodies
	again    bool     // a response challenged the exchange
	received []byte   // the body of the last response
	bodies   []*notedBody
}

type roundTrip func(*http.Request) (*http.Response, error)

// connect makes a client whose requests go to answer.
func (k *kit) connect(t *testing.T, answer roundTrip) *client {
	c := &client{answer: answer}
	ctx, cancel := context.WithTimeout(t.Context(), exchangeTimeout)
	t.Cleanup(cancel)
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	c.ctx = context.WithValue(ctx, oauth2.HTTPClient, &http.Client{Transport: c, CheckRedirect: stay})
	return c
}

// RoundTrip implements [http.RoundTripper].
func (c *client) RoundTrip(r *http.Request) (*http.Response, error) {
	dump, err := httputil.DumpRequest(r, true)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.sent, c.dumps = append(c.sent, r), append(c.dumps, string(dump))
	c.mu.Unlock()
	if r.URL.Scheme != "https" && !endpoint.Loopback(r.URL.Hostname()) {
		return nil, &auth.Error{Op: "request", Err: fmt.Errorf("%w over plain http to %s", auth.ErrInsecure, r.URL.Host)}
	}
	resp, err := c.answer(r)
	if err != nil {
		return nil, err
	}
	received, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		return nil, err
	}
	body := &notedBody{Reader: bytes.NewReader(received)}
	c.mu.Lock()
	defer c.mu.Unlock()
	resp.Body, c.received, c.bodies = body, received, append(c.bodies, body)
	if c.challenged != nil && c.challenged.Challenged(resp, peeked(resp, received)) {
		c.again = c.again || resp.StatusCode >= 400
	}
	return resp, nil
}

// A notedBody notes whether it was closed.
type notedBody struct {
	io.Reader
	closed bool
}

func (b *notedBody) Close() error { b.closed = true; return nil }

// check tests how method used the client.
func (c *client) check(t *testing.T, method string, secrets []string) {
	t.Helper()
	for _, r := range c.sent {
		if shows(r.URL.String(), secrets) {
			t.Errorf("%s puts a secret into the URL, which servers and proxies log; send it in the body or in a header", method)
		}
	}
	for _, b := range c.bodies {
		if !b.closed {
			t.Errorf("%s did not close the body of a response, so its connection is lost; close it, or use auth.Send", method)
		}
	}
}

// followed reports whether c was redirected to where response points.
func (c *client) followed() bool {
	return slices.ContainsFunc(c.sent, func(r *http.Request) bool { return r.URL.Hostname() == elsewhere })
}

// credentials are the credentials of the Authorization headers that were sent (RFC 9110 section 11.4).
func (c *client) credentials() (all []string) {
	for _, r := range c.sent {
		_, credentials, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		all = append(all, credentials)
	}
	return all
}

var word = regexp.MustCompile(`[A-Za-z0-9._~+/=-]{16,}`)

// repeats reports whether c sent something of earlier's response that earlier did not send.
func (c *client) repeats(earlier *client) bool {
	sent := strings.Join(earlier.dumps, "")
	return slices.ContainsFunc(word.FindAllString(string(earlier.received), -1), func(w string) bool {
		return !shows(sent, []string{w}) && shows(strings.Join(c.dumps, ""), []string{w})
	})
}

// shows reports whether s contains a secret, also form-encoded or in base64.
func shows(s string, secrets []string) bool {
	return slices.ContainsFunc(secrets, func(secret string) bool {
		return secret != "" && (strings.Contains(s, secret) || strings.Contains(s, url.QueryEscape(secret)) ||
			strings.Contains(s, base64.StdEncoding.EncodeToString([]byte(secret))))
	})
}
