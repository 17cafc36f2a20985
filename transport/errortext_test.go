package transport

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/peererror"
)

// failure returns the error with which net/http sends req to a server that says only response.
func failure(t *testing.T, req *http.Request, response string, proxied bool) error {
	t.Helper()
	rt := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		ours, server := net.Pipe()
		go func() {
			defer server.Close()
			if r, err := http.ReadRequest(bufio.NewReader(server)); err == nil {
				io.Copy(io.Discard, r.Body)
				io.WriteString(server, response)
			}
		}()
		return ours, nil
	}}
	defer rt.CloseIdleConnections()
	if proxied {
		rt.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: "proxy.example.com"})
	}
	resp, err := rt.RoundTrip(req)
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	if err == nil {
		t.Fatal("net/http reports no error")
	}
	return err
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// An unclosed connection is not closed by net/http, whose Read would then compete with the Write for the
// error to report.
type unclosed struct{ net.Conn }

func (unclosed) Close() error { return nil }

// Each error here is net/http's own, and must be recognized by its text.
func TestErrorTexts(t *testing.T) {
	t.Parallel()
	const head = "HTTP/1.1 200 OK\r\n"
	for name, test := range map[string]struct {
		response string
		proxied  bool
	}{
		"status line":        {"secret\r\n\r\n", false},
		"status code":        {"HTTP/1.1 secret OK\r\n\r\n", false},
		"version":            {"HTTP/secret 200 OK\r\n\r\n", false},
		"header line":        {head + "secret\r\n\r\n", false},
		"content length":     {head + "Content-Length: secret\r\n\r\n", false},
		"transfer encoding":  {head + "Transfer-Encoding: secret\r\n\r\n", false},
		"trailer":            {head + "Transfer-Encoding: chunked\r\nTrailer: Content-Length\r\n\r\n", false},
		"line of a trailer":  {head + "Transfer-Encoding: chunked\r\n\r\n0\r\nsecret\r\n\r\n", false},
		"chunk":              {head + "Transfer-Encoding: chunked\r\n\r\n1\r\nsecret", false},
		"proxy's response":   {"secret\r\n\r\n", true},
		"proxy's status":     {"HTTP/1.1 secret OK\r\n\r\n", true},
		"proxy's other line": {head + "secret\r\n\r\n", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			req, _ := http.NewRequest("GET", "http://api.example.com", nil)
			if test.proxied {
				req.URL.Scheme = "https"
			}
			err := failure(t, req, test.response, test.proxied)
			got := redactServerText(err)
			if !errors.Is(got, peererror.ErrNotHTTP) || !errors.Is(got, auth.ErrProtocol) || strings.Contains(got.Error(), "secret") {
				t.Errorf("%T %v: %v", err, err, got)
			}
		})
	}
	t.Run("Content-Length of the request", func(t *testing.T) {
		t.Parallel()
		rt := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
			ours, server := net.Pipe()
			t.Cleanup(func() { ours.Close() })
			go io.Copy(io.Discard, server)
			return unclosed{ours}, nil
		}}
		req, _ := http.NewRequest("POST", "http://api.example.com", io.NopCloser(io.LimitReader(zeros{}, 10_000))) // more than is buffered
		req.ContentLength = 20_000
		if _, err := rt.RoundTrip(req); err == nil || !strings.HasPrefix(err.Error(), textLength) || redactServerText(err) != err {
			t.Errorf("%T %v", err, err)
		}
	})
	for name, spoil := range map[string]func(*http.Request){
		"method":       func(r *http.Request) { r.Method = "A B" },
		"header name":  func(r *http.Request) { r.Header["X Y"] = []string{"1"} },
		"header value": func(r *http.Request) { r.Header["X"] = []string{"1\n2"} },
		"trailer name": func(r *http.Request) { r.Trailer = http.Header{"X Y": nil} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			req, _ := http.NewRequest("GET", "http://api.example.com", nil)
			spoil(req)
			if err := failure(t, req, "", false); !invalidRequest(err) || redactServerText(err) != err {
				t.Errorf("%T %v", err, err)
			}
		})
	}
}

// Errors that say what happened to the connection are kept, even within "transport connection broken".
func TestErrorsThatAreKept(t *testing.T) {
	t.Parallel()
	req, _ := http.NewRequest("GET", "http://api.example.com", nil)
	for _, response := range []string{"", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"} {
		if err := redactServerText(failure(t, req, response, false)); errors.Is(err, auth.ErrProtocol) {
			t.Error(err)
		}
	}
}

// The caller's own text is kept: of a body that cannot be read, and of one that cannot be read again.
func TestErrorsOfTheCallersBody(t *testing.T) {
	t.Parallel()
	own := errors.New("malformed disk")
	for name, err := range map[string]error{
		"body":        redactBody(&callBody{failed: own}, fmt.Errorf("net/http: HTTP/1.x transport connection broken: write: %w", own)),
		"nothing":     redactBody(nil, own),
		"another":     redactBody(&callBody{failed: own}, errors.New("malformed HTTP response")),
		"without one": redactBody(&callBody{}, io.EOF),
	} {
		if (err == own) != (name == "body") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func redactBody(body *callBody, err error) error {
	a := &attempt{call: &call{t: new(roundTripper), body: body}}
	return a.redact(err)
}

// Of a response's headers, a log has what has the shape of a number, a date or a media type.
func TestLoggedHeaders(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{
		"0": "0", "1234567890": "1234567890", "12345678901": "unreadable", "-1": "unreadable", "1.5": "unreadable", "secret": "unreadable",
		"Sun, 06 Nov 1994 08:49:37 GMT":  "Sun, 06 Nov 1994 08:49:37 GMT",
		"Sunday, 06-Nov-94 08:49:37 GMT": "Sun, 06 Nov 1994 08:49:37 GMT",
		"Sun, 06 Nov 1994 08:49:37 UTX":  "unreadable",
	} {
		if got := numberOrDate(value); got != want {
			t.Errorf("%q is %q, want %q", value, got, want)
		}
	}
	for value, want := range map[string]string{
		"application/json": "application/json", "Application/JSON; charset=secret": "application/json", "text/secret": "other", "": "other",
	} {
		if got := mediaType(value); got != want {
			t.Errorf("%q is %q, want %q", value, got, want)
		}
	}
}

// A Wrap's own error is found, and its text shown if it is meant to be.
func TestErrorsOfAWrap(t *testing.T) {
	t.Parallel()
	own := errors.New("circuit open")
	if err := redactServerText(own); !errors.Is(err, own) || strings.Contains(err.Error(), "circuit") {
		t.Error(err)
	}
	if err := redactServerText(&auth.Error{Op: "request", Err: own}); !errors.Is(err, own) || !strings.Contains(err.Error(), "circuit open") {
		t.Error(err)
	}
}
