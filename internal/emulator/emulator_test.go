package emulator

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/itsmauth/itsmauth/internal/emulator/memnet"
)

// A reply is the part of a response that tests check.
type reply struct {
	status int
	header http.Header
	body   string
}

func do(t *testing.T, c *http.Client, method, url, body string, header ...string) reply {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, string(b)}
}

// start serves a product that counts requests to /token, echoes requests under /api/, and responds with
// 404 to all others.
func start(t *testing.T, l net.Listener) *Front {
	t.Helper()
	var mu sync.Mutex
	var stats Stats
	f := Start(l, Product{
		Tokens: []string{"/token"}, API: "/api/", Mutex: &mu, Stats: &stats,
		Handler: func(w *Response, r *http.Request) {
			token := r.URL.Path == "/token"
			switch {
			case w.Throttled():
				w.WriteHeader(http.StatusTooManyRequests)
				return
			case token:
				mu.Lock()
				stats.Exchanges++
				mu.Unlock()
			case !strings.HasPrefix(r.URL.Path, "/api/"):
				w.WriteHeader(http.StatusNotFound)
				return
			}
			body, err := io.ReadAll(r.Body)
			if err != nil || !bytes.Equal(body, w.Request.Body) {
				t.Errorf("the product read %q, error %v, of %q", body, err, w.Request.Body)
			}
			fmt.Fprintf(w, "%s got %d bytes", r.URL.Path, len(body))
		},
	})
	t.Cleanup(f.Close)
	return f
}

func newClient(t *testing.T) *http.Client {
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func call(t *testing.T, c *http.Client, f *Front) {
	t.Helper()
	if r := do(t, c, "GET", f.URL+"/api/x", ""); r.status != 200 {
		t.Errorf("API call: %+v", r)
	}
}

func exchange(t *testing.T, c *http.Client, f *Front) {
	t.Helper()
	if r := do(t, c, "POST", f.URL+"/token", ""); r.status != 200 {
		t.Errorf("exchange: %+v", r)
	}
}

func TestWireIsKept(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	c, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	heads := []string{
		"POST /api/a?x=%20y HTTP/1.1\r\nHost: h\r\naccess_token: 1\r\nAccess_Token:2\r\naccess_token:  3 \r\nContent-Length: 3\r\n\r\n",
		"POST /api/b HTTP/1.1\r\nhost: h\r\nTRANSFER-encoding: chunked\r\nTrailer: T\r\n\r\n",
		"GET /api/c HTTP/1.1\r\nHost: h\r\nX-Folded: one\r\n\t two\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
		"GET /api/d HTTP/1.1\r\nHost: h\r\nx-last: 1\r\nConnection: close\r\n\r\n",
	}
	sent := heads[0] + "abc" + heads[1] + "2\r\nde\r\n1\r\nf\r\n0\r\nT: x\r\n\r\n" + heads[2] + heads[3] + heads[4]
	if _, err := io.WriteString(c, sent); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Fatal(err)
	}
	want := []Request{
		{Method: "POST", Path: "/api/a", Query: "x=%20y", Body: []byte("abc"), Status: 200, Header: http.Header{
			"Host": {"h"}, "access_token": {"1", "3"}, "Access_Token": {"2"}, "Content-Length": {"3"}}},
		{Method: "POST", Path: "/api/b", Body: []byte("def"), Status: 200, Header: http.Header{
			"host": {"h"}, "TRANSFER-encoding": {"chunked"}, "Trailer": {"T"}}},
		{Method: "GET", Path: "/api/c", Body: []byte{}, Status: 200, Header: http.Header{
			"Host": {"h"}, "X-Folded": {"one two"}}},
		{Method: "OPTIONS", Path: "*", Body: []byte{}, Status: 404, Header: http.Header{"Host": {"h"}}},
		{Method: "GET", Path: "/api/d", Body: []byte{}, Status: 200, Header: http.Header{
			"Host": {"h"}, "x-last": {"1"}, "Connection": {"close"}}},
	}
	for i := range want {
		want[i].Wire = []byte(heads[i])
	}
	got := s.Requests()
	for i := range got {
		if since := time.Since(got[i].Time); since < 0 || since > time.Minute {
			t.Errorf("request %d came at %s", i, got[i].Time)
		}
		got[i].Time = time.Time{}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("requests (-want +got):\n%s", d)
	}
	if raw := string(s.Raw()); raw != sent {
		t.Errorf("raw is %q, want %q", raw, sent)
	}
	if st := s.Stats(); st.APICalls != 4 || st.ReusedConnections != 3 {
		t.Errorf("stats are %+v, want 4 API calls, 3 on a reused connection", st)
	}
}

