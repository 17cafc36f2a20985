package providers

import (
	"bytes"
	"cmp"
	"slices"
	"strings"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/providers/beyondtrust"
	"github.com/itsmauth/itsmauth/providers/generic"
	"github.com/itsmauth/itsmauth/providers/presets"
	"github.com/itsmauth/itsmauth/providers/remedy"
	"github.com/itsmauth/itsmauth/providers/static"
	"github.com/itsmauth/itsmauth/providers/webcommander"
)

// All returns the definitions of this module's providers, sorted by name: beyondtrust, oauth2 (package
// generic), remedy, static, webcommander, and the presets (package presets).
func All() []Definition {
	list := []Definition{
		Define("beyondtrust", beyondtrust.New),
		Define("oauth2", generic.New),
		Define("remedy", remedy.New),
		Define("static", static.New),
		Define("webcommander", webcommander.New),
	}
	files, _ := presets.Files.ReadDir(".") // what is embedded can be read
	for _, f := range files {
		data, _ := presets.Files.ReadFile(f.Name())
		list = append(list, preset(strings.TrimSuffix(f.Name(), ".yaml"), data))
	}
	slices.SortFunc(list, func(a, b Definition) int { return cmp.Compare(a.name, b.name) })
	return list
}

// preset is the definition of a file of package presets, whose first line is its engine.
func preset(name string, data []byte) Definition {
	var d Definition
	switch engine, _, _ := bytes.Cut(data, []byte("\n")); string(engine) {
	case "engine: oauth2":
		d = Define(name, func(c generic.Config, env auth.Env) (auth.Provider, error) {
			c.Provider = name
			return generic.New(c, env)
		})
	case "engine: static":
		d = Define(name, func(c static.Config, env auth.Env) (auth.Provider, error) {
			c.Provider = name
			return static.New(c, env)
		})
	}
	d.preset = data
	return d
}
