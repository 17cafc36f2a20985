package consent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/endpoint"
	"github.com/itsmauth/itsmauth/internal/loopback"
)

// LoginOptions configures [Login]. The zero value of each field is its default.
type LoginOptions struct {
	// Timeout (5 min) limits the whole login, including the time that the person needs.
	Timeout time.Duration
	// Show is called with the URL of the sign-in page, for a person whose browser cannot be
	// opened from here. Nil shows nothing.
	Show func(url string)
	// Open opens the URL in a browser and returns without waiting for the person. Its error is
	// ignored. Nil runs the program that the environment variable BROWSER names, else xdg-open, open
	// or rundll32, depending on the platform.
	Open func(url string) error
}

// Login logs in the person at this machine, in their browser. Until the browser comes back, Login
// listens on the redirect URI, which must be http on a loopback address with a port, such as
// http://127.0.0.1:8400/callback (RFC 8252 section 7.3). If the redirect URI belongs to a service,
// use [NewHandler] there. PKCE (RFC 7636) is used if the provider uses it.
//
// Login opens the browser only if the token store can be written. It ends at Timeout or when ctx
// ends. If the authorization code has been sent to the product by then, Login takes up to 10 s more
// to save the tokens. The browser shows a page with the result.
//
// The error is an [*auth.Error] that wraps [auth.ErrConsentRequired] if the person refused,
// [auth.ErrNoRefreshToken] if the product gave no refresh token and an earlier login has one,
// [auth.ErrStore] if the tokens cannot be saved, [context.DeadlineExceeded] after Timeout, ctx's
// error, or the error of [auth.Session.Redeem].
func Login(ctx context.Context, c Connector, o *LoginOptions) error {
	return withName(c, login(ctx, c, o))
}

func withName(c Connector, err error) error {
	var e *auth.Error
	if err != nil && !errors.As(err, &e) {
		err = &auth.Error{Connector: c.Name, Provider: c.Provider, Op: "login", Err: err}
	}
	return err
}

func login(ctx context.Context, c Connector, o *LoginOptions) error {
	if o == nil {
		o = new(LoginOptions)
	}
	f, err := c.newFlow()
	if err != nil {
		return err
	}
	if err := checkRedirect(f.redirect); err != nil {
		return err
	}
	listeners, err := loopback.Listen(f.redirect.Host)
	if err != nil {
		return fmt.Errorf("%w; stop the program that uses this port, or register and set a redirect_uri with another port", err)
	}
	return f.run(ctx, listeners, o)
}

// checkRedirect returns an error if Login cannot listen on the redirect URI.
func checkRedirect(redirect *url.URL) error {
	const elsewhere = "log in on the connections page of the service at that address, or "
	var problem string
	switch {
	case !endpoint.Loopback(redirect.Hostname()):
		problem = "is not on this machine: " + elsewhere
	case redirect.Scheme != "http":
		problem = "is not http, and this machine has no certificate for it: " + elsewhere
	case redirect.Port() == "" || redirect.Port() == "0":
		problem = "has no port to listen on: "
	default:
		return nil
	}
	return fmt.Errorf("redirect_uri %s %sregister and set one such as http://127.0.0.1:8400/callback", redirect, problem)
}

// run serves the redirect URI until the browser comes back or ctx or the timeout ends.
func (f *flow) run(ctx context.Context, listeners []net.Listener, o *LoginOptions) error {
	ctx, cancel := withTimeout(ctx, cmp.Or(o.Timeout, 5*time.Minute))
	defer cancel()
	l := &loginHandler{flow: f, ctx: ctx, done: make(chan error, 1)}
	failed, stop := loopback.Serve(listeners, l)
	defer stop()
	err := f.connector.Session.CheckStore(ctx)
	if err != nil {
		return err
	}

	if o.Show != nil {
		o.Show(f.authURL)
	}
	open := openBrowser
	if o.Open != nil {
		open = o.Open
	}
	_ = open(f.authURL) // Show is for the person whose browser does not open

	select {
	case err = <-l.done:
		return err
	case err = <-failed:
	case <-ctx.Done():
		err = describeTimeout(ctx, context.Cause(ctx), "the browser sign-in")
	}
	if f.used.Swap(true) { // the browser has come back, and Redeem ends soon after ctx
		return <-l.done
	}
	return err
}

// openBrowser starts the browser and does not wait for it.
func openBrowser(url string) error {
	cmd := exec.Command("xdg-open", url)
	switch runtime.GOOS {
	case "darwin":
		cmd = exec.Command("open", url)
	case "windows":
		cmd = exec.Command("rundll32", "url.dll,FileProtocolHandler", url)
	}
	// A list, or a command with arguments, is left to xdg-open.
	if browser, err := exec.LookPath(os.Getenv("BROWSER")); err == nil {
		cmd = exec.Command(browser, url)
	}
	return cmd.Start()
}

// loginHandler serves the redirect URI of one login.
type loginHandler struct {
	*flow
	ctx  context.Context // Login's, not the request's: the login goes on if the browser disconnects
	done chan error
}

func (l *loginHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	switch {
	case !strings.EqualFold(r.Host, l.redirect.Host):
		wrongHostPage.write(w)
	case r.URL.Path != l.redirect.Path:
		unknownPage.write(w)
	case l.hasState(form(w, r)):
		redirectForm(w, r, r.PostForm)
	case r.Method != http.MethodGet:
		writeWrongMethod(w, "GET")
	case !l.hasState(q):
		foreignPage.write(w)
	case !l.used.Swap(true):
		err := l.finish(l.ctx, w, q)
		_ = http.NewResponseController(w).Flush() // before Login returns and the process may exit
		l.done <- err
	case l.ctx.Err() != nil:
		l.show(w, endedPage(l.connector.Name))
	default:
		l.show(w, usedPage(l.connector.Name))
	}
}
