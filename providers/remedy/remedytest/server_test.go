package remedytest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func start(t *testing.T, o *Options) *Server {
	t.Helper()
	s := NewServer(o)
	t.Cleanup(s.Close)
	return s
}

// An answered request, whole.
type reply struct {
	status int
	header http.Header
	body   string
}

func (r reply) json(t *testing.T) (v map[string]any) {
	t.Helper()
	if err := json.Unmarshal([]byte(r.body), &v); err != nil {
		t.Fatalf("%d %q: %v", r.status, r.body, err)
	}
	return v
}

// client keeps connections and follows no redirect.
func client() *http.Client {
	return &http.Client{
		Transport:     &http.Transport{},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func do(t *testing.T, c *http.Client, method, to, body string, header ...string) reply {
	t.Helper()
	req, err := http.NewRequest(method, to, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header[header[i]] = append(req.Header[header[i]], header[i+1])
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

func post(t *testing.T, to string, f url.Values, header ...string) reply {
	t.Helper()
	return do(t, http.DefaultClient, "POST", to, f.Encode(),
		append([]string{"Content-Type", "application/x-www-form-urlencoded"}, header...)...)
}

// with is a copy of f where each pair of name and value replaces or, if the value is "", removes.
func with(f url.Values, pairs ...string) url.Values {
	out := url.Values{}
	for k, v := range f {
		out[k] = v
	}
	for i := 0; i < len(pairs); i += 2 {
		if out.Set(pairs[i], pairs[i+1]); pairs[i+1] == "" {
			out.Del(pairs[i])
		}
	}
	return out
}

func api(t *testing.T, s *Server, token string) reply {
	t.Helper()
	return do(t, http.DefaultClient, "GET", s.URL+"/api/arsys/v1/entry/HPD:IncidentInterface", "", "Authorization", "Bearer "+token)
}

const refused623 = `[{"messageType":"ERROR","messageText":"Authentication failed","messageNumber":623,"messageAppendedText":"Allen+/=\u0026%"}]`

func TestKilledTokens(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		kill             func(s *Server, access string)
		access, refresh_ int
	}{
		"nothing":       {func(*Server, string) {}, 200, 200},
		"Revoke":        {func(s *Server, access string) { s.Revoke(access) }, 401, 200},
		"RevokeAll":     {func(s *Server, _ string) { s.RevokeAll() }, 401, 200},
		"Expire":        {func(s *Server, _ string) { s.Expire() }, 401, 200},
		"RevokeRefresh": {func(s *Server, _ string) { s.RevokeRefresh() }, 200, 400},
		"SetSecret":     {func(s *Server, _ string) { s.SetSecret("another") }, 200, 401},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t, nil)
			access, refreshed := login(t, s)
			tt.kill(s, access)
			got := api(t, s, access)
			if got.status != tt.access {
				t.Errorf("API call: %d, want %d", got.status, tt.access)
			}
			if got.status == 401 && got.body != refused623 {
				t.Errorf("refused with %s", got.body)
			}
			if got := s.Stats().Rejected; (got == 1) != (tt.access == 401) {
				t.Errorf("%d rejected", got)
			}
			if got := refresh(t, s, refreshed); got.status != tt.refresh_ {
				t.Errorf("refresh: %d, want %d: %s", got.status, tt.refresh_, got.body)
			}
		})
	}
}

func TestThrottle(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	access, refreshed := login(t, s)
	s.Throttle(2, "7")
	for _, got := range []reply{api(t, s, access), refresh(t, s, refreshed)} {
		if got.status != 429 || got.header.Get("Retry-After") != "7" {
			t.Errorf("%d, Retry-After %q", got.status, got.header.Get("Retry-After"))
		}
	}
	if got := api(t, s, access); got.status != 200 {
		t.Errorf("the third is answered with %d", got.status)
	}
	s.Throttle(1, "")
	if got := api(t, s, access); got.status != 429 || got.header.Values("Retry-After") != nil {
		t.Errorf("%d, Retry-After %q", got.status, got.header.Values("Retry-After"))
	}
	if got := refresh(t, s, refreshed); got.status != 200 {
		t.Errorf("a throttled refresh spent the token: %s", got.body)
	}
}

