package yamldoc

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/textfile"
)

var (
	references = regexp.MustCompile(`\$\$\{|\$\{[^}]*\}?`)
	variable   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

// expand replaces the references in a scalar by what they refer to, which is not expanded again, and
// reports whether there were any. source tells what a path refers to. Its errors name variables and paths
// and show nothing else of text, which may be a secret with a ${ in it.
func expand(text string, source sources) (value string, expanded bool, err error) {
	value = references.ReplaceAllStringFunc(text, func(ref string) string {
		if ref == "$${" {
			return "${"
		}
		if err == nil {
			expanded = true
			ref, err = source.lookup(ref[len("${"):])
			if *source.room -= len(ref); *source.room < 0 {
				ref, err = "", errReferenced
			}
		}
		return ref
	})
	if err != nil {
		return "", false, err
	}
	return value, expanded, nil
}

// sources are where the values of references come from.
type sources struct {
	dir    string // to which paths are relative
	secret bool   // the values are secrets, see [auth.Secret.Value]
	read   func(path string) (string, error)
	room   *int // how many bytes references may still give

	schemes map[string]SecretSource
	source  func(sourceRef) (string, error) // gives the values of schemes
}

// cached reports whether a reference in text has one of the schemes.
func (s sources) cached(text string) bool {
	return slices.ContainsFunc(references.FindAllString(text, -1), func(ref string) bool {
		scheme, _, _ := strings.Cut(strings.TrimPrefix(ref, "${"), ":")
		return s.schemes[scheme] != nil
	})
}

// maxReferenced is how much text the references of a file may give, in bytes. Without it, a file of 1 MiB that
// has a reference in each value, or a value of references, could take all memory.
const maxReferenced = 64 << 20

var errReferenced = fmt.Errorf("the references of this file give more than %d MiB", maxReferenced>>20)

// lookup gives the value of a reference without its ${.
func (s sources) lookup(ref string) (string, error) {
	ref, closed := strings.CutSuffix(ref, "}")
	scheme, arg, _ := strings.Cut(ref, ":")
	switch {
	case strings.Contains(ref, "${"):
		return "", errors.New("${ inside ${ } is not supported")
	case !closed:
		return "", Advise("${ is not closed", "write $${ for a literal ${")
	case scheme == "env":
		name, fallback, hasFallback := strings.Cut(arg, ":-")
		if !variable.MatchString(name) {
			return "", errors.New("${env: } needs the name of a variable: letters, digits and _")
		}
		v, set := os.LookupEnv(name)
		if !s.secret {
			v = trimNewline(v)
		}
		switch {
		case v == "" && hasFallback:
			return fallback, nil
		case set && v == "":
			return "", fmt.Errorf("environment variable %s is empty", name)
		case s.secret || !set:
			return auth.SecretEnv(name).Value()
		}
		return v, nil
	case scheme == "file" && arg == "":
		return "", errors.New("${file: } needs a path")
	case scheme == "file":
		path, err := s.path(arg)
		if err != nil {
			return "", err
		}
		v, err := s.file(path)
		if err == nil && v == "" {
			err = fmt.Errorf("%s is empty", path)
		}
		return v, err
	case s.schemes[scheme] != nil && arg == "":
		return "", fmt.Errorf("${%s: } needs a reference", scheme)
	case s.schemes[scheme] != nil:
		return s.source(sourceRef{scheme, arg})
	}
	known := "${env:NAME}, ${env:NAME:-default}"
	for _, scheme := range slices.Sorted(maps.Keys(s.schemes)) {
		known += ", ${" + scheme + ":REF}"
	}
	return "", Advise("unknown reference", "write "+known+" or ${file:PATH}, or $${ for a literal ${")
}

// shellSyntax is what a shell replaces in a path.
var shellSyntax = regexp.MustCompile(`^~|\$[A-Za-z_({]|%[A-Za-z_]+%`)

// path makes a path absolute. ~ at its start is the home directory.
func (s sources) path(path string) (string, error) {
	dir := s.dir
	if path == "~" || strings.HasPrefix(path, "~/") || strings.HasPrefix(path, "~"+string(filepath.Separator)) {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", Advise("~ is the home directory, which is not known", "set $HOME, or write an absolute path")
		}
		dir, path = home, "."+path[1:]
	}
	switch {
	case shellSyntax.MatchString(path):
		return "", Advise("only ~/ is expanded in a path", "for a variable write ${env:NAME}")
	case filepath.IsAbs(path):
		return path, nil
	}
	return filepath.Join(dir, path), nil
}

func (s sources) file(path string) (string, error) {
	text, err := s.read(path)
	if err != nil {
		return "", err
	}
	if s.secret {
		if text, err = textfile.Secret(text); err != nil {
			return "", fmt.Errorf("%w: %s %w", auth.ErrSecret, path, err)
		}
		return text, nil
	}
	if text, err = textfile.Decode(text); err != nil {
		return "", fmt.Errorf("%s %w", path, err)
	}
	return trimNewline(text), nil
}

// trimNewline removes a newline at the end, which most editors and many tools add.
func trimNewline(text string) string {
	text, newline := strings.CutSuffix(text, "\n")
	if newline {
		text = strings.TrimSuffix(text, "\r")
	}
	return text
}
