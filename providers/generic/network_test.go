package generic

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
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
	"github.com/itsmauth/itsmauth/internal/testnet"
)

// listen accepts connections and answers each request's body with reply(body).
func listen(t *testing.T, reply func(request string) string) *url.URL {
	return &url.URL{Scheme: "http", Host: testnet.Serve(t, func(c net.Conn) {
		if req, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			body, _ := io.ReadAll(req.Body)
			io.WriteString(c, reply(string(body)))
		}
	})}
}

func TestNetworkFailures(t *testing.T) {
	t.Parallel()
	nowhere := &url.URL{Scheme: "http", Host: "127.0.0.1:1"} // no test listens there
	secure := httptest.NewUnstartedServer(say(200, good))
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	t.Cleanup(secure.Close)
	untrusted, _ := url.Parse(secure.URL)
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
		"cut off error":   {t.Context(), listen(t, func(string) string { return "HTTP/1.1 400 No\r\nContent-Length: 99\r\n\r\n{" }), auth.ErrProtocol, nil, 400},
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

// What a server means by a TLS alert is often its TLS version.
func TestTLSAlert(t *testing.T) {
	t.Parallel()
	s := httptest.NewUnstartedServer(say(200, good))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{MaxVersion: tls.VersionTLS11}
	s.StartTLS()
	t.Cleanup(s.Close)
	u, _ := url.Parse(s.URL)
	_, err := must(t, basic(u)).Exchange(context.WithValue(t.Context(), oauth2.HTTPClient, s.Client()), nil)
	checkError(t, err, "", 0, auth.ErrUnavailable)
	const want = "tls: protocol version not supported; the server may want another TLS version"
	if !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %q", err, want)
	}
}

// Some proxies remove Content-Encoding and leave the body compressed.
func TestCompressedResponse(t *testing.T) {
	t.Parallel()
	compress := func(body string) string {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		io.WriteString(z, body)
		z.Close()
		return b.String()
	}
	refused := compress(`{"error":"invalid_client"}`)
	for name, tt := range map[string]struct {
		status int
		header []string
		body   string
		code   string
		want   error
	}{
		"without the header":    {200, nil, compress(good), "", nil},
		"with the header":       {200, []string{"Content-Encoding", "gzip"}, compress(good), "", nil},
		"an error":              {401, nil, refused, "invalid_client", auth.ErrCredentials},
		"an error, with header": {401, []string{"Content-Encoding", "gzip"}, refused, "invalid_client", auth.ErrCredentials},
		"cut off":               {200, nil, compress(good)[:30], "", auth.ErrUnavailable},
		"a bomb":                {200, nil, compress(strings.Repeat(" ", 1<<22) + good), "", auth.ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u, _ := serve(t, say(tt.status, tt.body, tt.header...))
			tok, err := must(t, basic(u)).Exchange(t.Context(), nil)
			if tt.want == nil {
				if err != nil || tok.AccessToken == "" {
					t.Errorf("%v, %v", tok, err)
				}
				return
			}
			checkError(t, err, tt.code, tt.status, tt.want)
		})
	}
}

// Of refused credentials, the error names the one that was probably not copied well.
func TestStrayCharacters(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ id, secret, user, password, want string }{
		"none":              {"id", "s3 c\"r'é\u00fct", "user", "p\u00e4ss word", ""},
		"space after":       {"id ", "s3cret", "user", "password", "client_id"},
		"space before":      {"id", " s3cret", "user", "password", "client_secret"},
		"no-break space":    {"id", "s3cret", "user\u00a0", "password", "username"},
		"zero width":        {"id", "s3cret", "user", "pass\u200bword", "password"},
		"typographic quote": {"id", "\u201cs3cret\u201d", "user", "password", "client_secret"},
	} {
		for _, code := range []string{"invalid_client", "invalid_grant", "access_denied"} {
			t.Run(name+" "+code, func(t *testing.T) {
				t.Parallel()
				u, _ := serve(t, say(401, `{"error":"`+code+`"}`))
				c := basic(u)
				c.Grant, c.CredentialsIn, c.ClientID, c.Username = "password", "form", tt.id, tt.user
				c.ClientSecret, c.Password = auth.SecretString(tt.secret), auth.SecretString(tt.password)
				_, err := must(t, c).Exchange(t.Context(), nil)
				checkError(t, err, code, 401, auth.ErrCredentials)
				const hint = " begins or ends with a space, or has an invisible character or a typographic quote: copy it again"
				if strings.Contains(err.Error(), hint) != (tt.want != "") || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%v, want a hint for %q", err, tt.want)
				}
			})
		}
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
