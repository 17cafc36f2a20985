package generic

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
)

// listen accepts connections and answers each request's body with reply(body).
func listen(t *testing.T, reply func(request string) string) *url.URL {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			req, err := http.ReadRequest(bufio.NewReader(c))
			if err == nil {
				body, _ := io.ReadAll(req.Body)
				io.WriteString(c, reply(string(body)))
			}
			c.Close()
		}
	}()
	return &url.URL{Scheme: "http", Host: l.Addr().String()}
}

func TestNetworkFailures(t *testing.T) {
	t.Parallel()
	nowhere := &url.URL{Scheme: "http", Host: "127.0.0.1:1"} // no test listens there
	tls := httptest.NewUnstartedServer(say(200, good))
	tls.Config.ErrorLog = log.New(io.Discard, "", 0)
	tls.StartTLS()
	t.Cleanup(tls.Close)
	untrusted, _ := url.Parse(tls.URL)
	noTLS, _ := serve(t, say(200, good))
	noTLS.Scheme = "https"
	proxy := listen(t, func(string) string { return "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n" })
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	// Errors of the caller's own client, such as our transport's, are kept.
	through := func(rt roundTrip) context.Context {
		return context.WithValue(t.Context(), oauth2.HTTPClient, &http.Client{Transport: rt})
	}
	failing := func(err error) context.Context {
		return through(func(*http.Request) (*http.Response, error) { return nil, err })
	}
	for name, tc := range map[string]struct {
		ctx    context.Context
		url    *url.URL
		want   error
		is     error
		status int
	}{
		"refused":         {t.Context(), nowhere, auth.ErrUnavailable, syscall.ECONNREFUSED, 0},
		"untrusted":       {t.Context(), untrusted, auth.ErrInsecure, nil, 0},
		"no TLS":          {t.Context(), noTLS, auth.ErrUnavailable, http.ErrSchemeMismatch, 0},
		"hung up":         {t.Context(), listen(t, func(string) string { return "" }), auth.ErrUnavailable, io.EOF, 0},
		"no HTTP":         {t.Context(), listen(t, func(r string) string { return r + "\r\n\r\n" }), auth.ErrUnavailable, nil, 0},
		"echoed status":   {t.Context(), listen(t, func(r string) string { return "HTTP/1.1 " + r + "\r\n\r\n" }), auth.ErrUnavailable, nil, 0},
		"echoed header":   {t.Context(), listen(t, func(r string) string { return "HTTP/1.1 200 OK\r\n" + r + "\r\n\r\n" }), auth.ErrUnavailable, nil, 0},
		"echoed location": {t.Context(), listen(t, func(r string) string { return "HTTP/1.1 302 Found\r\nLocation: http://[" + r + "\r\n\r\n" }), auth.ErrUnavailable, nil, 0},
		"cut off":         {t.Context(), listen(t, func(string) string { return "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{" }), auth.ErrUnavailable, io.ErrUnexpectedEOF, 200},
		"cut off error":   {t.Context(), listen(t, func(string) string { return "HTTP/1.1 400 No\r\nContent-Length: 99\r\n\r\n{" }), auth.ErrCredentials, nil, 400},
		"proxy": {through((&http.Transport{Proxy: http.ProxyURL(proxy)}).RoundTrip),
			&url.URL{Scheme: "https", Host: "sso.example.com"}, auth.ErrUnavailable, nil, 0},
		"canceled":     {canceled, nowhere, nil, context.Canceled, 0},
		"transport":    {failing(&auth.Error{Connector: "c", Op: "request", Err: auth.ErrRateLimited, RetryAfter: 5}), nowhere, auth.ErrRateLimited, nil, 0},
		"own deadline": {failing(context.DeadlineExceeded), nowhere, auth.ErrUnavailable, context.DeadlineExceeded, 0},
		"anything":     {failing(errors.New("said " + secret)), nowhere, auth.ErrUnavailable, nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := basic(tc.url)
			c.TokenURL.RawQuery = "tenant=" + url.QueryEscape(secret)
			c.CredentialsIn = "form"
			c.ClientSecret = auth.SecretString("s3cr3t")
			_, err := must(t, c).Exchange(tc.ctx, nil)
			want := []error{tc.want}
			if tc.want == nil {
				want = nil
			}
			checkError(t, err, "", tc.status, want...)
			if tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("%v is not %v", err, tc.is)
			}
			for ; err != nil; err = errors.Unwrap(err) {
				for _, s := range []string{"s3cr3t", "tenant", secret, "grant_type"} {
					if strings.Contains(err.Error(), s) {
						t.Errorf("%s shows %s", err, s)
					}
				}
			}
		})
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hang := &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, context.Cause(r.Context())
		})}
		ctx, cancel := context.WithTimeout(context.WithValue(t.Context(), oauth2.HTTPClient, hang), 7*time.Second)
		defer cancel()
		start := time.Now()
		_, err := must(t, basic(&url.URL{Scheme: "https", Host: "x"})).Exchange(ctx, nil)
		checkError(t, err, "", 0, auth.ErrUnavailable)
		var e *auth.Error
		if errors.As(err, &e); !e.Timeout() || time.Since(start) != 7*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}
