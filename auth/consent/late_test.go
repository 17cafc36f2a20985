package consent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/emulator/memnet"
)

// These tests use a network in memory and synctest's clock.

// product is a provider that redeems every code, unless the function redeem fails.
type product struct {
	redeem func(ctx context.Context) error
}

func (*product) Exchange(context.Context, *oauth2.Token) (*oauth2.Token, error) {
	return nil, errors.New("there is no refresh here")
}
func (*product) Header(*oauth2.Token) http.Header    { return nil }
func (*product) Rejects(*http.Response, []byte) bool { return false }
func (p *product) CodeFlow() *auth.CodeFlow {
	return &auth.CodeFlow{
		RedirectURI: "http://127.0.0.1:8400/cb",
		URL:         func(state, _ string) string { return "https://sso.example.com/authorize?state=" + state },
		Redeem: func(ctx context.Context, _, _ string) (*oauth2.Token, error) {
			if p.redeem != nil {
				if err := p.redeem(ctx); err != nil {
					return nil, err
				}
			}
			return &oauth2.Token{AccessToken: "a", RefreshToken: "r", ExpiresIn: 3600}, nil
		},
	}
}

// moody is a store whose saves fail or hang if the function save does.
type moody struct {
	auth.Memory
	save func(ctx context.Context) error
}

func (s *moody) Save(ctx context.Context, key string, r auth.Record) error {
	if s.save != nil {
		if err := s.save(ctx); err != nil {
			return err
		}
	}
	return s.Memory.Save(ctx, key, r)
}

func hang(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

func TestLoginEndsInTime(t *testing.T) {
	t.Parallel()
	const timeout = time.Minute
	full := errors.New("no space left on device")
	for name, tt := range map[string]struct {
		sabotage func(*product, *moody, context.CancelFunc) // once the browser is open
		away     bool                                       // the browser does not come back
		deadline time.Duration                              // the caller's, if not 0
		is       error
		err      string
		page     string
		least    time.Duration
		most     time.Duration
	}{
		"all is well": {
			page: "tickets is connected",
			most: time.Second, // the silent connection delays nothing
		},
		"the store takes the tokens 5 s after the timeout": {
			sabotage: func(_ *product, s *moody, _ context.CancelFunc) {
				back := time.Now().Add(timeout + 5*time.Second)
				s.save = func(context.Context) error {
					if time.Now().Before(back) {
						return full
					}
					return nil
				}
			},
			page:  "tickets is connected",
			least: timeout + 5*time.Second, most: timeout + 10*time.Second,
		},
		"the store stays full": {
			sabotage: func(_ *product, s *moody, _ context.CancelFunc) { s.save = func(context.Context) error { return full } },
			is:       auth.ErrStore, err: "log in again", page: "tickets could not be connected",
			least: timeout + 10*time.Second, most: timeout + 11*time.Second,
		},
		"the store hangs": {
			sabotage: func(_ *product, s *moody, _ context.CancelFunc) { s.save = hang },
			is:       auth.ErrStore, err: "log in again", page: "tickets could not be connected",
			least: timeout + 10*time.Second, most: timeout + 11*time.Second,
		},
		"the store hangs, and a signal": {
			sabotage: func(_ *product, s *moody, interrupt context.CancelFunc) {
				s.save = hang
				time.AfterFunc(time.Second, interrupt)
			},
			is: auth.ErrStore, err: "log in again", page: "tickets could not be connected",
			least: 11 * time.Second, most: 12 * time.Second,
		},
		"the product hangs": {
			sabotage: func(p *product, _ *moody, _ context.CancelFunc) { time.Sleep(timeout - time.Second); p.redeem = hang },
			is:       context.DeadlineExceeded, err: "tickets: login: timed out after 1m waiting for the product to issue tokens",
			page:  "did not issue the tokens in time",
			least: timeout, most: timeout + 11*time.Second,
		},
		"the product hangs, and a signal": {
			sabotage: func(p *product, _ *moody, interrupt context.CancelFunc) {
				p.redeem = hang
				time.AfterFunc(time.Second, interrupt)
			},
			is: context.Canceled, page: "The login was interrupted",
			least: time.Second, most: 12 * time.Second,
		},
		"the caller's own deadline": {
			away: true, deadline: time.Second,
			is: context.DeadlineExceeded, err: "tickets: login: context deadline exceeded",
			least: time.Second, most: time.Second,
		},
		"the browser does not come back": {
			away: true,
			is:   context.DeadlineExceeded, err: "tickets: login: timed out after 1m waiting for the browser sign-in",
			least: timeout, most: timeout,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, interrupt := context.WithTimeout(t.Context(), cmp.Or(tt.deadline, time.Hour))
				defer interrupt()
				p, store, network := &product{}, &moody{}, memnet.Listen()
				c := Connector{Name: "tickets", Session: auth.New(p, &auth.Options{Connector: "tickets", Store: store})}
				f, err := c.newFlow()
				if err != nil {
					t.Fatal(err)
				}
				browser := network.Client()
				page := make(chan string, 1)
				began := time.Now()
				var silent net.Conn // browsers open connections ahead of their requests
				err = withName(c, f.run(ctx, []net.Listener{network}, &LoginOptions{Timeout: timeout, Open: func(string) error {
					if tt.sabotage != nil {
						tt.sabotage(p, store, interrupt)
					}
					if tt.away {
						page <- ""
						return nil
					}
					if silent, err = browser.Transport.(*http.Transport).DialContext(ctx, "tcp", ""); err != nil {
						t.Fatal(err)
					}
					go func() {
						body := "no page"
						if resp, err := browser.Get("http://127.0.0.1:8400/cb?code=c&state=" + f.state); err == nil {
							b, _ := io.ReadAll(resp.Body)
							resp.Body.Close()
							body = string(b)
						}
						page <- body
					}()
					return nil
				}}))
				took := time.Since(began)
				if silent != nil {
					silent.Close()
				}
				if tt.is == nil && err != nil || !errors.Is(err, tt.is) || err != nil && !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error: %v", err)
				}
				if shown := <-page; !strings.Contains(shown, tt.page) {
					t.Errorf("page: %s", shown)
				}
				if took < tt.least || took > tt.most {
					t.Errorf("took %s", took)
				}
				browser.CloseIdleConnections()
				ended, cancel := context.WithCancel(t.Context())
				cancel() // do not wait for a save that cannot succeed
				c.Session.Close(ended)
			})
		})
	}
}

