package config

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
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

func (d *decoder) refuse(at *yaml.Node, path, message string) { d.wrap(at, path, message, nil) }

func (d *decoder) wrap(at *yaml.Node, path, message string, err error) {
	if !d.full() {
		d.problems = append(d.problems, Problem{d.file, at.Line, at.Column, path, oneLine(message), err})
	}
	for d.refused[path] = true; path != ""; d.refused[path] = true {
		path = above(path)
	}
}

var index = regexp.MustCompile(`\.(\d+)\b`)

// refuseKeys puts each [auth.KeyError] in err at its key, unless that is settled, and any other error
// at path itself.
func (d *decoder) refuseKeys(path string, err error) {
	var k *auth.KeyError
	joined, ok := err.(interface{ Unwrap() []error })
	switch {
	case ok && errors.As(err, &k): // several at fault; without a key, it is one error with two causes
		for _, err := range joined.Unwrap() {
			d.refuseKeys(path, err)
		}
	case errors.As(err, &k):
		key := path + "." + index.ReplaceAllString(k.Key, "[$1]")
		if of, name, ok := strings.Cut(k.Key, "."); ok { // of a mapping with any names
			if quoted := below(path+"."+of, name); d.places[quoted].value != nil {
				key = quoted
			}
		}
		if !d.settled(key) {
			d.refuseKeys(key, k.Err)
		}
	default:
		at, path := d.where(path)
		d.wrap(at, path, err.Error(), err)
	}
}

// refuseKey refuses the value at path, unless that is settled.
func (d *decoder) refuseKey(path, message string) {
	if !d.settled(path) {
		at, path := d.where(path)
		d.refuse(at, path, message)
	}
}

// settled reports whether there is a problem at path already, or with what path is in.
func (d *decoder) settled(path string) bool {
	_, own := d.where(path)
	if d.refused[path] || d.refused[own] {
		return true
	}
	for path != "" && !d.standIns[path] {
		path = above(path)
	}
	return path != ""
}

// where finds the value at path, which a connector may have from the defaults, and its own path. If
// there is none, it is the nearest key above.
func (d *decoder) where(path string) (at *yaml.Node, own string) {
	for _, f := range fields(reflect.TypeFor[defaults]()) {
		if i := strings.Index(path, "."+f.key); i > 0 && d.places[path].value == nil && d.places["defaults"+path[i:]].value != nil {
			path = "defaults" + path[i:]
		}
	}
	return d.nearest(path), path
}

// nearest finds the value at path; failing that, the nearest key above.
func (d *decoder) nearest(path string) *yaml.Node {
	if p, ok := d.places[path]; ok {
		return p.value
	}
	for {
		path = above(path)
		if p, ok := d.places[path]; ok { // "" is there, the file
			return p.key
		}
	}
}

func above(path string) string { return path[:max(0, strings.LastIndexAny(path, ".["))] }
