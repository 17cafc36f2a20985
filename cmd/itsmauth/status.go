package main

import (
	"cmp"
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
	Obtained      *time.Time `json:"obtained,omitempty"`
	Host          string     `json:"host,omitempty"` // that obtained the token
	Store         string     `json:"store"`
	StoreError    string     `json:"store_error,omitempty"`
}

var stateStyles = map[auth.State]style{
	auth.StateFresh: green, auth.StateStale: green,
	auth.StateExpired: yellow, auth.StateConsentRequired: red,
}

func (a *app) status() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the stored token of each connector",
		Long: `Show the stored token of each connector: when it expires, and when and on which
host it was obtained. Nothing is sent to the products. The state is one of none,
fresh, stale (valid, and renewed at its next use), expired (renewed at its next
use) and consent_required (run itsmauth login NAME). A connector with provider:
static has no token; it is always fresh.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withConnectors(cmd.Context(), func(conns *config.Connectors) error {
				terminal := isTerminal(a.stdout)
				list := []connectorStatus{}
				rows := [][]cell{header("NAME", "PROVIDER", "STATE", "EXPIRES", "CONSENT", "OBTAINED", "STORE")}
				var errs []error
				for _, conn := range all(conns) {
					st, err := conn.Session().Status(cmd.Context())
					store := conns.Store()
					if conn.Session().StaticCredentials() != nil {
						store = "none"
					}
					entry := connectorStatus{
						Connector: conn.Name, Provider: conn.Provider, State: cmp.Or(st.State, auth.StateNone),
						Expiry: exact(st.Expiry), ConsentExpiry: exact(loginEnd(conn, st)),
						Obtained: exact(st.Obtained), Host: st.Host, Store: store,
					}
					row := cells(plain, conn.Name, conn.Provider, cmp.Or(string(st.State), "-"),
						when(st.Expiry, terminal), when(loginEnd(conn, st), terminal), obtained(st, terminal), store)
					row[2].style = stateStyles[st.State]
					if err != nil {
						errs = append(errs, err)
						entry.StoreError = err.Error()
						row[6] = cell{conns.Store() + " failed", red}
					}
					list, rows = append(list, entry), append(rows, row)
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

// loginEnd returns when a person's login ends unless it is used before, or zero. Without a refresh token
// it ends with the access token.
func loginEnd(conn *config.Connector, st auth.Status) time.Time {
	if conn.Session().CodeFlow() != nil && !st.Refreshable {
		return st.Expiry
	}
	return st.ConsentExpiry
}

func obtained(st auth.Status, terminal bool) string {
	s := when(st.Obtained, terminal)
	if st.Host != "" {
		s += " on " + st.Host
	}
	return s
}
