package config

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/url"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/itsmauth/itsmauth/auth"
)

// A node is a value in the file, with its key and its path. A Go field of this type is given the
// node, to be decoded later.
type node struct {
	path       keyPath
	name       string // the path's last key
	key, value *yaml.Node
}

// A decoder fills Go values in node, so that layers merge: keys that are absent leave what is
// there, structs merge, everything else is replaced. It collects the problems it finds.
//
// Struct fields carry `yaml:"name"` or, embedded, `yaml:",inline"`, and, where they apply,
// `required:"true"`, `enum:"one,another"`, `path:"true"` (relative to the file), `default:"one"`
// (which the constructor fills in), and `min:"1"` or, with a reason, `min:"1, why"`.
type decoder struct {
	file     string
	dir      string // the file's, absolute
	problems Problems

	// By path:
	nodes        map[string]node
	faulty       map[string]bool // there is a problem here or below
	placeholders map[string]bool
	layers       map[string]keyPath // values missing below the key are looked for below the path
	scalars      map[string]setting // decoded since decodeRest began, without those that equal their defaults
}

// A setting is a decoded scalar.
type setting struct {
	path  keyPath
	value any
}

func newDecoder(file string) *decoder {
	dir := filepath.Dir(file)
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs // files are read again later, and the program may change its working directory
	}
	return &decoder{file: file, dir: dir, nodes: map[string]node{}, faulty: map[string]bool{}, placeholders: map[string]bool{},
		layers: map[string]keyPath{}, scalars: map[string]setting{}}
}

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

// entries lists what a mapping holds in order, what << brings last, and reports whether it is one.
// Null is an empty mapping.
func (d *decoder) entries(at node) (list []node, ok bool) {
	n := deref(at.value)
	if isNull(n) {
		return nil, true
	}
	if n.Kind != yaml.MappingNode {
		d.refuse(at.value, at.path, "must be a mapping of keys to values")
		return nil, false
	}
	var merged []*yaml.Node
	lines := map[string]int{}
	for pair := range slices.Chunk(n.Content, 2) {
		key, value := deref(pair[0]), pair[1]
		if key.Kind != yaml.ScalarNode || key.Tag == "!!null" {
			d.refuse(pair[0], at.path, "a key must be a name")
			continue
		}
		name, first := key.Value, lines[key.Value]
		if first != 0 {
			d.refuse(pair[0], at.path.unknownKey(name), fmt.Sprintf("duplicate key, first on line %d", first))
		}
		switch { // a second << brings something all the same, lest that be missing too
		case key.Tag == "!!merge" && deref(value).Kind == yaml.SequenceNode:
			merged = append(merged, deref(value).Content...)
		case key.Tag == "!!merge":
			merged = append(merged, value)
		case first == 0:
			list = append(list, node{at.path.key(name), name, pair[0], value})
		}
		lines[name] = cmp.Or(first, pair[0].Line)
	}
	for _, m := range merged {
		if deref(m).Kind != yaml.MappingNode {
			d.refuse(m, at.path, "<< takes a mapping or a list of mappings")
			continue
		}
		more, _ := d.entries(node{at.path, at.name, at.key, m})
		for _, e := range more {
			if lines[e.name] == 0 {
				lines[e.name] = e.key.Line
				list = append(list, e)
			}
		}
	}
	return list, true
}

// A field is one of a struct that YAML sets, and what its tags say.
type field struct {
	reflect.StructField
	key      string
	required bool
	enum     string // words with commas between them, or ""
	least    int64
}

// fields lists those of a struct and of the structs embedded in it.
func fields(t reflect.Type) (list []field) {
	for _, f := range reflect.VisibleFields(t) {
		key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if f.IsExported() && key != "" && key != "-" {
			least := int64(math.MinInt64)
			fmt.Sscan(f.Tag.Get("min"), &least)
			list = append(list, field{f, key, f.Tag.Get("required") == "true", f.Tag.Get("enum"), least})
		}
	}
	return list
}

// fill decodes those entries of a mapping that a struct has fields for.
func (d *decoder) fill(v reflect.Value, at node, entries []node) {
	for _, f := range fields(v.Type()) {
		v, path := v.FieldByIndex(f.Index), at.path.below(f.key)
		i := slices.IndexFunc(entries, func(e node) bool { return e.name == f.key })
		switch {
		case i >= 0 && !isNull(entries[i].value):
			d.value(entries[i], v, f)
			if f.required && notEmpty[v.Kind()] != "" && v.Len() == 0 && !d.faulty[path.String()] {
				d.refuse(entries[i].value, path, "must not be empty")
				d.setPlaceholder(v, path)
			}
		case !f.required:
		case i >= 0:
			d.refuse(entries[i].key, path, "needs a value")
			d.setPlaceholder(v, path)
		default:
			d.refuse(at.key, path, "missing")
			d.setPlaceholder(v, path)
		}
	}
}

