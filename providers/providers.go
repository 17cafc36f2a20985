// Package providers holds what is known of each product: a [Definition] is a value that turns the
// settings of a connector into an [auth.Provider]. There is no registry to register with; whoever
// has a product of their own hands its Definition to config.
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
}

// Define makes a Definition of a constructor. C is a struct whose fields carry yaml tags, and
// `required:"true"` where a connector cannot do without; config decodes it strictly. f should
// refuse a setting with an [auth.KeyError]. For a file with problems config calls it too, to find
// them all: what is required is then there, but may be a stand-in.
func Define[C any](name string, f func(C, auth.Env) (auth.Provider, error)) Definition {
	return Definition{name, reflect.TypeFor[C](), func(decode func(any) error, env auth.Env) (auth.Provider, error) {
		var c C
		if err := decode(&c); err != nil {
			return nil, err
		}
		return f(c, env)
	}}
}

// Name is what YAML calls the provider.
func (d Definition) Name() string { return d.name }

// Settings is the type that the provider's own keys are decoded into, a struct.
func (d Definition) Settings() reflect.Type { return d.settings }

// New makes the provider, after decode has filled a pointer to its settings.
func (d Definition) New(decode func(into any) error, env auth.Env) (auth.Provider, error) {
	return d.build(decode, env)
}
