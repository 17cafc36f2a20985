package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/itsmauth/itsmauth/config/internal/yamldoc"
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

// problems are the faults of a file in its order. A fault of the defaults is found once a connector,
// and is one problem.
func problems(file string, faults []yamldoc.Fault) Problems {
	var p Problems
	for _, f := range faults {
		p = append(p, Problem{file, f.Line, f.Col, f.Path.String(), f.Message, f.Err})
	}
	slices.SortStableFunc(p, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Col, b.Col), cmp.Compare(a.Path, b.Path))
	})
	return slices.CompactFunc(p, func(a, b Problem) bool { return a.Error() == b.Error() })
}
