package browser

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/itsmauth/itsmauth/providers/remedy/remedytest"
)

// cli is the itsmauth command, with a Remedy connector called tickets and its tokens in files.
type cli struct {
	t        *testing.T
	sso      *remedytest.Server
	path     string
	config   string
	redirect string
}

func newCLI(t *testing.T) *cli {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	dir := t.TempDir()
	c := &cli{
		t: t, path: filepath.Join(dir, "itsmauth"), config: filepath.Join(dir, "itsmauth.yaml"),
		redirect: "http://" + free.Addr().String() + "/callback",
	}
	build := exec.Command("go", "build", "-o", c.path, "./cmd/itsmauth")
	build.Dir = "../.." // its module
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c.sso = remedytest.NewServer(&remedytest.Options{RedirectURIs: []string{c.redirect}})
	t.Cleanup(c.sso.Close)
	err = os.WriteFile(c.config, fmt.Appendf(nil, `version: 1
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

// start runs a command that first prints an address. end waits for it; serve has to be interrupted.
func (c *cli) start(args ...string) (address string, end func() error, interrupt func()) {
	c.t.Helper()
	cmd := exec.Command(c.path, append([]string{"--config", c.config}, args...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { cmd.Process.Kill() })
	address, err = bufio.NewReader(out).ReadString('\n')
	if err != nil {
		c.t.Fatal(err)
	}
	return strings.TrimSpace(address), cmd.Wait, func() { cmd.Process.Signal(os.Interrupt) }
}

// token runs itsmauth token.
func (c *cli) token() (string, error) {
	out, err := exec.Command(c.path, "--config", c.config, "token", "tickets").CombinedOutput()
	return string(out), err
}

// The command line, as an operator has it: serve and login, each in a real browser.
func TestCommands(t *testing.T) {
	t.Parallel()
	b := newBrowser(t)

	t.Run("serve", func(t *testing.T) {
		t.Parallel()
		c := newCLI(t)
		address, end, interrupt := c.start("serve")
		me, other := b.person(t), b.person(t)
		me.do(chromedp.Navigate(address))
		me.sees("Connections")
		if at := read(me, chromedp.Location()); strings.Contains(at, "key=") {
			t.Errorf("the key stays in the address: %s", at)
		}
		other.do(chromedp.Navigate(address)) // the key works once
		if shown := read(other, chromedp.Evaluate[string]("document.body.innerText")); strings.Contains(shown, "tickets") {
			t.Errorf("another browser sees %s", shown)
		}

		me.do(click("button[value=tickets]"), waitFor("#deny"), click("#deny"))
		me.sees("tickets was not connected")
		me.do(click("a.button"), click("button[value=tickets]"), waitFor("#allow"))
		also := me.another() // a second tab begins a flow of its own
		also.do(chromedp.Navigate(strings.TrimSuffix(c.redirect, "callback")), click("button[value=tickets]"), waitFor("#allow"))
		right, err := c.sso.Consent(read(me, chromedp.Location()))
		if err != nil {
			t.Fatal(err)
		}
		other.do(chromedp.Navigate(right.String())) // somebody else's browser
		if n := c.sso.Stats().TokenRequests; n != 0 {
			t.Errorf("another browser completed the flow")
		}
		me.do(click("#allow"))
		me.sees("tickets is connected")
		me.do(chromedp.Reload())
		me.sees("This sign-in is over")
		also.do(click("#allow"))
		also.sees("tickets is connected")

		interrupt()
		if err := end(); err != nil {
			t.Error(err)
		}
		if out, err := c.token(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})

	t.Run("login", func(t *testing.T) {
		t.Parallel()
		c := newCLI(t)
		address, end, _ := c.start("login", "tickets", "--no-browser")
		me := b.person(t)
		me.do(chromedp.Navigate(address), waitFor("#allow"), click("#allow"))
		me.sees("tickets is connected")
		if err := end(); err != nil {
			t.Error(err)
		}
		if out, err := c.token(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
}