func TestBreak(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	access, refreshed := login(t, s)
	var seen string
	html := func(w http.ResponseWriter, r *http.Request) bool {
		b, _ := io.ReadAll(r.Body)
		seen = string(b)
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, "<html>log in")
		return true
	}
	s.BreakToken(html)
	if got := refresh(t, s, refreshed); got.status != 200 || got.body != "<html>log in" {
		t.Errorf("%d %s", got.status, got.body)
	}
	if !strings.HasPrefix(seen, "client_id=itsm-sync%2B%2F%3D%26%25&") {
		t.Errorf("Break read %q", seen)
	}
	if got := api(t, s, access); !strings.HasPrefix(got.body, "{") {
		t.Errorf("BreakToken broke an API call: %s", got.body)
	}
	s.BreakToken(nil)

	s.Break(func(w http.ResponseWriter, r *http.Request) bool {
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
		}
		c.Close()
		return true
	})
	if _, err := http.Get(s.SSOURL + "/oauth2/jwks"); err == nil {
		t.Error("a hijacked connection still answered")
	}
	s.Break(nil)
	if got := refresh(t, s, refreshed); got.status != 200 {
		t.Errorf("broken requests reached the product: %s", got.body)
	}
	all := s.Requests()
	if got := all[len(all)-2]; got.Path != "/rsso/oauth2/jwks" || got.Status != 0 {
		t.Errorf("the hijacked request is recorded as %s with %d", got.Path, got.Status)
	}
}

func TestClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
		s := NewServer(&Options{Listener: p})
		left := false
		s.Break(func(_ http.ResponseWriter, r *http.Request) bool {
			<-r.Context().Done() // hangs until Close ends it
			time.Sleep(time.Second)
			left = true
			return true
		})
		failed := make(chan error)
		go func() {
			_, err := p.client().Get(s.URL)
			failed <- err
		}()
		synctest.Wait()
		s.Close()
		if !left {
			t.Error("Close did not wait for the handler")
		}
		if err := <-failed; err == nil {
			t.Error("a request outlived Close")
		}
		s.Close()
		w := httptest.NewRecorder()
		if s.ServeHTTP(w, httptest.NewRequest("GET", "/", nil)); w.Code != 503 {
			t.Errorf("a closed server answers %d", w.Code)
		}
	})
}

func TestRecords(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	var raw string
	for i, body := range []string{"5\r\nfirst\r\n0\r\n\r\n", "6\r\nsecond\r\n0\r\n\r\n"} {
		req := fmt.Sprintf("POST /api/arsys/v1/entry/X?n=%[1]d HTTP/1.1\r\nhOsT: a\r\naccess_token: 1\r\nAccess_token:2\r\naccess_token:  3 \r\nn: %[1]d\r\ntransfer-encoding: chunked\r\n\r\n%[2]s", i, body)
		raw += req
		if _, err := io.WriteString(conn, req); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
	}
	if got := string(s.Raw()); got != raw {
		t.Errorf("raw: %q", got)
	}
	header := func(n string) http.Header {
		return http.Header{"hOsT": {"a"}, "access_token": {"1", "3"}, "Access_token": {"2"}, "n": {n}, "transfer-encoding": {"chunked"}}
	}
	want := []Request{
		{Method: "POST", Path: "/api/arsys/v1/entry/X", Query: "n=0", Header: header("0"), Body: []byte("first"), Status: 401},
		{Method: "POST", Path: "/api/arsys/v1/entry/X", Query: "n=1", Header: header("1"), Body: []byte("second"), Status: 401},
	}
	got := s.Requests()
	for i := range got {
		if time.Since(got[i].Time) > time.Minute {
			t.Errorf("request %d came at %s", i, got[i].Time)
		}
		got[i].Time = time.Time{}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(Stats{APICalls: 2, Rejected: 2, ReusedConnections: 1}, s.Stats()); d != "" {
		t.Error(d)
	}
}

func TestRecordsAreBounded(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	h := httptest.NewServer(s) // mounted elsewhere: canonical names, nothing raw
	defer h.Close()
	for i := range maxRequests + 1 {
		do(t, h.Client(), "GET", fmt.Sprintf("%s/none?%d", h.URL, i), "", "x_y", "z")
	}
	got := s.Requests()
	if len(got) != maxRequests || got[0].Query != "1" || got[0].Status != 404 {
		t.Errorf("%d requests, the first %+v", len(got), got[0])
	}
	if h := got[0].Header; h["X_y"] == nil || h["Host"] == nil {
		t.Errorf("header %v", h)
	}
	big := strings.Repeat("x", maxBody)
	if got := do(t, http.DefaultClient, "POST", s.URL, big+"x"); got.status != 413 {
		t.Errorf("a body over the limit is answered with %d", got.status)
	}
	do(t, http.DefaultClient, "POST", s.URL, big)
	if raw := s.Raw(); len(raw) != maxRaw || !bytes.HasSuffix(raw, []byte("xxx")) {
		t.Errorf("%d raw bytes", len(raw))
	}
}

// pipes is a listener in memory, so that a Server works within a synctest bubble.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 80} }

func (p *pipes) client() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			near, far := net.Pipe()
			p.conns <- far
			return near, nil
		},
	}}
}

