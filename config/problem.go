package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"gopkg.in/yaml.v3"

	"github.com/itsmauth/itsmauth/auth"
)

// A Problem is one fault of a file, with the position of the key or value at fault. It shows no
// values, only keys and what may stand there.
type Problem struct {
	File string `json:"file"`
	// Line and Col count from 1, Col in characters.
	Line int `json:"line"`
	Col  int `json:"col"`
	// Path leads to the key, such as connectors.support.client_secret; "" is the file itself.
	Path    string `json:"path,omitempty"`
	Message string `json:"message"`

	err error
}

// Error is FILE:LINE:COL: path: message.
func (p Problem) Error() string {
	if p.Path == "" {
		return fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Col, p.Message)
	}
	return fmt.Sprintf("%s:%d:%d: %s: %s", p.File, p.Line, p.Col, p.Path, p.Message)
}

// Unwrap is the cause if there is one, such as [auth.ErrInsecure].
func (p Problem) Unwrap() error { return p.err }

// Problems are all that is wrong with a file, in the order of the file, or the first thousand that
// were found. It is the error of [Load] and [Parse] for a file that was read and refused.
type Problems []Problem

// Error is one line a problem.
func (p Problems) Error() string { return fmt.Sprint(errors.Join(p.Unwrap()...)) }

// Unwrap gives each problem to [errors.Is] and [errors.As].
func (p Problems) Unwrap() []error {
	errs := make([]error, len(p))
	for i := range p {
		errs[i] = p[i]
	}
	return errs
}

// sorted is p in the order of the file, each problem once: defaults are looked at once a connector.
func (p Problems) sorted() Problems {
	slices.SortStableFunc(p, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Col, b.Col), cmp.Compare(a.Path, b.Path))
	})
	return slices.CompactFunc(p, func(a, b Problem) bool { return a.Error() == b.Error() })
}

// oneLine keeps a message, which may hold a path or a provider's words, on its line.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}

// maxProblems bounds the work on a file that is no configuration at all.
const maxProblems = 1000

func (d *decoder) full() bool { return len(d.problems) >= maxProblems }

func (d *decoder) refuse(at *yaml.Node, p keyPath, message string) { d.wrap(at, p, message, nil) }

func (d *decoder) wrap(at *yaml.Node, p keyPath, message string, err error) {
	if !d.full() {
		d.problems = append(d.problems, Problem{d.file, at.Line, at.Column, p.String(), oneLine(message), err})
	}
	for i := range len(p) + 1 {
		d.faulty[p[:i].String()] = true
	}
}

// refuseKeys puts each [auth.KeyError] in err at its key, unless that has a problem already, and any
// other error at p itself.
func (d *decoder) refuseKeys(p keyPath, err error) {
	var k *auth.KeyError
	joined, ok := err.(interface{ Unwrap() []error })
	switch {
	case ok && errors.As(err, &k): // several errors; without a KeyError, it is one with two causes
		for _, err := range joined.Unwrap() {
			d.refuseKeys(p, err)
		}
	case errors.As(err, &k):
		if key := d.errorPath(p, k.Key); !d.reported(key) {
			d.refuseKeys(key, k.Err)
		}
	default:
		p = d.resolve(p)
		d.wrap(d.nodeAt(p), p, err.Error(), err)
	}
}

// errorPath is the path of a KeyError's key below p: names and indexes with dots between, or a name from
// the file, which may hold dots, below the name of its mapping.
func (d *decoder) errorPath(p keyPath, key string) keyPath {
	if mapping, name, ok := strings.Cut(key, "."); ok && d.has(p.below(mapping).key(name)) {
		return p.below(mapping).key(name)
	}
	for _, name := range strings.Split(key, ".") {
		if i, err := strconv.Atoi(name); err == nil {
			p = p.index(i)
		} else {
			p = p.key(name)
		}
	}
	return p
}

// refuseKey refuses the value at p, unless it has a problem already.
func (d *decoder) refuseKey(p keyPath, message string) {
	if !d.reported(p) {
		p = d.resolve(p)
		d.refuse(d.nodeAt(p), p, message)
	}
}

// reported reports whether p has a problem already, or is or lies below a placeholder.
func (d *decoder) reported(p keyPath) bool {
	for i := range len(p) {
		if d.placeholders[p[:i+1].String()] {
			return true
		}
	}
	return d.faulty[p.String()] || d.faulty[d.resolve(p).String()]
}

// has reports whether the file gives p a value.
func (d *decoder) has(p keyPath) bool { return d.nodes[p.String()].value != nil }

// resolve is the path at which the value at p is written, which may be in a layer below.
func (d *decoder) resolve(p keyPath) keyPath {
	for i := range p {
		if layer, ok := d.layers[p[:i].String()]; ok && !d.has(p) && d.has(layer.below(p[i:]...)) {
			return layer.below(p[i:]...)
		}
	}
	return p
}

// nodeAt is the value at p or, without one, the nearest key above.
func (d *decoder) nodeAt(p keyPath) *yaml.Node {
	if d.has(p) {
		return d.nodes[p.String()].value
	}
	for p = p[:len(p)-1]; !d.has(p); p = p[:len(p)-1] { // the document itself is there
	}
	return d.nodes[p.String()].key
}
