package config

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/url"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/itsmauth/itsmauth/auth"
)

// A place is a value in the file: where it leads in the configuration, its key, and itself. A
// Go field of this type is given the place and decodes it later.
type place struct {
	path, name string // the name is the path's last key
	key, value *yaml.Node
}

// below is the path of a key below another.
func below(path, name string) string {
	if !plainName.MatchString(name) {
		name = strconv.Quote(name)
	}
	if path == "" {
		return name
	}
	return path + "." + name
}

// shown is below for a key that may be anything, a secret on a line of its own included.
func shown(path, name string) string {
	if len(name) > 40 || !plainName.MatchString(name) || strings.ContainsAny(name, " /") {
		return path
	}
	return below(path, name)
}

var plainName = regexp.MustCompile(`^[\pL\pN_-][\pL\pN_ /-]*$`)

// A decoder fills Go values in place, so that layers merge: keys that are absent leave what is
// there, structs merge, the rest is replaced. It collects what it refuses.
//
// Struct fields carry `yaml:"name"` or, embedded, `yaml:",inline"`, and, where it applies,
// `required:"true"`, `enum:"one,another"`, `path:"true"`, relative to the file, `default:"one"`, which a
// constructor sees to, and `min:"1"`, which may go on to say why: `min:"1, why"`.
type decoder struct {
	file     string
	dir      string // of the file
	problems Problems
	refused  map[string]bool // the paths with a problem at or below them
	standIns map[string]bool // their paths
	places   map[string]place
	leaves   map[string]any // the scalars decoded since it was made, by path, but for defaults
}

func newDecoder(file string) *decoder {
	dir := filepath.Dir(file)
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs // secrets and certificates are read again, and the program may have changed its directory
	}
	return &decoder{file: file, dir: dir, refused: map[string]bool{}, standIns: map[string]bool{}, places: map[string]place{}, leaves: map[string]any{}}
}

