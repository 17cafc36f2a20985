package consent

import (
	"cmp"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
)

// LoginOptions shape [Login]. The zero value of each field is its default.
type LoginOptions struct {
	// Timeout (5 min) is how long the person may take.
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
// Its error is an [*auth.Error]: around [auth.ErrConsentRequired] if the person refused,
// [context.DeadlineExceeded] if nobody came in time, ctx's own, or that of [auth.Session.Redeem].
func Login(ctx context.Context, c Connector, o *LoginOptions) error {
	err := login(ctx, c, o)
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
	flow := c.Session.CodeFlow()
	if flow == nil {
		return errors.New("this grant needs no person")
	}
	redirect, err := loopback(flow.RedirectURI)
	if err != nil {
		return err
	}
	listeners, err := listen(ctx, redirect)
	if err != nil {
		return err
	}

	l := &loginHandler{
		ctx: ctx, connector: c, redirect: redirect,
		state: newState(), verifier: oauth2.GenerateVerifier(), done: make(chan error, 1),
	}
	stop := serve(listeners, l)
	defer stop()

	at := flow.URL(l.state, l.verifier)
	if o.Show != nil {
		o.Show(at)
	}
	open := openBrowser
	if o.Open != nil {
		open = o.Open
	}
	_ = open(at) // the person has been shown the address

	timeout := cmp.Or(o.Timeout, 5*time.Minute)
	late := time.NewTimer(timeout)
	defer late.Stop()
	for {
		select {
		case err := <-l.done:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-late.C:
			if l.take() { // whoever comes now is too late; who came before is seen off
				return fmt.Errorf("nobody came back from the browser within %s: %w", timeout, context.DeadlineExceeded)
			}
		}
	}
}

// loopback parses a redirect URI that can be listened on here.
func loopback(uri string) (*url.URL, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return nil, errors.New("redirect_uri is not a URI")
	}
	shown := (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
	switch {
	case !isLoopback(u.Hostname()):
		return nil, fmt.Errorf("redirect_uri %s is not on this machine: log in on the connections page of the service that answers there, or register and set one such as http://127.0.0.1:8400/callback", shown)
	case u.Scheme != "http":
		return nil, fmt.Errorf("redirect_uri %s is not http: on this machine there is no certificate for it; log in on the connections page of the service that answers there, or register and set one such as http://127.0.0.1:8400/callback", shown)
	case u.Port() == "" || u.Port() == "0":
		return nil, fmt.Errorf("redirect_uri %s has no port to listen on: register and set one such as http://127.0.0.1:8400/callback", shown)
	}
	return u, nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return ip.IsLoopback() || strings.EqualFold(host, "localhost")
}

// listen listens where the browser may go: for localhost that is both addresses, lest the code
// end up with whoever has the other.
func listen(ctx context.Context, redirect *url.URL) ([]net.Listener, error) {
	ips := []string{redirect.Hostname()}
	if net.ParseIP(ips[0]) == nil {
		ips = []string{"127.0.0.1", "::1"}
	}
	var listeners []net.Listener
	for i, ip := range ips {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(ip, redirect.Port()))
		if err == nil {
			listeners = append(listeners, l)
			continue
		}
		if i > 0 && !taken(ip, redirect.Port()) {
			continue // a machine without IPv6
		}
		for _, l := range listeners {
			l.Close()
		}
		if op := (*net.OpError)(nil); errors.As(err, &op) {
			err = op.Err
		}
		return nil, fmt.Errorf("cannot listen on port %s of redirect_uri http://%s%s: %w; end the program that holds the port, or register and set a redirect_uri with another one",
			redirect.Port(), redirect.Host, redirect.Path, err)
	}
	return listeners, nil
}

// taken reports whether somebody answers there.
func taken(ip, port string) bool {
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(ip, port), time.Second)
	if err == nil {
		conn.Close()
	}
	return err == nil
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

// loginHandler waits for the one callback.
type loginHandler struct {
	ctx             context.Context // of Login, since a browser that leaves does not end it
	connector       Connector
	redirect        *url.URL
	state, verifier string
	done            chan error

	mu   sync.Mutex
	used bool
}

// take reports whether this is the first who asks.
func (l *loginHandler) take() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	first := !l.used
	l.used = true
	return first
}

func (l *loginHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	switch {
	case !strings.EqualFold(r.Host, l.redirect.Host):
		wrongHost().write(w)
	case r.URL.Path != cmp.Or(l.redirect.Path, "/"):
		unknown().write(w)
	case r.Method != http.MethodGet:
		wrongMethod(w, http.MethodGet)
	case len(q["state"]) != 1 || subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(l.state)) == 0:
		foreign("").write(w)
	case !l.take():
		used(l.connector.Name).write(w)
	default:
		p, err := l.connector.finish(l.ctx, q, l.verifier)
		p.Close = true
		p.write(w)
		l.done <- err
	}
}
