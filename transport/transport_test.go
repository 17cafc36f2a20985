package transport_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/transport"
)

// product issues numbered tokens. A 401 whose body contains "token" rejects one.
type product struct {
	made   atomic.Int64
	header string
}

func (p *product) Exchange(context.Context, *oauth2.Token) (*oauth2.Token, error) {
	return &oauth2.Token{AccessToken: fmt.Sprintf("T%d", p.made.Add(1)), ExpiresIn: 3600}, nil
}

func (p *product) Header(tok *oauth2.Token) http.Header {
	if p.header != "" {
		return http.Header{p.header: {tok.AccessToken}}
	}
	return http.Header{"Authorization": {"Bearer " + tok.AccessToken}}
}

func (p *product) Rejects(resp *http.Response, body []byte) bool {
	return resp.StatusCode == 401 && strings.Contains(string(body), "token")
}

func parse(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func client(t testing.TB, p *product, base string, o transport.Options) *http.Client {
	t.Helper()
	s := auth.New(p, nil)
	t.Cleanup(func() { s.Close(context.Background()) })
	o.BaseURL, o.Connector = parse(t, base), "test"
	c, err := transport.NewClient(s, &o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

var quick = transport.Retry{MinBackoff: time.Millisecond, MaxBackoff: 2 * time.Millisecond}

func TestRetries(t *testing.T) {
	t.Parallel()
	type row struct {
		method, key string
		status      int
		want        int64 // requests seen
	}
	var rows []row
	for _, status := range []int{200, 400, 403, 404, 408, 409, 429, 500, 501, 502, 503, 504, 505, 511} {
		retried := map[int]bool{408: true, 429: true, 500: true, 502: true, 503: true, 504: true}[status]
		for _, m := range []string{"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "POST", "PATCH"} {
			safe := m != "POST" && m != "PATCH"
			want := int64(1)
			if retried && (safe || status == 429) {
				want = 4
			}
			rows = append(rows, row{m, "", status, want})
			if !safe && retried {
				rows = append(rows, row{m, "key-1", status, 4})
			}
		}
	}
	for _, row := range rows {
		t.Run(fmt.Sprint(row.method, row.key, row.status), func(t *testing.T) {
			t.Parallel()
			var seen atomic.Int64
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				seen.Add(1)
				if b, _ := io.ReadAll(r.Body); r.Method != "HEAD" && r.Method != "TRACE" && string(b) != "payload" {
					t.Errorf("body %q", b)
				}
				w.WriteHeader(row.status)
				io.WriteString(w, "answer")
			}))
			defer srv.Close()
			c := client(t, new(product), srv.URL, transport.Options{Retry: quick})
			var body io.Reader
			if row.method != "HEAD" && row.method != "TRACE" {
				body = io.NopCloser(strings.NewReader("payload")) // no GetBody
			}
			req, _ := http.NewRequest(row.method, srv.URL+"/x?q=1", body)
			if row.key != "" {
				req.Header.Set("Idempotency-Key", row.key)
			}
			resp, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if b, _ := io.ReadAll(resp.Body); resp.StatusCode != row.status || row.method != "HEAD" && string(b) != "answer" {
				t.Errorf("%d %q", resp.StatusCode, b)
			}
			if seen.Load() != row.want {
				t.Errorf("%d requests, want %d", seen.Load(), row.want)
			}
		})
	}
}

// Header names are case-insensitive.
func TestIdempotencyKeyInAnySpelling(t *testing.T) {
	t.Parallel()
	for key, want := range map[string]int64{"Idempotency-Key": 4, "idempotency-key": 4, "IDEMPOTENCY-KEY": 4, "Idempotency": 1} {
		var seen atomic.Int64
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			seen.Add(1)
			w.WriteHeader(503)
		}))
		defer srv.Close()
		req, _ := http.NewRequest("POST", srv.URL, nil)
		req.Header[key] = []string{"1"}
		resp, err := client(t, new(product), srv.URL, transport.Options{Retry: quick}).Do(req)
		if err != nil || resp.StatusCode != 503 || seen.Load() != want {
			t.Errorf("%s: %d requests, %v", key, seen.Load(), err)
		}
	}
}

func TestConnectionNeverMade(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	c := client(t, new(product), "http://"+away, transport.Options{Retry: quick,
		Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	_, err := c.Post("http://"+away+"/?secret=q", "text/plain", strings.NewReader("x"))
	if err == nil || strings.Count(log.String(), "msg=attempt") != 4 {
		t.Errorf("%v\n%s", err, log.String())
	}
	if strings.Contains(log.String(), "secret") {
		t.Error("the log shows the query")
	}
}

// A POST is not retried if the connection breaks after it was sent: the server may have processed it.
func TestResetIsNotRepeatedForPost(t *testing.T) {
	t.Parallel()
	for method, want := range map[string]int64{"POST": 1, "PUT": 4} {
		var seen atomic.Int64
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			seen.Add(1)
			io.Copy(io.Discard, r.Body)
			panic(http.ErrAbortHandler)
		}))
		defer srv.Close()
		c := client(t, new(product), srv.URL, transport.Options{Retry: quick})
		req, _ := http.NewRequest(method, srv.URL, strings.NewReader("x"))
		if _, err := c.Do(req); err == nil || seen.Load() != want {
			t.Errorf("%s: %d requests, %v", method, seen.Load(), err)
		}
	}
}

