package config

import (
	"fmt"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/itsmauth/itsmauth/auth"
)

// A place is a value in the file: where it leads in the configuration, its key, and itself. A
// Go field of this type is given the place and decodes it later.
type place struct {
	path       string
	key, value *yaml.Node
}

func (p place) child(name string, key, value *yaml.Node) place {
	if !plainName.MatchString(name) {
		name = strconv.Quote(name)
	}
	if p.path != "" {
		name = p.path + "." + name
	}
	return place{name, key, value}
}

func (p place) item(i int, value *yaml.Node) place {
	return place{fmt.Sprintf("%s[%d]", p.path, i), value, value}
}

var plainName = regexp.MustCompile(`^[\pL\pN_-][\pL\pN_ /-]*$`)

// A decoder fills Go values in place, so that layers merge: keys that are absent leave what is
// there, mappings merge, lists replace. It collects what it refuses.
//
// Struct fields carry `yaml:"name"` or `yaml:",inline"`, and, where it applies, `required:"true"`
// and `enum:"one,another"`.
type decoder struct {
	dir      string // of the file
	problems Problems
	refused  map[string]bool // the paths with a problem at or below them
	places   map[string]place
	leaves   map[string]any      // the scalars of a connector, by path
	urls     map[*url.URL]string // its URLs, with their paths
}

func newDecoder(dir string) *decoder {
	return &decoder{dir: dir, refused: map[string]bool{}, places: map[string]place{}, leaves: map[string]any{}, urls: map[*url.URL]string{}}
}

// maxProblems bounds the work on a file that is no configuration at all.
const maxProblems = 1000

func (d *decoder) full() bool { return len(d.problems) >= maxProblems }

func (d *decoder) refuse(at *yaml.Node, path, message string) { d.wrap(at, path, message, nil) }

func (d *decoder) wrap(at *yaml.Node, path, message string, err error) {
	d.problems = append(d.problems, Problem{Line: at.Line, Col: at.Column, Path: path, Message: oneLine(message), err: err})
	for d.refused[path] = true; path != ""; d.refused[path] = true {
		path = above(path)
	}
}

func above(path string) string { return path[:max(0, strings.LastIndexAny(path, ".["))] }

// An entry is a key with its value.
type entry struct {
	name       string
	key, value *yaml.Node
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

// entries lists a mapping's keys in order, those that << brings last. Absent or null, it is empty.
func (d *decoder) entries(at place) []entry {
	n := target(at.value)
	if isNull(n) {
		return nil
	}
	if n.Kind != yaml.MappingNode {
		d.refuse(at.value, at.path, "must be a mapping of keys to values")
		return nil
	}
	var list []entry
	var merged []*yaml.Node
	first := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		at, key, value := at, target(n.Content[i]), n.Content[i+1]
		switch {
		case key.Kind != yaml.ScalarNode || key.Tag == "!!null":
			d.refuse(n.Content[i], at.path, "a key must be a name")
		case key.Tag == "!!merge" && first[key.Value] == 0:
			merged = append(merged, value)
			first[key.Value] = key.Line
		case first[key.Value] != 0:
			d.refuse(n.Content[i], shown(at, key.Value), fmt.Sprintf("duplicate key, first on line %d", first[key.Value]))
		default:
			first[key.Value] = n.Content[i].Line
			list = append(list, entry{key.Value, n.Content[i], value})
		}
	}
	for _, m := range merged {
		from := []*yaml.Node{m}
		if t := target(m); t.Kind == yaml.SequenceNode {
			from = t.Content
		}
		for _, m := range from {
			if target(m).Kind != yaml.MappingNode {
				d.refuse(m, at.path, "<< takes a mapping or a list of mappings")
				continue
			}
			for _, e := range d.entries(place{at.path, at.key, m}) {
				if first[e.name] == 0 {
					first[e.name] = e.key.Line
					list = append(list, e)
				}
			}
		}
	}
	return list
}

// shown is the path of a key that may be anything, a secret on a line of its own included.
func shown(at place, name string) string {
	if len(name) > 40 || !plainName.MatchString(name) || strings.ContainsAny(name, " /") {
		return at.path
	}
	return at.child(name, nil, nil).path
}

// A field is a struct field and what its tags say.
type field struct {
	name     string
	required bool
	enum     []string
	index    []int
}