// If the store cannot be written, the browser is not sent to the product.
func TestStoreIsCheckedFirst(t *testing.T) {
	t.Parallel()
	for name, save := range map[string]func(context.Context) error{
		"full":  func(context.Context) error { return errors.New("no space left on device") },
		"hangs": hang,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := Connector{Name: "tickets", Session: auth.New(&product{}, &auth.Options{Connector: "tickets", Store: &moody{save: save}})}
				defer c.Session.Close(context.Background())
				f, err := c.newFlow()
				if err != nil {
					t.Fatal(err)
				}
				const timeout = time.Minute
				began := time.Now()
				err = f.run(t.Context(), []net.Listener{memnet.Listen()}, &LoginOptions{
					Timeout: timeout,
					Show:    func(string) { t.Error("the address was shown") },
					Open:    func(string) error { t.Error("a browser was opened"); return nil },
				})
				var e *auth.Error
				if !errors.Is(err, auth.ErrStore) || !errors.As(err, &e) || time.Since(began) >= timeout {
					t.Errorf("%v after %s", err, time.Since(began))
				}

				h := NewHandler([]Connector{c}, nil).(*handler)
				w := press(h)
				if w.Code != http.StatusBadGateway || w.Header().Get("Refresh") != "" || !strings.Contains(w.Body.String(), "The token store failed.") || len(h.flows) != 0 {
					t.Errorf("%d %v\n%s", w.Code, w.Header(), w.Body)
				}
			})
		})
	}
}

// press presses the connector's button.
func press(h *handler) *httptest.ResponseRecorder {
	r := httptest.NewRequest("POST", "http://127.0.0.1/", strings.NewReader("connector=tickets&csrf="+h.csrf("me")))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return serveTo(h, r)
}