func TestReusedConnections(t *testing.T) {
	t.Parallel()
	for _, keep := range []bool{true, false} {
		s := start(t, nil)
		c := newClient(t)
		c.Transport.(*http.Transport).DisableKeepAlives = !keep
		exchange(t, c, s)
		for range 2 {
			call(t, c, s)
		}
		want := Stats{Exchanges: 1, TokenRequests: 1, APICalls: 2}
		if keep {
			want.ReusedConnections = 2
		}
		if d := cmp.Diff(want, s.Stats()); d != "" {
			t.Errorf("keep-alive %t: stats (-want +got):\n%s", keep, d)
		}
	}
}

func TestBreak(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	c := newClient(t)

	var seen []string
	s.Break(func(w http.ResponseWriter, r *http.Request) bool {
		b, _ := io.ReadAll(r.Body)
		seen = append(seen, r.URL.Path+" "+string(b))
		if r.URL.Path == "/token" {
			return false
		}
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(http.StatusBadGateway)
		io.WriteString(w, "<html>")
		return true
	})
	if r := do(t, c, "GET", s.URL+"/api/x", ""); r.status != 502 || r.body != "<html>" || r.header.Get("Content-Type") != "text/html" {
		t.Errorf("broken: %+v", r)
	}
	if r := do(t, c, "POST", s.URL+"/token", "abc"); r.status != 200 || r.body != "/token got 3 bytes" {
		t.Errorf("not broken, and its body read: %+v", r)
	}
	if d := cmp.Diff([]string{"/api/x ", "/token abc"}, seen); d != "" {
		t.Errorf("hook saw (-want +got):\n%s", d)
	}

	s.Break(func(w http.ResponseWriter, r *http.Request) bool {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return true
		}
		defer conn.Close()
		if tcp, ok := conn.(*net.TCPConn); ok {
			tcp.SetLinger(0)
		} else {
			t.Errorf("hijacked a %T, which cannot be reset", conn)
		}
		return true
	})
	if resp, err := c.Post(s.URL+"/api/x", "", strings.NewReader("x")); err == nil {
		t.Errorf("reset: got %s", resp.Status)
	}
	s.Break(func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) })
	if resp, err := c.Post(s.URL+"/api/x", "", strings.NewReader("x")); err == nil {
		t.Errorf("aborted: got %s", resp.Status)
	}
	s.Break(func(w http.ResponseWriter, r *http.Request) bool {
		w.WriteHeader(http.StatusEarlyHints)
		w.(http.Flusher).Flush()
		return true
	})
	if r := do(t, c, "GET", s.URL+"/api/x", ""); r.status != 200 || r.body != "" {
		t.Errorf("flushed: %+v", r)
	}
	s.Break(nil)
	call(t, c, s)

	var statuses []int
	for _, r := range s.Requests() {
		statuses = append(statuses, r.Status)
	}
	if d := cmp.Diff([]int{502, 200, 0, 0, 200, 200}, statuses); d != "" {
		t.Errorf("recorded statuses (-want +got):\n%s", d)
	}
}

