package main

import (
	"cmp"
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
	g := newGate()
	var connectors []consent.Connector
	var addresses []string
	if address != "" {
		addresses = append(addresses, address)
	}
	for _, conn := range all(conns) {
		connectors = append(connectors, consent.Connector{Name: conn.Name, Provider: conn.Provider, Session: conn.Session()})
		flow := conn.Session().CodeFlow()
		if flow == nil {
			continue
		}
		u, err := url.Parse(flow.RedirectURI)
		if err != nil {
			continue
		}
		g.callbacks[cmp.Or(u.Path, "/")] = true
		if u.Scheme == "http" && u.Port() != "" && checkLoopback(u.Host) == nil {
			addresses = append(addresses, u.Host)
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
	g.next = consent.NewHandler(connectors, &consent.HandlerOptions{Path: g.path})
	failed, stop := loopback.Serve(listeners, g)
	defer stop()

	host, _, _ := net.SplitHostPort(addresses[0])
	_, port, _ := net.SplitHostPort(listeners[0].Addr().String())
	page := url.URL{Scheme: "http", Host: net.JoinHostPort(host, port), Path: g.path + "/", RawQuery: "key=" + g.key}
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
// reach loopback too. They may also serve other ports, and browsers send cookies to all ports of a host, so
// all pages and cookies are below a random path. Only the redirect URIs, which the product knows, are not;
// there the handler accepts only what brings the state and the cookie of a login.
type gate struct {
	next      http.Handler
	path      string          // of all pages, without a slash at the end
	callbacks map[string]bool // the paths of the redirect URIs
	key       string
	secret    string // the value of the cookie
	used      atomic.Bool
}

func newGate() *gate {
	return &gate{path: "/" + rand.Text(), callbacks: make(map[string]bool), key: rand.Text(), secret: rand.Text()}
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	const cookie = "itsmauth-serve"
	c, err := r.Cookie(cookie)
	admitted := err == nil && equal(c.Value, g.secret)
	first, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	inside := equal("/"+first, g.path)
	// What looks at an address without a person, such as a terminal's preview, must not use the key up.
	visit := r.Method == http.MethodGet && !strings.Contains(r.Header.Get("Sec-Purpose")+r.Header.Get("Purpose"), "prefetch")
	switch key := r.URL.Query().Get("key"); {
	case inside && key != "" && (admitted || visit && equal(key, g.key) && !g.used.Swap(true)):
		// Lax, because browsers do not send a Strict cookie when the person comes from another site.
		http.SetCookie(w, &http.Cookie{Name: cookie, Value: g.secret, Path: g.path, HttpOnly: true, SameSite: http.SameSiteLaxMode})
		w.Header().Set("Referrer-Policy", "no-referrer")
		w.Header().Set("Cache-Control", "no-store")
		http.Redirect(w, r, g.path+"/", http.StatusSeeOther)
	case inside && admitted, g.callbacks[r.URL.Path]:
		g.next.ServeHTTP(w, r)
	default:
		w.Header().Set("Cache-Control", "no-store")
		http.Error(w, strings.TrimSpace(`
This page needs the key that itsmauth serve printed in the terminal. The key works once, in one browser.
To use another browser, stop itsmauth serve and start it again.`), http.StatusForbidden)
	}
}

func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
