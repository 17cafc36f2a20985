package config

import (
	"cmp"
	"fmt"
	"maps"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/itsmauth/itsmauth/config/internal/preset"
	"github.com/itsmauth/itsmauth/config/internal/yamldoc"
	"github.com/itsmauth/itsmauth/providers"
)

// A decodedPreset has what is made of a preset's file at its first use.
type decodedPreset struct {
	*preset.Preset
	kind yamldoc.Kind // the keys of its connectors
}

// presets decode the presets, each once.
var presets = sync.OnceValue(func() map[string]func() decodedPreset {
	list := map[string]func() decodedPreset{}
	for _, d := range providers.All() {
		if d.Preset() != nil {
			list[d.Name()] = sync.OnceValue(func() decodedPreset {
				p, _ := preset.Decode(d.Preset()) // a test sees the faults
				return decodedPreset{p, yamldoc.Kind{Settings: d.Settings(), Variables: p.Fields(), Given: p.Given()}}
			})
		}
	}
	return list
})

// A Preset is a product whose connectors are settings of an engine, which package presets has as data.
type Preset struct {
	Name    string `json:"name"`
	Product string `json:"product"`
	// Engine is the provider whose keys a connector may have besides Variables: oauth2 or static.
	Engine string `json:"engine"`
	// Page is what the preset follows: the documentation, or the code of a working client.
	Page string `json:"page"`
	// Read is the day on which Page was read, such as 2026-12-01.
	Read string `json:"read"`
	// Evidence is who wrote Page: vendor or working client.
	Evidence string `json:"evidence"`
	// Notes are what else to know.
	Notes []string `json:"notes,omitempty"`
	// Unverified is what Page does not say, or nobody tried.
	Unverified []string         `json:"unverified,omitempty"`
	Variables  []PresetVariable `json:"variables,omitempty"`
	// Keys are what a connector gives, in order, and then the Keys of one of Ways, of which the first is the usual one.
	Keys []PresetKey `json:"keys"`
	Ways []PresetWay `json:"ways,omitempty"`
	// Settings are what the preset gives a connector that does not give these keys itself, as YAML.
	Settings string `json:"settings,omitempty"`
}

// Usual is the first of Ways, or empty.
func (p Preset) Usual() PresetWay {
	if len(p.Ways) == 0 {
		return PresetWay{}
	}
	return p.Ways[0]
}

// A PresetVariable is a key that only one preset has.
type PresetVariable struct {
	Name     string `json:"name"`
	About    string `json:"about"`
	Required bool   `json:"required"`
	Default  string `json:"default,omitempty"`
	Pattern  string `json:"pattern,omitempty"`
}

// A PresetKey is a key of a connector.
type PresetKey struct {
	Key string `json:"key"`
	// Example is the key with a value, as YAML.
	Example string `json:"example"`
}

// A PresetWay is a way to authenticate. A preset takes it if the connector has the keys.
type PresetWay struct {
	About    string      `json:"about"`
	Keys     []PresetKey `json:"keys"`
	Settings string      `json:"settings,omitempty"`
}

// Presets lists the presets, sorted by name.
func Presets() []Preset {
	var list []Preset
	for _, name := range slices.Sorted(maps.Keys(presets())) {
		p := presets()[name]()
		shown := Preset{Name: name, Product: p.Product, Engine: p.Engine, Page: p.Page.String(), Read: p.Read, Evidence: p.Evidence,
			Notes: p.Notes, Unverified: p.Unverified, Keys: presetKeys(p.Example), Settings: yamlOf(p.Settings)}
		for _, v := range p.Variables {
			shown.Variables = append(shown.Variables, PresetVariable{v.Name, v.About, v.Required, v.Default, v.Pattern})
		}
		for _, v := range p.Variants {
			shown.Ways = append(shown.Ways, PresetWay{v.About, presetKeys(v.Example), yamlOf(v.Settings)})
		}
		if n := len(shown.Ways); n > 0 {
			shown.Ways = append(shown.Ways[n-1:], shown.Ways[:n-1]...)
		}
		list = append(list, shown)
	}
	return list
}

func presetKeys(example yamldoc.Node) (keys []PresetKey) {
	for _, e := range yamldoc.EntriesOf(example) {
		keys = append(keys, PresetKey{e.Name, e.YAML()})
	}
	return keys
}

