package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/config"
)

func (a *app) logout() *cobra.Command {
	return &cobra.Command{
		Use:   "logout NAME",
		Short: "Revoke the tokens if the product can, and delete them",
		Args:  cobra.ExactArgs(1), ValidArgsFunction: a.completeName,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withConnector(cmd.Context(), args[0], func(_ *config.Connectors, conn *config.Connector) error {
				if conn.Session().StaticCredentials() != nil {
					return usage(fmt.Errorf("%s has no tokens to delete: it sends credentials of the configuration; revoke them in the product", conn.Name))
				}
				st, _ := conn.Session().Status(cmd.Context()) // if the store fails, Revoke says so
				err := conn.Session().Revoke(cmd.Context())
				if err != nil && cmd.Context().Err() == nil && !errors.Is(err, auth.ErrStore) {
					message, _ := splitAdvice(err) // which is to try again, but the tokens are deleted
					return reworded{err, message + "; the tokens are deleted here but may still be valid: revoke them in the product"}
				}
				if err == nil {
					_, err = fmt.Fprintf(a.stdout, "%s is logged out%s\n", conn.Name, notRevoked(conn, st))
				}
				return err
			})
		},
	}
}

// notRevoked says what a logout leaves valid at the product, if the product was not told. st is the
// status before the logout.
func notRevoked(conn *config.Connector, st auth.Status) string {
	var valid []string
	if left := time.Until(st.Expiry); left > 0 {
		valid = append(valid, "its access token for "+about(left))
	}
	if left := time.Until(st.ConsentExpiry); left > 0 {
		valid = append(valid, "its refresh token for "+about(left))
	} else if st.Refreshable && st.ConsentExpiry.IsZero() {
		valid = append(valid, "its refresh token until the product ends it")
	}
	if conn.Session().CanRevoke() || valid == nil {
		return ""
	}
	why := ", which cannot revoke tokens"
	if p, _ := presetOf(conn.Provider); conn.Provider == "oauth2" || p.Engine == "oauth2" {
		why = ", because the connector has no revoke_url"
	}
	return " here, but not at the product" + why + "; still valid there: " + strings.Join(valid, ", ")
}
