package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/itsmauth/itsmauth/config"
)

func (a *app) check() *cobra.Command {
	online := false
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Validate the configuration; with --online, also test each product",
		Long: `Validate the configuration. Each problem is one line on stderr,
FILE:LINE:COL: path: message. A setting that works but is a risk, such as a
secret in the file, is a line that begins with "warning:". Nothing is sent.

With --online, also test each connector: DNS, connection, proxy, certificate,
clock, token store, token, consent, and the API at its probe path. The stored
token is used, or one new token requested.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if online {
				return a.checkOnline(cmd.Context())
			}
			report := struct {
				OK         bool            `json:"ok"`
				Connectors int             `json:"connectors"`
				Problems   config.Problems `json:"problems"`
			}{Problems: config.Problems{}}

			conns, err := a.loadWithoutStore(cmd.Context())
			if err == nil {
				report.OK, report.Connectors = true, len(conns.Names())
				paint := painter(a.stderr)
				for _, w := range conns.Warnings() {
					fmt.Fprintln(a.stderr, paint(yellow, "warning:"), visible(w.Error()))
				}
				err = conns.Close()
			} else if !errors.As(err, &report.Problems) {
				report.Problems = config.Problems{{File: a.path(), Message: err.Error()}}
			}
			if a.output == "json" {
				return errors.Join(err, a.json(report))
			}
			if report.OK {
				a.printf("ok: %d connectors\n", report.Connectors)
			}
			return errors.Join(err, a.printErr)
		},
	}
	cmd.Flags().BoolVar(&online, "online", false, "also test each product")
	return cmd
}