func TestBreakToken(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	c := newClient(t)
	exchange(t, c, s)
	s.BreakToken(func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, "https://example.com/", http.StatusTemporaryRedirect)
		return true
	})
	call(t, c, s)
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	for _, path := range []string{"/token", "/token/"} {
		if r := do(t, c, "POST", s.URL+path, ""); r.status != 307 {
			t.Errorf("broken token endpoint %s: %+v", path, r)
		}
	}
	s.BreakToken(nil)
	exchange(t, c, s)
	if d := cmp.Diff(Stats{Exchanges: 2, TokenRequests: 4, APICalls: 1, ReusedConnections: 1}, s.Stats()); d != "" {
		t.Errorf("stats (-want +got):\n%s", d)
	}
}

func TestDelay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := memnet.Listen()
		s := start(t, l)
		c := l.Client()
		s.Delay(200 * time.Millisecond)
		began := time.Now()
		exchange(t, c, s)
		if d := time.Since(began); d != 200*time.Millisecond {
			t.Errorf("the exchange took %s", d)
		}
		s.BreakToken(func(w http.ResponseWriter, _ *http.Request) bool {
			io.WriteString(w, "<html>")
			w.(http.Flusher).Flush()
			time.Sleep(time.Second)
			return true
		})
		began = time.Now()
		resp, err := c.Post(s.URL+"/token", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d != 200*time.Millisecond {
			t.Errorf("the hook's answer began after %s", d)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		s.BreakToken(nil)
		began = time.Now()
		call(t, c, s)
		if d := time.Since(began); d != 0 {
			t.Errorf("the API call took %s", d)
		}

		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, "POST", s.URL+"/token", nil)
		if resp, err := c.Do(req); err == nil {
			t.Errorf("the impatient client got %s", resp.Status)
		}
		synctest.Wait()
		if n := s.Stats().Exchanges; n != 2 {
			t.Errorf("%d exchanges, want the one that nobody got too", n)
		}
		began = time.Now()
		s.Close()
		if d := time.Since(began); d != 0 {
			t.Errorf("the delay held Close up for %s", d)
		}
	})
}

func TestThrottle(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	c := newClient(t)
	s.Throttle(2, "7")
	if r := do(t, c, "GET", s.URL+"/elsewhere", ""); r.status != 404 {
		t.Errorf("neither a token request nor an API call: %+v", r)
	}
	for _, path := range []string{"/token", "/api/x"} {
		if r := do(t, c, "POST", s.URL+path, ""); r.status != 429 || r.header.Get("Retry-After") != "7" {
			t.Errorf("%s: %+v", path, r)
		}
	}
	call(t, c, s)
	s.Throttle(1, "")
	if r := do(t, c, "GET", s.URL+"/api/x", ""); r.status != 429 || len(r.header["Retry-After"]) != 0 {
		t.Errorf("without Retry-After: %+v", r)
	}
	s.Throttle(5, "")
	s.Throttle(0, "")
	call(t, c, s)
	if n := s.Stats().Throttled; n != 3 {
		t.Errorf("%d throttled, want 3", n)
	}
}

func TestBounds(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	c := newClient(t)
	if r := do(t, c, "POST", s.URL+"/api/x", strings.Repeat("x", maxBody)); r.status != 200 {
		t.Errorf("1 MiB got %d", r.status)
	}
	s.Break(func(w http.ResponseWriter, r *http.Request) bool {
		n, err := io.Copy(io.Discard, r.Body)
		if n != 3*maxBody || err != nil {
			t.Errorf("the hook read %d bytes, error %v", n, err)
		}
		return false
	})
	if r := do(t, c, "POST", s.URL+"/api/x", strings.Repeat("x", 3*maxBody)); r.status != 413 {
		t.Errorf("3 MiB got %d", r.status)
	}
	s.Break(nil)
	if got := s.Requests(); len(got) != 2 || len(got[1].Body) != maxBody || !bytes.HasPrefix(got[1].Wire, []byte("POST /api/x ")) {
		t.Errorf("%d requests recorded, or not the first MiB of the second", len(got))
	}
	if n := len(s.Raw()); n != maxRaw {
		t.Errorf("%d raw bytes, want %d", n, maxRaw)
	}
	for i := range maxRequests {
		do(t, c, "GET", fmt.Sprint(s.URL, "/", i), "")
	}
	if got := s.Requests(); len(got) != maxRequests || got[0].Path != "/0" || got[maxRequests-1].Path != "/999" {
		t.Errorf("%d requests recorded, or not the last ones", len(got))
	}
}

