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
		Short: "Validate the configuration; with --online, the way to each product too",
		Long: `Validate the configuration: every problem is one line on stderr,
FILE:LINE:COL: path: message. Nothing is sent.

With --online, look at each connector too: name, connection, certificate, proxy,
clock, token, consent, and the API at its probe path. The stored token is used,
and at most one exchange made.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if online {
				return a.online(cmd.Context())
			}
			report := struct {
				OK         bool            `json:"ok"`
				Connectors int             `json:"connectors"`
				Problems   config.Problems `json:"problems"`
			}{Problems: config.Problems{}}

			conns, err := a.look(cmd.Context())
			if err == nil {
				report.OK, report.Connectors = true, len(conns.Names())
				err = conns.Close()
			} else if !errors.As(err, &report.Problems) {
				report.Problems = config.Problems{{File: a.path(), Message: err.Error()}}
			}
			switch {
			case a.output == "json":
				err = errors.Join(err, a.json(report))
			case report.OK:
				_, werr := fmt.Fprintf(a.stdout, "ok: %d connectors\n", report.Connectors)
				err = errors.Join(err, werr)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&online, "online", false, "look at each product too")
	return cmd
}
