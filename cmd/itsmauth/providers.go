package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/itsmauth/itsmauth/providers"
)

const pages = "https://github.com/itsmauth/itsmauth/blob/main/docs/providers/"

// described has each provider's description and documentation page.
var described = map[string][2]string{
	"beyondtrust":  {"BeyondTrust Remote Support: client credentials", pages + "beyondtrust.md"},
	"oauth2":       {"any other OAuth 2.0 token endpoint", "https://pkg.go.dev/github.com/itsmauth/itsmauth/providers/generic#Config"},
	"remedy":       {"BMC Remedy: a person's consent through Remedy SSO, or an AR login", pages + "remedy.md"},
	"webcommander": {"WebCommander: an application and a user", pages + "webcommander.md"},
}

func (a *app) providers() *cobra.Command {
	return &cobra.Command{
		Use:   "providers",
		Short: "List the supported products",
		RunE: func(*cobra.Command, []string) error {
			type provider struct {
				Provider    string `json:"provider"`
				Description string `json:"description"`
				URL         string `json:"url"`
			}
			var list []provider
			for _, d := range providers.All() {
				list = append(list, provider{d.Name(), described[d.Name()][0], described[d.Name()][1]})
			}
			if a.output == "json" {
				return a.json(list)
			}
			paint := painter(a.stdout)
			for _, p := range list {
				if _, err := fmt.Fprintf(a.stdout, "%s %s\n%13s%s\n", paint(bold, fmt.Sprintf("%-12s", p.Provider)), p.Description, "", paint(dim, p.URL)); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
