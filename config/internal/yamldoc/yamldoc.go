// Package yamldoc decodes a YAML document into Go values and reports every fault at its place. What the
// keys mean, and in which order they are decoded, is up to its caller.
package yamldoc

import (
	"errors"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"

	"gopkg.in/yaml.v3"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/textfile"
)

// A Document is a parsed file. It decodes in place, so that layers merge: keys that are absent leave
// what is there, structs merge, everything else is replaced. It collects the faults it finds.
//
// Struct fields carry `yaml:"name"` or, embedded, `yaml:",inline"`, and, where they apply,
// `required:"true"`, `enum:"one,another"`, `path:"true"` (relative to the file), `default:"one"`
// (which the constructor fills in), and `min:"1"` or, with a reason, `min:"1, why"`. `warn:"why"` is a warning
// about any value but the default. `literal:"true"` says that secrets may be written in the file, `literal:"A,B"`
// that those of these names may, and `blank:"true"` that a secret may be "".
type Document struct {
	Faults   []Fault // the first thousand, in the order in which they were found
	Warnings []Fault // about what works and is a risk
	Files    *textfile.Files
	secrets  *fromSources
	dir      string                            // the file's, absolute
	read     func(path string) (string, error) // reads a file
	room     int                               // for references, in bytes
	ahead    int                               // the same for ReadAhead

	// By path:
	nodes        map[string]Node
	faulty       map[string]bool // there is a fault here or below
	placeholders map[string]bool
	layers       map[string]Path    // where to look for values that are missing below the key
	scalars      map[string]Setting // decoded since Rest began
	madeOf       map[string]Path    // of which value in the file an overlay made the text
}

// A Node is a value in the document, with its key and its path. A Go field of this type is given the
// node, to be decoded later.
type Node struct {
	Path       Path
	Name       string // the path's last key
	key, value *yaml.Node
}

// Missing reports whether the document does not have the node, or has null there.
func (n Node) Missing() bool { return n.value == nil }

// A Setting is a decoded scalar that differs from its default.
type Setting struct {
	Path    Path
	Value   any
	Literal bool // the file shows it
}

// A Fault is one thing wrong with a document.
type Fault struct {
	Line, Col int // from 1, Col in characters
	Path      Path
	Message   string // on one line; shows no value
	Err       error
}

// New is an empty document, whose relative paths are relative to file's directory. sources are the schemes of
// secrets that are read elsewhere.
func New(file string, sources map[string]SecretSource) *Document {
	dir := filepath.Dir(file)
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs // files are read again later, and the program may change its working directory
	}
	d := &Document{dir: dir, read: textfile.Read, room: maxReferenced, ahead: maxReferenced, nodes: map[string]Node{}, faulty: map[string]bool{}, placeholders: map[string]bool{},
		layers: map[string]Path{}, scalars: map[string]Setting{}, madeOf: map[string]Path{}}
	d.secrets = newFromSources(sources)
	d.Files = textfile.NewFiles(func(path string) (string, error) { return d.read(path) })
	return d
}

// Layer gives n a layer below: what has no value below n may have one below layer.
func (d *Document) Layer(n Node, layer Path) {
	d.nodes[n.Path.String()] = n
	d.layers[n.Path.String()] = layer
}

// maxFaults bounds the work on a file that is no configuration at all.
const maxFaults = 1000

// Full reports whether no more faults are collected.
func (d *Document) Full() bool { return len(d.Faults) >= maxFaults }

func (d *Document) add(n *yaml.Node, p Path, err error) {
	at, wrap, ok := d.source(p)
	if err = wrap(err); ok && !d.Full() {
		d.Faults = append(d.Faults, Fault{n.Line, n.Column, at, oneLine(err.Error()), err})
	}
	for _, p := range []Path{p, at} {
		for i := range len(p) + 1 {
			d.faulty[p[:i].String()] = true
		}
	}
}

// oneLine replaces line breaks, which the name of a file or the error of a constructor may hold.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}

// An Advised is an error that keeps apart what is wrong and what to do.
type Advised struct {
	Fault, Advice string
	Cause         error // or nil
}

func (e *Advised) Error() string { return e.Fault + "; " + e.Advice }

