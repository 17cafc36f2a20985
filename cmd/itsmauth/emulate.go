package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/itsmauth/itsmauth/providers/remedy/remedytest"
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
			if err := loopback(address); err != nil {
				return usage(fmt.Errorf("--listen %w", err))
			}
			host, portText, _ := net.SplitHostPort(address)
			port, err := strconv.ParseUint(portText, 10, 16)
			if err != nil {
				return usage(errors.New("--listen needs a port, or 0 for any"))
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
					p.Break(a.logRequests(e.provider))
				}
				running = append(running, p)
			}
			_, err = fmt.Fprint(a.stdout, "# Emulated products, as long as this itsmauth emulate runs.\n"+yamlOf(running))
			if err != nil {
				return err
			}
			<-cmd.Context().Done()
			return nil
		},
	}
	cmd.Flags().StringVar(&address, "listen", "127.0.0.1:0", "loopback `HOST:PORT` of the first; the others take the ports that follow, or any with 0")
	return cmd
}

func (a *app) logRequests(product string) func(http.ResponseWriter, *http.Request) bool {
	logger := a.logger()
	return func(_ http.ResponseWriter, r *http.Request) bool {
		logger.Info("request", "product", product, "method", r.Method, "path", r.URL.Path)
		return false
	}
}
