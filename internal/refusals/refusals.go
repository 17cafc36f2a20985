// Package refusals collects what a constructor refuses of its settings.
package refusals

import (
	"errors"
	"slices"
	"strings"

	"github.com/itsmauth/itsmauth/auth"
)

// List is an [auth.KeyError] for each setting at fault.
type List []error

// Add refuses a setting unless err is nil.
func (l *List) Add(key string, err error) {
	if err != nil {
		*l = append(*l, &auth.KeyError{Key: key, Err: err})
	}
}

// When refuses a setting if isSo.
func (l *List) When(isSo bool, key, text string) {
	if isSo {
		l.Add(key, errors.New(text))
	}
}

// Word refuses a value that is none of the words.
func (l *List) Word(key, value string, words ...string) {
	l.When(!slices.Contains(words, value), key, "must be "+strings.Join(words, ", "))
}

// Err joins them. It is nil if there are none.
func (l List) Err() error { return errors.Join(l...) }