// Unwrap is Cause.
func (e *Advised) Unwrap() error { return e.Cause }

// Advise makes an error of what is wrong and of what to do, which may be "".
func Advise(fault, advice string) error {
	if advice == "" {
		return errors.New(fault)
	}
	return &Advised{fault, advice, nil}
}

// Refuse puts err at the value of p, unless there is a fault already. A value that comes from a layer
// below is refused there.
func (d *Document) Refuse(p Path, err error) {
	if !d.Reported(p) {
		p = d.resolve(p)
		d.add(d.nodeAt(p), p, err)
	}
}

// RefuseKeys refuses each [auth.KeyError] in err at its key below p, and any other error at p, even if
// there is a fault already.
func (d *Document) RefuseKeys(p Path, err error) {
	var k *auth.KeyError
	joined, ok := err.(interface{ Unwrap() []error })
	switch {
	case ok && errors.As(err, &k): // several errors; without a KeyError, it is one with two causes
		for _, err := range joined.Unwrap() {
			d.RefuseKeys(p, err)
		}
	case errors.As(err, &k):
		if key := d.errorPath(p, k.Key); !d.Reported(key) {
			d.RefuseKeys(key, k.Err)
		}
	default:
		// A constructor or a store says what to do after a semicolon.
		if fault, advice, ok := strings.Cut(oneLine(err.Error()), "; "); ok && !errors.As(err, new(*Advised)) {
			err = &Advised{fault, advice, err}
		}
		p = d.resolve(p)
		d.add(d.nodeAt(p), p, err)
	}
}

// RefuseHere puts err at p even if the value at p comes from a layer below.
func (d *Document) RefuseHere(p Path, err error) { d.add(d.nodeAt(p), p, err) }

// RefuseName puts err at the key of n.
func (d *Document) RefuseName(n Node, err error) { d.add(n.key, n.Path, err) }

// Warn puts a warning at the value of p, which may come from a layer below.
func (d *Document) Warn(p Path, err error) {
	p = d.resolve(p)
	d.warn(d.nodeAt(p), p, err)
}

// WarnKey puts a warning at the key at p.
func (d *Document) WarnKey(p Path, err error) { d.warn(d.nodes[p.String()].key, p, err) }

func (d *Document) warn(n *yaml.Node, p Path, err error) {
	p, _, _ = d.source(p)
	d.Warnings = append(d.Warnings, Fault{n.Line, n.Column, p, oneLine(err.Error()), err})
}

// errorPath is the path of a KeyError's key below p. The key is names and indexes with dots between them,
// or the name of a mapping and any name from the file, dots included.
func (d *Document) errorPath(p Path, key string) Path {
	if mapping, name, ok := strings.Cut(key, "."); ok && d.Has(p.Below(mapping).key(name)) {
		return p.Below(mapping).key(name)
	}
	for _, name := range strings.Split(key, ".") {
		if i, err := strconv.Atoi(name); err == nil {
			p = p.Index(i)
		} else {
			p = p.key(name)
		}
	}
	return p
}

// Reported reports whether p has a fault already, or is or lies below a placeholder.
func (d *Document) Reported(p Path) bool {
	for i := range p {
		if d.placeholders[p[:i+1].String()] {
			return true
		}
	}
	from, made := d.madeOf[p.String()]
	return d.faulty[p.String()] || d.faulty[d.resolve(p).String()] || made && d.faulty[from.String()]
}

// Has reports whether a value at p was decoded.
func (d *Document) Has(p Path) bool { return d.nodes[p.String()].value != nil }

// resolve is the path at which the value at p is written, which may be in a layer below.
func (d *Document) resolve(p Path) Path {
	for i := range p {
		if layer, ok := d.layers[p[:i].String()]; ok && !d.Has(p) && d.Has(layer.Below(p[i:]...)) {
			return layer.Below(p[i:]...)
		}
	}
	return p
}

// nodeAt is the value at p or, without one, the nearest key above.
func (d *Document) nodeAt(p Path) *yaml.Node {
	if d.Has(p) {
		return d.nodes[p.String()].value
	}
	for p = p[:len(p)-1]; !d.Has(p); p = p[:len(p)-1] { // the root is there
	}
	return d.nodes[p.String()].key
}