func TestRevokedUnderManyCallers(t *testing.T) {
	t.Parallel()
	var good atomic.Value
	good.Store("T1")
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Header.Get("Authorization") != "Bearer "+good.Load().(string) {
			http.Error(w, "token refused", http.StatusUnauthorized)
			return
		}
		w.Write(body)
	}))
	defer srv.Close()
	p := new(product)
	c := client(t, p, srv.URL, transport.Options{})
	call := func() {
		resp, err := c.Post(srv.URL, "text/plain", io.NopCloser(strings.NewReader("hello")))
		if err != nil {
			t.Error(err)
			return
		}
		defer resp.Body.Close()
		if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 || string(b) != "hello" {
			t.Errorf("%d %q", resp.StatusCode, b)
		}
	}
	call()
	good.Store("T2")
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for range 10 {
				call()
			}
		})
	}
	wg.Wait()
	if n := p.made.Load(); n != 2 {
		t.Errorf("%d exchanges, want 2", n)
	}
}

func TestRefusalsEndWithTheProductsResponse(t *testing.T) {
	t.Parallel()
	var seen atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen.Add(1)
		http.Error(w, "token refused", http.StatusUnauthorized)
	}))
	defer srv.Close()
	p := new(product)
	c := client(t, p, srv.URL, transport.Options{})
	start := time.Now()
	for i := range 20 {
		resp, err := c.Get(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 401 || string(b) != "token refused\n" {
			t.Errorf("%d: %d %q", i, resp.StatusCode, b)
		}
		resp.Body.Close()
	}
	// At most one new token is tried a second, and the call that tries it is replayed.
	took := time.Since(start)
	made := int64(p.made.Load())
	if made < 2 || made > 2+int64(took/time.Second) || seen.Load() != 19+made {
		t.Errorf("%d exchanges, %d requests in %s", made, seen.Load(), took)
	}
}

// Header keys are sent once and as spelled, whatever the caller set. The caller's request is unchanged.
func TestHeaderOnTheWire(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	raw := make(chan string, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		var got strings.Builder
		for r := bufio.NewReader(conn); ; {
			line, err := r.ReadString('\n')
			got.WriteString(line)
			if err != nil || line == "\r\n" {
				break
			}
		}
		raw <- got.String()
		io.WriteString(conn, "HTTP/1.1 204 No Content\r\n\r\n")
	}()
	base := "http://" + l.Addr().String()
	c := client(t, &product{header: "access_token"}, base, transport.Options{Close: true, UserAgent: "itsmauth/test"})
	req, _ := http.NewRequest("GET", base, nil)
	req.Header.Set("access_token", "mine") // sends Access_token
	req.Header["ACCESS_TOKEN"] = []string{"mine too"}
	before := req.Header.Clone()
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(req.Header) != fmt.Sprint(before) {
		t.Errorf("the caller's headers are now %v", req.Header)
	}
	if resp.Request != req {
		t.Error("resp.Request is not the caller's")
	}
	got := <-raw
	if strings.Count(strings.ToLower(got), "access_token") != 1 || !strings.Contains(got, "\r\naccess_token: T1\r\n") {
		t.Errorf("on the wire:\n%s", got)
	}
	for _, want := range []string{"\r\nConnection: close\r\n", "\r\nUser-Agent: itsmauth/test\r\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

func TestOrigins(t *testing.T) {
	t.Parallel()
	c := client(t, new(product), "https://api.example.com/base", transport.Options{
		AllowedOrigins: []*url.URL{parse(t, "https://other.example.com:8443")},
		Wrap: func(http.RoundTripper) http.RoundTripper {
			return roundTrip(func(r *http.Request) (*http.Response, error) {
				return &http.Response{StatusCode: 200, Body: http.NoBody, Header: http.Header{"Sent": r.Header["Authorization"]}}, nil
			})
		},
	})
	for at, allowed := range map[string]bool{
		"https://api.example.com/x":                 true,
		"https://API.example.com:443/x":             true,
		"HTTPS://api.example.com/x":                 true,
		"https://other.example.com:8443/":           true,
		"http://api.example.com/x":                  false,
		"https://api.example.com:8443/x":            false,
		"https://other.example.com/":                false,
		"https://api.example.com.evil.org/":         false,
		"https://evil.org/?https://api.example.com": false,
		"https://api.example.com@evil.org/":         false,
		"ftp://api.example.com/":                    false,
	} {
		resp, err := c.Get(at)
		if allowed != (err == nil) || err != nil && !errors.Is(err, auth.ErrInsecure) {
			t.Errorf("%s: %v", at, err)
		}
		if err == nil && resp.Header.Get("Sent") != "Bearer T1" {
			t.Errorf("%s: no token", at)
		}
	}
	req, _ := http.NewRequest("GET", "https://api.example.com", nil)
	req.Host = "evil.org"
	if _, err := c.Do(req); !errors.Is(err, auth.ErrInsecure) {
		t.Errorf("foreign Host: %v", err)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestPlainHTTP(t *testing.T) {
	t.Parallel()
	for at, ok := range map[string]bool{"http://127.0.0.1:1": true, "http://[::1]": true, "http://localhost": true, "http://app.localhost:8080": true, "http://localhost.": false,
		"http://example.com": false, "http://10.0.0.1": false, "ftp://127.0.0.1": false} {
		if _, err := transport.New(auth.New(new(product), nil), &transport.Options{BaseURL: parse(t, at)}); ok != (err == nil) {
			t.Errorf("%s: %v", at, err)
		}
	}
	if _, err := transport.New(auth.New(new(product), nil), &transport.Options{BaseURL: parse(t, "http://example.com"), AllowHTTP: true}); err != nil {
		t.Error(err)
	}
	if _, err := transport.NewExchanger(nil).Get("http://example.com/token"); !errors.Is(err, auth.ErrInsecure) {
		t.Error(err)
	}
}

// A redirect to another origin, which includes another port of this host, carries no credentials.
func TestRedirects(t *testing.T) {
	t.Parallel()
	for _, status := range []int{301, 302, 303, 307, 308} {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"} {
			t.Run(fmt.Sprint(method, status), func(t *testing.T) {
				t.Parallel()
				safe := method == "GET" || method == "HEAD"
				var stray atomic.Pointer[http.Request]
				var back string
				foreign := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					stray.Store(r)
					if r.URL.Path == "/back" {
						http.Redirect(w, r, back, http.StatusFound)
					}
				}))
				defer foreign.Close()
				var home []*http.Request
				srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					home = append(home, r)
					switch r.URL.Path {
					case "/away":
						http.Redirect(w, r, foreign.URL+"/x", status)
					case "/away-and-back":
						http.Redirect(w, r, foreign.URL+"/back", status)
					case "/here":
						http.Redirect(w, r, "/there", status)
					case "/here-and-away":
						http.Redirect(w, r, "/away", status)
					}
				}))
				defer srv.Close()
				back = srv.URL + "/there"
				c := client(t, &product{header: "access_token"}, srv.URL, transport.Options{})
				do := func(path string) *http.Response {
					req, _ := http.NewRequest(method, srv.URL+path, nil)
					if method == "POST" || method == "PUT" {
						req, _ = http.NewRequest(method, srv.URL+path, strings.NewReader("body"))
					}
					req.Header.Set("Authorization", "caller's own")
					req.Header.Set("Cookie", "session=1")
					req.Header.Set("X-Api-Key", "caller's own")
					req.Header["range"] = []string{"bytes=0-9"}
					resp, err := c.Do(req)
					if err != nil {
						t.Fatal(err)
					}
					resp.Body.Close()
					return resp
				}
				do("/here-and-away")
				if followed := stray.Swap(nil) != nil; followed != safe {
					t.Errorf("by way of here, followed is %t", followed)
				}
				home = nil
				resp := do("/away")
				if safe {
					r := stray.Load()
					if r == nil {
						t.Fatal("not followed")
					}
					if r.Header.Get("Range") == "" {
						t.Error("Range is lost")
					}
					for k := range r.Header {
						if k != "User-Agent" && k != "Accept-Encoding" && k != "Content-Type" && k != "Range" {
							t.Errorf("%s leaked", k)
						}
					}
				} else if stray.Load() != nil || resp.StatusCode != status {
					t.Errorf("it went elsewhere, or status %d", resp.StatusCode)
				}
				resp = do("/here")
				last := home[len(home)-1]
				wantMethod, wantPath, wantStatus := method, "/there", 200
				switch {
				case safe:
				case status == 303:
					wantMethod = "GET"
				case status < 303: // a GET would lose the write
					wantPath, wantStatus = "/here", status
				}
				if last.Method != wantMethod || last.URL.Path != wantPath || last.Header.Get("Access_token") != "T1" || resp.StatusCode != wantStatus {
					t.Errorf("same origin: status %d after %s %s %v", resp.StatusCode, last.Method, last.URL, last.Header)
				}
				if hasBody := method == "POST" || method == "PUT"; (last.ContentLength > 0) != (hasBody && wantMethod == method) {
					t.Errorf("same origin: a body of %d bytes", last.ContentLength)
				}
				if safe {
					do("/away-and-back")
					if last := home[len(home)-1]; last.Header.Get("Access_token") != "" {
						t.Error("a chain that left came back with the token")
					}
				}
			})
		}
	}
}

