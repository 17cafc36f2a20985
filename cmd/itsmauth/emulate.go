package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/itsmauth/itsmauth/internal/emulator"
	"github.com/itsmauth/itsmauth/providers/beyondtrust/beyondtrusttest"
	"github.com/itsmauth/itsmauth/providers/remedy/remedytest"
	"github.com/itsmauth/itsmauth/providers/webcommander/webcommandertest"
)

func (a *app) emulate() *cobra.Command {
	var address string
	products := make([]string, len(emulators))
	for i, e := range emulators {
		products[i] = e.provider
	}
	cmd := &cobra.Command{
		Use:   "emulate [PRODUCT...]",
		Short: "Run emulators of the products on loopback",
		Long: `Run emulators of the products (` + strings.Join(products, ", ") + `; all of
them by default) on loopback until Ctrl-C, and print a YAML that connects to
them. With -v each request is logged to stderr.`,
		Example: `  itsmauth emulate > itsmauth.yaml &
  itsmauth call support /api/config/v1/jump-item`,
		ValidArgs: products,
		Args:      cobra.OnlyValidArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkLoopback(address); err != nil {
				return usage(fmt.Errorf("--listen %w", err))
			}
			host, portText, _ := net.SplitHostPort(address)
			port, err := strconv.ParseUint(portText, 10, 16)
			if err != nil {
				return usage(errors.New("--listen needs a port, or 0 for any free port"))
			}
			var running []*product
			for _, e := range emulators {
				if len(args) > 0 && !slices.Contains(args, e.provider) {
					continue
				}
				l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.FormatUint(port, 10)))
				if err != nil {
					return err
				}
				if port != 0 {
					port++
				}
				p := e.start(l, remedytest.DefaultRedirectURI)
				defer p.Close()
				if a.verbose {
					p.Break(func(_ http.ResponseWriter, r *http.Request) bool {
						a.logger().Info("request", "product", e.provider, "method", r.Method, "path", r.URL.Path)
						return false
					})
				}
				running = append(running, p)
			}
			_, err = fmt.Fprint(a.stdout, "# Emulated products. They stop when itsmauth emulate stops.\n"+yamlFor(running))
			if err != nil {
				return err
			}
			<-cmd.Context().Done()
			return nil
		},
	}
	cmd.Flags().StringVar(&address, "listen", "127.0.0.1:0", "loopback `HOST:PORT` of the first product; the others use the following ports, or any free ones if PORT is 0")
	return cmd
}

// A product is an emulated product with the connector to it.
type product struct {
	*emulator.Front
	provider, connector string
	settings            string // the connector's YAML, with credentials
	path                string // of a request that works

	revokeAll func()
	consent   func(authURL string) (*url.URL, error) // nil if the product needs no login
	deny      func(authURL string) (*url.URL, error)
}

// emulators start each product on a listener. redirectURI is registered in a product that needs a login.
var emulators = []struct {
	provider string
	start    func(l net.Listener, redirectURI string) *product
}{
	{"beyondtrust", emulateBeyondTrust},
	{"remedy", emulateRemedy},
	{"webcommander", emulateWebCommander},
}

func emulateBeyondTrust(l net.Listener, _ string) *product {
	s := beyondtrusttest.NewServer(&beyondtrusttest.Options{Listener: l})
	return &product{
		Front: s.Front, revokeAll: s.RevokeAll,
		provider: "beyondtrust", connector: "support", path: "/api/config/v1/jump-item",
		settings: settings(
			"base_url", s.URL,
			"client_id", beyondtrusttest.DefaultClientID,
			"client_secret", beyondtrusttest.DefaultClientSecret,
		),
	}
}

func emulateRemedy(l net.Listener, redirectURI string) *product {
	s := remedytest.NewServer(&remedytest.Options{Listener: l, RedirectURIs: []string{redirectURI}})
	return &product{
		Front: s.Front, revokeAll: s.RevokeAll,
		provider: "remedy", connector: "remedy", path: "/api/arsys/v1/entry/HPD:IncidentInterface?fields=values(Description)",
		settings: settings(
			"base_url", s.URL,
			"sso_url", s.SSOURL,
			"client_id", remedytest.DefaultClientID,
			"client_secret", remedytest.DefaultClientSecret,
			"redirect_uri", redirectURI,
		),
		consent: s.Consent, deny: s.Deny,
	}
}

func emulateWebCommander(l net.Listener, _ string) *product {
	s := webcommandertest.NewServer(&webcommandertest.Options{Listener: l})
	return &product{
		Front: s.Front, revokeAll: s.RevokeAll,
		provider: "webcommander", connector: "shop", path: "/api/v4/products",
		settings: settings(
			"base_url", s.URL,
			"client_id", webcommandertest.DefaultClientID,
			"client_secret", webcommandertest.DefaultClientSecret,
			"redirect_uri", webcommandertest.DefaultRedirectURI,
			"username", webcommandertest.DefaultUsername,
			"password", webcommandertest.DefaultPassword,
		),
	}
}

// settings returns key-value pairs as lines of YAML. %q quotes ASCII as YAML does.
func settings(pairs ...string) string {
	var b strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		fmt.Fprintf(&b, "    %s: %q\n", pairs[i], pairs[i+1])
	}
	return b.String()
}

// yamlFor returns a configuration that connects to the products.
func yamlFor(products []*product) string {
	var b strings.Builder
	b.WriteString("version: 1\nconnectors:\n")
	for _, p := range products {
		fmt.Fprintf(&b, "  %s:\n    provider: %s\n%s", p.connector, p.provider, p.settings)
	}
	return b.String()
}
