package config

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"

	"github.com/itsmauth/itsmauth/config/internal/yamldoc"
)

// A Problem is one fault of a file, with the position of the key or value at fault. It shows no values,
// only keys and what is allowed.
type Problem struct {
	File string `json:"file"`
	// Line and Col count from 1, Col in characters.
	Line int `json:"line"`
	Col  int `json:"col"`
	// Path leads to the key, such as connectors.support.client_secret; "" is the file itself.
	Path    string `json:"path,omitempty"`
	Message string `json:"message"`

	err      error
	excerpts *excerpts // of all problems of the file, or nil
}

// Error is FILE:LINE:COL: path: message.
func (p Problem) Error() string {
	if p.Path == "" {
		return fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Col, p.Message)
	}
	return fmt.Sprintf("%s:%d:%d: %s: %s", p.File, p.Line, p.Col, p.Path, p.Message)
}

// Advice says what to do, such as "did you mean client_secret?", or is "". Message ends with it, after a
// semicolon and a space.
func (p Problem) Advice() string {
	if a := (*yamldoc.Advised)(nil); errors.As(p.err, &a) {
		return a.Advice
	}
	return ""
}

// Excerpt gives the line of the problem, from the content of its file, and where in the line it is, in
// characters from 0. A value is shown if it is a reference or if, by the type of its setting, it cannot be
// secret, such as a number or a URL; all others are shown as •••. ok is false if there is no such line. opts are
// those of [Parse], for a Problem that Parse did not return itself.
func (p Problem) Excerpt(data []byte, opts ...Option) (line string, caret int, ok bool) {
	x := p.excerpts
	if x == nil {
		x = newExcerpts(newOptions(opts))
	}
	return x.mask().Excerpt(&x.lines, data, p.Line, p.Col, p.Path)
}

// excerpts are what all excerpts of a file need.
type excerpts struct {
	lines yamldoc.Lines
	mask  func() *yamldoc.Mask // made once: there may be a thousand problems
}

func newExcerpts(o *options) *excerpts {
	return &excerpts{mask: sync.OnceValue(func() *yamldoc.Mask {
		return yamldoc.NewMask(reflect.TypeFor[file](), map[string]yamldoc.Union{"connectors": o.connector, "token_store": o.tokenStore})
	})}
}

// Unwrap is the cause of the problem, such as [auth.ErrInsecure].
func (p Problem) Unwrap() error { return p.err }

// Problems are all the problems of a file, in its order, or the first thousand that were found. It is
// the error of [Load] and [Parse] for a file that was read and refused.
type Problems []Problem

// Error has one line for each problem.
func (p Problems) Error() string { return fmt.Sprint(errors.Join(p.Unwrap()...)) }

// Unwrap gives each problem to [errors.Is] and [errors.As].
func (p Problems) Unwrap() []error {
	errs := make([]error, len(p))
	for i := range p {
		errs[i] = p[i]
	}
	return errs
}

// problems are the faults of a file, in its order. A fault of the defaults is found again for each
// connector, but is one problem.
func (l *loader) problems(faults []yamldoc.Fault) Problems {
	var p Problems
	x := newExcerpts(l.opts)
	for _, f := range faults {
		p = append(p, Problem{l.file, f.Line, f.Col, f.Path.String(), f.Message, f.Err, x})
	}
	slices.SortStableFunc(p, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Col, b.Col), cmp.Compare(a.Path, b.Path))
	})
	return slices.CompactFunc(p, func(a, b Problem) bool { return a.Error() == b.Error() })
}
