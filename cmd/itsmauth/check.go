package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/itsmauth/itsmauth/config"
)

func (a *app) check() *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Validate the configuration offline",
		Long: `Validate the configuration offline: every problem is one line on stderr,
FILE:LINE:COL: path: message. Nothing is sent.`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			report := struct {
				OK         bool            `json:"ok"`
				Connectors int             `json:"connectors"`
				Problems   config.Problems `json:"problems"`
			}{Problems: config.Problems{}}

			conns, err := a.load(inMemory())
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
}
