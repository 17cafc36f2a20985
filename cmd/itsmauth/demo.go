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

// tour uses the products as a service would, and prints what happens.
func (a *app) tour(ctx context.Context) error {
	t := &narrator{a, painter(a.stdout)}
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
	yaml := yamlFor(products)

	t.title("itsmauth: three products, one YAML file, one authenticated client each")
	t.say(`Nothing leaves this machine: each product is an emulator that refuses what the
product refuses. Secrets and tokens are shortened here.`)
	t.say("The author of a service writes a file:")
	t.quote(masked(yaml))
	t.say("and a few lines of Go:")
	t.quote(`conns, err := config.Load("itsmauth.yaml")
support, err := conns.Get("support")
resp, err := support.Client().Do(req)`)
	t.say("This is what these lines do.")

	conns, err := config.Parse("itsmauth.yaml", []byte(yaml))
	if err != nil {
		return err
	}
	summary := [][]cell{header("CONNECTOR", "CALLS", "FAILED", "TOKENS KILLED", "TOKEN REQUESTS")}
	for i, p := range products {
		conn, err := conns.Get(p.connector)
		if err != nil {
			return errors.Join(err, conns.Close())
		}
		v := &visit{narrator: t, product: p, conn: conn}
		t.title(fmt.Sprintf("%d. %s: %s", i+1, p.connector, scenes[p.provider].product))
		if err := v.play(ctx, scenes[p.provider]); err != nil {
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
Each token request was needed: one for the first call, and one for each killed
token. The service has no code for tokens.`)
	t.title("What next")
	t.quote(`itsmauth emulate > itsmauth.yaml &     # the same products, to try yourself
itsmauth check
itsmauth call support /api/config/v1/jump-item
itsmauth login remedy                  # you are the person this time
itsmauth status`)
	t.say("README.md explains how to connect your own products.")
	return a.printErr
}

// A scene is what the tour says about a product.
type scene struct {
	product          string
	from             string // the part of the response to show begins here
	exchange, killed string
	callers          int // concurrent callers of the killed token
}

var scenes = map[string]scene{
	"beyondtrust": {
		"BeyondTrust Remote Support", `{"id"`,
		`The secret was sent as this product expects it: as base64 of the raw pair. OAuth
libraries escape + and / first. And the connection is closed after each API
call, as the product's documentation asks.`,
		`An account has at most 30 tokens; the 31st makes the oldest invalid. Suppose
that is ours. The caller just calls again. On the wire:`,
		1,
	},
	"remedy": {
		"BMC Remedy, through Remedy Single Sign-On", `{"Description"`,
		`The login's code was exchanged for an access token for an hour and a refresh
token for 60 days, in a form POST, with nothing in the URL.`,
		`Now the access token is killed. The refresh token gets a new one, without
another login:`,
		1,
	},
	"webcommander": {
		"WebCommander", `{"id"`,
		`The token request is JSON here. The token is sent in a header that must be
spelled access_token. By default, net/http would send Access_token.`,
		`Now the token is killed while 64 callers use it at once:`,
		64,
	},
}

// A visit is the tour of one product.
type visit struct {
	*narrator
	product       *product
	conn          *config.Connector
	calls, failed atomic.Int64
	shown         int // how many of the product's requests were shown
}

func (v *visit) play(ctx context.Context, scene scene) error {
	if v.product.consent == nil {
		v.say("The first call needs a token, so it is requested first. On the wire:")
	} else if err := v.logIn(ctx); err != nil {
		return err
	}
	body, err := v.call(ctx)
	if err != nil {
		return err
	}
	v.show(v.newRequests(), true)
	_, body, _ = strings.Cut(body, scene.from)
	v.say(v.paint(green, "200 OK") + "  …" + cut(scene.from+body, 64))
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
	v.show(v.newRequests(), false)
	if scene.callers == 1 {
		v.say(v.paint(green, "200 OK") + "  is all that the caller saw.")
	} else {
		v.say(v.paint(green, fmt.Sprintf("%d times 200 OK", scene.callers)) + "  is all that the callers saw.\nThey all waited for the same token request.")
	}
	v.say(fmt.Sprintf("Token requests so far, as counted by the product: %d", v.product.Stats().Exchanges))
	return nil
}

// call makes one call and counts it.
func (v *visit) call(ctx context.Context) (body string, err error) {
	v.calls.Add(1)
	defer func() {
		if err != nil {
			v.failed.Add(1)
		}
	}()
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
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// logIn logs in, playing the person.
func (v *visit) logIn(ctx context.Context) error {
	v.say("With this product, a person must log in once. Until then there is no token, and\nthe error says what to do:")
	_, err := v.conn.Authenticator().Token(ctx)
	if !errors.Is(err, auth.ErrConsentRequired) {
		return fmt.Errorf("%s: a token without consent: %w", v.conn.Name, err)
	}
	message, advice := splitAdvice(err)
	v.quote(message + ";\n" + advice)
	v.say("So the demo logs in and plays the person: instead of opening a browser, it\npresses Allow on the product's page. Then it makes a call. On the wire:")
	person := consent.Connector{Name: v.conn.Name, Provider: v.conn.Provider, Session: v.conn.Session()}
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

// newRequests returns the product's requests since the last time.
func (v *visit) newRequests() []emulator.Request {
	all := v.product.Requests()
	list := all[v.shown:]
	v.shown = len(all)
	return list
}

// freeRedirectURI returns a redirect URI with a free port. The port is below the ephemeral range, so that
// no outgoing connection takes it.
func freeRedirectURI() (uri string, err error) {
	for range 10 {
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(20000))); err == nil {
			return "http://" + l.Addr().String() + "/callback", l.Close()
		}
	}
	return "", err
}
