package beyondtrusttest

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
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// reply is what a test looks at.
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

func newServer(t *testing.T, o *Options) *Server {
	t.Helper()
	s := NewServer(o)
	t.Cleanup(s.Close)
	return s
}

func newClient(t *testing.T) *http.Client {
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// memory is a listener without a network, for synctest.
type memory struct {
	conns  chan net.Conn
	closed chan struct{}
}

func newMemory() *memory { return &memory{make(chan net.Conn), make(chan struct{})} }

func (m *memory) Accept() (net.Conn, error) {
	select {
	case c := <-m.conns:
		return c, nil
	case <-m.closed:
		return nil, net.ErrClosed
	}
}
func (m *memory) Close() error   { close(m.closed); return nil }
func (m *memory) Addr() net.Addr { return &net.UnixAddr{Name: "memory", Net: "memory"} }

func (m *memory) client(t *testing.T) *http.Client {
	c := newClient(t)
	c.Transport.(*http.Transport).DialContext = func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		m.conns <- theirs
		return ours, nil
	}
	return c
}

func TestWireIsKept(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
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
		{Method: "POST", Path: "/api/a", Query: "x=%20y", Body: []byte("abc"), Status: 401, Header: http.Header{
			"Host": {"h"}, "access_token": {"1", "3"}, "Access_Token": {"2"}, "Content-Length": {"3"}}},
		{Method: "POST", Path: "/api/b", Body: []byte("def"), Status: 401, Header: http.Header{
			"host": {"h"}, "TRANSFER-encoding": {"chunked"}, "Trailer": {"T"}}},
		{Method: "GET", Path: "/api/c", Body: []byte{}, Status: 401, Header: http.Header{
			"Host": {"h"}, "X-Folded": {"one two"}}},
		{Method: "OPTIONS", Path: "*", Body: []byte{}, Status: 404, Header: http.Header{"Host": {"h"}}},
		{Method: "GET", Path: "/api/d", Body: []byte{}, Status: 401, Header: http.Header{
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
		s := newServer(t, nil)
		c := newClient(t)
		c.Transport.(*http.Transport).DisableKeepAlives = !keep
		tok := exchange(t, c, s)
		for range 2 {
			call(t, c, s, tok)
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
	s := newServer(t, nil)
	c := newClient(t)
	tok := exchange(t, c, s)

	var seen []string
	s.Break(func(w http.ResponseWriter, r *http.Request) bool {
		b, _ := io.ReadAll(r.Body)
		seen = append(seen, r.URL.Path+" "+string(b))
		if strings.HasPrefix(r.URL.Path, "/api/config") {
			return false
		}
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(http.StatusBadGateway)
		io.WriteString(w, "<html>")
		return true
	})
	if r := do(t, c, "GET", s.URL+"/api/command", ""); r.status != 502 || r.body != "<html>" {
		t.Errorf("broken: %+v", r)
	}
	item := `{"name":"x"}`
	if r := do(t, c, "POST", s.URL+"/api/config/v1/jump-item", item, "Authorization", "Bearer "+tok, "Content-Type", "application/json"); r.status != 201 {
		t.Errorf("not broken, and its body read: %+v", r)
	}
	if d := cmp.Diff([]string{"/api/command ", "/api/config/v1/jump-item " + item}, seen); d != "" {
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
	if resp, err := c.Post(s.URL+"/api/command", "", strings.NewReader("x")); err == nil {
		t.Errorf("reset: got %s", resp.Status)
	}
	s.Break(func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) })
	if resp, err := c.Post(s.URL+"/api/command", "", strings.NewReader("x")); err == nil {
		t.Errorf("aborted: got %s", resp.Status)
	}
	s.Break(func(w http.ResponseWriter, r *http.Request) bool {
		w.(http.Flusher).Flush()
		return true
	})
	if r := do(t, c, "GET", s.URL+"/api/command", ""); r.status != 200 || r.body != "" {
		t.Errorf("flushed: %+v", r)
	}
	s.Break(nil)
	call(t, c, s, tok)

	var statuses []int
	for _, r := range s.Requests() {
		statuses = append(statuses, r.Status)
	}
	if d := cmp.Diff([]int{200, 502, 201, 0, 0, 200, 200}, statuses); d != "" {
		t.Errorf("recorded statuses (-want +got):\n%s", d)
	}
}

func TestBreakToken(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	c := newClient(t)
	tok := exchange(t, c, s)
	s.BreakToken(func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, "https://example.com/", http.StatusTemporaryRedirect)
		return true
	})
	call(t, c, s, tok)
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if r := requestToken(t, c, s, basic(s)); r.status != 307 {
		t.Errorf("broken token endpoint: %+v", r)
	}
	s.BreakToken(nil)
	exchange(t, c, s)
	if d := cmp.Diff(Stats{Exchanges: 2, TokenRequests: 3, APICalls: 1, ReusedConnections: 1}, s.Stats()); d != "" {
		t.Errorf("stats (-want +got):\n%s", d)
	}
}

