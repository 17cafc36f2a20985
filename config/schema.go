package config

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
)

// What the comments of the settings' types say, which are not there at run time, as annotations of
// the schema.
//
//go:generate go test -run ^TestKeys$ -update
//go:generate go test ../cmd/itsmauth -run ^TestSchema -update
//go:embed keys.json
var keysJSON []byte

const module = "github.com/itsmauth/itsmauth"

// Patterns in the dialect that ECMA-262 and RE2 share. A reference is as [expand] has it.
const (
	inReference = `(?:[^}$]|\$+[^}${])*\$*\}`
	reference   = `\$\{(?:env:[A-Za-z_][A-Za-z0-9_]*(?::-` + inReference + `|\})|file:[^}]` + inReference + `)`
	anyText     = `^(?:[^$]|\$+[^${]|\$\$+\{|` + reference + `)*\$*$`
	hasOne      = `(?:^|[^$])\$\{`
	duration    = `^\+?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:ns|us|µs|μs|ms|s|m|h))+$`
	httpURL     = `^[Hh][Tt][Tt][Pp][Ss]?://(?:[^/?#@:\[\]\s]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?(?:[/?#].*)?$`
)

type object = map[string]any

func ref(name string) object         { return object{"$ref": "#/$defs/" + name} }
func anyOf(choices ...object) object { return object{"anyOf": choices} }
func or(what object) object          { return anyOf(what, ref("reference")) }

var schemaDefs = object{
	"reference": object{"description": "A value from elsewhere: ${env:NAME}, ${env:NAME:-default} or ${file:PATH}.",
		"type": "string", "allOf": []object{{"pattern": anyText}, {"pattern": hasOne}}},
	"text": object{"type": []string{"string", "number"}, "pattern": anyText},
	"secret": object{"description": "Best a reference, ${env:NAME} or ${file:PATH}, which is read again at each use.",
		"type": []string{"string", "number"}, "minLength": 1, "pattern": anyText},
	"duration": or(object{"type": "string", "allOf": []object{{"pattern": duration}, {"pattern": "[1-9]"}}}),
	"size": anyOf(object{"type": "integer", "minimum": 0},
		object{"type": "string", "pattern": sizes.String()}, ref("reference")),
	"url": or(object{"type": "string", "pattern": httpURL}),
}

// Schema is the JSON Schema (2020-12) of the files that [Parse] takes with these options, for
// editors. Keys of the providers and stores of this module come with their explanations; those that
// are handed in from elsewhere are described by their types alone. What only a program can check,
// such as whether a variable is set, a schema cannot.
func Schema(opts ...Option) ([]byte, error) {
	o := newOptions(opts)
	var s schema
	if err := json.Unmarshal(keysJSON, &s.docs); err != nil {
		return nil, err
	}
	root := s.structure(reflect.TypeFor[file]())
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["$id"] = "https://raw.githubusercontent.com/itsmauth/itsmauth/main/docs/itsmauth.schema.json"
	root["title"] = "itsmauth"
	root["$defs"] = schemaDefs
	root["patternProperties"] = object{"^x-": true}
	top := root["properties"].(object)
	maps.Copy(top["version"].(object), object{"anyOf": []object{{"const": 1}, ref("reference")}})

	products := map[string]reflect.Type{}
	for name, def := range o.providers {
		products[name] = def.Settings()
	}
	connector := s.union(reflect.TypeFor[connectorConfig](), "provider", products)
	connector["properties"].(object)["base_url"].(object)["pattern"] = "^[^?#]*$"
	maps.Copy(top["connectors"].(object), object{
		"type": "object", "minProperties": 1,
		"propertyNames":        object{"pattern": `^\S(?:.*\S)?$`},
		"additionalProperties": connector,
	})
	stores := map[string]reflect.Type{}
	for name, s := range o.stores {
		stores[name] = s.settings
	}
	maps.Copy(top["token_store"].(object), nullable(s.union(reflect.TypeFor[storeConfig](), "type", stores)))
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(root)
	return b.Bytes(), err
}

type schema struct{ docs map[string]object }

// union is common with, by the word at key, the keys of one of kinds.
func (s schema) union(common reflect.Type, key string, kinds map[string]reflect.Type) object {
	all := s.structure(common)
	delete(all, "additionalProperties")
	names := slices.Sorted(maps.Keys(kinds))
	props := all["properties"].(object)
	word := props[key].(object)
	delete(word, "$ref")
	maps.Copy(word, or(object{"enum": names}))
	var cases []object
	for _, name := range names {
		then := s.structure(kinds[name])
		for key := range props {
			then["properties"].(object)[key] = true
		}
		is := object{"type": "object", "properties": object{key: object{"const": name}}, "required": []string{key}}
		cases = append(cases, object{"if": is, "then": then})
	}
	all["allOf"] = cases
	return all
}

// structure is a struct as a mapping: its keys and no others.
func (s schema) structure(t reflect.Type) object {
	props, required := object{}, []string{}
	for _, f := range fields(t) {
		p := s.value(f.Type, f)
		if f.required {
			required = append(required, f.key)
			if least := notEmpty[f.Type.Kind()]; least != "" {
				p[least] = 1
			}
		} else {
			p = nullable(p)
		}
		owner := t
		if n := len(f.Index) - 1; n > 0 {
			owner = t.FieldByIndex(f.Index[:n]).Type
		}
		maps.Copy(p, s.docs[strings.TrimPrefix(owner.PkgPath(), module+"/")+"."+owner.Name()+"."+f.Name])
		props[f.key] = p
	}
	return object{"type": "object", "properties": props, "required": required, "additionalProperties": false}
}

var defined = map[reflect.Type]string{urlType: "url", secretType: "secret", durationType: "duration", sizeType: "size"}

func (s schema) value(t reflect.Type, f field) object {
	if name, ok := defined[t]; ok {
		return ref(name)
	}
	switch k := t.Kind(); {
	case t == nodeType:
		return object{}
	case k == reflect.Pointer:
		return s.value(t.Elem(), f)
	case k == reflect.Struct:
		return s.structure(t)
	case k == reflect.Slice:
		return object{"type": "array", "items": s.value(t.Elem(), f)}
	case k == reflect.Map:
		return object{"type": "object", "additionalProperties": s.value(t.Elem(), f)}
	case f.enum != "":
		return or(object{"enum": strings.Split(f.enum, ",")})
	case k == reflect.Bool:
		return or(object{"type": "boolean"})
	case k == reflect.Float32 || k == reflect.Float64:
		return or(object{"type": "number"})
	case reflect.Zero(t).CanUint():
		return or(object{"type": "integer", "minimum": 0, "maximum": uint64(math.MaxUint64) >> (64 - t.Bits())})
	case reflect.Zero(t).CanInt():
		largest := int64(math.MaxInt64) >> (64 - t.Bits())
		return or(object{"type": "integer", "minimum": max(-largest-1, f.least), "maximum": largest})
	}
	return ref("text")
}

// nullable is what may be left empty too, which is to leave it out.
func nullable(p object) object {
	null := object{"type": "null"}
	switch choices, _ := p["anyOf"].([]object); {
	case choices != nil:
		p["anyOf"] = append(choices, null)
	case p["type"] != nil:
		p["type"] = []any{p["type"], "null"}
	case p["$ref"] != nil:
		p["anyOf"] = []object{{"$ref": p["$ref"]}, null}
		delete(p, "$ref")
	}
	return p
}