// A client that follows all redirects cannot send a POST to another origin either.
func TestRedirectsOfAnotherClient(t *testing.T) {
	t.Parallel()
	foreign := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { t.Error("followed with", r.Method) }))
	defer foreign.Close()
	srv := httptest.NewServer(http.RedirectHandler(foreign.URL, http.StatusSeeOther))
	defer srv.Close()
	rt, err := transport.New(auth.New(new(product), nil), &transport.Options{BaseURL: parse(t, srv.URL)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (&http.Client{Transport: rt}).Post(srv.URL, "text/plain", strings.NewReader("body")); !errors.Is(err, auth.ErrInsecure) {
		t.Error(err)
	}
}

// Requests redirected to another origin are retried too.
func TestRedirectedElsewhereIsRepeated(t *testing.T) {
	t.Parallel()
	var seen atomic.Int64
	foreign := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if seen.Add(1) < 3 {
			w.WriteHeader(503)
		}
	}))
	defer foreign.Close()
	srv := httptest.NewServer(http.RedirectHandler(foreign.URL, http.StatusFound))
	defer srv.Close()
	resp, err := client(t, new(product), srv.URL, transport.Options{Retry: quick}).Get(srv.URL)
	if err != nil || resp.StatusCode != 200 || seen.Load() != 3 {
		t.Errorf("%v %v, %d requests", resp, err, seen.Load())
	}
}

func TestExchangerFollowsNoRedirect(t *testing.T) {
	t.Parallel()
	foreign := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("followed") }))
	defer foreign.Close()
	for _, status := range []int{301, 302, 303, 307, 308} {
		srv := httptest.NewServer(http.RedirectHandler(foreign.URL, status))
		defer srv.Close()
		resp, err := transport.NewExchanger(nil).Post(srv.URL, "text/plain", strings.NewReader("secret"))
		if err != nil || resp.StatusCode != status {
			t.Errorf("%d: %v %v", status, resp, err)
		}
	}
}