// yamlOf writes the entries of a mapping.
func yamlOf(mapping yamldoc.Node) string {
	var b strings.Builder
	for _, e := range yamldoc.EntriesOf(mapping) {
		b.WriteString(e.YAML())
	}
	return b.String()
}

// kind tells which keys a connector of the provider may have.
func kind(d providers.Definition) func() yamldoc.Kind {
	if d.Preset() == nil {
		return yamldoc.NewKind(d.Settings())
	}
	return func() yamldoc.Kind { return presets()[d.Name()]().kind }
}

// describeVariable is what a schema says of a field of [preset.Preset.Fields] besides its type.
func describeVariable(fields reflect.Type, name string) yamldoc.Object {
	f, _ := fields.FieldByName(name)
	o := yamldoc.Object{}
	if about := f.Tag.Get("about"); about != "" {
		o["description"] = about
	}
	if value := f.Tag.Get("default"); value != "" {
		o["default"] = value
	}
	if pattern := f.Tag.Get("pattern"); pattern != "" {
		text := yamldoc.Object{"type": []string{"string", "number"}, "pattern": pattern}
		o["anyOf"] = []yamldoc.Object{text, yamldoc.Ref("reference"), {"type": "null"}}
	}
	return o
}

// withPreset adds to a connector's entries what its preset says, if it has one. These are then decoded as if they were
// in the file.
func (l *loader) withPreset(at yamldoc.Node, entries []yamldoc.Node) []yamldoc.Node {
	var common struct {
		Provider string   `yaml:"provider"`
		BaseURL  *url.URL `yaml:"base_url"`
	}
	l.doc.Fill(&common, at, entries) // what is refused here is refused again later, which makes one problem
	def := l.opts.providers[common.Provider]
	if def.Preset() == nil {
		return entries
	}
	p := presets()[def.Name()]()
	given := map[string]yamldoc.Node{}
	for _, e := range entries {
		if !e.Null() {
			given[e.Name] = e
		}
	}
	values := l.values(p, at, entries, given)
	overlay := func(wanted func(yamldoc.Node) bool) {
		for _, layer := range p.Layers(func(key string) bool { return !given[key].Missing() }) {
			layer = slices.DeleteFunc(layer, func(e yamldoc.Node) bool { return !wanted(e) })
			entries = l.doc.Overlay(at, entries, layer, values, given["provider"])
		}
	}
	isBase := func(e yamldoc.Node) bool { return e.Name == "base_url" }
	overlay(isBase)
	base := &yamldoc.Value{Text: "https://invalid.invalid", From: yamldoc.Node{Path: at.Path.Below("base_url")}}
	if i := slices.IndexFunc(entries, isBase); i >= 0 {
		base.From = entries[i]
	}
	if l.doc.Fill(&common, at, entries); common.BaseURL != nil {
		trimSlashes(common.BaseURL)
		base.Text = common.BaseURL.String()
	}
	values["base_url"] = base
	overlay(func(yamldoc.Node) bool { return true })
	for _, v := range p.Variables {
		if v.Required && values[v.Name].Used && given[v.Name].Missing() {
			l.doc.RefuseMissing(at, v.Name, "it is "+v.About)
		}
	}
	return entries
}

// values decodes the variables of p, and returns what replaces placeholders in its settings. A text keeps its
// references, so that secrets are read again.
func (l *loader) values(p decodedPreset, at yamldoc.Node, entries []yamldoc.Node, given map[string]yamldoc.Node) map[string]*yamldoc.Value {
	values := map[string]*yamldoc.Value{}
	if id, ok := given["client_id"]; ok {
		values["client_id"] = &yamldoc.Value{Text: id.Text(), From: id}
	}
	decoded := reflect.New(p.kind.Variables)
	l.doc.Fill(decoded.Interface(), at, entries)
	for i, v := range p.Variables {
		from, ok := given[v.Name]
		value := &yamldoc.Value{Text: cmp.Or(from.Text(), v.Default), From: from}
		text, _ := decoded.Elem().Field(i).Interface().(string)
		switch {
		case !ok && v.Required: // a text that no other connector has
			value.Text, value.From = fmt.Sprint("missing-", len(l.names)), yamldoc.Node{Path: at.Path.Below(v.Name)}
		case ok && v.Pattern != "" && !regexp.MustCompile(v.Regexp()).MatchString(text):
			l.doc.Refuse(from.Path, yamldoc.Advise("must match "+v.Pattern, "it is "+v.About))
		}
		values[v.Name] = value
	}
	return values
}