func serveTo(h *handler, r *http.Request) *httptest.ResponseRecorder {
	r.AddCookie(&http.Cookie{Name: "itsmauth-browser", Value: "me"})
	for _, f := range h.flows {
		r.AddCookie(f.cookie)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// The handler's page arrives in time, and the login goes on if the browser disconnects.
func TestHandlerEndsInTime(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		leaves   bool
		sabotage func(*product, *moody)
		page     string
		most     time.Duration
	}{
		"the browser leaves": {
			leaves: true,
			sabotage: func(p *product, _ *moody) {
				p.redeem = func(ctx context.Context) error { time.Sleep(15 * time.Second); return ctx.Err() }
			},
			page: "tickets is connected", most: 15 * time.Second,
		},
		"the store hangs":   {sabotage: func(_ *product, s *moody) { s.save = hang }, page: "log in again", most: 41 * time.Second},
		"the product hangs": {sabotage: func(p *product, _ *moody) { p.redeem = hang }, page: "tickets could not be connected", most: 41 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p, store := &product{}, &moody{}
				c := Connector{Name: "tickets", Session: auth.New(p, &auth.Options{Connector: "tickets", Store: store})}
				h := NewHandler([]Connector{c}, nil).(*handler)
				press(h)
				tt.sabotage(p, store)
				ctx, leave := context.WithCancel(t.Context())
				defer leave()
				if tt.leaves {
					time.AfterFunc(time.Second, leave)
				}
				began := time.Now()
				w := serveTo(h, httptest.NewRequestWithContext(ctx, "GET", "http://127.0.0.1:8400/cb?code=c&state="+h.flows[0].state, nil))
				if took := time.Since(began); took > tt.most || !strings.Contains(w.Body.String(), tt.page) {
					t.Errorf("after %s: %d %s", took, w.Code, w.Body)
				}
				ended, cancel := context.WithCancel(t.Context())
				cancel() // do not wait for a save that cannot succeed
				c.Session.Close(ended)
			})
		})
	}
}

// The browser may come back after the timeout, before the listener is closed.
func TestLoginHasEnded(t *testing.T) {
	t.Parallel()
	ctx, end := context.WithCancel(t.Context())
	end()
	c := Connector{Name: "tickets", Session: auth.New(&product{}, nil)}
	defer c.Session.Close(context.Background())
	f, err := c.newFlow()
	if err != nil {
		t.Fatal(err)
	}
	f.used.Store(true)
	w := httptest.NewRecorder()
	(&loginHandler{flow: f, ctx: ctx}).ServeHTTP(w, httptest.NewRequest("GET", "http://127.0.0.1:8400/cb?code=c&state="+f.state, nil))
	if w.Code != http.StatusGone || !strings.Contains(w.Body.String(), "This sign-in has ended") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// If the listener fails, the browser cannot come back, so Login does not wait for it.
func TestLoginListenerFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := Connector{Name: "tickets", Session: auth.New(&product{}, nil)}
		defer c.Session.Close(context.Background())
		f, err := c.newFlow()
		if err != nil {
			t.Fatal(err)
		}
		network := memnet.Listen()
		err = f.run(t.Context(), []net.Listener{network}, &LoginOptions{Open: func(string) error { return network.Close() }})
		if !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
}

// The address of the one-time page is shown if the browser does not open it.
func TestLoginShowsItsPage(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	program, err := exec.LookPath("true")
	if err != nil {
		t.Skip(err)
	}
	for name, tt := range map[string]struct {
		browser string        // BROWSER
		visits  bool          // the browser opens the page
		opened  bool          // Opened is called
		shown   time.Duration // when Show is called, or -1
	}{
		"the browser opens it":             {program, true, true, -1},
		"the browser cannot read the file": {program, false, true, 5 * time.Second},
		"there is no browser":              {"", false, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("BROWSER", tt.browser)
			if tt.browser == "" {
				t.Setenv("PATH", t.TempDir())
			}
			synctest.Test(t, func(t *testing.T) {
				c := Connector{Name: "tickets", Session: auth.New(&product{}, nil)}
				defer c.Session.Close(context.Background())
				f, err := c.newFlow()
				if err != nil {
					t.Fatal(err)
				}
				network := memnet.Listen()
				client := network.Client()
				client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
				defer client.CloseIdleConnections()
				visit := func(page string) {
					resp, err := client.Get(page)
					if err != nil {
						t.Error(err)
						return
					}
					if resp.Body.Close(); resp.StatusCode != http.StatusSeeOther || resp.Header.Get("Location") != f.authURL {
						t.Error(resp)
					}
				}
				began, shown, opened := time.Now(), time.Duration(-1), false
				err = f.run(t.Context(), []net.Listener{network}, &LoginOptions{
					Timeout: time.Minute,
					Opened: func() {
						opened = true
						files, err := filepath.Glob(filepath.Join(os.Getenv("HOME"), "itsmauth-login-*"))
						if err != nil || len(files) != 1 {
							t.Fatal(files, err)
						}
						b, err := os.ReadFile(files[0])
						if err != nil {
							t.Fatal(err)
						}
						if tt.visits {
							visit(regexp.MustCompile(`url=([^"]+)"`).FindStringSubmatch(string(b))[1])
						}
					},
					Show: func(page string) {
						shown = time.Since(began)
						visit(page)
					},
				})
				if shown != tt.shown || opened != tt.opened || !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("shown after %s, opened %v, %v", shown, opened, err)
				}
			})
		})
	}
}