// An exchange leaves no idle connection behind: net/http logs unexpected data on one, in which an
// endpoint may repeat the credentials.
func TestExchangerKeepsNoConnection(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !r.Close {
			t.Error("the connection stays open")
		}
	}))
	defer srv.Close()
	resp, err := transport.NewExchanger(nil).Post(srv.URL, "text/plain", strings.NewReader("secret"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

// body counts the calls of Close.
type body struct {
	io.Reader
	closed atomic.Int64
}

func (b *body) Close() error { b.closed.Add(1); return nil }

func TestBodyIsClosedOnce(t *testing.T) {
	t.Parallel()
	status := func(n int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body); w.WriteHeader(n) }
	}
	for name, test := range map[string]struct {
		handler http.HandlerFunc
		at      string
		size    int
		getBody bool
	}{
		"sent":                 {status(200), "", 10, false},
		"sent with GetBody":    {status(200), "", 10, true},
		"retried":              {status(503), "", 10, false},
		"retried with GetBody": {status(503), "", 10, true},
		"too large to keep":    {status(503), "", 3 << 20, false},
		"reset":                {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "", 10, false},
		"answered early":       {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(200) }, "", 3 << 20, false},
		"refused token":        {func(w http.ResponseWriter, r *http.Request) { http.Error(w, "token", http.StatusUnauthorized) }, "", 10, false},
		"another origin":       {status(200), "https://example.org", 10, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := httptest.NewServer(test.handler)
			defer srv.Close()
			c := client(t, new(product), srv.URL, transport.Options{Retry: quick})
			data := strings.Repeat("x", test.size)
			b := &body{Reader: strings.NewReader(data)}
			at := srv.URL
			if test.at != "" {
				at = test.at
			}
			req, _ := http.NewRequest("PUT", at, b)
			var copies []*body
			if test.getBody {
				req.GetBody = func() (io.ReadCloser, error) {
					copies = append(copies, &body{Reader: strings.NewReader(data)})
					return copies[len(copies)-1], nil
				}
			}
			if resp, err := c.Do(req); err == nil {
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			c.CloseIdleConnections()
			for i, b := range append(copies, b) {
				for range 10_000 { // net/http may close it a little later
					if b.closed.Load() > 0 {
						break
					}
					time.Sleep(time.Millisecond)
				}
				if n := b.closed.Load(); n != 1 {
					t.Errorf("body %d of %d was closed %d times", i+1, len(copies)+1, n)
				}
			}
		})
	}
}

// A body above max_replay_body is streamed once and not retried.
func TestLargeBodyIsSentOnce(t *testing.T) {
	t.Parallel()
	var seen atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen.Add(1)
		n, _ := io.Copy(io.Discard, r.Body)
		w.Header().Set("Got", fmt.Sprint(n))
		w.WriteHeader(503)
	}))
	defer srv.Close()
	c := client(t, new(product), srv.URL, transport.Options{Retry: quick})
	req, _ := http.NewRequest("PUT", srv.URL, io.NopCloser(io.LimitReader(zeros{}, 2<<20)))
	resp, err := c.Do(req)
	if err != nil || resp.Header.Get("Got") != fmt.Sprint(2<<20) || seen.Load() != 1 {
		t.Errorf("%v %v, %d requests", resp, err, seen.Load())
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// stub returns a client whose attempts call f, for synctest.
func stub(t *testing.T, o transport.Options, f roundTrip) *http.Client {
	o.Wrap = func(http.RoundTripper) http.RoundTripper { return f }
	return client(t, new(product), "https://api.example.com", o)
}

func answer(status int, kv ...string) *http.Response {
	h := http.Header{}
	for i := 0; i < len(kv); i += 2 {
		h.Set(kv[i], kv[i+1])
	}
	return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader("body"))}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		after    string
		timeout  time.Duration
		attempts int
		min, max time.Duration
	}{
		"seconds":         {"3", 0, 4, 9 * time.Second, 15 * time.Second},
		"too long":        {"31", 0, 1, 0, 0},
		"huge":            {"99999999999999999999", 0, 1, 0, 0},
		"beyond timeout":  {"20", 10 * time.Second, 1, 0, 0},
		"second too long": {"20", 35 * time.Second, 2, 20 * time.Second, 21 * time.Second},
		"zero":            {"0", 0, 4, 1500 * time.Millisecond, 4 * time.Second},
		"none":            {"", 0, 4, 1500 * time.Millisecond, 4 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				attempts := 0
				c := stub(t, transport.Options{Timeout: test.timeout}, func(*http.Request) (*http.Response, error) {
					attempts++
					if test.after == "" {
						return answer(503), nil
					}
					return answer(503, "Retry-After", test.after), nil
				})
				start := time.Now()
				resp, err := c.Get("https://api.example.com/")
				if err != nil {
					t.Fatal(err)
				}
				if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 503 || string(b) != "body" {
					t.Errorf("%d %q", resp.StatusCode, b)
				}
				if took := time.Since(start); attempts != test.attempts || took < test.min || took > test.max {
					t.Errorf("%d attempts in %s", attempts, took)
				}
			})
		})
	}
}

// A date in Retry-After counts from the server's own clock.
func TestRetryAfterOfAnotherClock(t *testing.T) {
	t.Parallel()
	for _, off := range []time.Duration{-10 * time.Minute, 0, 10 * time.Minute} {
		for _, status := range []int{429, 503} {
			synctest.Test(t, func(t *testing.T) {
				var at []time.Time
				c := stub(t, transport.Options{Limiter: transport.NewLimiter(nil, 0)}, func(*http.Request) (*http.Response, error) {
					at = append(at, time.Now())
					clock := time.Now().Add(off).UTC()
					return answer(status, "Date", clock.Format(http.TimeFormat), "Retry-After", clock.Add(5*time.Second).Format(http.TimeFormat)), nil
				})
				resp, err := c.Get("https://api.example.com/")
				if err != nil || resp.StatusCode != status || len(at) != 4 {
					t.Fatalf("%v %v after %d attempts", resp, err, len(at))
				}
				for i := range 3 {
					if wait := at[i+1].Sub(at[i]); wait != 5*time.Second {
						t.Errorf("clock off by %s, %d: waited %s", off, status, wait)
					}
				}
			})
		}
	}
}

