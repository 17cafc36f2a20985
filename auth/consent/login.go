package consent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/endpoint"
)

// LoginOptions shape [Login]. The zero value of each field is its default.
type LoginOptions struct {
	// Timeout (5 min) is how long Login may take, the person's part included.
	Timeout time.Duration
	// Show is told the page to open, for those whose browser cannot be opened from here.
	Show func(url string)
	// Open opens a browser and returns without waiting for the person. Its error is not fatal.
	// nil is the platform's way: xdg-open, open or rundll32.
	Open func(url string) error
}

// Login has the person at this machine give consent in their browser. Meanwhile it listens where
// the redirect URI points, which must be http on a loopback address with a port, such as
// http://127.0.0.1:8400/callback (RFC 8252 section 7.3); elsewhere a service answers, with
// [NewHandler]. PKCE (RFC 7636) is used if the provider does.
//
// Before the browser opens, Login checks that the token store can be written. It ends at Timeout or
// with ctx; only if the authorization code was sent to the product by then, it goes on for up to 10 s
// to save the tokens. The browser gets a page that says how the login went.
//
// Its error is an [*auth.Error]: around [auth.ErrConsentRequired] if the person refused,
// [auth.ErrStore] if the tokens cannot be saved, [context.DeadlineExceeded] if Timeout has passed,
// ctx's own, or that of [auth.Session.Redeem].
func Login(ctx context.Context, c Connector, o *LoginOptions) error {
	return named(c, login(ctx, c, o))
}

func named(c Connector, err error) error {
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
	f, err := c.begin()
	if err != nil {
		return err
	}
	if err := checkLoopback(f.redirect); err != nil {
		return err
	}
	listeners, err := listen(f.redirect)
	if err != nil {
		return err
	}
	return f.run(ctx, listeners, o)
}

// run serves the callback until the browser has come back or the time is up.
func (f *flow) run(ctx context.Context, listeners []net.Listener, o *LoginOptions) error {
	ctx, cancel := withTimeout(ctx, cmp.Or(o.Timeout, 5*time.Minute))
	defer cancel()
	l := &loginHandler{flow: f, ctx: ctx, done: make(chan error, 1)}
	stop := serve(listeners, l)
	defer stop()
	if err := f.connector.checkStore(ctx); err != nil {
		return err
	}

	if o.Show != nil {
		o.Show(f.authURL)
	}
	open := openBrowser
	if o.Open != nil {
		open = o.Open
	}
	_ = open(f.authURL) // the person has been shown the address

	select {
	case err := <-l.done:
		return err
	case <-ctx.Done():
		if f.used.Swap(true) { // the browser is back, and Redeem ends soon after ctx
			return <-l.done
		}
		return inTime(ctx, context.Cause(ctx), "the browser sign-in")
	}
}

// openBrowser opens url as the platform does and does not wait for it.
func openBrowser(url string) error {
	cmd := exec.Command("xdg-open", url)
	switch runtime.GOOS {
	case "darwin":
		cmd = exec.Command("open", url)
	case "windows":
		cmd = exec.Command("rundll32", "url.dll,FileProtocolHandler", url)
	}
	return cmd.Start()
}

// checkLoopback refuses a redirect URI that cannot be listened on here.
func checkLoopback(redirect *url.URL) error {
	const elsewhere = "log in on the connections page of the service that answers there, or "
	var wrong string
	switch {
	case !endpoint.Loopback(redirect.Hostname()):
		wrong = "is not on this machine: " + elsewhere
	case redirect.Scheme != "http":
		wrong = "is not http: on this machine there is no certificate for it; " + elsewhere
	case redirect.Port() == "" || redirect.Port() == "0":
		wrong = "has no port to listen on: "
	default:
		return nil
	}
	return fmt.Errorf("redirect_uri %s %sregister and set one such as http://127.0.0.1:8400/callback", redirect, wrong)
}

// listen listens where the browser may go: for localhost that is both addresses, where the machine
// has both, lest the code end up with whoever has the other.
func listen(redirect *url.URL) ([]net.Listener, error) {
	ips := []string{redirect.Hostname()}
	if net.ParseIP(ips[0]) == nil {
		ips = []string{"127.0.0.1"}
		own, err := net.InterfaceAddrs()
		if err != nil || slices.ContainsFunc(own, func(a net.Addr) bool { return a.String() == "::1/128" }) {
			ips = append(ips, "::1")
		}
	}
	var listeners []net.Listener
	for _, ip := range ips {
		l, err := net.Listen("tcp", net.JoinHostPort(ip, redirect.Port()))
		if err != nil {
			for _, l := range listeners {
				l.Close()
			}
			return nil, fmt.Errorf("cannot listen on port %s of redirect_uri %s: %w; end the program that holds the port, or register and set a redirect_uri with another one",
				redirect.Port(), redirect, errors.Unwrap(err)) // net's own words name the address again
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}

// serve runs h until stop, which lets pages that are being sent arrive whole.
func serve(listeners []net.Listener, h http.Handler) (stop func()) {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		MaxHeaderBytes:    64 << 10,
	}
	// Browsers open connections that they may want later, and Shutdown would wait for these.
	var unused sync.Map
	srv.ConnState = func(c net.Conn, s http.ConnState) {
		if s == http.StateNew {
			unused.Store(c, nil)
		} else {
			unused.Delete(c)
		}
	}
	var running sync.WaitGroup
	for _, l := range listeners {
		running.Go(func() { srv.Serve(l) })
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		unused.Range(func(c, _ any) bool { c.(net.Conn).Close(); return true })
		if srv.Shutdown(ctx) != nil {
			srv.Close()
		}
		running.Wait()
	}
}

// loginHandler serves the one callback.
type loginHandler struct {
	*flow
	ctx  context.Context // of Login: a browser that leaves does not end the login
	done chan error
}

func (l *loginHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	switch {
	case !strings.EqualFold(r.Host, l.redirect.Host):
		wrongHost.write(w)
	case r.URL.Path != l.redirect.Path:
		unknown.write(w)
	case r.Method != http.MethodGet:
		wrongMethod(w, "GET")
	case !l.has(q):
		foreign.write(w)
	case !l.used.Swap(true):
		err := l.finish(l.ctx, w, q)
		_ = http.NewResponseController(w).Flush() // before Login returns and the process may end
		l.done <- err
	case l.ctx.Err() != nil:
		l.show(w, ended(l.connector.Name))
	default:
		l.show(w, used(l.connector.Name))
	}
}