// A person pastes the address that the browser ended at.
func TestLoginByPaste(t *testing.T) {
	t.Parallel()
	const none = "this is not the address that the browser ended at, which begins with http://127.0.0.1:8400/cb?"
	const foreign = "this address belongs to another sign-in: its state is not the one of this sign-in"
	for name, tt := range map[string]struct {
		paste []string // STATE is the state
		says  []string
		err   error
	}{
		"the address": {[]string{"http://127.0.0.1:8400/cb?code=c&state=STATE"}, nil, nil},
		"at the last, in space": {[]string{"", "hello", "https://sso.example.com/authorize?state=STATE", "\x00", "http://127.0.0.1:8400/cb?code=c&state=x",
			"http://127.0.0.1:8400/cb?code=c", "http://127.0.0.1:8400/cb?code=c&state=STATE&state=x", " http://localhost:9/cb?state=STATE&code=c\r\n"},
			[]string{none, none, none, none, foreign, foreign, foreign}, nil},
		"a refusal":    {[]string{"http://127.0.0.1:8400/cb?error=access_denied&state=STATE"}, nil, auth.ErrConsentRequired},
		"end of input": {[]string{"hello"}, []string{none}, context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := Connector{Name: "tickets", Session: auth.New(&product{}, nil)}
				defer c.Session.Close(context.Background())
				f, err := c.newFlow()
				if err != nil {
					t.Fatal(err)
				}
				var says []string
				err = f.run(t.Context(), []net.Listener{memnet.Listen()}, &LoginOptions{
					Open: func(string) error { return nil },
					Paste: func(_ context.Context, problem error) (string, error) {
						if problem != nil {
							says = append(says, problem.Error())
						}
						if len(tt.paste) == 0 {
							return "", io.EOF
						}
						text := strings.ReplaceAll(tt.paste[0], "STATE", f.state)
						tt.paste = tt.paste[1:]
						return text, nil
					},
				})
				if !errors.Is(err, tt.err) || tt.err == nil && err != nil || !slices.Equal(says, tt.says) {
					t.Errorf("%v\n%q\nwant %q", err, says, tt.says)
				}
				if tt.err == nil && func() bool { _, err := c.Session.Token(t.Context()); return err != nil }() {
					t.Error("there is no token")
				}
			})
		})
	}
}

// The listener and the person's line race; the first wins, and the other changes nothing.
func TestLoginByPasteAndListener(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		redeemed := 0
		p := &product{redeem: func(context.Context) error { redeemed++; time.Sleep(time.Second); return nil }}
		c := Connector{Name: "tickets", Session: auth.New(p, nil)}
		defer c.Session.Close(context.Background())
		f, err := c.newFlow()
		if err != nil {
			t.Fatal(err)
		}
		network := memnet.Listen()
		client := network.Client()
		status := make(chan int, 1)
		err = f.run(t.Context(), []net.Listener{network}, &LoginOptions{
			Open: func(string) error { return nil },
			Paste: func(ctx context.Context, _ error) (string, error) {
				go func() {
					time.Sleep(time.Millisecond)
					resp, err := client.Get("http://127.0.0.1:8400/cb?code=c&state=" + f.state)
					if err != nil {
						t.Error(err)
						status <- 0
						return
					}
					resp.Body.Close()
					status <- resp.StatusCode
				}()
				return "http://127.0.0.1:8400/cb?code=c&state=" + f.state, nil
			},
		})
		if got := <-status; err != nil || got != http.StatusGone || redeemed != 1 {
			t.Errorf("%v, status %d, redeemed %d times", err, got, redeemed)
		}
		client.CloseIdleConnections()
	})
}

// A page shows an error without the connector's name, the advice for a terminal, and a URL's query.
func TestCause(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		err  error
		want string
	}{
		{&auth.Error{Connector: "tickets", Op: "login", Code: "access_denied", Err: errDenied}, "consent required: the person refused access (access_denied)"},
		{&auth.Error{Connector: "tickets", Op: "store", Err: auth.ErrStore}, "token store failed"},
		{
			&auth.Error{Op: "exchange", Status: 502, Err: fmt.Errorf("%w: %w", auth.ErrUnavailable, &url.Error{Op: "Post", URL: "https://sso.example.com/token?key=hunter2", Err: io.EOF})},
			`unavailable: Post "https://sso.example.com/token": EOF (HTTP 502)`,
		},
		{io.EOF, "EOF"},
	} {
		if got := cause(tt.err); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}
