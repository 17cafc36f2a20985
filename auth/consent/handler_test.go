package consent_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/consent"
	"github.com/itsmauth/itsmauth/providers/remedy"
	"github.com/itsmauth/itsmauth/providers/remedy/remedytest"
)

// A site is a service with the handler mounted, and the product's emulator.
type site struct {
	*httptest.Server
	emulator *remedytest.Server
	session  *auth.Session
	list     string
}

func newSite(t testing.TB, mount string) *site {
	t.Helper()
	mux := http.NewServeMux()
	s := &site{Server: httptest.NewUnstartedServer(mux)}
	list, callback := "/", "/callback"
	switch mount {
	case "below":
		list, callback = "/connections", "/connections/callback"
	case "apart":
		list, callback = "/connections", "/oauth/callback"
	case "stripped":
		list, callback = "/admin/connections/", "/admin/callback"
	case "same":
		callback = "/"
	}
	redirect := "http://" + s.Listener.Addr().String() + callback
	emulator, c := newRemedy(t, redirect, true)
	robot := connect(t, emulator, remedy.Config{Grant: "ar_jwt"})
	robot.Name = "robot"
	h := consent.NewHandler([]consent.Connector{c, robot}, &consent.HandlerOptions{Path: strings.TrimPrefix(list, "/admin")})
	if mount == "stripped" {
		mux.Handle("/admin/", http.StripPrefix("/admin", h))
	} else {
		mux.Handle(list, h)
		if callback != list {
			mux.Handle(callback, h)
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	s.emulator, s.session, s.list = emulator, c.Session, s.URL+list
	return s
}

// A browser keeps cookies and follows no redirect.
type browser struct {
	t testing.TB
	*http.Client
}

func newBrowser(t testing.TB) browser {
	jar, _ := cookiejar.New(nil)
	return browser{t, &http.Client{Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

func (b browser) do(req *http.Request) (*http.Response, string) {
	b.t.Helper()
	resp, err := b.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return resp, bare(string(body))
}

func (b browser) get(address string) (*http.Response, string) {
	b.t.Helper()
	req, err := http.NewRequest("GET", address, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.do(req)
}

var csrfField = regexp.MustCompile(`name="csrf" value="([^"]+)"`)

// press opens the list and presses a connector's button. change, if not nil, changes the request.
func (b browser) press(list, connector string, change func(*http.Request, url.Values)) (*http.Response, string) {
	b.t.Helper()
	_, body := b.get(list)
	token := csrfField.FindStringSubmatch(body)
	if token == nil {
		b.t.Fatalf("no form:\n%s", body)
	}
	form := url.Values{"csrf": {token[1]}, "connector": {connector}}
	req, err := http.NewRequest("POST", list, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Sec-Fetch-Site", "same-origin")
	if change != nil {
		change(req, form)
	}
	req.Body = io.NopCloser(strings.NewReader(form.Encode()))
	return b.do(req)
}

// begin presses Connect and returns the sign-in page that the browser is sent to.
func (b browser) begin(list string) (authURL string) {
	b.t.Helper()
	resp, body := b.press(list, "tickets", nil)
	to, ok := strings.CutPrefix(resp.Header.Get("Refresh"), "0; url=")
	if resp.StatusCode != 200 || !ok || !strings.Contains(body, "Continue to 127.0.0.1") {
		b.t.Fatalf("begin: %d %v\n%s", resp.StatusCode, resp.Header, body)
	}
	return to
}

func TestHandler(t *testing.T) {
	t.Parallel()
	for _, mount := range []string{"root", "below", "apart", "stripped", "same"} {
		t.Run(mount, func(t *testing.T) {
			t.Parallel()
			s, b := newSite(t, mount), newBrowser(t)
			_, body := b.get(s.list)
			for _, want := range []string{"Needs consent", `aria-label="Connect tickets"`, "No consent needed", "<title>Connections"} {
				if !strings.Contains(body, want) {
					t.Errorf("the list has no %q:\n%s", want, body)
				}
			}
			if strings.Contains(body, `value="robot"`) {
				t.Error("a button for a connector that needs no login")
			}

			redirect, err := s.emulator.Consent(b.begin(s.list))
			if err != nil {
				t.Fatal(err)
			}
			resp, body := b.get(redirect.String())
			if resp.StatusCode != 200 || !strings.Contains(body, "tickets is connected") {
				t.Fatalf("callback: %d\n%s", resp.StatusCode, body)
			}
			list, _ := url.Parse(s.list)
			if !strings.Contains(body, `href="`+list.Path+`"`) {
				t.Errorf("no way back to %s:\n%s", list.Path, body)
			}
			if _, err := s.session.Token(t.Context()); err != nil {
				t.Error(err)
			}
			_, body = b.get(s.list)
			if !strings.Contains(body, "<strong>Connected</strong> until <time") || !strings.Contains(body, "in 60 days") || !strings.Contains(body, "Reconnect tickets") {
				t.Errorf("the list:\n%s", body)
			}

			resp, body = b.get(redirect.String())
			if resp.StatusCode != 410 || !strings.Contains(body, "This sign-in is over") || !strings.Contains(body, `href="`+list.Path+`"`) {
				t.Errorf("replayed: %d\n%s", resp.StatusCode, body)
			}
			if n := s.emulator.Stats().TokenRequests; n != 1 {
				t.Errorf("%d token requests", n)
			}
		})
	}
}

// A product may have the browser post a form to the redirect URI. The cookie does not come with it.
func TestHandlerCallbackByForm(t *testing.T) {
	t.Parallel()
	for _, mount := range []string{"root", "below", "apart", "stripped", "same"} {
		t.Run(mount, func(t *testing.T) {
			t.Parallel()
			s, b := newSite(t, mount), newBrowser(t)
			redirect, err := s.emulator.Consent(b.begin(s.list))
			if err != nil {
				t.Fatal(err)
			}
			form := redirect.Query()
			redirect.RawQuery = ""
			req, _ := http.NewRequest("POST", redirect.String(), strings.NewReader(form.Encode()))
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			req.Header.Set("Sec-Fetch-Site", "cross-site")
			resp, body := newBrowser(t).do(req)
			to, err := resp.Location()
			if resp.StatusCode != 303 || err != nil || to.Path != redirect.Path || to.Host != redirect.Host {
				t.Fatalf("posted: %d %v, %v\n%s", resp.StatusCode, to, err, body)
			}
			if resp, body := newBrowser(t).get(to.String()); resp.StatusCode != 403 {
				t.Errorf("in another browser: %d\n%s", resp.StatusCode, body)
			}
			if resp, body := b.get(to.String()); resp.StatusCode != 200 || !strings.Contains(body, "tickets is connected") {
				t.Errorf("callback: %d\n%s", resp.StatusCode, body)
			}
		})
	}
}

func TestHandlerRefusals(t *testing.T) {
	t.Parallel()
	s, b := newSite(t, "below"), newBrowser(t)
	at := b.begin(s.list)
	redirect, err := s.emulator.Consent(at)
	if err != nil {
		t.Fatal(err)
	}
	right := redirect.String()
	other := newBrowser(t)
	other.get(s.list)
	for _, tt := range []struct {
		name    string
		browser browser
		method  string
		address string
		host    string
		status  int
		page    string
	}{
		{"no cookie", newBrowser(t), "GET", right, "", 403, "started in another browser"},
		{"another browser", other, "GET", right, "", 403, "started in another browser"},
		{"unknown state", b, "GET", query(right, "state", "x"), "", 403, "does not belong to a sign-in"},
		{"no state", b, "GET", query(right, "state", ""), "", 403, "does not belong to a sign-in"},
		{"two states", b, "GET", right + "&state=x", "", 403, "does not belong to a sign-in"},
		{"preview", b, "HEAD", right, "", 405, ""},
		{"post", b, "POST", right, "", 405, "cannot be done"},
		{"list deleted", b, "DELETE", s.list, "", 405, "cannot be done"},
		{"rebound callback", b, "GET", right, "evil.example.com", 421, "not served here"},
		{"rebound list", b, "GET", s.list, "127.0.0.1.evil.example.com:80", 421, "not served here"},
		{"unknown page", b, "GET", s.list + "/callback/x", "", 404, ""},
	} {
		req, _ := http.NewRequest(tt.method, tt.address, nil)
		req.Host = tt.host
		resp, body := tt.browser.do(req)
		if resp.StatusCode != tt.status || !strings.Contains(body, tt.page) {
			t.Errorf("%s: %d\n%s", tt.name, resp.StatusCode, body)
		}
		if u, _ := url.Parse(right); strings.Contains(body, u.Query().Get("code")) {
			t.Errorf("%s: the code is on the page", tt.name)
		}
	}
	if n := s.emulator.Stats().TokenRequests; n != 0 {
		t.Errorf("%d token requests", n)
	}
	if resp, body := b.get(right); resp.StatusCode != 200 {
		t.Errorf("the right one, after all: %d\n%s", resp.StatusCode, body)
	}
}

func TestHandlerForm(t *testing.T) {
	t.Parallel()
	s := newSite(t, "below")
	other := newBrowser(t)
	_, body := other.get(s.list)
	theirs := csrfField.FindStringSubmatch(body)[1]
	for name, tt := range map[string]struct {
		change func(*http.Request, url.Values)
		status int
		notice string
	}{
		"no token":        {func(_ *http.Request, f url.Values) { f.Del("csrf") }, 403, "out of date"},
		"another's token": {func(_ *http.Request, f url.Values) { f.Set("csrf", theirs) }, 403, "out of date"},
		"token in URL": {func(r *http.Request, f url.Values) {
			r.URL.RawQuery = url.Values{"csrf": f["csrf"]}.Encode()
			f.Del("csrf")
		}, 403, "out of date"},
		"from another site": {func(r *http.Request, _ url.Values) { r.Header.Set("Sec-Fetch-Site", "same-site") }, 403, "out of date"},
		"oversized":         {func(_ *http.Request, f url.Values) { f.Set("a", strings.Repeat("a", 8<<10)) }, 403, "out of date"},
		"unknown connector": {func(_ *http.Request, f url.Values) { f.Set("connector", "<b>") }, 404, "no such connector that needs a login"},
		"needs no login":    {func(_ *http.Request, f url.Values) { f.Set("connector", "robot") }, 404, "no such connector that needs a login"},
		"an older browser":  {func(r *http.Request, _ url.Values) { r.Header.Del("Sec-Fetch-Site") }, 200, "Continue to"},
	} {
		resp, body := newBrowser(t).press(s.list, "tickets", tt.change)
		if resp.StatusCode != tt.status || !strings.Contains(body, tt.notice) || tt.status != 200 && resp.Header.Get("Refresh") != "" {
			t.Errorf("%s: %d\n%s", name, resp.StatusCode, body)
		}
	}
}

func TestHandlerCookie(t *testing.T) {
	t.Parallel()
	for uri, want := range map[string]string{
		"http://127.0.0.1:8400/cb":    "itsmauth-browser=; Path=/; HttpOnly; SameSite=Lax",
		"https://itsm.example.com/cb": "__Host-itsmauth-browser=; Path=/; HttpOnly; Secure; SameSite=Lax",
	} {
		u, _ := url.Parse(uri)
		h := consent.NewHandler([]consent.Connector{newConnector(t, &stub{flow: auth.CodeFlow{RedirectURI: uri}})}, nil)
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", u.Scheme+"://"+u.Host+"/", nil)
		r.TLS = nil // that is the proxy's
		h.ServeHTTP(w, r)
		c := w.Result().Cookies()
		if w.Code != 200 || len(c) != 1 || len(c[0].Value) < 26 {
			t.Fatalf("%d %v", w.Code, c)
		}
		c[0].Value = ""
		if got := c[0].String(); got != want {
			t.Errorf("%s: %s", uri, got)
		}
	}
}

// Browsers send cookies to all ports of a host, which may belong to other users. The list's cookie is for the
// list alone, and each login has one for its redirect URI.
func TestHandlerCookiePaths(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ uri, mount, list, callback string }{
		{"http://127.0.0.1:8400/cb", "/connections", "/connections", "/cb"},
		{"http://localhost:8400/a%2Fb", "/connections/", "/connections", "/a%2Fb"},
		{"http://[::1]:8400", "/a/connections", "/a/connections", "/"},
		{"http://127.0.0.1:8400/cb", "/", "/", "/cb"},
		{"http://itsm.internal/cb", "/connections", "/", "/cb"},
	} {
		u, _ := url.Parse(tt.uri)
		h := http.StripPrefix("/a", consent.NewHandler([]consent.Connector{newConnector(t, &stub{flow: auth.CodeFlow{RedirectURI: tt.uri}})},
			&consent.HandlerOptions{Path: "/connections"}))
		if !strings.HasPrefix(tt.mount, "/a/") {
			h = consent.NewHandler([]consent.Connector{newConnector(t, &stub{flow: auth.CodeFlow{RedirectURI: tt.uri}})},
				&consent.HandlerOptions{Path: tt.mount})
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "http://"+u.Host+tt.mount, nil))
		form := url.Values{"csrf": csrfField.FindStringSubmatch(w.Body.String())[1:], "connector": {"tickets"}}
		r, pressed := httptest.NewRequest("POST", "http://"+u.Host+tt.mount, strings.NewReader(form.Encode())), httptest.NewRecorder()
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		list := w.Result().Cookies()[0]
		r.AddCookie(&http.Cookie{Name: list.Name, Value: list.Value})
		h.ServeHTTP(pressed, r)
		callback := pressed.Result().Cookies()[0]
		if list.Path != tt.list || callback.Path != tt.callback || callback.Name == list.Name || len(callback.Value) < 26 || callback.Value == list.Value {
			t.Errorf("%+v: %s, %s", tt, list, callback)
		}
	}
}

func TestHandlerHosts(t *testing.T) {
	t.Parallel()
	c := newConnector(t, &stub{flow: auth.CodeFlow{RedirectURI: "https://itsm.example.com:8443/cb"}})
	for _, tt := range []struct {
		hosts         []string
		served, other []string
	}{
		{nil, []string{"itsm.example.com", "ITSM.example.com:8443", "localhost:1", "127.0.0.1", "[::1]:80"},
			[]string{"", "evil.example.com", "10.0.0.1", "itsm.example.com.evil.com", "localhost.evil.com"}},
		{[]string{"proxy.internal", "[fd00::1]:80"}, []string{"proxy.internal:80", "[fd00::1]"},
			[]string{"itsm.example.com", "localhost", "127.0.0.1"}},
	} {
		h := consent.NewHandler([]consent.Connector{c}, &consent.HandlerOptions{Hosts: tt.hosts})
		for host, want := range func() map[string]int {
			m := make(map[string]int)
			for _, s := range tt.served {
				m[s] = 200
			}
			for _, s := range tt.other {
				m[s] = 421
			}
			return m
		}() {
			r, w := httptest.NewRequest("GET", "/", nil), httptest.NewRecorder()
			r.Host = host
			if h.ServeHTTP(w, r); w.Code != want {
				t.Errorf("%v: %q: %d", tt.hosts, host, w.Code)
			}
		}
	}
}

func TestHandlerRefusedByThePerson(t *testing.T) {
	t.Parallel()
	s, b := newSite(t, "apart"), newBrowser(t)
	redirect, err := s.emulator.Deny(b.begin(s.list))
	if err != nil {
		t.Fatal(err)
	}
	resp, body := b.get(redirect.String())
	if resp.StatusCode != 200 || !strings.Contains(body, "tickets was not connected") || !strings.Contains(body, `href="/connections"`) {
		t.Errorf("%d\n%s", resp.StatusCode, body)
	}
}

func TestHandlerExchangeFails(t *testing.T) {
	t.Parallel()
	s, b := newSite(t, "below"), newBrowser(t)
	s.emulator.SetSecret("an0ther+/=&%")
	redirect, err := s.emulator.Consent(b.begin(s.list))
	if err != nil {
		t.Fatal(err)
	}
	resp, body := b.get(redirect.String())
	for _, want := range []string{"tickets could not be connected", "refused this client’s credentials", "Compare client_id and client_secret", "(HTTP 401, invalid_client)"} {
		if resp.StatusCode != 502 || !strings.Contains(body, want) {
			t.Errorf("%d, no %q\n%s", resp.StatusCode, want, body)
		}
	}
	if strings.Contains(body, "tickets: login:") {
		t.Errorf("a message for a terminal, on a page:\n%s", body)
	}
}

func TestHandlerTwoTabs(t *testing.T) {
	t.Parallel()
	s, b := newSite(t, "below"), newBrowser(t)
	first, second := b.begin(s.list), b.begin(s.list)
	for _, at := range []string{second, first} {
		redirect, err := s.emulator.Consent(at)
		if err != nil {
			t.Fatal(err)
		}
		if resp, body := b.get(redirect.String()); resp.StatusCode != 200 {
			t.Errorf("%d\n%s", resp.StatusCode, body)
		}
	}
	if n := s.emulator.Stats().Exchanges; n != 2 {
		t.Errorf("%d exchanges", n)
	}
}

// A callback counts only at the redirect URI of its own login.
func TestHandlerKeepsProductsApart(t *testing.T) {
	t.Parallel()
	redeemed := ""
	at := func(path string) consent.Connector {
		c := newConnector(t, &stub{flow: auth.CodeFlow{
			RedirectURI: "http://127.0.0.1" + path,
			Redeem: func(_ context.Context, code, _ string) (*oauth2.Token, error) {
				redeemed = path
				return &oauth2.Token{AccessToken: "a"}, nil
			},
		}})
		c.Name = path
		return c
	}
	s := httptest.NewServer(consent.NewHandler([]consent.Connector{at("/one"), at("/two")}, nil))
	defer s.Close()
	b := newBrowser(t)
	resp, _ := b.press(s.URL, "/one", nil)
	_, state, _ := strings.Cut(resp.Header.Get("Refresh"), "state=")
	if resp, _ := b.get(s.URL + "/two?code=c&state=" + state); resp.StatusCode != 403 || redeemed != "" {
		t.Errorf("%d %s", resp.StatusCode, redeemed)
	}
	if resp, _ := b.get(s.URL + "/one?code=c&state=" + state); resp.StatusCode != 200 || redeemed != "/one" {
		t.Errorf("%d %s", resp.StatusCode, redeemed)
	}
}

// play is a browser that calls the handler without a network, for synctest.
type play struct {
	h      http.Handler
	cookie string
	csrf   string
}

func newPlay(h http.Handler) *play {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "http://127.0.0.1/", nil))
	return &play{h, w.Header().Get("Set-Cookie"), csrfField.FindStringSubmatch(w.Body.String())[1]}
}

func (p *play) begin() (state string) {
	form := url.Values{"csrf": {p.csrf}, "connector": {"tickets"}}
	r, w := httptest.NewRequest("POST", "http://127.0.0.1/", strings.NewReader(form.Encode())), httptest.NewRecorder()
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Cookie", p.cookie)
	p.h.ServeHTTP(w, r)
	cookie, _, _ := strings.Cut(w.Header().Get("Set-Cookie"), ";")
	p.cookie += "; " + cookie
	_, state, _ = strings.Cut(w.Header().Get("Refresh"), "state=")
	return state
}

func (p *play) end(state string) (int, string) {
	r, w := httptest.NewRequest("GET", "http://127.0.0.1/cb?code=c&state="+state, nil), httptest.NewRecorder()
	r.Header.Set("Cookie", p.cookie)
	p.h.ServeHTTP(w, r)
	return w.Code, bare(w.Body.String())
}

func inBubble(t *testing.T, f func(*play)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := newConnector(t, &stub{flow: auth.CodeFlow{RedirectURI: "http://127.0.0.1/cb"}})
		f(newPlay(consent.NewHandler([]consent.Connector{c}, nil)))
	})
}

func TestHandlerExpiry(t *testing.T) {
	t.Parallel()
	inBubble(t, func(p *play) {
		late, inTime := p.begin(), p.begin()
		time.Sleep(10 * time.Minute)
		if code, body := p.end(inTime); code != 200 {
			t.Errorf("after 10 minutes: %d\n%s", code, body)
		}
		time.Sleep(time.Second)
		if code, body := p.end(late); code != 410 || !strings.Contains(body, "took too long") {
			t.Errorf("after more than 10 minutes: %d\n%s", code, body)
		}
		if code, body := p.end(inTime); code != 410 || !strings.Contains(body, "is over") {
			t.Errorf("reloaded later: %d\n%s", code, body)
		}
	})
}

func TestHandlerIsBounded(t *testing.T) {
	t.Parallel()
	inBubble(t, func(p *play) {
		var states []string
		for range 1002 {
			states = append(states, p.begin())
			time.Sleep(time.Millisecond)
		}
		for i, want := range map[int]int{0: 403, 1: 403, 2: 200, 1001: 200} {
			if code, _ := p.end(states[i]); code != want {
				t.Errorf("flow %d: %d", i, code)
			}
		}
	})
}

// A broken store.
type broken struct{ auth.Store }

func (broken) Load(context.Context, string) (auth.Record, error) {
	return auth.Record{}, errors.New("disk on fire")
}

func TestHandlerStates(t *testing.T) {
	t.Parallel()
	flow := auth.CodeFlow{RedirectURI: "http://127.0.0.1/cb"}
	show := func(c consent.Connector) string {
		w := httptest.NewRecorder()
		consent.NewHandler([]consent.Connector{c}, nil).ServeHTTP(w, httptest.NewRequest("GET", "http://127.0.0.1/", nil))
		return bare(w.Body.String())
	}
	unavailable := fmt.Errorf("%w: connection refused", auth.ErrUnavailable)
	for name, tt := range map[string]struct {
		make func(*testing.T) consent.Connector
		want []string
	}{
		"the store fails": {
			func(t *testing.T) consent.Connector {
				s := auth.New(&stub{flow: flow}, &auth.Options{Store: broken{}})
				t.Cleanup(func() { s.Close(context.Background()) })
				return consent.Connector{Name: "tickets", Session: s}
			},
			[]string{"<strong>Failing</strong>", "The token store failed.", "disk on fire"},
		},
		"exchanges fail": {
			func(t *testing.T) consent.Connector {
				c := newConnector(t, &stub{err: unavailable})
				c.Session.Token(t.Context())
				return c
			},
			[]string{"<strong>Failing</strong>", "could not be reached", "connection refused", "Next try in"},
		},
		"connected, without a known expiry": {
			func(t *testing.T) consent.Connector {
				c := newConnector(t, &stub{flow: flow})
				if err := c.Session.Redeem(t.Context(), "c", "v"); err != nil {
					t.Fatal(err)
				}
				return c
			},
			[]string{"<strong>Connected</strong></span>", "Reconnect"},
		},
		"connected, without a refresh token": {
			func(t *testing.T) consent.Connector {
				once := flow
				once.Redeem = func(context.Context, string, string) (*oauth2.Token, error) {
					return &oauth2.Token{AccessToken: "a", ExpiresIn: 3600}, nil
				}
				c := newConnector(t, &stub{flow: once})
				if err := c.Session.Redeem(t.Context(), "c", "v"); err != nil {
					t.Fatal(err)
				}
				return c
			},
			[]string{"<strong>Connected</strong> until <time", "gave no refresh token, so a person must then sign in again", "Reconnect"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			body := show(tt.make(t))
			for _, want := range tt.want {
				if !strings.Contains(body, want) {
					t.Errorf("no %q:\n%s", want, body)
				}
			}
		})
	}
	w := httptest.NewRecorder()
	consent.NewHandler(nil, nil).ServeHTTP(w, httptest.NewRequest("GET", "http://localhost/", nil))
	if !strings.Contains(w.Body.String(), "No connector is configured") {
		t.Error(w.Body.String())
	}
}

// The product revoked the refresh token.
func TestHandlerConsentLost(t *testing.T) {
	t.Parallel()
	s, b := newSite(t, "below"), newBrowser(t)
	redirect, err := s.emulator.Consent(b.begin(s.list))
	if err != nil {
		t.Fatal(err)
	}
	b.get(redirect.String())
	tok, err := s.session.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.emulator.RevokeRefresh()
	s.session.Invalidate(tok)
	if _, err := s.session.Token(t.Context()); !errors.Is(err, auth.ErrConsentRequired) {
		t.Fatal(err)
	}
	_, body := b.get(s.list)
	for _, want := range []string{"Needs consent", "the refresh token was refused", "Connect tickets"} {
		if !strings.Contains(body, want) {
			t.Errorf("no %q:\n%s", want, body)
		}
	}
	if strings.Contains(body, "run: itsmauth") {
		t.Error("advice for a terminal, on a page")
	}
}
