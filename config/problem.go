package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode"
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

// Problems are all that is wrong with a file, in the order of the file; past a thousand the rest of
// the file is not looked at. It is the error of [Load] and [Parse] for a file that was read and
// refused.
type Problems []Problem

// Error is one line a problem.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i := range p {
		lines[i] = p[i].Error()
	}
	return strings.Join(lines, "\n")
}

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
	return slices.CompactFunc(p, func(a, b Problem) bool {
		return a.Line == b.Line && a.Col == b.Col && a.Path == b.Path && a.Message == b.Message
	})
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
