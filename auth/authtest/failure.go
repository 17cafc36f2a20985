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
	login  bool // of requests that spend a login
}

const noToken = "there is no token in it"

var failures = []failure{
	{"a broken connection", 0, "%s", auth.ErrUnavailable, "auth.ErrUnavailable", "a Session then tries again", false},
	{"maintenance", 503, "%s", auth.ErrUnavailable, "auth.ErrUnavailable", "a Session then tries again, after Retry-After", false},
	{"a rate limit", 429, "%s", auth.ErrRateLimited, "auth.ErrRateLimited", "a Session then waits for Retry-After", false},
	{"a wrong secret", 401, `{"error":"invalid_client","error_description":%q}`, auth.ErrCredentials, "auth.ErrCredentials", "a Session then stops, so that the account is not locked", false},
	{"a refused refresh token or code", 400, `{"error":"invalid_grant","error_description":%q}`, auth.ErrConsentRequired, "auth.ErrConsentRequired", "a person then has to log in", true},
	{"a proxy's page", 403, "<html>%s", auth.ErrProtocol, "auth.ErrProtocol", "the login may be valid", true},
	{"a redirect", 307, "%s", auth.ErrProtocol, "auth.ErrProtocol", "the URL in the settings is wrong", false},
	{"a page", 200, "<html>%s", auth.ErrProtocol, "auth.ErrProtocol", noToken, false},
	{"an empty response", 200, "%.0s", auth.ErrProtocol, "auth.ErrProtocol", noToken, false},
	{"a response without a token", 200, `{"ok":false,"echo":%q}`, auth.ErrProtocol, "auth.ErrProtocol", noToken, false},
}

// fail tests each failure of do, which is method, and what it does if its context ends. prev is what do replaces.
// login says that do spends what only a person can replace.
func (k *kit) fail(t *testing.T, method string, prev *oauth2.Token, login bool, do func(context.Context) (*oauth2.Token, error)) {
	mayFallBack := prev != nil && prev.RefreshToken != "" && expendable(k.open(t))
	for _, f := range failures {
		if f.login && !login {
			continue
		}
		requests := k.at.requests()
		if mayFallBack && (f.status < 300 || f.status == 401) && f.status != 0 {
			requests *= 2 // the full grant in place of a refresh
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
	c := k.connect(t, func(r *http.Request) (*http.Response, error) { return response(r, f.status, f.body) })
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
