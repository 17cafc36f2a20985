package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/itsmauth/itsmauth/auth"
)

func (a *app) keygen() *cobra.Command {
	return &cobra.Command{
		Use:   "keygen",
		Short: "Print a new key for token_store.encryption_keys",
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(a.stdout, auth.NewKey())
			return err
		},
	}
}
