package browser

import (
	"bufio"
	"bytes"
	"fmt"
	"html"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/itsmauth/itsmauth/providers/remedy/remedytest"
)

// A cli runs a subcommand of itsmauth that first prints an address. Its configuration has a Remedy
// connector called tickets, and a file store.
type cli struct {
	t         *testing.T
	sso       *remedytest.Server
	path      string
	config    string
	redirect  string
	address   string
	end       func() error // waits for the subcommand; serve has to be interrupted
	interrupt func()
}

// newCLI starts path. If its port is in use, it starts it again with another one.
func newCLI(t *testing.T, path string, args ...string) *cli {
	t.Helper()
	var err error
	var said string
	for range 10 {
		c := configured(t, path)
		if said, err = c.start(args...); err == nil {
			return c
		}
		if !strings.Contains(said, taken) {
			break
		}
	}
	t.Fatal(err, said)
	return nil
}

func configured(t *testing.T, path string) *cli {
	t.Helper()
	dir := t.TempDir()
	c := &cli{t: t, path: path, config: filepath.Join(dir, "itsmauth.yaml"), redirect: freeRedirectURI(t)}
	c.sso = remedytest.NewServer(&remedytest.Options{RedirectURIs: []string{c.redirect}})
	t.Cleanup(c.sso.Close)
	err := os.WriteFile(c.config, fmt.Appendf(nil, `version: 1
token_store: {type: file, path: '%s'}
connectors:
  tickets:
    provider: remedy
    base_url: %s
    sso_url: %s
    client_id: '%s'
    client_secret: '%s'
    redirect_uri: %s
`, filepath.Join(dir, "tokens"), c.sso.URL, c.sso.SSOURL, remedytest.DefaultClientID, remedytest.DefaultClientSecret, c.redirect), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// start runs the subcommand. If it prints no address, said is its output.
func (c *cli) start(args ...string) (said string, err error) {
	c.t.Helper()
	cmd := exec.Command(c.path, append([]string{"--config", c.config}, args...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { cmd.Process.Kill() })
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		cmd.Wait()
		return stderr.String(), err
	}
	c.address, c.end, c.interrupt = strings.TrimSpace(address), cmd.Wait, func() { cmd.Process.Signal(os.Interrupt) }
	return "", nil
}

// token runs itsmauth token.
func (c *cli) token() (string, error) {
	out, err := exec.Command(c.path, "--config", c.config, "token", "tickets").CombinedOutput()
	return string(out), err
}

// The command line: serve and login.
func testCommands(t *testing.T, b browser) {
	path := filepath.Join(t.TempDir(), "itsmauth")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", path, "./cmd/itsmauth")
	build.Dir = "../.." // its module
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	me, other := b.person(t), b.person(t)

	t.Run("serve", func(t *testing.T) {
		c := newCLI(t, path, "serve")
		me, other := me.in(t), other.in(t)
		me.do(chromedp.Navigate(c.address))
		me.sees("Connections")
		if at := read(me, chromedp.Location()); strings.Contains(at, "key=") {
			t.Errorf("the key stays in the address: %s", at)
		}
		other.do(chromedp.Navigate(c.address)) // the key works once
		if shown := read(other, chromedp.Evaluate[string]("document.body.innerText")); strings.Contains(shown, "tickets") {
			t.Errorf("another browser sees %s", shown)
		}

		me.do(click("button[value=tickets]"), waitFor("#deny"), click("#deny"))
		me.sees("tickets was not connected")
		me.do(click("a.button"), click("button[value=tickets]"), waitFor("#allow"))
		also := me.another() // a second tab starts a login of its own
		page, _, _ := strings.Cut(c.address, "?")
		also.do(chromedp.Navigate(page), click("button[value=tickets]"), waitFor("#allow"))
		right, err := c.sso.Consent(read(me, chromedp.Location()))
		if err != nil {
			t.Fatal(err)
		}
		other.do(chromedp.Navigate(right.String())) // another person's browser
		if n := c.sso.Stats().TokenRequests; n != 0 {
			t.Errorf("another browser completed the flow")
		}
		me.do(click("#allow"))
		me.sees("tickets is connected")
		me.do(chromedp.Reload())
		me.sees("This sign-in is over")
		also.do(click("#allow"))
		also.sees("tickets is connected")

		me.do(chromedp.Navigate(page), click("button[value=tickets]"), waitFor("#allow"))
		posted := formPost(t, c.sso, read(me, chromedp.Location()))
		other.do(chromedp.Navigate(posted), click("#send"))
		other.sees("This sign-in was not started here")
		me.do(chromedp.Navigate(posted), click("#send"))
		me.sees("tickets is connected")

		// Another port of the host gets no cookie.
		me.do(chromedp.Navigate(otherPort(t)))
		if got := read(me, chromedp.Evaluate[string]("document.body.innerText")); got != "no cookie" {
			t.Errorf("another port gets %s", got)
		}

		c.interrupt()
		if err := c.end(); err != nil {
			t.Error(err)
		}
		if out, err := c.token(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})

	t.Run("login, opened", func(t *testing.T) {
		c := newOpened(t, path)
		me, other := me.in(t), other.in(t)
		me.do(chromedp.Navigate("file://"+c.address), waitFor("#allow"))
		right, err := c.sso.Consent(read(me, chromedp.Location()))
		if err != nil {
			t.Fatal(err)
		}
		other.do(chromedp.Navigate(right.String()))
		other.sees("This sign-in was not started here")
		other.looks("login-unopened")
		if n := c.sso.Stats().TokenRequests; n != 0 {
			t.Error("another browser completed the login")
		}
		me.do(chromedp.Navigate(otherPort(t)))
		if got := read(me, chromedp.Evaluate[string]("document.body.innerText")); got != "no cookie" {
			t.Errorf("another port gets %s", got)
		}
		me.do(chromedp.Navigate(right.String()))
		me.sees("tickets is connected")
		if err := c.end(); err != nil {
			t.Error(err)
		}
		if out, err := c.token(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		if _, err := os.Stat(c.address); !os.IsNotExist(err) {
			t.Errorf("the file is still there: %v", err)
		}
	})

	t.Run("login, opened, by form", func(t *testing.T) {
		c := newOpened(t, path)
		me, other := me.in(t), other.in(t)
		me.do(chromedp.Navigate("file://"+c.address), waitFor("#allow"))
		posted := formPost(t, c.sso, read(me, chromedp.Location()))
		other.do(chromedp.Navigate(posted), click("#send"))
		other.sees("This sign-in was not started here")
		me.do(chromedp.Navigate(posted), click("#send"))
		me.sees("tickets is connected")
		if err := c.end(); err != nil {
			t.Error(err)
		}
	})

	t.Run("login, opened twice", func(t *testing.T) {
		c := newOpened(t, path)
		me, other := me.in(t), other.in(t)
		other.do(chromedp.Navigate("file://"+c.address), waitFor("#allow"))
		me.do(chromedp.Navigate("file://" + c.address))
		me.sees("This sign-in has ended")
		me.looks("login-twice")
		if err := c.end(); err == nil {
			t.Error("login has not failed")
		}
	})

	t.Run("login", func(t *testing.T) {
		c := newCLI(t, path, "login", "tickets", "--no-browser")
		me := me.in(t)
		me.do(chromedp.Navigate(c.address), waitFor("#allow"), click("#allow"))
		me.sees("tickets is connected")
		if err := c.end(); err != nil {
			t.Error(err)
		}
		if out, err := c.token(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// newOpened starts login with a program in BROWSER that keeps the file that it is to open, which is then the
// address.
func newOpened(t *testing.T, path string) *cli {
	t.Helper()
	for range 10 {
		c, home := configured(t, path), t.TempDir()
		program := filepath.Join(home, "browser")
		script := "#!/bin/sh\nprintf %s \"$1\" >\"$0.new\" && mv \"$0.new\" \"$0.opened\"\n"
		if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(path, "--config", c.config, "login", "tickets")
		cmd.Env = append(os.Environ(), "HOME="+home, "BROWSER="+program)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		t.Cleanup(func() { cmd.Process.Kill() })
		c.end = func() error { return <-ended }
		for {
			b, err := os.ReadFile(program + ".opened")
			if err == nil {
				c.address = string(b)
				return c
			}
			select {
			case err := <-ended:
				if !strings.Contains(stderr.String(), taken) {
					t.Fatal(err, &stderr)
				}
			case <-time.After(10 * time.Millisecond):
				continue
			}
			break
		}
	}
	t.Fatal("no port is free")
	return nil
}

// formPost returns the address of a page of the product, on another site than ours, that posts the response
// to authURL as a form (OAuth 2.0 Form Post Response Mode).
func formPost(t *testing.T, sso *remedytest.Server, authURL string) string {
	t.Helper()
	back, err := sso.Consent(authURL)
	if err != nil {
		t.Fatal(err)
	}
	q := back.Query()
	back.RawQuery = ""
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, `<form method="post" action="%s"><input type="hidden" name="code" value="%s"><input type="hidden" name="state" value="%s"><button id="send">Send</button></form>`,
			back, html.EscapeString(q.Get("code")), html.EscapeString(q.Get("state")))
	}))
	t.Cleanup(s.Close)
	return strings.Replace(s.URL, "127.0.0.1", "localhost", 1)
}

// otherPort returns the address of a page that shows our cookies, if it gets any.
func otherPort(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ours := "no cookie"
		for _, c := range r.Cookies() {
			if strings.HasPrefix(c.Name, "itsmauth") {
				ours = c.Name
			}
		}
		fmt.Fprint(w, ours)
	}))
	t.Cleanup(s.Close)
	return s.URL
}