func TestBodyBreaksOff(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	c, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "POST /api/x HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc")
	c.(*net.TCPConn).CloseWrite()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got := s.Requests(); resp.StatusCode != 400 || len(got) != 1 || string(got[0].Body) != "abc" {
		t.Errorf("%s, recorded %+v", resp.Status, got)
	}
}

func TestClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := memnet.Listen()
		s := start(t, l)
		left := false
		s.Break(func(_ http.ResponseWriter, r *http.Request) bool {
			<-r.Context().Done() // hangs until Close ends it
			time.Sleep(time.Second)
			left = true
			return true
		})
		failed := make(chan error)
		go func() {
			_, err := l.Client().Get(s.URL + "/api/x")
			failed <- err
		}()
		synctest.Wait()
		s.Close()
		if !left {
			t.Error("Close did not wait for the handler")
		}
		if err := <-failed; err == nil {
			t.Error("the request that hung got an answer")
		}
		s.Close()
		w := httptest.NewRecorder()
		if s.ServeHTTP(w, httptest.NewRequest("GET", "/api/x", nil)); w.Code != 503 {
			t.Errorf("a closed server answers %d", w.Code)
		}
	})
	start(t, nil).Close() // at once
}

func TestMounted(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	outer := httptest.NewTLSServer(s)
	defer outer.Close()
	c := outer.Client()
	for range 2 {
		if r := do(t, c, "POST", outer.URL+"/api/x", "abc", "x_y", "z"); r.status != 200 {
			t.Fatalf("%+v", r)
		}
	}
	got := s.Requests()[0]
	if got.Wire != nil || len(s.Raw()) != 0 || string(got.Body) != "abc" ||
		!cmp.Equal(got.Header["X_y"], []string{"z"}) || !cmp.Equal(got.Header["Host"], []string{outer.Listener.Addr().String()}) {
		t.Errorf("recorded %+v", got)
	}
	if d := cmp.Diff(Stats{APICalls: 2}, s.Stats()); d != "" {
		t.Errorf("stats (-want +got):\n%s", d)
	}
}

func TestTLSListener(t *testing.T) {
	t.Parallel()
	outer := httptest.NewTLSServer(nil) // for its certificate
	defer outer.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, tls.NewListener(l, &tls.Config{Certificates: outer.TLS.Certificates}))
	outer.Client().Get("https://" + l.Addr().String() + "/api/x")
	if got := s.Requests(); len(got) != 1 || !bytes.HasPrefix(s.Raw(), []byte("GET /api/x HTTP/1.1\r\n")) {
		t.Errorf("recorded %+v", got)
	}
}

func FuzzParseHead(f *testing.F) {
	f.Add("GET / HTTP/1.1\r\nHost: h\r\naccess_token: a:b \r\nAccess_Token:\r\n\r\nbody: x")
	f.Add("GET / HTTP/1.1\nHost: h\nX: one\n  two\n\n")
	f.Add("GET / HTTP/1.1\r\n\r\n")
	f.Add("GET / HTTP/1.1\r\nA : b\r\n : c\r\n\tfolded\r\n")
	f.Fuzz(func(t *testing.T, in string) {
		n := headLen([]byte(in))
		got := make(http.Header)
		for name, values := range parseHead([]byte(in[:n])) {
			got[http.CanonicalHeaderKey(name)] = append(got[http.CanonicalHeaderKey(name)], values...)
		}
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(in)))
		if err != nil {
			return
		}
		for name, values := range r.Header {
			if len(got[name]) != len(values) {
				t.Fatalf("%q: %d values, net/http has %q", name, len(got[name]), values)
			}
			seen := make(map[string]int)
			for i := range values {
				seen[values[i]]++
				seen[got[name][i]]--
			}
			for v, n := range seen {
				if n != 0 {
					t.Errorf("%q: value %q differs, got %q", name, v, got[name])
				}
			}
		}
	})
}
