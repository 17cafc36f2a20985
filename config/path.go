package config

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A keyPath leads from the document to a value. Its elements are keys, quoted if they are not plain names,
// and indexes of lists in brackets: two paths that differ never print the same.
type keyPath []string

// below extends p. The names must be plain.
func (p keyPath) below(names ...string) keyPath { return slices.Concat(p, names) }

// key extends p by a key, whatever its name.
func (p keyPath) key(name string) keyPath {
	if !plainName.MatchString(name) {
		name = strconv.Quote(name)
	}
	return p.below(name)
}

// unknownKey extends p by a key that is not known. A key that does not look like a name is left out: it
// may be a misplaced secret.
func (p keyPath) unknownKey(name string) keyPath {
	if len(name) > 40 || !plainName.MatchString(name) || strings.ContainsAny(name, " /") {
		return p
	}
	return p.below(name)
}

func (p keyPath) index(i int) keyPath { return p.below("[" + strconv.Itoa(i) + "]") }

var plainName = regexp.MustCompile(`^[\pL\pN_-][\pL\pN_ /-]*$`)

// String is the path as a problem shows it, such as connectors.support.scopes[0].
func (p keyPath) String() string {
	var b strings.Builder
	for i, element := range p {
		if i > 0 && element[0] != '[' {
			b.WriteByte('.')
		}
		b.WriteString(element)
	}
	return b.String()
}
