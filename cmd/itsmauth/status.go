package main

import (
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/config"
)

// connectorStatus is one entry of status.
type connectorStatus struct {
	Connector     string     `json:"connector"`
	Provider      string     `json:"provider"`
	State         auth.State `json:"state"`
	Expiry        *time.Time `json:"expiry"`
	ConsentExpiry *time.Time `json:"consent_expiry"`
	Store         string     `json:"store"`
}

var stateStyles = map[auth.State]style{
	auth.StateFresh: green, auth.StateStale: green,
	auth.StateExpired: yellow, auth.StateConsentRequired: red,
}

func (a *app) status() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show what is stored for each connector",
		Long: `Show what is stored for each connector. Nothing is sent. The state is one of
none, fresh, stale (good, and renewed at its next use), expired (renewed at its
next use) and consent_required (run itsmauth login NAME).`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.connectors(func(conns *config.Connectors) error {
				eyes := isTerminal(a.stdout)
				list := []connectorStatus{}
				rows := [][]cell{header("NAME", "PROVIDER", "STATE", "EXPIRES", "CONSENT", "STORE")}
				var errs []error
				for _, name := range conns.Names() {
					conn, err := conns.Get(name)
					if err != nil {
						return err
					}
					st, err := session(conn).Status(cmd.Context())
					if err != nil {
						errs = append(errs, err)
						continue
					}
					list = append(list, connectorStatus{
						name, conn.Provider, st.State, exact(st.Expiry), exact(st.ConsentExpiry), conns.Store(),
					})
					row := cells(plain, name, conn.Provider, string(st.State),
						when(st.Expiry, eyes), when(st.ConsentExpiry, eyes), conns.Store())
					row[2].style = stateStyles[st.State]
					rows = append(rows, row)
				}
				if a.output == "json" {
					errs = append(errs, a.json(list))
				} else {
					errs = append(errs, table(a.stdout, rows))
				}
				return errors.Join(errs...)
			})
		},
	}
}
