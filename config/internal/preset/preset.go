// Package preset decodes the files of package providers/presets.
package preset

import (
	"fmt"
	"net/url"
	"reflect"
	"slices"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/config/internal/yamldoc"
)

// A Preset is a product whose connectors are settings of an engine.
type Preset struct {
	// Engine is the provider that the settings are for. It is on the first line.
	Engine string `yaml:"engine" required:"true" enum:"oauth2,static"`
	// Product is its name.
	Product string `yaml:"product" required:"true"`
	// Page is the documentation, or the working client, that the preset follows, and Read the day it was read.
	Page *url.URL `yaml:"page" required:"true"`
	Read string   `yaml:"read" required:"true"`
	// Evidence is who wrote Page.
	Evidence string `yaml:"evidence" required:"true" enum:"vendor,working client"`
	// Notes are what else to know.
	Notes []string `yaml:"notes"`
	// Unverified is what Page does not say, or nobody tried.
	Unverified []string `yaml:"unverified"`
	// Probe is a harmless path of the API.
	Probe yamldoc.Node `yaml:"probe"`
	// Variables are keys of the preset's own.
	Variables []Variable `yaml:"variables"`
	// Settings are what a connector has if it does not give these keys itself.
	Settings yamldoc.Node `yaml:"settings"`
	// Variants are for connectors that give certain keys. The first whose When are all given counts, and its
	// settings precede Settings.
	Variants []Variant `yaml:"variants"`
	// Example is what a connector gives, with the Example of the last variant.
	Example yamldoc.Node `yaml:"example" required:"true"`
}

// A Variable is a key whose value replaces {name} in the settings.
type Variable struct {
	Name string `yaml:"name" required:"true"`
	// About completes "it is".
	About string `yaml:"about" required:"true"`
	// Required says that a connector must give it, unless it gives the settings with {name} itself.
	Required bool   `yaml:"required"`
	Default  string `yaml:"default"`
	// Pattern is what a value must match as a whole.
	Pattern string `yaml:"pattern"`
	Secret  bool   `yaml:"secret"`
}

// A Variant is what some connectors of a preset have in common.
type Variant struct {
	When     []string     `yaml:"when"`
	About    string       `yaml:"about" required:"true"`
	Settings yamldoc.Node `yaml:"settings"`
	Example  yamldoc.Node `yaml:"example"`
}

// Decode decodes a preset.
func Decode(data []byte) (*Preset, []yamldoc.Fault) {
	p, doc := new(Preset), yamldoc.New(".", nil)
	root := doc.Parse(data)
	if entries, ok := doc.Entries(root); ok {
		doc.Decode(p, root, entries)
	}
	return p, doc.Faults
}

// Fields is a struct with a field for each of Variables, in their order.
func (p *Preset) Fields() reflect.Type {
	var fields []reflect.StructField
	for i, v := range p.Variables {
		typ := reflect.TypeFor[string]()
		if v.Secret {
			typ = reflect.TypeFor[auth.Secret]()
		}
		fields = append(fields, reflect.StructField{Name: fmt.Sprint("V", i), Type: typ,
			Tag: reflect.StructTag(fmt.Sprintf("yaml:%q about:%q pattern:%q default:%q", v.Name, v.About, v.Regexp(), v.Default))})
	}
	return reflect.StructOf(fields)
}

// Regexp is Pattern for the whole value.
func (v Variable) Regexp() string {
	if v.Pattern == "" {
		return ""
	}
	return "^(?:" + v.Pattern + ")$"
}

// Given are the keys to which Settings give a value.
func (p *Preset) Given() (keys []string) {
	for _, e := range yamldoc.EntriesOf(p.Settings) {
		keys = append(keys, e.Name)
	}
	return keys
}

// Layers are the settings for a connector that gives keys, the strongest first.
func (p *Preset) Layers(given func(key string) bool) [][]yamldoc.Node {
	settings := yamldoc.EntriesOf(p.Settings)
	if !p.Probe.Missing() {
		settings = append(settings, p.Probe)
	}
	for _, v := range p.Variants {
		if !slices.ContainsFunc(v.When, func(key string) bool { return !given(key) }) {
			return [][]yamldoc.Node{yamldoc.EntriesOf(v.Settings), settings}
		}
	}
	return [][]yamldoc.Node{settings}
}