// The first wait is anywhere between 0 and min_backoff, each later one in the upper half of its range.
func TestBackoff(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	for name, test := range map[string]struct {
		retry  transport.Retry
		ranges [][2]time.Duration
	}{
		"defaults": {transport.Retry{}, [][2]time.Duration{{0, 500 * ms}, {500 * ms, 1000 * ms}, {1000 * ms, 2000 * ms}}},
		"at the limit": {transport.Retry{MinBackoff: 10 * time.Second, MaxBackoff: 15 * time.Second, MaxAttempts: 5},
			[][2]time.Duration{{0, 10000 * ms}, {7500 * ms, 15000 * ms}, {7500 * ms, 15000 * ms}, {7500 * ms, 15000 * ms}}},
	} {
		for _, status := range []int{429, 503} {
			t.Run(fmt.Sprint(name, " ", status), func(t *testing.T) {
				t.Parallel()
				var seen [][]time.Duration
				for range 40 {
					synctest.Test(t, func(t *testing.T) {
						var at []time.Time
						c := stub(t, transport.Options{Retry: test.retry, Timeout: time.Hour}, func(*http.Request) (*http.Response, error) {
							at = append(at, time.Now())
							return answer(status), nil
						})
						c.Get("https://api.example.com/")
						var waits []time.Duration
						for i := range at[1:] {
							waits = append(waits, at[i+1].Sub(at[i]))
						}
						seen = append(seen, waits)
					})
				}
				for i, r := range test.ranges {
					least, most := r[1], r[0]
					for _, waits := range seen {
						if len(waits) != len(test.ranges) {
							t.Fatalf("%d waits", len(waits))
						}
						least, most = min(least, waits[i]), max(most, waits[i])
					}
					// All 40 are in one half of the range once in 2^39 runs.
					if middle := (r[0] + r[1]) / 2; least < r[0] || most > r[1] || least > middle || most < middle {
						t.Errorf("wait %d: from %s to %s; want from %s to %s", i+1, least, most, r[0], r[1])
					}
				}
			})
		}
	}
}

// A call that is canceled in the wait before a retry ends there, also if silence ended its attempt.
func TestCanceledBetweenAttempts(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]roundTrip{
		"after a response": func(*http.Request) (*http.Response, error) { return answer(503), nil },
		"after an error":   func(*http.Request) (*http.Response, error) { return nil, io.ErrUnexpectedEOF },
		"after silence": func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, context.Cause(r.Context())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				c := stub(t, transport.Options{Timeout: 1000 * time.Hour, AttemptTimeout: time.Second, Retry: transport.Retry{MinBackoff: 900 * time.Hour, MaxBackoff: 900 * time.Hour},
					Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))}, fail)
				ctx, cancel := context.WithCancelCause(t.Context())
				cause := errors.New("had enough")
				time.AfterFunc(2*time.Second, func() { cancel(cause) })
				req, _ := http.NewRequestWithContext(ctx, "GET", "https://api.example.com/", nil)
				start := time.Now()
				if _, err := c.Do(req); !errors.Is(err, cause) || time.Since(start) != 2*time.Second || strings.Count(log.String(), "msg=retry") != 1 {
					t.Errorf("%v after %s\n%s", err, time.Since(start), log.String())
				}
			})
		})
	}
}

