package authtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
)

// elsewhere is the host to which a response redirects.
const elsewhere = "elsewhere.invalid"

// A failure is a way in which a token request fails, and what its error must be.
type failure struct {
	name   string
	status int    // 0: no response
	body   string // in which %s and %q are the request
	want   error
	is     string // its name
	why    string
}

const (
	notSent = "a client that refuses to send"
	endless = "an endless response"
	noToken = "there is no token in it"
)

var failures = []failure{
	{"a broken connection", 0, "%s", auth.ErrUnavailable, "auth.ErrUnavailable", "a Session then tries again"},
	{notSent, 0, "", auth.ErrInsecure, "auth.ErrInsecure", "the client's own errors say what a Session needs to know"},
	{"maintenance", 503, "%s", auth.ErrUnavailable, "auth.ErrUnavailable", "a Session then tries again, after Retry-After"},
	{"a rate limit", 429, "%s", auth.ErrRateLimited, "auth.ErrRateLimited", "a Session then waits for Retry-After"},
	{"a wrong secret", 401, `{"error":"invalid_client","error_description":%q}`, auth.ErrCredentials, "auth.ErrCredentials", "a Session then stops, so that the account is not locked"},
	{"a refused refresh token or code", 400, `{"error":"invalid_grant","error_description":%q}`, auth.ErrConsentRequired, "auth.ErrConsentRequired", "a person then has to log in"},
	{"a proxy's page", 403, "<html>%s", auth.ErrProtocol, "auth.ErrProtocol", "the product refused neither the secret nor the refresh token"},
	{"a redirect", 307, "%s", auth.ErrProtocol, "auth.ErrProtocol", "the URL in the settings is wrong"},
	{"a page", 200, "<html>%s", auth.ErrProtocol, "auth.ErrProtocol", noToken},
	{"an empty response", 200, "%.0s", auth.ErrProtocol, "auth.ErrProtocol", noToken},
	{"a response without a token", 200, `{"ok":false,"echo":%q}`, auth.ErrProtocol, "auth.ErrProtocol", noToken},
	{endless, 200, "", auth.ErrProtocol, "auth.ErrProtocol", noToken},
}

// fail tests each failure of do, which is method, and what it does if its context ends. prev is what do replaces.
func (k *kit) fail(t *testing.T, method string, prev *oauth2.Token, do func(context.Context) (*oauth2.Token, error)) {
	p := k.open(t)
	refreshes := prev != nil && prev.RefreshToken != ""
	for _, f := range failures {
		if f.want == auth.ErrConsentRequired && (method == "Exchange without prev" || method == "Exchange" && (!refreshes || expendable(p))) {
			continue
		}
		requests := k.at.requests()
		if refreshes && expendable(p) && f.status/100 != 5 && f.status != 0 && f.status != 429 {
			requests++ // the full grant in place of a refresh
		}
		t.Run(method+"/"+f.name, func(t *testing.T) { k.failOne(t, method, f, requests, prev, do) })
	}
	t.Run(method+"/context ends", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		ignores := false
		c := k.connect(t, func(r *http.Request) (*http.Response, error) {
			cancel()
			ignores = r.Context().Err() == nil
			return nil, context.Canceled
		})
		_, err := do(context.WithValue(ctx, oauth2.HTTPClient, c.ctx.Value(oauth2.HTTPClient)))
		if ignores {
			t.Errorf("%s ignores its context, so it cannot be stopped; make the request with http.NewRequestWithContext(ctx, ...)", method)
		} else if err == nil || len(c.sent) != 1 {
			t.Errorf("%s sent %d requests and returned %v when its context had ended; return an error after the first", method, len(c.sent), err)
		}
	})
}

