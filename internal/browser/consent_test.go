package browser

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/consent"
	"github.com/itsmauth/itsmauth/providers/remedy"
	"github.com/itsmauth/itsmauth/providers/remedy/remedytest"
)

// A product is the emulator, on another site than we are (localhost, not 127.0.0.1). Its way in
// redirects from a third origin, as companies' sign-in does.
type product struct {
	*remedytest.Server
	connector consent.Connector
}

func newProduct(t *testing.T, redirectURI string) *product {
	t.Helper()
	p := &product{Server: remedytest.NewServer(&remedytest.Options{RedirectURIs: []string{redirectURI}, RequirePKCE: true})}
	t.Cleanup(p.Close)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, strings.Replace(p.URL, "127.0.0.1", "localhost", 1)+r.URL.RequestURI(), http.StatusFound)
	}))
	t.Cleanup(front.Close)
	base, err := url.Parse(p.URL)
	if err != nil {
		t.Fatal(err)
	}
	provider, err := remedy.New(remedy.Config{
		SSOURL: base.JoinPath("rsso"), RedirectURI: redirectURI, PKCE: true,
		ClientID: remedytest.DefaultClientID, ClientSecret: auth.SecretString(remedytest.DefaultClientSecret),
	}, auth.Env{Name: "tickets", BaseURL: base})
	if err != nil {
		t.Fatal(err)
	}
	p.connector = newConnector(t, "tickets", "remedy", redirected{provider, p.URL, front.URL})
	return p
}

func newConnector(t *testing.T, name, provider string, p auth.Provider) consent.Connector {
	s := auth.New(p, &auth.Options{Connector: name, Provider: provider})
	t.Cleanup(func() { s.Close(context.Background()) })
	return consent.Connector{Name: name, Provider: provider, Session: s}
}

// redirected sends the person through a front.
type redirected struct {
	auth.Provider
	from, to string
}

func (r redirected) CodeFlow() *auth.CodeFlow {
	f := *r.Provider.(auth.Consenter).CodeFlow()
	at := f.URL
	f.URL = func(state, verifier string) string { return strings.Replace(at(state, verifier), r.from, r.to, 1) }
	return &f
}

// A robot needs no person. It fails if err is not nil.
type robot struct{ err error }

func (r robot) Exchange(context.Context, *oauth2.Token) (*oauth2.Token, error) {
	return &oauth2.Token{AccessToken: "a"}, r.err
}
func (robot) Header(*oauth2.Token) http.Header    { return nil }
func (robot) Rejects(*http.Response, []byte) bool { return false }

// A service has the handler mounted.
type service struct {
	*product
	list string
	stay atomic.Bool // browsers are to stay on pages that would send them on
}

func newService(t *testing.T) *service {
	t.Helper()
	mux := http.NewServeMux()
	server := httptest.NewUnstartedServer(mux)
	s := &service{product: newProduct(t, "http://"+server.Listener.Addr().String()+"/callback")}
	failing := newConnector(t, "remote-support-of-the-northern-branch-office", "beyondtrust",
		robot{fmt.Errorf("%w: dial tcp 192.0.2.7:443: connect: no route to host", auth.ErrUnavailable)})
	failing.Session.Token(t.Context())
	pages := consent.NewHandler([]consent.Connector{s.connector, newConnector(t, "shop", "webcommander", robot{}), failing},
		&consent.HandlerOptions{Path: "/connections"})
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.stay.Load() {
			w = still{w}
		}
		pages.ServeHTTP(w, r)
	})
	mux.Handle("/connections", h)
	mux.Handle("/callback", h)
	mux.Handle("/connections/", h)
	server.Start()
	t.Cleanup(server.Close)
	s.list = server.URL + "/connections"
	return s
}

// still keeps the browser on a page that would send it on.
type still struct{ http.ResponseWriter }

func (s still) WriteHeader(status int) {
	s.Header().Del("Refresh")
	s.ResponseWriter.WriteHeader(status)
}

// press goes as far as the product's page.
func press(list string) chromedp.Action[chromedp.Void] {
	return chromedp.Steps(chromedp.Navigate(list), click("button[value=tickets]"), waitFor("#allow"))
}