func target(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool {
	n = target(n)
	return n.Kind == yaml.ScalarNode && n.Tag == "!!null"
}

// entries lists what a mapping holds in order, what << brings last, and reports whether it is one.
// Null is an empty mapping.
func (d *decoder) entries(at place) (list []place, ok bool) {
	n := target(at.value)
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
		key, value := target(pair[0]), pair[1]
		if key.Kind != yaml.ScalarNode || key.Tag == "!!null" {
			d.refuse(pair[0], at.path, "a key must be a name")
			continue
		}
		name, first := key.Value, lines[key.Value]
		if first != 0 {
			d.refuse(pair[0], shown(at.path, name), fmt.Sprintf("duplicate key, first on line %d", first))
		}
		switch { // a second << brings something all the same, lest that be missing too
		case key.Tag == "!!merge" && target(value).Kind == yaml.SequenceNode:
			merged = append(merged, target(value).Content...)
		case key.Tag == "!!merge":
			merged = append(merged, value)
		case first == 0:
			list = append(list, place{below(at.path, name), name, pair[0], value})
		}
		lines[name] = cmp.Or(first, pair[0].Line)
	}
	for _, m := range merged {
		if target(m).Kind != yaml.MappingNode {
			d.refuse(m, at.path, "<< takes a mapping or a list of mappings")
			continue
		}
		more, _ := d.entries(place{at.path, at.name, at.key, m})
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
func (d *decoder) fill(v reflect.Value, at place, entries []place) {
	for _, f := range fields(v.Type()) {
		v, path := v.FieldByIndex(f.Index), below(at.path, f.key)
		i := slices.IndexFunc(entries, func(e place) bool { return e.name == f.key })
		switch {
		case i >= 0 && !isNull(entries[i].value):
			d.value(entries[i], v, f)
			if f.required && notEmpty[v.Kind()] != "" && v.Len() == 0 && !d.refused[path] {
				d.refuse(entries[i].value, path, "must not be empty")
				d.standIn(v, path)
			}
		case !f.required:
		case i >= 0:
			d.refuse(entries[i].key, path, "needs a value")
			d.standIn(v, path)
		default:
			d.refuse(at.key, path, "missing")
			d.standIn(v, path)
		}
	}
}

// standIn puts something in the place of what is missing or was refused. Constructors look at the rest
// all the same, and are neither to miss it as well nor to trip over it. No two are alike, lest two
// connectors become one identity.
func (d *decoder) standIn(v reflect.Value, path string) {
	d.standIns[path] = true
	switch t := v.Type(); {
	case t == secretType:
		v.Set(reflect.ValueOf(auth.SecretFunc(func() (string, error) { return "", errors.New("refused") })))
	case t == urlType:
		v.Set(reflect.ValueOf(&url.URL{Scheme: "https", Host: "invalid.invalid", Path: "/" + path}))
	case t.Kind() == reflect.String:
		v.SetString(path)
	case t.Kind() == reflect.Pointer:
		v.Set(reflect.New(t.Elem()))
		d.standIn(v.Elem(), path)
	case t.Kind() == reflect.Slice:
		v.Set(reflect.MakeSlice(t, 1, 1))
		d.standIn(v.Index(0), path)
	case t.Kind() == reflect.Struct:
		for _, f := range fields(t) {
			if f.required {
				d.standIn(v.FieldByIndex(f.Index), path)
			}
		}
	}
}

// notEmpty are the kinds that a required value cannot be empty of, with a schema's word for that.
var notEmpty = map[reflect.Kind]string{reflect.String: "minLength", reflect.Slice: "minItems", reflect.Map: "minProperties"}

// strict refuses the entries of a mapping that none of the structs has a field for.
func (d *decoder) strict(at place, entries []place, structs ...reflect.Type) {
	var known []string
	for _, t := range structs {
		for _, f := range fields(t) {
			known = append(known, f.key)
		}
	}
	for _, e := range entries {
		if !slices.Contains(known, e.name) && !d.full() {
			d.refuse(e.key, shown(at.path, e.name), "unknown key"+suggest(e.name, slices.Values(known)))
		}
	}
}

// own decodes what a mapping holds beside common, into a new struct, and begins new leaves.
func (d *decoder) own(at place, entries []place, common, t reflect.Type) reflect.Value {
	d.leaves = map[string]any{}
	v := reflect.New(t).Elem()
	d.fill(v, at, entries)
	d.strict(at, entries, common, t)
	return v
}

var (
	placeType    = reflect.TypeFor[place]()
	secretType   = reflect.TypeFor[auth.Secret]()
	urlType      = reflect.TypeFor[*url.URL]()
	durationType = reflect.TypeFor[time.Duration]()
	sizeType     = reflect.TypeFor[size]()
)

// value decodes one value, which is not null, unless it is a list's or a map's.
func (d *decoder) value(at place, v reflect.Value, f field) {
	d.places[at.path] = at
	switch t, n := v.Type(), target(at.value); {
	case t == placeType:
		v.Set(reflect.ValueOf(at))
	case isNull(n):
		d.refuse(at.key, at.path, "needs a value")
		d.standIn(v, at.path)
	case t == urlType || t == secretType:
		d.scalar(at, v, f)
	case t.Kind() == reflect.Pointer:
		fresh := reflect.New(t.Elem()) // layers below keep theirs
		d.value(at, fresh.Elem(), f)
		v.Set(fresh)
	case t.Kind() == reflect.Struct:
		entries, ok := d.entries(at)
		if !ok {
			d.standIn(v, at.path)
			return
		}
		d.fill(v, at, entries)
		d.strict(at, entries, t)
	case t.Kind() == reflect.Slice && n.Kind != yaml.SequenceNode:
		d.refuse(at.value, at.path, "must be a list, such as [a, b]")
		d.standIn(v, at.path)
	case t.Kind() == reflect.Slice:
		list := reflect.MakeSlice(t, len(n.Content), len(n.Content))
		for i, c := range n.Content {
			d.value(place{fmt.Sprintf("%s[%d]", at.path, i), at.name, c, c}, list.Index(i), f)
		}
		v.Set(list)
		if list.Len() == 0 && f.Tag.Get("default") != "" {
			d.leaves[at.path] = list.Interface()
		}
	case t.Kind() == reflect.Map:
		entries, ok := d.entries(at)
		if !ok {
			d.standIn(v, at.path)
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
