package yamldoc

import (
	"encoding/json"
	"maps"
	"math"
	"reflect"
	"slices"

	"github.com/itsmauth/itsmauth/internal/settings"
)

// Patterns in the dialect that ECMA-262 and RE2 share. A reference is what [expand] takes.
const (
	inReference = `(?:[^}$]|\$+[^}${])*\$*\}`
	reference   = `\$\{(?:env:[A-Za-z_][A-Za-z0-9_]*(?::-` + inReference + `|\})|file:[^}]` + inReference + `)`
	anyText     = `^(?:[^$]|\$+[^${]|\$\$+\{|` + reference + `)*\$*$`
	hasOne      = `(?:^|[^$])\$\{`
	duration    = `^\+?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:ns|us|µs|μs|ms|s|m|h))+$`
	port        = `(?::(?:0*(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?)?`
	httpURL     = `^[Hh][Tt][Tt][Pp][Ss]?://(?:[^/?#@:\[\]\s]+|\[[0-9A-Fa-f:.]+\])` + port + `(?:[/?#].*)?$`
	twoSchemes  = `^[^/]*//[Hh][Tt][Tt][Pp][Ss]?(?::[0-9]*)?//`
)

// An Object is a JSON Schema (2020-12), or a part of one.
type Object = map[string]any

// Ref refers to one of [Defs].
func Ref(name string) Object { return Object{"$ref": "#/$defs/" + name} }

func anyOf(choices ...Object) Object { return Object{"anyOf": choices} }

// OrReference is what may be a reference instead, such as ${env:NAME}.
func OrReference(what Object) Object { return anyOf(what, Ref("reference")) }

// Defs are the $defs that every schema of this package refers to.
var Defs = Object{
	"reference": Object{"description": "A value from elsewhere: ${env:NAME}, ${env:NAME:-default} or ${file:PATH}.",
		"type": "string", "allOf": []Object{{"pattern": anyText}, {"pattern": hasOne}}},
	"text":   Object{"type": []string{"string", "number"}, "pattern": anyText},
	"scalar": Object{"description": "Text, a number, true or false; it keeps its type.", "type": []string{"string", "number", "boolean"}, "pattern": anyText},
	"secret": Object{"description": "Best a reference, ${env:NAME} or ${file:PATH}, which is read again at each use.",
		"type": []string{"string", "number"}, "minLength": 1, "pattern": anyText},
	"duration": OrReference(Object{"type": "string", "allOf": []Object{{"pattern": duration}, {"pattern": "[1-9]"}}}),
	"size": anyOf(Object{"type": "integer", "minimum": 0},
		Object{"type": "string", "pattern": sizes.String()}, Ref("reference")),
	"url": OrReference(Object{"type": "string", "pattern": httpURL, "not": Object{"pattern": twoSchemes}}),
}

// A Schema describes Go types as this package decodes them. It gives what is known of a struct's field
// besides its type, such as its description.
type Schema func(owner reflect.Type, field string) Object

// A Union is a mapping whose keys depend on the word at one of them.
type Union struct {
	Common reflect.Type           // the struct of the keys that it may always have
	Key    string                 // one of these
	Kinds  map[string]func() Kind // by the word at Key
}

// A Kind says which keys a mapping may have besides the common ones.
type Kind struct {
	Settings  reflect.Type
	Variables reflect.Type // the struct of keys that only replace placeholders
	Given     []string     // keys that an overlay gives, so that they are not required
}

// NewKind is a kind without an overlay.
func NewKind(settings reflect.Type) func() Kind {
	return func() Kind { return Kind{Settings: settings, Variables: reflect.TypeFor[struct{}]()} }
}

// NewUnion is a union without kinds, whose common keys are C's.
func NewUnion[C any](key string) Union {
	return Union{reflect.TypeFor[C](), key, map[string]func() Kind{}}
}