// fields lists those of a struct, inline structs included.
func fields(t reflect.Type) []field {
	var list []field
	for _, sf := range reflect.VisibleFields(t) {
		name, opts, _ := strings.Cut(sf.Tag.Get("yaml"), ",")
		if !sf.IsExported() || name == "-" || name == "" && opts != "inline" {
			continue
		}
		if opts == "inline" {
			if !sf.Anonymous { // VisibleFields has those of embedded structs already
				for _, f := range fields(sf.Type) {
					f.index = append(slices.Clone(sf.Index), f.index...)
					list = append(list, f)
				}
			}
			continue
		}
		f := field{name: name, required: sf.Tag.Get("required") == "true", index: sf.Index}
		if enum := sf.Tag.Get("enum"); enum != "" {
			f.enum = strings.Split(enum, ",")
		}
		list = append(list, f)
	}
	return list
}

// structs decodes one mapping into structs that share it. If a name is in two, the first has it.
func (d *decoder) structs(at place, entries []entry, into ...reflect.Value) {
	type slot struct {
		field
		reflect.Value
	}
	slots := map[string]slot{}
	var names []string
	for _, v := range into {
		for _, f := range fields(v.Type()) {
			if _, ok := slots[f.name]; !ok {
				slots[f.name] = slot{f, v.FieldByIndex(f.index)}
				names = append(names, f.name)
			}
		}
	}
	given := map[string]bool{}
	for _, e := range entries {
		if d.full() {
			break
		}
		s, ok := slots[e.name]
		if !ok {
			d.refuse(e.key, shown(at, e.name), "unknown key"+suggest(e.name, names))
			continue
		}
		child := at.child(e.name, e.key, e.value)
		given[e.name] = !isNull(e.value) || s.required
		switch {
		case isNull(e.value) && s.required:
			d.refuse(e.key, child.path, "needs a value")
		case given[e.name]:
			d.value(child, s.Value, s.enum)
			if s.required && empty(s.Value) && !d.refused[child.path] {
				d.refuse(e.value, child.path, "must not be empty")
			}
		}
	}
	for _, name := range names {
		s := slots[name]
		if s.required && !given[name] {
			d.refuse(at.key, at.child(name, nil, nil).path, "missing")
		}
		if s.required && s.Type() == urlType && s.IsNil() {
			// Constructors look at the rest all the same, and count on a required URL.
			s.Set(reflect.ValueOf(&url.URL{Scheme: "https", Host: "invalid.invalid"}))
		}
	}
}

func empty(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.String, reflect.Slice, reflect.Map:
		return v.Len() == 0
	}
	return false
}

var (
	placeType  = reflect.TypeFor[place]()
	secretType = reflect.TypeFor[auth.Secret]()
	urlType    = reflect.TypeFor[*url.URL]()
)

// value decodes one value, which is not null, unless it is a list's or a map's.
func (d *decoder) value(at place, v reflect.Value, enum []string) {
	t := v.Type()
	d.places[at.path] = at
	if d.full() {
		return
	}
	switch {
	case t == placeType:
		v.Set(reflect.ValueOf(at))
	case isNull(at.value):
		d.refuse(at.key, at.path, "needs a value")
	case t == urlType || t == secretType:
		d.scalar(at, v, enum)
	case t.Kind() == reflect.Pointer:
		fresh := reflect.New(t.Elem()) // layers below keep theirs
		if !v.IsNil() {
			fresh.Elem().Set(v.Elem())
		}
		d.value(at, fresh.Elem(), enum)
		v.Set(fresh)
	case t.Kind() == reflect.Struct:
		if entries := d.entries(at); target(at.value).Kind == yaml.MappingNode {
			d.structs(at, entries, v)
		}
	case t.Kind() == reflect.Slice:
		n := target(at.value)
		if n.Kind != yaml.SequenceNode {
			d.refuse(at.value, at.path, "must be a list, such as [a, b]")
			return
		}
		list := reflect.MakeSlice(t, len(n.Content), len(n.Content))
		for i, c := range n.Content {
			d.value(at.item(i, c), list.Index(i), enum)
		}
		v.Set(list)
	case t.Kind() == reflect.Map:
		m := reflect.MakeMap(t)
		for it := v.MapRange(); it.Next(); {
			m.SetMapIndex(it.Key(), it.Value())
		}
		for _, e := range d.entries(at) {
			name, elem := reflect.ValueOf(e.name).Convert(t.Key()), reflect.New(t.Elem()).Elem()
			if old := m.MapIndex(name); old.IsValid() {
				elem.Set(old)
			}
			d.value(at.child(e.name, e.key, e.value), elem, enum)
			m.SetMapIndex(name, elem)
		}
		v.Set(m)
	default:
		d.scalar(at, v, enum)
	}
}
