package main

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/itsmauth/itsmauth/auth/consent"
	"github.com/itsmauth/itsmauth/config"
	"github.com/itsmauth/itsmauth/internal/endpoint"
)

func (a *app) serve() *cobra.Command {
	var address string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve the connections page on loopback",
		Long: `Serve the page that shows each connector's state and lets a person connect it.
It prints the page's URL, with a key that works once. While it runs, consents
that nobody uses are kept alive.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.connectors(cmd.Context(), func(conns *config.Connectors) error {
				if err := lasting(conns); err != nil {
					return err
				}
				return a.servePage(cmd.Context(), conns, address)
			})
		},
	}
	cmd.Flags().StringVar(&address, "listen", "", "loopback `HOST:PORT` of the page (default that of the first redirect_uri on loopback, where browsers come back to)")
	return cmd
}

func (a *app) servePage(ctx context.Context, conns *config.Connectors, address string) error {
	var connectors []consent.Connector
	var addresses []string // the page's, and where browsers come back to
	if address != "" {
		addresses = append(addresses, address)
	}
	for _, conn := range all(conns) {
		connectors = append(connectors, consent.Connector{Name: conn.Name, Provider: conn.Provider, Session: session(conn)})
		if flow := session(conn).CodeFlow(); flow != nil {
			if u, err := url.Parse(flow.RedirectURI); err == nil && u.Scheme == "http" && u.Port() != "" && loopback(u.Host) == nil {
				addresses = append(addresses, u.Host)
			}
		}
	}
	if len(addresses) == 0 {
		addresses = []string{"127.0.0.1:0"}
	}
	if err := loopback(addresses[0]); err != nil {
		return usage(fmt.Errorf("--listen %w; a service mounts the page with consent.NewHandler", err))
	}

	var listeners []net.Listener
	defer func() {
		for _, l := range listeners {
			l.Close()
		}
	}()
	for i, addr := range addresses {
		if slices.Contains(addresses[:i], addr) {
			continue
		}
		ls, err := listen(addr)
		if err != nil {
			return fmt.Errorf("cannot listen on %s: %w", addr, err)
		}
		listeners = append(listeners, ls...)
	}

	g := newGate(consent.NewHandler(connectors, nil))
	host, _, _ := net.SplitHostPort(addresses[0])
	_, port, _ := net.SplitHostPort(listeners[0].Addr().String())
	page := url.URL{Scheme: "http", Host: net.JoinHostPort(host, port), Path: "/", RawQuery: "key=" + g.key}
	if _, err := fmt.Fprintln(a.stdout, &page); err != nil {
		return err
	}
	fmt.Fprintln(a.stderr, "Open this page in your browser; its key works once. Ctrl-C ends it.")
	return serveUntil(ctx, g, listeners)
}

// loopback refuses an address that others can reach.
func loopback(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%s is not HOST:PORT", address)
	}
	if !endpoint.Loopback(host) {
		return fmt.Errorf("%s is not an address of loopback, such as 127.0.0.1:8400", address)
	}
	return nil
}

// listen listens where a browser goes for address: for localhost that may be either of two.
func listen(address string) ([]net.Listener, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if !strings.EqualFold(host, "localhost") {
		l, err := net.Listen("tcp", address)
		return []net.Listener{l}, err
	}
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		return nil, err
	}
	_, port, _ = net.SplitHostPort(l.Addr().String())
	l6, err := net.Listen("tcp", net.JoinHostPort("::1", port))
	switch {
	case err == nil:
		return []net.Listener{l, l6}, nil
	case errors.Is(err, syscall.EADDRINUSE):
		l.Close()
		return nil, err
	}
	return []net.Listener{l}, nil // a machine without IPv6
}

// serveUntil serves h until ctx ends, and lets pages that are being sent arrive.
func serveUntil(ctx context.Context, h http.Handler, listeners []net.Listener) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 64 << 10}
	failed := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { failed <- srv.Serve(l) }()
	}
	var err error
	left := len(listeners)
	select {
	case <-ctx.Done():
	case err = <-failed:
		left--
	}
	grace, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if srv.Shutdown(grace) != nil {
		srv.Close()
	}
	for range left {
		<-failed
	}
	return err
}

// A gate lets in the one browser that brought the key, as notebooks do. Others on this machine can
// reach loopback too.
type gate struct {
	next   http.Handler
	key    string
	cookie string // its name: browsers do not tell the ports of a host apart
	secret string // its value

	mu   sync.Mutex
	used bool
}

func newGate(next http.Handler) *gate {
	return &gate{next: next, key: rand.Text(), cookie: "itsmauth-serve-" + rand.Text()[:8], secret: rand.Text()}
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	known := false
	if c, err := r.Cookie(g.cookie); err == nil {
		known = same(c.Value, g.secret)
	}
	switch key := r.URL.Query().Get("key"); {
	case key != "" && (known || g.take(key)):
		// Lax and not Strict: the cookie has to come along when the product sends the browser back.
		http.SetCookie(w, &http.Cookie{Name: g.cookie, Value: g.secret, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode})
		w.Header().Set("Referrer-Policy", "no-referrer")
		w.Header().Set("Cache-Control", "no-store")
		http.Redirect(w, r, "/", http.StatusSeeOther)
	case known:
		g.next.ServeHTTP(w, r)
	default:
		w.Header().Set("Cache-Control", "no-store")
		http.Error(w, strings.TrimSpace(`
This page needs the key that itsmauth serve printed in the terminal. It works once, for one browser.
To use another browser, end itsmauth serve and start it again.`), http.StatusForbidden)
	}
}

// take uses the key up, if this is it.
func (g *gate) take(key string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.used || !same(key, g.key) {
		return false
	}
	g.used = true
	return true
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