func click(css chromedp.CSS) chromedp.Action[chromedp.Void]   { return chromedp.Click(css) }
func waitFor(css chromedp.CSS) chromedp.Action[chromedp.Void] { return chromedp.WaitVisible(css) }

func testHandler(t *testing.T, b browser) {
	s, me, other := newService(t), b.person(t), b.person(t)
	// step is a subtest whose person is me, in which the token endpoint is asked that many times.
	step := func(name string, requests int, f func(t *testing.T, me tab)) {
		t.Helper()
		before := s.Stats().TokenRequests
		t.Run(name, func(t *testing.T) { f(t, me.in(t)) })
		if n := s.Stats().TokenRequests - before; n != requests {
			t.Errorf("%s: %d token requests", name, n)
		}
	}

	step("success, by keyboard", 1, func(t *testing.T, me tab) {
		me.do(chromedp.Navigate(s.list))
		me.sees("Connections")
		me.looks("list-before")
		me.do(chromedp.KeyEvent(kb.Tab))
		focused := read(me, chromedp.Evaluate[string](`document.activeElement.getAttribute("aria-label") + ", " + getComputedStyle(document.activeElement).outlineStyle`))
		if focused != "Connect tickets, solid" {
			t.Errorf("Tab leads to %q", focused)
		}
		me.do(chromedp.KeyEvent(kb.Enter), waitFor("#allow"), click("#allow"))
		me.sees("tickets is connected")
		me.looks("success")
		me.do(click("a.button"))
		me.sees("Connections")
		me.looks("list-after")
		if _, err := s.connector.Session.Token(t.Context()); err != nil {
			t.Error(err)
		}
	})
	step("a browser that heeds no Refresh, and a replayed callback", 1, func(t *testing.T, me tab) {
		s.stay.Store(true)
		defer s.stay.Store(false)
		me.do(chromedp.Navigate(s.list), click("button[value=tickets]"))
		me.sees("On to 127.0.0.1")
		me.looks("leaving")
		me.do(click("a.button"), waitFor("#allow"), click("#allow"))
		me.sees("tickets is connected")
		me.do(chromedp.Reload())
		me.sees("This sign-in is over")
		me.looks("used")
	})
	step("refusal", 0, func(t *testing.T, me tab) {
		me.do(press(s.list), click("#deny"))
		me.sees("tickets was not connected")
		me.looks("refused")
	})
	var right *url.URL
	step("foreign state", 0, func(t *testing.T, me tab) {
		me.do(press(s.list))
		var err error
		if right, err = s.Consent(read(me, chromedp.Location())); err != nil {
			t.Fatal(err)
		}
		other := other.in(t)
		other.do(chromedp.Navigate(s.list), chromedp.Navigate(right.String()))
		other.sees("This sign-in was not started here")
		other.looks("foreign-browser")
		forged := *right
		forged.RawQuery = "code=c&state=forged"
		me.do(chromedp.Navigate(forged.String()))
		me.sees("This sign-in was not started here")
		me.looks("foreign-state")
	})
	step("the right state, after all", 1, func(t *testing.T, me tab) {
		me.do(chromedp.Navigate(right.String()))
		me.sees("tickets is connected")
	})
	step("two tabs", 2, func(t *testing.T, me tab) {
		also := me.another()
		me.do(press(s.list))
		also.do(press(s.list), click("#allow"))
		also.sees("tickets is connected")
		me.do(click("#allow"))
		me.sees("tickets is connected")
	})
	step("failures", 1, func(t *testing.T, me tab) {
		s.SetSecret("an0ther+/=&%")
		me.do(press(s.list), click("#allow"))
		me.sees("tickets could not be connected")
		me.looks("failed")
		me.do(chromedp.Navigate(s.list + "/nowhere"))
		me.sees("There is no such page")
		me.looks("unknown")
		me.do(chromedp.Navigate(strings.Replace(s.list, "127.0.0.1", "rebound.example", 1)))
		me.sees("This address is not served here")
		me.looks("wrong-host")
		me.do(chromedp.Navigate(s.list),
			chromedp.SetAttributeValue(chromedp.CSS("input[name=csrf]"), "value", "x"),
			click("button[value=tickets]"),
			waitFor(".notice"))
		me.looks("list-notice")
	})
}

