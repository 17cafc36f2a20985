// Package providers has a [Definition] for each product: its name, its settings, and the constructor of
// its [auth.Provider]. There is no global registry. To add a product, pass its Definition to
// config.WithProvider.
package providers

import (
	"reflect"

	"github.com/itsmauth/itsmauth/auth"
)

// A Definition is a product's name, the type of its settings and its constructor.
type Definition struct {
	name     string
	settings reflect.Type
	build    func(decode func(into any) error, env auth.Env) (auth.Provider, error)
	preset   []byte
}

// Define makes a Definition from a constructor. C is a struct whose fields have yaml tags, and
// `required:"true"` if they must be set; config decodes it strictly. For a wrong setting f should
// return an [auth.KeyError]. config also calls f for a file that has problems already, to report all
// of them at once; a missing required setting then has a placeholder.
func Define[C any](name string, f func(C, auth.Env) (auth.Provider, error)) Definition {
	build := func(decode func(any) error, env auth.Env) (auth.Provider, error) {
		var c C
		if err := decode(&c); err != nil {
			return nil, err
		}
		return f(c, env)
	}
	return Definition{name: name, settings: reflect.TypeFor[C](), build: build}
}

// Name is the provider's name in YAML.
func (d Definition) Name() string { return d.name }

// Settings is the struct type that the provider's own keys are decoded into.
func (d Definition) Settings() reflect.Type { return d.settings }

// Preset is the YAML that gives a connector most of its settings (package presets), or nil.
func (d Definition) Preset() []byte { return d.preset }

// New makes the provider. decode is called with a pointer to the settings, to fill them.
func (d Definition) New(decode func(into any) error, env auth.Env) (auth.Provider, error) {
	return d.build(decode, env)
}
