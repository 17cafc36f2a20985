package main

import (
	"github.com/spf13/cobra"

	"github.com/itsmauth/itsmauth/auth/redisstore"
	"github.com/itsmauth/itsmauth/config"
)

func (a *app) schema() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of the configuration",
		Long: `Print the JSON Schema of the configuration, with which an editor completes,
explains and checks each key. For those that use the YAML language server:

  itsmauth schema > itsmauth.schema.json

and this as the first line of itsmauth.yaml:

  # yaml-language-server: $schema=itsmauth.schema.json`,
		RunE: func(*cobra.Command, []string) error {
			b, err := jsonSchema()
			if err == nil {
				_, err = a.stdout.Write(b)
			}
			return err
		},
	}
}

// jsonSchema is that of all that the CLI knows.
func jsonSchema() ([]byte, error) {
	return config.Schema(config.WithStore("redis", redisstore.Open))
}