func TestTimeouts(t *testing.T) {
	t.Parallel()
	t.Run("headers", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			c := stub(t, transport.Options{Timeout: 5 * time.Second}, func(r *http.Request) (*http.Response, error) {
				<-r.Context().Done()
				return nil, context.Cause(r.Context())
			})
			start := time.Now()
			_, err := c.Get("https://api.example.com/")
			var n net.Error
			if time.Since(start) != 5*time.Second || !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &n) || !n.Timeout() {
				t.Errorf("%v after %s", err, time.Since(start))
			}
		})
	})
	t.Run("caller's own", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			c := stub(t, transport.Options{}, func(r *http.Request) (*http.Response, error) {
				<-r.Context().Done()
				return nil, context.Cause(r.Context())
			})
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			req, _ := http.NewRequestWithContext(ctx, "GET", "https://api.example.com/", nil)
			start := time.Now()
			_, err := c.Do(req)
			var n net.Error
			if time.Since(start) != time.Second || !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &n) || !n.Timeout() {
				t.Errorf("%v after %s", err, time.Since(start))
			}
		})
	})
	t.Run("slow download", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			c := stub(t, transport.Options{}, func(r *http.Request) (*http.Response, error) {
				resp := answer(200)
				resp.Body = io.NopCloser(&drip{ctx: r.Context(), every: 20 * time.Second, left: 30})
				return resp, nil
			})
			resp, err := c.Get("https://api.example.com/")
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(resp.Body); len(b) != 30 || err != nil {
				t.Errorf("%d bytes, %v", len(b), err)
			}
		})
	})
	t.Run("silent download", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			c := stub(t, transport.Options{}, func(r *http.Request) (*http.Response, error) {
				resp := answer(200)
				resp.Body = io.NopCloser(&drip{ctx: r.Context(), every: time.Hour, left: 30})
				return resp, nil
			})
			resp, err := c.Get("https://api.example.com/")
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			_, err = io.ReadAll(resp.Body)
			if time.Since(start) != 30*time.Second || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v after %s", err, time.Since(start))
			}
		})
	})
	// Rejects reads the beginning of the body, which must not change the limits.
	for _, status := range []int{400, 401, 404, 503} {
		t.Run(fmt.Sprint("slow error ", status), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := stub(t, transport.Options{}, func(r *http.Request) (*http.Response, error) {
					resp := answer(status)
					resp.Body = io.NopCloser(io.MultiReader(strings.NewReader("token"), &drip{ctx: r.Context(), every: 20 * time.Second, left: 30}))
					return resp, nil
				})
				start := time.Now()
				resp, err := c.Get("https://api.example.com/")
				if err != nil {
					t.Fatal(err)
				}
				if took := time.Since(start); took > 80*time.Second { // timeout, plus the Read that is under way
					t.Errorf("the caller has the answer after %s", took)
				}
				if b, err := io.ReadAll(resp.Body); len(b) != 35 || err != nil {
					t.Errorf("%d bytes, %v", len(b), err)
				}
			})
		})
		t.Run(fmt.Sprint("silent error ", status), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				attempts := 0
				c := stub(t, transport.Options{Timeout: time.Hour}, func(r *http.Request) (*http.Response, error) {
					attempts++
					resp := answer(status)
					resp.Body = io.NopCloser(&drip{ctx: r.Context(), every: time.Hour, left: 30})
					return resp, nil
				})
				start := time.Now()
				resp, err := c.Get("https://api.example.com/")
				if err != nil {
					t.Fatal(err)
				}
				_, err = io.ReadAll(resp.Body)
				want := map[int]int{503: 4}[status] // retried because of its status
				want = max(want, 1)
				if took := time.Since(start); took < time.Duration(want)*30*time.Second || took > time.Duration(want)*30*time.Second+4*time.Second || attempts != want || !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%v after %s and %d attempts", err, took, attempts)
				}
			})
		})
	}
	t.Run("exchange after a refusal", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			s := auth.New(&onlyOnce{}, nil)
			defer s.Close(t.Context())
			c, err := transport.NewClient(s, &transport.Options{BaseURL: parse(t, "https://api.example.com"), Timeout: 5 * time.Second,
				Wrap: func(http.RoundTripper) http.RoundTripper {
					return roundTrip(func(*http.Request) (*http.Response, error) { return answer(401), nil })
				}})
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			resp, err := c.Get("https://api.example.com/")
			if err != nil || resp.StatusCode != 401 || time.Since(start) != 5*time.Second {
				t.Fatal(resp, err, time.Since(start))
			}
			if b, err := io.ReadAll(resp.Body); string(b) != "body" || err != nil {
				t.Errorf("%q %v", b, err)
			}
		})
	})
	for name, test := range map[string]struct {
		every time.Duration
		took  time.Duration
		ok    bool
	}{"slow upload": {20 * time.Second, 200 * time.Second, true}, "silent upload": {time.Hour, 30 * time.Second, false}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := stub(t, transport.Options{}, func(r *http.Request) (*http.Response, error) {
					done := make(chan error, 1)
					go func() { _, err := io.Copy(io.Discard, r.Body); r.Body.Close(); done <- err }()
					select {
					case err := <-done:
						return answer(200), err
					case <-r.Context().Done():
						return nil, context.Cause(r.Context())
					}
				})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				start := time.Now()
				_, err := c.Post("https://api.example.com/", "text/plain", &drip{ctx: ctx, every: test.every, left: 10})
				if time.Since(start) != test.took || test.ok != (err == nil) || err != nil && !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%v after %s", err, time.Since(start))
				}
			})
		})
	}
}

// Redirects share the timeout of the call that led to them.
func TestTimeoutOverRedirects(t *testing.T) {
	t.Parallel()
	for name, to := range map[string]string{"here": "https://api.example.com/x", "elsewhere": "https://example.org/x"} {
		for _, empty := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", empty: ", empty), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					hops := 0
					c := stub(t, transport.Options{}, func(r *http.Request) (*http.Response, error) {
						if hops++; hops < 5 {
							wait(r.Context(), 25*time.Second)
						}
						resp := answer(http.StatusFound, "Location", to)
						if empty {
							resp.Body = http.NoBody
						}
						if hops == 2 {
							resp.StatusCode = 503 // is retried
						}
						if hops >= 5 {
							resp.StatusCode = 200
						}
						if err := context.Cause(r.Context()); err != nil {
							return nil, err
						}
						return resp, nil
					})
					start := time.Now()
					_, err := c.Get("https://api.example.com/")
					if took := time.Since(start); took != time.Minute || !errors.Is(err, context.DeadlineExceeded) || hops != 3 {
						t.Fatalf("%v after %s and %d attempts", err, took, hops)
					}
					hops = 3
					resp, err := c.Get("https://api.example.com/")
					if err != nil || hops != 5 {
						t.Fatal(err, hops)
					}
					time.Sleep(time.Hour)
					if _, err := c.Transport.RoundTrip(resp.Request); err != nil {
						t.Error("sent again:", err)
					}
				})
			})
		}
	}
}

// onlyOnce issues one token, then never responds.
type onlyOnce struct{ product }

func (o *onlyOnce) Exchange(ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
	if o.made.Load() > 0 {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return o.product.Exchange(ctx, prev)
}

func (o *onlyOnce) Rejects(resp *http.Response, _ []byte) bool { return resp.StatusCode == 401 }

// drip is a body of single bytes, each after a pause.
type drip struct {
	ctx   context.Context
	every time.Duration
	left  int
}

func (d *drip) Read(b []byte) (int, error) {
	if d.left == 0 {
		return 0, io.EOF
	}
	select {
	case <-time.After(d.every):
	case <-d.ctx.Done():
		return 0, context.Cause(d.ctx)
	}
	d.left--
	b[0] = 'x'
	return 1, nil
}

// In an outage there is one retry for ten calls, plus ten in ten seconds.
func TestBudget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var attempts atomic.Int64
		c := stub(t, transport.Options{}, func(*http.Request) (*http.Response, error) {
			attempts.Add(1)
			return answer(500), nil
		})
		const calls = 2000 // in 10 s
		var wg sync.WaitGroup
		for range calls {
			wg.Go(func() {
				if resp, err := c.Get("https://api.example.com/"); err == nil {
					resp.Body.Close()
				}
			})
			time.Sleep(5 * time.Millisecond)
		}
		wg.Wait()
		if n := attempts.Load(); n < calls*105/100 || n > calls*11/10+20 {
			t.Errorf("%d attempts for %d calls", n, calls)
		}
	})
}