// setPlaceholder sets a missing or refused value to a unique dummy, so that constructors can still
// check the other settings, and two broken connectors do not get the same identity.
func (d *decoder) setPlaceholder(v reflect.Value, at keyPath) {
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
	case t.Kind() == reflect.Struct:
		for _, f := range fields(t) {
			if f.required {
				d.setPlaceholder(v.FieldByIndex(f.Index), at)
			}
		}
	}
}

// notEmpty are the kinds that a required value cannot be empty of, with a schema's word for that.
var notEmpty = map[reflect.Kind]string{reflect.String: "minLength", reflect.Slice: "minItems", reflect.Map: "minProperties"}

// strict refuses the entries of a mapping that none of the structs has a field for.
func (d *decoder) strict(at node, entries []node, structs ...reflect.Type) {
	var known []string
	for _, t := range structs {
		for _, f := range fields(t) {
			known = append(known, f.key)
		}
	}
	for _, e := range entries {
		if !slices.Contains(known, e.name) && !d.full() {
			d.refuse(e.key, at.path.unknownKey(e.name), "unknown key"+suggest(e.name, slices.Values(known)))
		}
	}
}

// decodeRest decodes the entries that common has no fields for into a new t, refuses those that t has
// none for either, and starts d.scalars anew.
func (d *decoder) decodeRest(at node, entries []node, common, t reflect.Type) reflect.Value {
	d.scalars = map[string]setting{}
	v := reflect.New(t).Elem()
	d.fill(v, at, entries)
	d.strict(at, entries, common, t)
	return v
}

var (
	nodeType     = reflect.TypeFor[node]()
	secretType   = reflect.TypeFor[auth.Secret]()
	urlType      = reflect.TypeFor[*url.URL]()
	durationType = reflect.TypeFor[time.Duration]()
	sizeType     = reflect.TypeFor[size]()
)

// value decodes one value, which is not null, unless it is a list's or a map's.
func (d *decoder) value(at node, v reflect.Value, f field) {
	d.nodes[at.path.String()] = at
	switch t, n := v.Type(), deref(at.value); {
	case t == nodeType:
		v.Set(reflect.ValueOf(at))
	case isNull(n):
		d.refuse(at.key, at.path, "needs a value")
		d.setPlaceholder(v, at.path)
	case t == urlType || t == secretType:
		d.scalar(at, v, f)
	case t.Kind() == reflect.Pointer:
		fresh := reflect.New(t.Elem()) // layers below keep theirs
		d.value(at, fresh.Elem(), f)
		v.Set(fresh)
	case t.Kind() == reflect.Struct:
		entries, ok := d.entries(at)
		if !ok {
			d.setPlaceholder(v, at.path)
			return
		}
		d.fill(v, at, entries)
		d.strict(at, entries, t)
	case t.Kind() == reflect.Slice && n.Kind != yaml.SequenceNode:
		d.refuse(at.value, at.path, "must be a list, such as [a, b]")
		d.setPlaceholder(v, at.path)
	case t.Kind() == reflect.Slice:
		list := reflect.MakeSlice(t, len(n.Content), len(n.Content))
		for i, c := range n.Content {
			d.value(node{at.path.index(i), at.name, c, c}, list.Index(i), f)
		}
		v.Set(list)
		if list.Len() == 0 && f.Tag.Get("default") != "" {
			d.scalars[at.path.String()] = setting{at.path, list.Interface()}
		}
	case t.Kind() == reflect.Map:
		entries, ok := d.entries(at)
		if !ok {
			d.setPlaceholder(v, at.path)
			return
		}
		m := reflect.MakeMap(t)
		for _, e := range entries {
			elem := reflect.New(t.Elem()).Elem()
			d.value(e, elem, f)
			m.SetMapIndex(reflect.ValueOf(e.name).Convert(t.Key()), elem)
		}
		v.Set(m)
	default:
		d.scalar(at, v, f)
	}
}

func valueOf[T any](p *T) reflect.Value { return reflect.ValueOf(p).Elem() }