// Union describes u. Settings that several kinds have are added to defs.
func (s Schema) Union(u Union, defs Object) Object {
	all := s.Struct(u.Common)
	delete(all, "additionalProperties")
	names := slices.Sorted(maps.Keys(u.Kinds))
	props := all["properties"].(Object)
	word := props[u.Key].(Object)
	delete(word, "$ref")
	maps.Copy(word, OrReference(Object{"enum": names}))
	var cases []Object
	same := map[string]Object{}      // "if", by what is the same for several kinds
	givenBy := map[string][]string{} // kinds, by common keys
	uses := map[reflect.Type]int{}
	for _, k := range u.Kinds {
		uses[k().Settings]++
	}
	for _, name := range names {
		k := u.Kinds[name]()
		then := s.Struct(k.Settings)
		own := then["properties"].(Object)
		if t := k.Settings; uses[t] > 1 && t.Name() != "" {
			defs[t.String()] = s.Struct(t)
			for key := range own {
				own[key] = Ref(t.String() + "/properties/" + key)
			}
		}
		maps.Copy(own, s.Struct(k.Variables)["properties"].(Object))
		for _, key := range k.Given {
			if slices.Contains(then["required"].([]string), key) {
				own[key] = Nullable(own[key].(Object))
			} else if slices.Contains(all["required"].([]string), key) {
				givenBy[key] = append(givenBy[key], name)
			}
		}
		then["required"] = slices.DeleteFunc(then["required"].([]string), func(key string) bool { return slices.Contains(k.Given, key) })
		for key := range props {
			own[key] = true
		}
		b, _ := json.Marshal(then) // a schema can be marshaled
		if known := same[string(b)]; known != nil {
			known["enum"] = append(known["enum"].([]string), name)
			continue
		}
		same[string(b)] = Object{"enum": []string{name}}
		cases = append(cases, Object{"if": is(u.Key, same[string(b)]), "then": then})
	}
	for _, key := range slices.Sorted(maps.Keys(givenBy)) {
		all["required"] = slices.DeleteFunc(all["required"].([]string), func(k string) bool { return k == key })
		props[key] = Nullable(props[key].(Object))
		given := Object{"required": []string{key}, "properties": Object{key: Object{"not": Object{"type": "null"}}}}
		cases = append(cases, Object{"if": is(u.Key, Object{"enum": givenBy[key]}), "else": given})
	}
	all["allOf"] = cases
	return all
}

// is describes a mapping with a value at key.
func is(key string, value Object) Object {
	return Object{"type": "object", "properties": Object{key: value}, "required": []string{key}}
}

// Struct describes a struct as a mapping of its keys and no others.
func (s Schema) Struct(t reflect.Type) Object {
	props, required := Object{}, []string{}
	for _, f := range settings.Fields(t) {
		p := s.value(f.Type, f)
		if f.Required {
			required = append(required, f.Key)
			if least := notEmpty[f.Type.Kind()]; least != "" {
				p[least] = 1
			}
		} else {
			p = Nullable(p)
		}
		owner := t
		if n := len(f.Index) - 1; n > 0 {
			owner = t.FieldByIndex(f.Index[:n]).Type
		}
		maps.Copy(p, s(owner, f.Name))
		props[f.Key] = p
	}
	return Object{"type": "object", "properties": props, "required": required, "additionalProperties": false}
}

var defined = map[reflect.Type]string{urlType: "url", secretType: "secret", durationType: "duration", sizeType: "size"}

func (s Schema) value(t reflect.Type, f settings.Field) Object {
	if f.Tag.Get("blank") == "true" {
		return anyOf(Ref(defined[t]), Object{"const": ""})
	}
	if name, ok := defined[t]; ok {
		return Ref(name)
	}
	switch k := t.Kind(); {
	case t == nodeType:
		return Object{}
	case isFlag(f):
		return anyOf(s.Struct(t.Elem()), Object{"type": "boolean"}, Ref("reference"))
	case k == reflect.Pointer:
		return s.value(t.Elem(), f)
	case k == reflect.Struct:
		return s.Struct(t)
	case k == reflect.Slice:
		return Object{"type": "array", "items": s.value(t.Elem(), f)}
	case k == reflect.Map:
		return Object{"type": "object", "additionalProperties": s.value(t.Elem(), f)}
	case f.Enum != nil:
		return OrReference(Object{"enum": f.Enum})
	case k == reflect.Interface:
		return Ref("scalar")
	case k == reflect.Bool:
		return OrReference(Object{"type": "boolean"})
	case k == reflect.Float32 || k == reflect.Float64:
		return OrReference(Object{"type": "number"})
	case reflect.Zero(t).CanUint():
		return OrReference(Object{"type": "integer", "minimum": 0, "maximum": uint64(math.MaxUint64) >> (64 - t.Bits())})
	case reflect.Zero(t).CanInt():
		largest := int64(math.MaxInt64) >> (64 - t.Bits())
		return OrReference(Object{"type": "integer", "minimum": max(-largest-1, f.Least), "maximum": largest})
	}
	return Ref("text")
}

// Nullable is p, or null, which is as if the key were not there.
func Nullable(p Object) Object {
	null := Object{"type": "null"}
	switch choices, _ := p["anyOf"].([]Object); {
	case choices != nil:
		p["anyOf"] = append(choices, null)
	case p["type"] != nil:
		p["type"] = []any{p["type"], "null"}
	case p["$ref"] != nil:
		p["anyOf"] = []Object{{"$ref": p["$ref"]}, null}
		delete(p, "$ref")
	}
	return p
}
