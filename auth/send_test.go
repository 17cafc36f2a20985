package auth_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
)

// Beyond what TestRetrieveError and the tests of package generic show.
func TestResponseError(t *testing.T) {
	t.Parallel()
	const page, nothing, text = "<html>s3cr3t", "", "s3cr3t"
	for _, tt := range []struct {
		status  int
		code    string
		body    string
		refused error
		want    error
		says    string
	}{
		{200, "", "{}", auth.ErrCredentials, auth.ErrProtocol, "no access token"},
		{200, "denied", "{}", auth.ErrCredentials, auth.ErrCredentials, ""},
		{200, "", page, auth.ErrConsentRequired, auth.ErrProtocol, "no access token"},
		{307, "", page, auth.ErrCredentials, auth.ErrProtocol, "final address"},
		{307, "invalid_client", "{}", auth.ErrCredentials, auth.ErrInsecure, "final address"},
		{400, "", page, auth.ErrCredentials, auth.ErrProtocol, "HTML"},
		{400, "", "\xef\xbb\xbf {}", auth.ErrCredentials, auth.ErrCredentials, ""},
		{400, "", "null", auth.ErrCredentials, auth.ErrProtocol, "neither JSON"},
		{401, "", nothing, auth.ErrCredentials, auth.ErrProtocol, "empty"},
		{401, "", text, auth.ErrCredentials, auth.ErrCredentials, ""},
		{401, "", text, auth.ErrConsentRequired, auth.ErrProtocol, "neither JSON"},
		{401, "Invalid_Client", "{}", auth.ErrConsentRequired, auth.ErrCredentials, ""},
		{403, "s3cr3t", "{}", auth.ErrConsentRequired, auth.ErrConsentRequired, ""},
		{404, "", page, auth.ErrCredentials, auth.ErrProtocol, "does not exist"},
		{405, "", page, auth.ErrCredentials, auth.ErrProtocol, "trailing slash"},
		{407, "", page, auth.ErrCredentials, auth.ErrProtocol, "proxy_url"},
		{408, "", page, auth.ErrCredentials, auth.ErrUnavailable, ""},
		{418, "invalid_client", "{}", auth.ErrCredentials, auth.ErrProtocol, ""},
		{429, "invalid_client", "{}", auth.ErrCredentials, auth.ErrRateLimited, ""},
		{503, "invalid_client", "{}", auth.ErrCredentials, auth.ErrUnavailable, ""},
	} {
		resp := &http.Response{StatusCode: tt.status, Header: http.Header{"Retry-After": {"7"}}}
		e := auth.ResponseError(resp, []byte(tt.body), tt.code, tt.refused)
		if !errors.Is(e, tt.want) || e.Status != tt.status || e.RetryAfter != 7*time.Second || !strings.Contains(e.Error(), tt.says) || strings.Contains(e.Error(), "s3cr3t") {
			t.Errorf("%d %q %q: %v, want %v", tt.status, tt.code, tt.body, e, tt.want)
		}
	}
}

func TestSend(t *testing.T) {
	t.Parallel()
	arrived := make(chan string, 10)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		arrived <- r.URL.Path
		switch r.URL.Path {
		case "/redirect":
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		case "/large":
			io.WriteString(w, strings.Repeat(" ", 1<<20+1))
		case "/large-error":
			w.WriteHeader(http.StatusServiceUnavailable)
			io.WriteString(w, strings.Repeat(" ", 1<<20+1))
		default:
			io.WriteString(w, "body")
		}
	}))
	defer s.Close()
	insecure := &auth.Error{Op: "request", Err: auth.ErrInsecure}
	broken := context.WithValue(t.Context(), oauth2.HTTPClient, &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) {
		return nil, fmt.Errorf("dial: %w", insecure)
	})})
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tt := range []struct {
		ctx    context.Context
		path   string
		status int
		body   string
		want   error
	}{
		{t.Context(), "/", 200, "body", nil},
		{t.Context(), "/redirect", 307, "", nil},
		{t.Context(), "/large", 200, "", auth.ErrProtocol},
		{t.Context(), "/large-error", 503, "", nil},
		{broken, "/", 0, "", insecure},
		{canceled, "/", 0, "", context.Canceled},
	} {
		req, _ := http.NewRequestWithContext(tt.ctx, "POST", s.URL+tt.path, strings.NewReader("secret"))
		resp, body, err := auth.Send(req)
		if resp == nil {
			resp = new(http.Response)
		}
		if resp.StatusCode != tt.status || string(body) != tt.body || !errors.Is(err, tt.want) || err != nil && !errors.As(err, new(*auth.Error)) {
			t.Errorf("%s: %d, %.20q, %v", tt.path, resp.StatusCode, body, err)
		}
		if tt.status != 0 && (<-arrived != tt.path || len(arrived) > 0) {
			t.Errorf("%s: more requests than one", tt.path)
		}
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
