package providers

import (
	"github.com/itsmauth/itsmauth/providers/beyondtrust"
	"github.com/itsmauth/itsmauth/providers/generic"
	"github.com/itsmauth/itsmauth/providers/remedy"
	"github.com/itsmauth/itsmauth/providers/webcommander"
)

// All returns the definitions of this module's providers, sorted by name: beyondtrust, oauth2 (package
// generic), remedy, webcommander.
func All() []Definition {
	return []Definition{
		Define("beyondtrust", beyondtrust.New),
		Define("oauth2", generic.New),
		Define("remedy", remedy.New),
		Define("webcommander", webcommander.New),
	}
}
