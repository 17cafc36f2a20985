package main

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"

	"github.com/spf13/cobra"

	"github.com/itsmauth/itsmauth/auth/consent"
	"github.com/itsmauth/itsmauth/config"
	"github.com/itsmauth/itsmauth/internal/endpoint"
	"github.com/itsmauth/itsmauth/internal/loopback"
)

func (a *app) serve() *cobra.Command {
	var address string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve the connections page on loopback",
		Long: `Serve the page that shows each connector's state and lets a person connect it.
The page's URL is printed, with a key that works once. While this command runs,
it also renews logins that no program uses.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withConnectors(cmd.Context(), func(conns *config.Connectors) error {
				if err := requirePersistentStore(conns); err != nil {
					return err
				}
				return a.servePage(cmd.Context(), conns, address)
			})
		},
	}
	cmd.Flags().StringVar(&address, "listen", "", "loopback `HOST:PORT` of the page (default that of the first redirect_uri on loopback)")
	return cmd
}

// servePage serves the page at address, and at the redirect URIs that browsers come back to.
func (a *app) servePage(ctx context.Context, conns *config.Connectors, address string) error {
	var connectors []consent.Connector
	var addresses []string
	if address != "" {
		addresses = append(addresses, address)
	}
	for _, conn := range all(conns) {
		connectors = append(connectors, consent.Connector{Name: conn.Name, Provider: conn.Provider, Session: session(conn)})
		if flow := session(conn).CodeFlow(); flow != nil {
			if u, err := url.Parse(flow.RedirectURI); err == nil && u.Scheme == "http" && u.Port() != "" && checkLoopback(u.Host) == nil {
				addresses = append(addresses, u.Host)
			}
		}
	}
	if len(addresses) == 0 {
		addresses = []string{"127.0.0.1:0"}
	}
	if err := checkLoopback(addresses[0]); err != nil {
		return usage(fmt.Errorf("--listen %w; a service mounts the page with consent.NewHandler", err))
	}
	listeners, err := loopback.Listen(addresses...)
	if err != nil {
		return err
	}
	g := newGate(consent.NewHandler(connectors, nil))
	failed, stop := loopback.Serve(listeners, g)
	defer stop()

	host, _, _ := net.SplitHostPort(addresses[0])
	_, port, _ := net.SplitHostPort(listeners[0].Addr().String())
	page := url.URL{Scheme: "http", Host: net.JoinHostPort(host, port), Path: "/", RawQuery: "key=" + g.key}
	if _, err := fmt.Fprintln(a.stdout, &page); err != nil {
		return err
	}
	fmt.Fprintln(a.stderr, "Open this page in your browser; its key works once. Ctrl-C stops serving it.")
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

// checkLoopback returns an error unless address is HOST:PORT with a loopback host.
func checkLoopback(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%s is not HOST:PORT", address)
	}
	if !endpoint.Loopback(host) {
		return fmt.Errorf("%s is not a loopback address, such as 127.0.0.1:8400", address)
	}
	return nil
}

// A gate admits only the browser that brings the key, as Jupyter does: other users of this machine can
// reach loopback too.
type gate struct {
	next   http.Handler
	key    string
	cookie string // its name, which is random because browsers send cookies to all ports of a host
	secret string // its value
	used   atomic.Bool
}

func newGate(next http.Handler) *gate {
	return &gate{next: next, key: rand.Text(), cookie: "itsmauth-serve-" + rand.Text()[:8], secret: rand.Text()}
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, err := r.Cookie(g.cookie)
	admitted := err == nil && equal(c.Value, g.secret)
	switch key := r.URL.Query().Get("key"); {
	case key != "" && (admitted || equal(key, g.key) && !g.used.Swap(true)):
		// Lax, because browsers do not send a Strict cookie when the product redirects back.
		http.SetCookie(w, &http.Cookie{Name: g.cookie, Value: g.secret, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode})
		w.Header().Set("Referrer-Policy", "no-referrer")
		w.Header().Set("Cache-Control", "no-store")
		http.Redirect(w, r, "/", http.StatusSeeOther)
	case admitted:
		g.next.ServeHTTP(w, r)
	default:
		w.Header().Set("Cache-Control", "no-store")
		http.Error(w, strings.TrimSpace(`
This page needs the key that itsmauth serve printed in the terminal. The key works once, in one browser.
To use another browser, stop itsmauth serve and start it again.`), http.StatusForbidden)
	}
}

func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
