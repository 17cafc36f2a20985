package yamldoc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
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
}

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
		if !filepath.IsAbs(arg) {
			arg = filepath.Join(s.dir, arg)
		}
		v, err := s.file(arg)
		if err == nil && v == "" {
			err = fmt.Errorf("%s is empty", arg)
		}
		return v, err
	}
	return "", Advise("unknown reference", "write ${env:NAME}, ${env:NAME:-default} or ${file:PATH}, or $${ for a literal ${")
}

func (s sources) file(path string) (string, error) {
	if s.secret {
		return auth.SecretFile(path).Value()
	}
	text, err := textfile.Read(path)
	text, newline := strings.CutSuffix(text, "\n")
	if newline {
		text = strings.TrimSuffix(text, "\r")
	}
	return text, err
}
