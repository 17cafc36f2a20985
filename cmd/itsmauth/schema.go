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
		Long: `Print the JSON Schema of the configuration. With it, an editor completes,
explains and checks the keys. For an editor with the YAML language server, run

  itsmauth schema > itsmauth.schema.json

and make this the first line of itsmauth.yaml:

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

// jsonSchema returns the schema with all providers and stores of the command line.
func jsonSchema() ([]byte, error) {
	return config.Schema(config.WithStore("redis", redisstore.Open))
}
