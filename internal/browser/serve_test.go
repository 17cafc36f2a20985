package browser

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

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
		also.do(chromedp.Navigate(strings.TrimSuffix(c.redirect, "callback")), click("button[value=tickets]"), waitFor("#allow"))
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

		c.interrupt()
		if err := c.end(); err != nil {
			t.Error(err)
		}
		if out, err := c.token(); err != nil {
			t.Errorf("%v: %s", err, out)
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