func TestDelay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newMemory()
		s := newServer(t, &Options{Listener: l})
		c := l.client(t)
		s.Delay(200 * time.Millisecond)
		start := time.Now()
		tok := exchange(t, c, s)
		if d := time.Since(start); d != 200*time.Millisecond {
			t.Errorf("the exchange took %s", d)
		}
		start = time.Now()
		call(t, c, s, tok)
		if d := time.Since(start); d != 0 {
			t.Errorf("the API call took %s", d)
		}

		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, "POST", s.URL+tokenPath, strings.NewReader("grant_type=client_credentials"))
		req.Header.Set("Authorization", basic(s))
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if resp, err := c.Do(req); err == nil {
			t.Errorf("the impatient client got %s", resp.Status)
		}
		synctest.Wait()
		if n := s.Stats().Exchanges; n != 2 {
			t.Errorf("%d exchanges, want the one that nobody got too", n)
		}
		start = time.Now()
		s.Close()
		if d := time.Since(start); d != 0 {
			t.Errorf("the delay held Close up for %s", d)
		}
	})
}

func TestThrottle(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	c := newClient(t)
	tok := exchange(t, c, s)
	s.Throttle(2, "7")
	if r := requestToken(t, c, s, basic(s)); r.status != 429 || r.header.Get("Retry-After") != "7" {
		t.Errorf("token request: %+v", r)
	}
	if r := get(t, c, s, "/api/command", tok); r.status != 429 || r.header.Get("Retry-After") != "7" {
		t.Errorf("API call: %+v", r)
	}
	call(t, c, s, tok)
	s.Throttle(1, "")
	if r := get(t, c, s, "/api/command", tok); r.status != 429 || len(r.header["Retry-After"]) != 0 {
		t.Errorf("without Retry-After: %+v", r)
	}
	s.Throttle(5, "")
	s.Throttle(0, "")
	call(t, c, s, tok)
	if n := s.Stats().Throttled; n != 3 {
		t.Errorf("%d throttled, want 3", n)
	}
}

func TestBounds(t *testing.T) {
	t.Parallel()
	s := newServer(t, &Options{PerSecond: -1})
	c := newClient(t)
	if r := do(t, c, "POST", s.URL+"/api/x", strings.Repeat("x", maxBody)); r.status != 401 {
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
	s := newServer(t, nil)
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
	s := NewServer(nil)
	entered, left := make(chan struct{}), false
	s.Break(func(w http.ResponseWriter, r *http.Request) bool {
		close(entered)
		<-r.Context().Done()
		left = true
		return true
	})
	failed := make(chan error)
	go func() {
		_, err := http.Get(s.URL + "/api/command")
		failed <- err
	}()
	<-entered
	s.Close()
	if !left {
		t.Error("Close did not wait for the handler")
	}
	if err := <-failed; err == nil {
		t.Error("the request that hung got an answer")
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest("GET", "/api/command", nil))
	if w.Code != 503 {
		t.Errorf("a closed server answers %d", w.Code)
	}
	NewServer(nil).Close() // at once
}

func TestMounted(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	outer := httptest.NewTLSServer(s)
	defer outer.Close()
	r := do(t, outer.Client(), "POST", outer.URL+tokenPath, "grant_type=client_credentials",
		"Authorization", basic(s), "Content-Type", "application/x-www-form-urlencoded")
	if r.status != 200 {
		t.Fatalf("%+v", r)
	}
	got := s.Requests()[0]
	if got.Wire != nil || got.Header.Get("Authorization") != basic(s) || got.Header.Get("Host") != outer.Listener.Addr().String() || len(s.Raw()) != 0 {
		t.Errorf("recorded %+v", got)
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
	s := newServer(t, &Options{Listener: tls.NewListener(l, &tls.Config{Certificates: outer.TLS.Certificates})})
	c := outer.Client()
	c.Get("https://" + l.Addr().String() + "/api/command")
	if got := s.Requests(); len(got) != 1 || !bytes.HasPrefix(s.Raw(), []byte("GET /api/command HTTP/1.1\r\n")) {
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
