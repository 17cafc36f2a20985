package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/itsmauth/itsmauth/config"
)

const pages = "https://github.com/itsmauth/itsmauth/blob/main/docs/"

// described has the description and the documentation page of each provider that is not a preset.
var described = map[string][2]string{
	"beyondtrust":  {"BeyondTrust Remote Support: client credentials", pages + "providers/beyondtrust.md"},
	"oauth2":       {"any other OAuth 2.0 token endpoint", pages + "providers/oauth2.md"},
	"remedy":       {"BMC Remedy: a person's consent through Remedy SSO, or an AR login", pages + "providers/remedy.md"},
	"static":       {"API keys and Basic: products without a token endpoint", pages + "providers/static.md"},
	"webcommander": {"WebCommander: an application and a user", pages + "providers/webcommander.md"},
}

// presets lists the presets. Decoding them takes some milliseconds.
var presets = sync.OnceValue(config.Presets)

// presetOf finds a preset.
func presetOf(name string) (config.Preset, bool) {
	list := presets()
	i := slices.IndexFunc(list, func(p config.Preset) bool { return p.Name == name })
	if i < 0 {
		return config.Preset{}, false
	}
	return list[i], true
}

// providerNames lists the names of all providers.
func providerNames() []string {
	names := slices.Collect(maps.Keys(described))
	for _, p := range presets() {
		names = append(names, p.Name)
	}
	slices.Sort(names)
	return names
}

func (a *app) providers() *cobra.Command {
	return &cobra.Command{
		Use:   "providers [NAME]",
		Short: "List the supported products, or show how to connect to one",
		Long: `List the supported products. With a NAME, print a connector to copy below
connectors: in itsmauth.yaml, and what is known of the product.`,
		Args: cobra.MaximumNArgs(1),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return providerNames(), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 1 {
				return a.provider(args[0])
			}
			return a.listProviders()
		},
	}
}

// A listed provider is shown by providers.
type listed struct {
	Provider string `json:"provider"`
	// Kind is product or engine (both are code), or preset (settings of the engine).
	Kind        string `json:"kind"`
	Engine      string `json:"engine,omitempty"`
	Description string `json:"description"`
	URL         string `json:"url"`
}

func kindOf(name string) string {
	if name == "oauth2" || name == "static" {
		return "engine"
	}
	return "product"
}

func (a *app) listProviders() error {
	var list []listed
	for _, name := range providerNames() {
		if p, ok := presetOf(name); ok {
			list = append(list, listed{name, "preset", p.Engine, p.Product, pages + "products.md#" + name})
			continue
		}
		list = append(list, listed{name, kindOf(name), "", described[name][0], described[name][1]})
	}
	if a.output == "json" {
		return a.json(list)
	}
	paint := painter(a.stdout)
	for _, p := range list {
		if p.Kind != "preset" {
			a.printf("%s %s\n%13s%s\n", paint(bold, fmt.Sprintf("%-12s", p.Provider)), p.Description, "", paint(dim, p.URL))
		}
	}
	a.printf("\nPresets, which are settings of an engine. itsmauth providers NAME prints one to copy.\n\n")
	for _, p := range list {
		if p.Kind == "preset" {
			a.printf("%s %-7s %s\n", paint(bold, fmt.Sprintf("%-27s", p.Provider)), p.Engine, p.Description)
		}
	}
	return a.printErr
}

// provider shows one provider.
func (a *app) provider(name string) error {
	p, isPreset := presetOf(name)
	about, known := described[name]
	switch {
	case !isPreset && !known:
		return usage(fmt.Errorf("unknown provider %q; itsmauth providers lists them", name))
	case a.output == "json" && isPreset:
		return a.json(p)
	case a.output == "json":
		return a.json(listed{name, kindOf(name), "", about[0], about[1]})
	case isPreset:
		a.printf("%s", prefixed("  ", notes(p)+connectorOf(p)))
	default:
		a.printf("%s", prefixed("  ", comment(about[0]+": "+about[1])+starters[name].connector(name)))
	}
	return a.printErr
}

// notes are comments on what a preset follows and does.
func notes(p config.Preset) string {
	text := comment(p.Product+". Every key of provider: "+p.Engine+" may be given here too.") +
		comment("Evidence ("+p.Evidence+", read "+p.Read+"): "+p.Page)
	for _, n := range p.Notes {
		text += comment(n)
	}
	for _, u := range p.Unverified {
		text += comment("Not verified: " + u)
	}
	if p.Settings != "" {
		text += comment("Unless the connector has them, it gets:") + prefixed("#   ", p.Settings)
	}
	return text
}

// connectorOf is an example of a connector of a preset.
func connectorOf(p config.Preset) string {
	return p.Name + ":\n" + prefixed("  ", "provider: "+p.Name+"\n"+keysOf(p, p.Keys)+keysOf(p, p.Usual().Keys)+otherKeys(p))
}

func keysOf(p config.Preset, keys []config.PresetKey) (text string) {
	for _, k := range keys {
		for _, v := range p.Variables {
			if v.Name == k.Key {
				text += comment("The value is " + v.About + ".")
			}
		}
		text += k.Example
	}
	return text
}

// otherKeys are, as comments, the preset's other ways to authenticate and its variables that have a default.
func otherKeys(p config.Preset) (text string) {
	for _, way := range p.Ways[min(1, len(p.Ways)):] {
		text += comment("Or " + way.About + ":")
		for _, k := range way.Keys {
			text += prefixed("# ", k.Example)
		}
	}
	for _, v := range p.Variables {
		if v.Default != "" {
			text += comment("The default of "+v.Name+", which is "+v.About+":") + "# " + v.Name + ": " + scalar(v.Default) + "\n"
		}
	}
	return text
}

// connector is an example of a connector of a provider that is not a preset.
func (f firstConnector) connector(provider string) string {
	text := "provider: " + provider + "\n"
	for _, s := range f.settings {
		value := scalar(s.value + s.placeholder)
		if s.secret {
			value = "${env:" + variableOf(f.name, s.key) + "}"
		}
		text += s.key + ": " + value + "\n"
	}
	return f.name + ":\n" + prefixed("  ", text)
}

// comment is text as a YAML comment.
func comment(text string) string {
	return prefixed("# ", strings.Join(wrap(text, width-6), "\n")+"\n")
}

// prefixed puts prefix before each line.
func prefixed(prefix, lines string) string {
	var b strings.Builder
	for line := range strings.Lines(lines) {
		b.WriteString(prefix + line)
	}
	return b.String()
}