// A 429 pauses all calls of the identity.
func TestPause(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int64
		c := stub(t, transport.Options{Limiter: transport.NewLimiter(nil, 0)}, func(*http.Request) (*http.Response, error) {
			if n.Add(1) == 1 {
				return answer(429, "Retry-After", "10"), nil
			}
			return answer(200), nil
		})
		start := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() { c.Get("https://api.example.com/1") })
		synctest.Wait()
		wg.Go(func() {
			if resp, err := c.Get("https://api.example.com/2"); err != nil || resp.StatusCode != 200 || time.Since(start) < 10*time.Second {
				t.Errorf("%v %v after %s", resp, err, time.Since(start))
			}
		})
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, "GET", "https://api.example.com/3", nil)
		if _, err := c.Do(req); !errors.Is(err, auth.ErrRateLimited) || time.Since(start) != 0 {
			t.Errorf("a wait that cannot fit: %v after %s", err, time.Since(start))
		}
		wg.Wait()
	})
}

// A response is returned, not dropped for a retry that cannot get a slot in time.
func TestAnswerIsKeptWhereNoSlotFits(t *testing.T) {
	t.Parallel()
	const deadline = 10 * time.Second
	hour := []auth.Limit{{Requests: 1, Per: time.Hour}}
	for name, test := range map[string]struct {
		limits []auth.Limit
		status int
		after  string // its Retry-After
		pause  string // Retry-After of another call meanwhile
	}{
		"no slot in the window":              {hour, 503, "", ""},
		"no slot for another token":          {hour, 401, "", ""},
		"another's pause":                    {nil, 503, "", "25"},
		"another's pause, own Retry-After":   {nil, 503, "1", "25"},
		"another's pause, refused token":     {nil, 401, "", "25"},
		"own pause, beyond half of the time": {nil, 429, "", ""},
	} {
		for _, by := range []string{"timeout", "ctx"} {
			t.Run(name+", "+by, func(t *testing.T) {
				t.Parallel()
				for range 10 { // the wait is random
					synctest.Test(t, func(t *testing.T) {
						o := transport.Options{Limiter: transport.NewLimiter(test.limits, 0), BaseURL: parse(t, "https://api.example.com")}
						ctx, cancel := context.WithCancel(t.Context())
						if by == "timeout" {
							o.Timeout = deadline
						} else {
							ctx, cancel = context.WithTimeout(ctx, deadline)
						}
						defer cancel()
						o.Retry = transport.Retry{MinBackoff: time.Second}
						if test.status == 429 {
							o.Retry.MinBackoff = 2 * deadline
						}
						s := auth.New(rejecting{new(product)}, nil)
						defer s.Close(t.Context())
						var c *http.Client
						o.Wrap = func(http.RoundTripper) http.RoundTripper {
							return roundTrip(func(r *http.Request) (*http.Response, error) {
								if r.URL.Path == "/other" {
									return answer(429, "Retry-After", test.pause), nil
								}
								if test.pause != "" {
									req, _ := http.NewRequestWithContext(ctx, "GET", "https://api.example.com/other", nil)
									c.Do(req)
								}
								return answer(test.status, "Retry-After", test.after), nil
							})
						}
						c, _ = transport.NewClient(s, &o)
						req, _ := http.NewRequestWithContext(ctx, "GET", "https://api.example.com/", nil)
						resp, err := c.Do(req)
						if err != nil {
							t.Fatal(err)
						}
						if b, err := io.ReadAll(resp.Body); string(b) != "body" || resp.StatusCode != test.status {
							t.Errorf("%d %q %v", resp.StatusCode, b, err)
						}
					})
				}
			})
		}
	}
}

// Without Retry-After a 429 pauses all calls for one random time, after which all continue together.
func TestPauseIsDrawn(t *testing.T) {
	t.Parallel()
	var least, most time.Duration = math.MaxInt64, 0
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			var n atomic.Int64
			var at [3]time.Time
			c := stub(t, transport.Options{Limiter: transport.NewLimiter(nil, 0)}, func(*http.Request) (*http.Response, error) {
				i := n.Add(1) - 1
				if at[i] = time.Now(); i == 0 {
					return answer(429), nil
				}
				return answer(200), nil
			})
			var wg sync.WaitGroup
			for range 2 {
				wg.Go(func() { c.Get("https://api.example.com/") })
				synctest.Wait()
			}
			wg.Wait()
			if n.Load() != 3 || !at[1].Equal(at[2]) {
				t.Errorf("%d attempts: %v", n.Load(), at)
			}
			least, most = min(least, at[1].Sub(at[0])), max(most, at[1].Sub(at[0]))
		})
	}
	if least > 400*time.Millisecond || most > 500*time.Millisecond || most < 100*time.Millisecond {
		t.Errorf("waits from %s to %s, to be drawn from 0 to 500 ms", least, most)
	}
}

