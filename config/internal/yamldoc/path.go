package yamldoc

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A Path leads from the document to a value. Its elements are keys, quoted if they are not plain names,
// and indexes of lists in brackets: two paths that differ never print the same.
type Path []string

// Below extends p. The names must be plain.
func (p Path) Below(names ...string) Path { return slices.Concat(p, names) }

// key extends p by a key, whatever its name.
func (p Path) key(name string) Path {
	if !plainName.MatchString(name) {
		name = strconv.Quote(name)
	}
	return p.Below(name)
}

// unknownKey extends p by a key that is not known. It leaves out what may be a line of a secret: a key that does not
// look like a setting, unless it is likely to be a key all the same.
func (p Path) unknownKey(name string, likely bool) Path {
	if len(name) > 40 || !plainName.MatchString(name) || strings.ContainsAny(name, " /") || !likely && !settingName.MatchString(name) {
		return p
	}
	return p.Below(name)
}

var settingName = regexp.MustCompile(`^[a-z]+([_-][a-z]+)*$`)

// Index extends p by an index.
func (p Path) Index(i int) Path { return p.Below("[" + strconv.Itoa(i) + "]") }

var plainName = regexp.MustCompile(`^[\pL\pN_-][\pL\pN_ /-]*$`)

// String is the path as a problem shows it, such as connectors.support.scopes[0].
func (p Path) String() string {
	var b strings.Builder
	for i, element := range p {
		if i > 0 && element[0] != '[' {
			b.WriteByte('.')
		}
		b.WriteString(element)
	}
	return b.String()
}