// leave opens an address without waiting for it.
func leave(to string) chromedp.Action[chromedp.Void] {
	return func(ctx context.Context, t *chromedp.Target) (chromedp.Void, error) {
		_, err := chromedp.Evaluate[string](fmt.Sprintf("setTimeout(() => location.href = %q, 1), ''", to))(ctx, t)
		return chromedp.Void{}, err
	}
}

// A login is a command that waits for its person.
type login struct {
	*product
	at   string // the address that it shows
	done chan error
}

func newLogin(t *testing.T) *login {
	t.Helper()
	var err error
	for range 10 {
		l := &login{product: newProduct(t, freeRedirectURI(t)), done: make(chan error, 1)}
		shown := make(chan string)
		go func() {
			l.done <- consent.Login(t.Context(), l.connector, &consent.LoginOptions{
				Open: func(url string) error { shown <- url; return nil },
			})
		}()
		select {
		case l.at = <-shown:
			return l
		case err = <-l.done:
		}
		if !strings.Contains(err.Error(), taken) {
			break
		}
	}
	t.Fatal(err)
	return nil
}

func (l *login) ends(t *testing.T) {
	t.Helper()
	if err := <-l.done; err != nil {
		t.Error(err)
	}
	if n := l.Stats().TokenRequests; n != 1 {
		t.Errorf("%d token requests", n)
	}
}

func testLogin(t *testing.T, b browser) {
	me, other := b.person(t), b.person(t)
	also := me.another()

	t.Run("success", func(t *testing.T) {
		l, me := newLogin(t), me.in(t)
		me.do(chromedp.Navigate(l.at), click("#allow"))
		me.sees("tickets is connected")
		l.ends(t)
		me.looks("login-success")
	})

	t.Run("refusal", func(t *testing.T) {
		l, me := newLogin(t), me.in(t)
		me.do(chromedp.Navigate(l.at), click("#deny"))
		me.sees("tickets was not connected")
		if err := <-l.done; !errors.Is(err, auth.ErrConsentRequired) {
			t.Error(err)
		}
		me.looks("login-refused")
	})

	t.Run("replayed callback", func(t *testing.T) {
		l, me, other := newLogin(t), me.in(t), other.in(t) // in one profile the second request would wait for the first
		right, err := l.Consent(l.at)
		if err != nil {
			t.Fatal(err)
		}
		began, replayed := make(chan struct{}), make(chan struct{})
		release := sync.OnceFunc(func() { close(replayed) })
		t.Cleanup(release)
		l.BreakToken(func(http.ResponseWriter, *http.Request) bool {
			close(began)
			<-replayed
			return false
		})
		me.do(leave(right.String()))
		<-began
		other.do(chromedp.Navigate(right.String()))
		other.sees("This sign-in is over")
		other.looks("login-used")
		release()
		me.sees("tickets is connected")
		l.ends(t)
	})

	t.Run("foreign state", func(t *testing.T) {
		l, me, other := newLogin(t), me.in(t), other.in(t)
		forged, err := l.Consent(strings.Replace(l.at, "state=", "state=x", 1))
		if err != nil {
			t.Fatal(err)
		}
		other.do(chromedp.Navigate(forged.String()))
		other.sees("This sign-in was not started here")
		other.looks("login-foreign")
		me.do(chromedp.Navigate(l.at), click("#allow"))
		me.sees("tickets is connected")
		l.ends(t)
	})

	t.Run("two tabs", func(t *testing.T) {
		l, me, also := newLogin(t), me.in(t), also.in(t)
		me.do(chromedp.Navigate(l.at), waitFor("#allow"))
		also.do(chromedp.Navigate(l.at), click("#allow"))
		also.sees("tickets is connected")
		l.ends(t)
		// Nobody listens any more; what matters is that the second tab changes nothing.
		me.do(click("#allow"))
		if _, err := l.connector.Session.Token(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