func TestTime(t *testing.T) {
	t.Parallel()
	key() // made outside, as it takes no time inside
	const ms = time.Millisecond
	for _, tt := range []struct {
		name             string
		o                Options
		code, access, re time.Duration
		ok               bool
	}{
		{"in time", Options{}, 180*time.Second - ms, time.Hour - ms, 1440*time.Hour - ms, true},
		{"too late", Options{}, 180 * time.Second, time.Hour, 1440 * time.Hour, false},
		{"in time by options", Options{TokenLifetime: 3 * time.Second, RefreshLifetime: 5 * time.Second}, 0, 3*time.Second - ms, 5*time.Second - ms, true},
		{"too late by options", Options{TokenLifetime: 3 * time.Second, RefreshLifetime: 5 * time.Second}, time.Hour, 3 * time.Second, 5 * time.Second, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
				tt.o.Listener = p
				s := NewServer(&tt.o)
				defer s.Close()
				c := p.client()
				form := func(f url.Values) reply {
					return do(t, c, "POST", s.SSOURL+"/oauth2/token", f.Encode(), "Content-Type", "application/x-www-form-urlencoded")
				}
				ok := func(what string, got reply) {
					t.Helper()
					if (got.status == 200) != tt.ok {
						t.Errorf("%s: %d %s", what, got.status, got.body)
					}
				}
				fresh := redeemForm(consented(t, s, nil))
				late := redeemForm(consented(t, s, nil))
				form(fresh).json(t)
				time.Sleep(tt.code)
				ok("code", form(late))

				tok := form(redeemForm(consented(t, s, nil))).json(t)
				time.Sleep(tt.access)
				ok("access token", do(t, c, "GET", s.URL+"/api/arsys/v1/entry/HPD:IncidentInterface", "", "Authorization", "Bearer "+tok["access_token"].(string)))
				time.Sleep(tt.re - tt.access)
				ok("refresh token", form(refreshForm(tok["refresh_token"].(string))))
				if n := s.Stats().Reuses; n != 0 {
					t.Errorf("%d reuses", n)
				}
			})
		})
	}
}

func TestDelay(t *testing.T) {
	t.Parallel()
	key()
	synctest.Test(t, func(t *testing.T) {
		p := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
		s := NewServer(&Options{Listener: p})
		defer s.Close()
		s.Delay(200 * time.Millisecond)
		c := p.client()
		first := s.MintRefresh()
		send := func(ctx context.Context, to string, f url.Values) (reply, error) {
			req, err := http.NewRequestWithContext(ctx, "POST", s.URL+to, strings.NewReader(f.Encode()))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			resp, err := c.Do(req)
			if err != nil {
				return reply{}, err
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			return reply{resp.StatusCode, resp.Header, string(b)}, err
		}
		for _, to := range []string{"/rsso/oauth2/token", "/api/jwt/login"} {
			began := time.Now()
			if _, err := send(t.Context(), to, url.Values{}); err != nil {
				t.Error(err)
			}
			if took := time.Since(began); took != 200*time.Millisecond {
				t.Errorf("%s took %s", to, took)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := send(ctx, "/rsso/oauth2/token", refreshForm(first)); err == nil {
			t.Error("no delay")
		}
		got, err := send(t.Context(), "/rsso/oauth2/token", refreshForm(first))
		if err != nil || got.status != 400 || s.Stats().Reuses != 1 {
			t.Errorf("a token spent in vain: %v %+v %+v", err, got, s.Stats())
		}
	})
}

func TestConcurrent(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	access, refreshed := login(t, s)
	var g sync.WaitGroup
	var mu sync.Mutex
	statuses := map[int]int{}
	for range 20 {
		g.Go(func() {
			got := refresh(t, s, refreshed)
			mu.Lock()
			statuses[got.status]++
			mu.Unlock()
		})
		g.Go(func() { api(t, s, access); s.Requests(); s.Raw(); s.Throttle(0, ""); s.Delay(0) })
	}
	g.Wait()
	if statuses[200] != 1 || statuses[400] != 19 {
		t.Errorf("a refresh token was spent more than once: %v", statuses)
	}
	if got := s.Stats(); got.Rotations != 1 || got.Reuses != 19 {
		t.Errorf("%+v", got)
	}
}

func FuzzSpelled(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nhost: a\r\naccess_token: b\r\n\r\nbody"))
	f.Add([]byte("\r\n\r\n"))
	f.Add([]byte("a:b\r\n:\r\n\r\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		h := spelled(raw)
		if (h != nil) != bytes.Contains(raw, []byte("\r\n\r\n")) {
			t.Fatalf("%q gave %v", raw, h)
		}
		for name, values := range h {
			if !bytes.Contains(raw, []byte(name+":")) {
				t.Errorf("name %q is not in %q", name, raw)
			}
			for _, v := range values {
				if !bytes.Contains(raw, []byte(v)) {
					t.Errorf("value %q is not in %q", v, raw)
				}
			}
		}
	})
}