func (k *kit) failOne(t *testing.T, method string, f failure, requests int, prev *oauth2.Token, do func(context.Context) (*oauth2.Token, error)) {
	spaces := &endlessReader{}
	c := k.connect(t, func(r *http.Request) (*http.Response, error) {
		switch f.name {
		case notSent:
			return nil, &auth.Error{Op: "request", Err: fmt.Errorf("%w over plain http", auth.ErrInsecure)}
		case endless:
			return &http.Response{StatusCode: f.status, Header: http.Header{}, Body: &notedBody{Reader: spaces}, ContentLength: -1, Request: r}, nil
		}
		return response(r, f.status, f.body)
	})
	tok, err := do(c.ctx)
	var e *auth.Error
	isError := errors.As(err, &e)
	said := fmt.Sprintf("%s returned %q for %s (HTTP %d)", method, fmt.Sprint(err), f.name, f.status)
	if f.status == 0 {
		said = fmt.Sprintf("%s returned %q for %s", method, fmt.Sprint(err), f.name)
	}
	switch {
	case len(c.sent) == 0:
		t.Fatalf("%s sent no request with the client in its context; use auth.Send, or the client under oauth2.HTTPClient", method)
	case c.followed():
		t.Errorf("%s followed a redirect, which passes on the credentials; use auth.Send, or the client in the context as it is", method)
	case spaces.tooMuch:
		t.Errorf("%s reads a response without limit; use auth.Send, which reads at most 1 MiB", method)
	case len(c.sent) > requests:
		t.Errorf("%s sent %d requests, want %d; do not try again: a Session makes all retries", method, len(c.sent), requests)
	case tok != nil && err == nil:
		t.Errorf("%s returned a token for %s; return %s (%s)", method, f.name, f.is, f.why)
	case tok != nil:
		t.Errorf("%s returned a token and an error for %s; return nil and the error", method, f.name)
	case !errors.Is(err, f.want):
		t.Errorf("%s; want %s (%s); auth.Send and auth.ResponseError return it", said, f.is, f.why)
	case !isError || e.Status != f.status:
		t.Errorf("%s; want an *auth.Error with that status, as auth.Send and auth.ResponseError return it", said)
	case (f.status == 429 || f.status == 503) && e.RetryAfter != 7*time.Second:
		t.Errorf("%s with RetryAfter %s; want the response's, 7s, as auth.ResponseError reads it", said, e.RetryAfter)
	}
	secrets := append(c.credentials(), k.at.Secrets...)
	if prev != nil {
		secrets = append(secrets, prev.AccessToken, prev.RefreshToken)
	}
	c.check(t, method, k.at.Secrets)
	k.checkError(t, method, err, secrets)
}

// checkError tests that err shows no secret.
func (k *kit) checkError(t *testing.T, method string, err error, secrets []string) {
	t.Helper()
	if s := fmt.Sprintf("%v %+v %#v", err, err, err); shows(s, secrets) {
		t.Errorf("the error of %s shows a secret, which the product may repeat; leave out bodies, URLs and the client's errors: auth.Send and auth.ResponseError do", method)
	}
}

// response is the product's response to r. In body, %s and %q are what was sent, as the product may repeat it.
func response(r *http.Request, status int, body string) (*http.Response, error) {
	sent, err := httputil.DumpRequest(r, true)
	if err != nil {
		return nil, err
	}
	body = fmt.Sprintf(body, sent)
	if status == 0 {
		return nil, errors.New(body)
	}
	h := http.Header{"Retry-After": {"7"}, "Location": {"https://" + elsewhere + "/"}, "Content-Type": {"application/json"}}
	echo := fmt.Sprint(status, " ", strings.ReplaceAll(string(sent), "\r\n", " "))
	return &http.Response{Status: echo, StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

// An endlessReader has 16 MiB of spaces, which no reader of a token response should want.
type endlessReader struct {
	n       int
	tooMuch bool
}

func (e *endlessReader) Read(p []byte) (int, error) {
	if e.n += len(p); e.n > 16<<20 {
		e.tooMuch = true
		return 0, io.EOF
	}
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}
