package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/spf13/cobra"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/consent"
	"github.com/itsmauth/itsmauth/config"
	"github.com/itsmauth/itsmauth/internal/emulator"
)

func (a *app) demo() *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Take a tour, with nothing to set up",
		Long: `Take a tour: three products, one YAML file, one authenticated client each. The
products are emulated in this process; nothing leaves the machine.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.tour(cmd.Context())
		},
	}
}

// tour does what a service would, and tells what happens meanwhile.
func (a *app) tour(ctx context.Context) error {
	t := &guide{out: a.stdout, paint: painter(a.stdout)}
	var products []*product
	redirectURI, err := freeRedirectURI()
	if err != nil {
		return err
	}
	for _, e := range emulators {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		p := e.start(l, redirectURI)
		defer p.Close()
		products = append(products, p)
	}
	yaml := yamlOf(products)

	t.title("itsmauth: three products, one YAML file, one authenticated client each")
	t.say(`Nothing here leaves this machine: each product is played by an emulator that
refuses what the product refuses. Secrets and tokens are cut short.`)
	t.say("A service author writes a file:")
	t.quote(masked(yaml))
	t.say("and a few lines of Go:")
	t.quote(`conns, err := config.Load("itsmauth.yaml")
support, err := conns.Get("support")
resp, err := support.Client().Do(req)`)
	t.say("Now see what these lines do.")

	conns, err := config.Parse("itsmauth.yaml", []byte(yaml))
	if err != nil {
		return err
	}
	summary := [][]cell{header("CONNECTOR", "CALLS", "FAILED", "TOKENS KILLED", "EXCHANGES")}
	for i, p := range products {
		conn, err := conns.Get(p.connector)
		if err != nil {
			return errors.Join(err, conns.Close())
		}
		v := &visit{guide: t, product: p, conn: conn}
		t.title(fmt.Sprintf("%d. %s: %s", i+1, p.connector, scenes[p.provider].product))
		if err := v.tour(ctx); err != nil {
			return errors.Join(err, conns.Close())
		}
		summary = append(summary, cells(plain, p.connector, fmt.Sprint(v.calls.Load()),
			fmt.Sprint(v.failed.Load()), "1", fmt.Sprint(p.Stats().Exchanges)))
	}
	if err := conns.Close(); err != nil {
		return err
	}

	t.title("What the callers saw")
	if err := table(a.stdout, summary); err != nil {
		return err
	}
	t.say(`
Each exchange was needed: one to begin with, one for each token that was
killed. Nobody wrote a line about tokens.`)
	t.title("What next")
	t.quote(`itsmauth emulate > itsmauth.yaml &     # the same products, for you to try
itsmauth check
itsmauth call support /api/config/v1/jump-item
itsmauth login remedy                  # you are the person this time
itsmauth status`)
	t.say("README.md tells how to connect your own products.")
	return t.err
}

// scenes are what is said of each product.
var scenes = map[string]struct {
	product          string
	from             string // the part of the answer to show begins here
	exchange, killed string
	callers          int // at once, on the killed token
}{
	"beyondtrust": {
		"BeyondTrust Remote Support", `{"id"`,
		`The secret went out as this product wants it: base64 of the raw pair, of which
OAuth libraries escape each + and / first. And the connection closes after each
API call, as its documentation asks.`,
		`An account has 30 tokens at most; whoever makes the 31st kills the oldest. Let
that be ours. The caller just calls again. On the wire:`,
		1,
	},
	"remedy": {
		"BMC Remedy, through Remedy Single Sign-On", `{"Description"`,
		`The code of the login became an access token for an hour and a refresh token
for 60 days: a form POST, with nothing of it in the URL.`,
		`Somebody kills the access token. The refresh token gets another one, and nobody
has to log in again:`,
		1,
	},
	"webcommander": {
		"WebCommander", `{"id"`,
		`The exchange is JSON here, and the token goes into a header that must be spelled
access_token, of which net/http would make Access_token.`,
		`Now the token is killed while 64 callers use it at once:`,
		64,
	},
}

// A visit is the tour of one product.
type visit struct {
	*guide
	product       *product
	conn          *config.Connector
	calls, failed atomic.Int64
	shown         int // of the product's requests
}

func (v *visit) tour(ctx context.Context) error {
	scene := scenes[v.product.provider]
	if v.product.consent == nil {
		v.say("The first call needs a token, so an exchange comes before it. On the wire:")
	} else if err := v.logIn(ctx); err != nil {
		return err
	}
	answer, err := v.call(ctx)
	if err != nil {
		return err
	}
	v.show(v.requests(), true)
	_, answer, _ = strings.Cut(answer, scene.from)
	v.say(v.paint(green, "200 OK") + "  …" + cut(scene.from+answer, 64))
	v.say(scene.exchange)

	v.say(scene.killed)
	v.product.revokeAll()
	errs := make([]error, scene.callers)
	var callers sync.WaitGroup
	for i := range errs {
		callers.Go(func() { _, errs[i] = v.call(ctx) })
	}
	callers.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	v.show(v.requests(), false)
	if scene.callers == 1 {
		v.say(v.paint(green, "200 OK") + "  is all that the caller saw.")
	} else {
		v.say(v.paint(green, fmt.Sprintf("%d times 200 OK", scene.callers)) + "  is all that the callers saw.\nThey waited for one exchange, together.")
	}
	v.say(fmt.Sprintf("Exchanges so far, counted by the product: %d", v.product.Stats().Exchanges))
	return nil
}

// call makes one call, as any service would.
func (v *visit) call(ctx context.Context) (string, error) {
	v.calls.Add(1)
	body, err := v.get(ctx)
	if err != nil {
		v.failed.Add(1)
	}
	return body, err
}

func (v *visit) get(ctx context.Context) (string, error) {
	req, err := v.conn.NewRequest(ctx, http.MethodGet, v.product.path, nil)
	if err != nil {
		return "", err
	}
	resp, err := v.conn.Client().Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: the emulator answered %s", v.conn.Name, resp.Status)
	}
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// logIn plays the person whom the product wants to ask.
func (v *visit) logIn(ctx context.Context) error {
	v.say("This product asks a person, once. Until then there is no token, and the error\nsays what to do:")
	_, err := v.conn.Authenticator().Token(ctx)
	if !errors.Is(err, auth.ErrConsentRequired) {
		return fmt.Errorf("%s: a token without consent: %w", v.conn.Name, err)
	}
	v.quote(strings.Replace(err.Error(), "; ", ";\n", 1))
	v.say("So here is a login, in which the demo plays the person: where a browser would\nopen, it presses Allow on the product's page. Then a call. On the wire:")
	person := consent.Connector{Name: v.conn.Name, Provider: v.conn.Provider, Session: session(v.conn)}
	return consent.Login(ctx, person, &consent.LoginOptions{Open: func(page string) error {
		back, err := v.product.consent(page)
		if err != nil {
			return err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, back.String(), nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}})
}

// requests are those that came since it was last asked.
func (v *visit) requests() []emulator.Request {
	all := v.product.Requests()
	since := all[v.shown:]
	v.shown = len(all)
	return since
}

// freeRedirectURI is one on a port that nobody listens on, below those that systems hand out by
// themselves, lest another connection get it meanwhile.
func freeRedirectURI() (uri string, err error) {
	for range 10 {
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(20000))); err == nil {
			return "http://" + l.Addr().String() + "/callback", l.Close()
		}
	}
	return "", err
}