func TestMaxConcurrency(t *testing.T) {
	t.Parallel()
	var now, most atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		time.Sleep(time.Millisecond) // real time: the server is working
		now.Add(-1)
	}))
	defer srv.Close()
	c := client(t, new(product), srv.URL, transport.Options{Limiter: transport.NewLimiter(nil, 2)})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 5 {
				resp, err := c.Get(srv.URL)
				if err != nil {
					t.Error(err)
					return
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
	wg.Wait()
	if n := most.Load(); n > 2 {
		t.Errorf("%d at once", n)
	}
}

// A canceled request may still reach the product, so it counts as long as it may be on its way.
func TestGivenUpCountsUntilItHasArrived(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	for written, want := range map[bool]time.Duration{true: 1110 * ms, false: 1115 * ms} {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			var last time.Time
			c := stub(t, transport.Options{Limiter: transport.NewLimiter([]auth.Limit{{Requests: 1, Per: time.Second}}, 0)},
				func(r *http.Request) (*http.Response, error) {
					last = time.Now()
					time.Sleep(10 * ms)
					if written {
						httptrace.ContextClientTrace(r.Context()).WroteRequest(httptrace.WroteRequestInfo{})
					}
					wait(r.Context(), 10*ms)
					return answer(200), context.Cause(r.Context())
				})
			ctx, cancel := context.WithTimeout(t.Context(), 15*ms)
			defer cancel()
			req, _ := http.NewRequestWithContext(ctx, "GET", "https://api.example.com/", nil)
			if _, err := c.Do(req); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			c.Get("https://api.example.com/")
			if took := last.Sub(start).Truncate(ms); took != want {
				t.Errorf("written %v: the next left after %s, want %s", written, took, want)
			}
		})
	}
}

// A token that is dropped while a call waits for its slot is not sent, and the exchange for a new one
// does not wait for the call's own slot.
func TestTokenIsReadAfterTheWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		lim := transport.NewLimiter([]auth.Limit{{Requests: 1, Per: time.Second}}, 0)
		x := transport.NewExchanger(&transport.Options{Limiter: lim, Wrap: func(http.RoundTripper) http.RoundTripper {
			return roundTrip(func(*http.Request) (*http.Response, error) { return answer(200), nil })
		}})
		s := auth.New(&exchanging{}, &auth.Options{Client: x})
		defer s.Close(t.Context())
		var sent []string
		c, err := transport.NewClient(s, &transport.Options{BaseURL: parse(t, "https://api.example.com"), Limiter: lim,
			Wrap: func(http.RoundTripper) http.RoundTripper {
				return roundTrip(func(r *http.Request) (*http.Response, error) {
					sent = append(sent, r.Header.Get("Authorization"))
					return answer(200), nil
				})
			}})
		if err != nil {
			t.Fatal(err)
		}
		tok, err := s.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { _, err := c.Get("https://api.example.com/"); done <- err }()
		synctest.Wait()
		s.Invalidate(tok)
		if err := <-done; err != nil || fmt.Sprint(sent) != "[Bearer T2]" {
			t.Errorf("%v, sent %v", err, sent)
		}
	})
}

// exchanging sends a request for each exchange.
type exchanging struct{ product }

func (e *exchanging) Exchange(ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
	resp, err := ctx.Value(oauth2.HTTPClient).(*http.Client).Get("https://api.example.com/token")
	if err != nil {
		return nil, err
	}
	resp.Body.Close()
	return e.product.Exchange(ctx, prev)
}

// A proxy that refuses the user is asked once, because proxies lock accounts.
func TestProxyThatRefusesAnExchange(t *testing.T) {
	t.Parallel()
	for _, status := range []string{"407 Proxy Authentication Required", "401 Unauthorized"} {
		proxy := serveFaults(t, nil, refuse("HTTP/1.1 "+status+"\r\nContent-Length: 0\r\n\r\n"))
		s := auth.New(&exchanging{}, &auth.Options{Client: transport.NewExchanger(&transport.Options{
			Retry: quick, Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: proxy.addr})})})
		defer s.Close(t.Context())
		if _, err := s.Token(t.Context()); !errors.Is(err, auth.ErrProtocol) || proxy.conns.Load() != 1 {
			t.Errorf("%v; the proxy was asked %d times", err, proxy.conns.Load())
		}
	}
}

// stack is a whole RoundTripper over one that does nothing.
func stack(t testing.TB) (http.RoundTripper, *http.Request) {
	ok := &http.Response{StatusCode: 200, Header: http.Header{}, Body: http.NoBody}
	rt, err := transport.New(auth.New(new(product), nil), &transport.Options{
		BaseURL: parse(t, "https://api.example.com"),
		Wrap: func(http.RoundTripper) http.RoundTripper {
			return roundTrip(func(r *http.Request) (*http.Response, error) {
				if r.Body != nil {
					r.Body.Close()
				}
				return ok, nil
			})
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	req, _ := http.NewRequest("GET", "https://api.example.com/x", nil)
	req.Header.Set("Accept", "application/json")
	return rt, req
}

// A request costs the call, its context (2) and timer (2), the copy of the request, and its header (2). A
// body costs its two layers.
func TestAllocations(t *testing.T) {
	rt, req := stack(t)
	if n := testing.AllocsPerRun(1000, func() { rt.RoundTrip(req) }); n != 8 {
		t.Errorf("GET: %v allocations", n)
	}
	req.Method, req.Body = "POST", io.NopCloser(strings.NewReader("body"))
	req.GetBody = func() (io.ReadCloser, error) { return req.Body, nil }
	if n := testing.AllocsPerRun(1000, func() { rt.RoundTrip(req) }); n != 10 {
		t.Errorf("POST: %v allocations", n)
	}
}

func BenchmarkStack(b *testing.B) {
	rt, req := stack(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := rt.RoundTrip(req); err != nil {
			b.Fatal(err)
		}
	}
}
