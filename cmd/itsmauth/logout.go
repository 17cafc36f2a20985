package main

import (
	"errors"
	"fmt"

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
				err := session(conn).Revoke(cmd.Context())
				if err != nil && cmd.Context().Err() == nil && !errors.Is(err, auth.ErrStore) {
					message, _ := splitAdvice(err) // which is to try again, but the tokens are deleted
					return reworded{err, message + "; the tokens are deleted here but may still be valid: revoke them in the product"}
				}
				if err == nil {
					_, err = fmt.Fprintf(a.stdout, "%s is logged out\n", conn.Name)
				}
				return err
			})
		},
	}
}
