package yamldoc

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"reflect"
	"slices"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/settings"
)

// deref follows aliases.
func deref(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool {
	n = deref(n)
	return n.Kind == yaml.ScalarNode && n.Tag == "!!null"
}

// Entries lists the entries of a mapping in order, those from << last, and reports whether it is there and
// a mapping. Null is an empty one.
func (d *Document) Entries(at Node) (list []Node, ok bool) {
	if at.Missing() || isNull(at.value) {
		return nil, !at.Missing()
	}
	n := deref(at.value)
	if n.Kind != yaml.MappingNode {
		d.add(at.value, at.Path, errors.New("must be a mapping of keys to values"))
		return nil, false
	}
	var merged []*yaml.Node
	lines := map[string]int{}
	for pair := range slices.Chunk(n.Content, 2) {
		key, value := deref(pair[0]), pair[1]
		if key.Kind != yaml.ScalarNode || key.Tag == "!!null" {
			d.add(pair[0], at.Path, errors.New("a key must be a name"))
			continue
		}
		name, first := key.Value, lines[key.Value]
		if first != 0 {
			d.add(pair[0], at.Path.unknownKey(name, true), fmt.Errorf("duplicate key, first on line %d", first))
		}
		switch { // a second << is merged too, or its keys would also be reported as missing
		case key.Tag == "!!merge" && deref(value).Kind == yaml.SequenceNode:
			merged = append(merged, deref(value).Content...)
		case key.Tag == "!!merge":
			merged = append(merged, value)
		case first == 0:
			list = append(list, Node{at.Path.key(name), name, pair[0], value})
		}
		lines[name] = cmp.Or(first, pair[0].Line)
	}
	for _, m := range merged {
		if deref(m).Kind != yaml.MappingNode {
			d.add(m, at.Path, errors.New("<< takes a mapping or a list of mappings"))
			continue
		}
		more, _ := d.Entries(Node{at.Path, at.Name, at.key, m})
		for _, e := range more {
			if lines[e.Name] == 0 {
				lines[e.Name] = e.key.Line
				list = append(list, e)
			}
		}
	}
	return list, true
}

// Decode decodes a mapping's entries into the struct that into points to, and refuses those that the
// struct has no field for.
func (d *Document) Decode(into any, at Node, entries []Node) {
	d.Fill(into, at, entries)
	d.strict(at, entries, reflect.TypeOf(into).Elem())
}

// Fill is Decode, but skips entries that the struct has no field for.
func (d *Document) Fill(into any, at Node, entries []Node) {
	for _, f := range settings.Fields(reflect.TypeOf(into).Elem()) {
		v, path := reflect.ValueOf(into).Elem().FieldByIndex(f.Index), at.Path.Below(f.Key)
		i := slices.IndexFunc(entries, func(e Node) bool { return e.Name == f.Key })
		switch {
		case i >= 0 && !isNull(entries[i].value):
			d.value(entries[i], v, f)
			if f.Required && notEmpty[v.Kind()] != "" && v.Len() == 0 && !d.faulty[path.String()] {
				d.replace(v, entries[i].value, path, errors.New("must not be empty"))
			}
		case !f.Required:
		case i >= 0:
			d.replace(v, entries[i].key, path, errors.New("needs a value"))
		default:
			d.replace(v, at.key, path, errors.New("missing"))
		}
	}
}

// replace refuses n, the node of the value v or the key above it, and sets v to a placeholder.
func (d *Document) replace(v reflect.Value, n *yaml.Node, p Path, err error) {
	d.add(n, p, err)
	d.setPlaceholder(v, p)
}

// setPlaceholder sets a missing or refused value to a unique dummy, so that constructors can still
// check the other settings, and two broken connectors do not get the same identity.
func (d *Document) setPlaceholder(v reflect.Value, at Path) {
	d.placeholders[at.String()] = true
	switch t := v.Type(); {
	case t == secretType:
		v.Set(reflect.ValueOf(auth.SecretFunc(func() (string, error) { return "", errors.New("refused") })))
	case t == urlType:
		v.Set(reflect.ValueOf(&url.URL{Scheme: "https", Host: "invalid.invalid", Path: "/" + at.String()}))
	case t.Kind() == reflect.String:
		v.SetString(at.String())
	case t.Kind() == reflect.Pointer:
		v.Set(reflect.New(t.Elem()))
		d.setPlaceholder(v.Elem(), at)
	case t.Kind() == reflect.Slice:
		v.Set(reflect.MakeSlice(t, 1, 1))
		d.setPlaceholder(v.Index(0), at)
	case t.Kind() == reflect.Map:
		elem := reflect.New(t.Elem()).Elem()
		d.setPlaceholder(elem, at)
		v.Set(reflect.MakeMap(t))
		v.SetMapIndex(reflect.ValueOf(at.String()).Convert(t.Key()), elem)
	case t.Kind() == reflect.Struct:
		for _, f := range settings.Fields(t) {
			if f.Required {
				d.setPlaceholder(v.FieldByIndex(f.Index), at)
			}
		}
	}
}

// notEmpty are the kinds of which a required value must not be empty, and how a schema says so.
var notEmpty = map[reflect.Kind]string{reflect.String: "minLength", reflect.Slice: "minItems", reflect.Map: "minProperties"}

// strict refuses the entries for which none of the structs has a field.
func (d *Document) strict(at Node, entries []Node, structs ...reflect.Type) {
	var known []string
	for _, t := range structs {
		for _, f := range settings.Fields(t) {
			known = append(known, f.Key)
		}
	}
	for _, e := range entries {
		if !slices.Contains(known, e.Name) && !d.Full() {
			d.add(e.key, at.Path.unknownKey(e.Name, similar(e.Name, known) != ""), Advise("unknown key", Suggest(e.Name, slices.Values(known))))
		}
	}
}

// Rest decodes a mapping's entries into a new struct of the kind, refuses those that u does not have for
// it, and returns the struct and the settings in it.
func (d *Document) Rest(at Node, entries []Node, u Union, kind string) (reflect.Value, map[string]Setting) {
	d.scalars = map[string]Setting{}
	k := u.Kinds[kind]()
	v := reflect.New(k.Settings)
	d.Fill(v.Interface(), at, entries)
	d.strict(at, entries, u.Common, k.Settings, k.Variables)
	return v.Elem(), d.scalars
}

var (
	nodeType     = reflect.TypeFor[Node]()
	secretType   = reflect.TypeFor[auth.Secret]()
	urlType      = reflect.TypeFor[*url.URL]()
	durationType = reflect.TypeFor[time.Duration]()
	sizeType     = reflect.TypeFor[Size]()
)

// value decodes one value. Only an element of a list or a map can be null here.
func (d *Document) value(at Node, v reflect.Value, f settings.Field) {
	d.nodes[at.Path.String()] = at
	switch t, n := v.Type(), deref(at.value); {
	case t == nodeType:
		v.Set(reflect.ValueOf(at))
	case isNull(n):
		d.replace(v, at.key, at.Path, errors.New("needs a value"))
	case t == urlType || t == secretType:
		d.scalar(at, v, f)
	case isFlag(f) && (n.Kind == yaml.ScalarNode || n.Kind == yaml.MappingNode && len(n.Content) == 0):
		on := reflect.New(reflect.TypeFor[bool]()).Elem()
		if n.Kind == yaml.MappingNode { // without keys, it is the same as true
			on.SetBool(true)
			d.scalars[at.Path.String()] = Setting{at.Path, true, true}
		} else {
			d.scalar(at, on, f)
		}
		if on.Bool() {
			v.Set(reflect.New(t.Elem()))
		}
	case t.Kind() == reflect.Pointer:
		fresh := reflect.New(t.Elem()) // the layer below keeps its own
		d.value(at, fresh.Elem(), f)
		v.Set(fresh)
	case t.Kind() == reflect.Struct || t.Kind() == reflect.Map:
		if entries, ok := d.Entries(at); !ok {
			d.setPlaceholder(v, at.Path)
		} else if t.Kind() == reflect.Struct {
			d.Decode(v.Addr().Interface(), at, entries)
		} else {
			v.Set(reflect.MakeMap(t))
			for _, e := range entries {
				elem := reflect.New(t.Elem()).Elem()
				d.value(e, elem, f)
				v.SetMapIndex(reflect.ValueOf(e.Name).Convert(t.Key()), elem)
			}
		}
	case t.Kind() == reflect.Slice && n.Kind != yaml.SequenceNode:
		d.replace(v, at.value, at.Path, errors.New("must be a list, such as [a, b]"))
	case t.Kind() == reflect.Slice:
		list := reflect.MakeSlice(t, len(n.Content), len(n.Content))
		for i, c := range n.Content {
			d.value(Node{at.Path.Index(i), at.Name, c, c}, list.Index(i), f)
		}
		v.Set(list)
		if list.Len() == 0 && f.Tag.Get("default") != "" {
			d.scalars[at.Path.String()] = Setting{at.Path, list.Interface(), true}
		}
	default:
		d.scalar(at, v, f)
	}
}

// isFlag reports whether true stands for the mapping without keys.
func isFlag(f settings.Field) bool { return f.Tag.Get("flag") == "true" }

// NonDefaults are the values of a struct's fields that differ from their defaults, by key.
func NonDefaults(v any) map[string]any {
	values := map[string]any{}
	for _, f := range settings.Fields(reflect.TypeOf(v)) {
		if v := reflect.ValueOf(v).FieldByIndex(f.Index); !isDefault(v, f) {
			values[f.Key] = v.Interface()
		}
	}
	return values
}
