package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

// A visitor keeps cookies, and follows redirects.
type visitor struct {
	*testing.T
	*http.Client
}

func newVisitor(t *testing.T) visitor {
	jar, _ := cookiejar.New(nil)
	return visitor{t, &http.Client{Jar: jar}}
}

func (v visitor) get(address string, cookies ...*http.Cookie) (resp *http.Response, body string) {
	v.Helper()
	req, err := http.NewRequest("GET", address, nil)
	if err != nil {
		v.Fatal(err)
	}
	for _, c := range cookies {
		req.AddCookie(c)
	}
	return v.do(req)
}

func (v visitor) post(address string, form url.Values) (resp *http.Response, body string) {
	v.Helper()
	req, err := http.NewRequest("POST", address, strings.NewReader(form.Encode()))
	if err != nil {
		v.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return v.do(req)
}

func (v visitor) do(req *http.Request) (resp *http.Response, body string) {
	v.Helper()
	resp, err := v.Do(req)
	if err != nil {
		v.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		v.Fatal(err)
	}
	_, body, _ = strings.Cut(string(b), "<main>")
	return resp, body
}

// serve runs serve in this process and returns the address that it prints.
func (s *server) serve() (address string) {
	s.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(s.Context()))
	out, in := io.Pipe()
	done := make(chan int, 1)
	go func() {
		done <- run(ctx, []string{"--config", s.yaml, "serve"}, nil, in, io.Discard)
		in.Close()
	}()
	s.Cleanup(func() {
		stop()
		if code := <-done; code != 0 {
			s.Errorf("serve: exit %d", code)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		s.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// redirectURI is the connector's.
func (s *server) redirectURI() string {
	return regexp.MustCompile(`redirect_uri: (\S+)`).FindStringSubmatch(s.connector)[1]
}

// Another user serves another port of 127.0.0.1 and gets the person's browser to visit it. Browsers send
// cookies to all ports of a host.
func TestServeSendsNoCookieToOtherPorts(t *testing.T) {
	t.Parallel()
	for name, lines := range map[string]string{"a login": withLogin, "no login": "    client_secret: x\n"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testOtherPorts(t, newServer(t, lines))
		})
	}
}

func testOtherPorts(t *testing.T, s *server) {
	address := s.serve()
	person := newVisitor(t)
	resp, body := person.get(address)
	if resp.StatusCode != 200 || !strings.Contains(body, "<h2>api") {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	var got []*http.Cookie
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { got = append(got, r.Cookies()...) }))
	defer other.Close()
	person.get(other.URL)
	u, _ := url.Parse(address)
	for _, path := range []string{"/", u.Path} {
		if resp, body := newVisitor(t).get("http://"+u.Host+path, got...); resp.StatusCode != http.StatusForbidden {
			t.Errorf("another user sees %d %s", resp.StatusCode, body)
		}
	}
	for _, c := range got {
		t.Errorf("another port gets the cookie %s", c.Name)
	}
}

// The key of serve works for the first visit of a browser, whatever looked at the address before.
func TestServeKey(t *testing.T) {
	t.Parallel()
	g := newGate()
	g.next = http.NotFoundHandler()
	visit := func(method, purpose string) int {
		r := httptest.NewRequest(method, g.path+"/?key="+g.key, nil)
		r.Header.Set("Sec-Purpose", purpose)
		w := httptest.NewRecorder()
		g.ServeHTTP(w, r)
		return w.Code
	}
	for _, test := range []struct {
		method, purpose string
		want            int
	}{
		{"HEAD", "", 403}, {"GET", "prefetch", 403}, {"GET", "prefetch;prerender", 403}, {"POST", "", 403}, {"GET", "", 303}, {"GET", "", 403},
	} {
		if got := visit(test.method, test.purpose); got != test.want {
			t.Errorf("%s %s: %d, want %d", test.method, test.purpose, got, test.want)
		}
	}
}

// The pages and cookies of serve are below a random path. The redirect URI accepts only what brings the
// state and the cookie of a login, also as a form.
func TestServeCallback(t *testing.T) {
	t.Parallel()
	s := newServer(t, withLogin)
	s.answers(200, `{"access_token": "a1", "expires_in": 3600, "refresh_token": "r1"}`)
	address := s.serve()
	page, _, _ := strings.Cut(address, "?")
	u, _ := url.Parse(page)
	for _, address := range []string{page, page + "x", s.redirectURI() + "/x", "http://" + u.Host + "/", "http://" + u.Host + "/x" + u.Path} {
		if resp, body := newVisitor(t).get(address); resp.StatusCode != 403 {
			t.Errorf("%s: %d %s", address, resp.StatusCode, body)
		}
	}
	if len(u.Path) < 26 {
		t.Errorf("the path is %s", u.Path)
	}

	person, product := newVisitor(t), newVisitor(t)
	_, body := person.get(address)
	csrf := regexp.MustCompile(`name="csrf" value="([^"]+)"`).FindStringSubmatch(body)
	resp, body := person.post(page, url.Values{"csrf": {csrf[1]}, "connector": {"api"}})
	_, state, ok := strings.Cut(resp.Header.Get("Refresh"), "state=")
	if !ok {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	state, _, _ = strings.Cut(state, "&")
	product.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, body = product.post(s.redirectURI(), url.Values{"code": {"c"}, "state": {state}}) // no cookie comes with it
	back, err := resp.Location()
	if err != nil {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	if resp, body := newVisitor(t).get(back.String()); resp.StatusCode != 403 || s.seen() != "" {
		t.Errorf("another browser: %d %s", resp.StatusCode, body)
	}
	if resp, body := person.get(back.String()); resp.StatusCode != 200 || !strings.Contains(body, "api is connected") || !strings.Contains(body, `href="`+u.Path+`"`) {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

// Another user holds 300 connections, and the process may have 128 files.
func TestServeWithIdleConnections(t *testing.T) {
	t.Parallel()
	s := newServer(t, withLogin)
	cmd := exec.Command("sh", "-c", `ulimit -n 128 && exec itsmauth --config "$0" serve`, s.yaml)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
	}()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	for range 300 {
		c, err := net.Dial("tcp", u.Host)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	person := newVisitor(t)
	person.Timeout = 5 * time.Second
	resp, body := person.get(u.String())
	if resp.StatusCode != 200 || !strings.Contains(body, "Connect api") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}
