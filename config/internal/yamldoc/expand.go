package yamldoc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/itsmauth/itsmauth/auth"
)

var (
	references = regexp.MustCompile(`\$\$\{|\$\{[^}]*\}?`)
	variable   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

// expand replaces the references in a scalar by what they refer to, which is not expanded again, and
// reports whether there were any. Paths are relative to dir. Its errors name variables and paths and
// show nothing else of text, which may be a secret with a ${ in it.
func expand(text, dir string) (value string, expanded bool, err error) {
	value = references.ReplaceAllStringFunc(text, func(ref string) string {
		if ref == "$${" {
			return "${"
		}
		if err == nil {
			expanded = true
			ref, err = lookup(ref[len("${"):], dir)
		}
		return ref
	})
	if err != nil {
		return "", false, err
	}
	return value, expanded, nil
}

// lookup gives the value of a reference without its ${.
func lookup(ref, dir string) (string, error) {
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
		case v != "":
			return v, nil
		case hasFallback:
			return fallback, nil
		case set:
			return "", fmt.Errorf("environment variable %s is empty", name)
		}
		return "", fmt.Errorf("environment variable %s is not set", name)
	case scheme == "file" && arg == "":
		return "", errors.New("${file: } needs a path")
	case scheme == "file":
		if !filepath.IsAbs(arg) {
			arg = filepath.Join(dir, arg)
		}
		v, err := auth.SecretFile(arg).Value()
		if err == nil && v == "" {
			err = fmt.Errorf("%s is empty", arg)
		}
		return v, err
	}
	return "", Advise("unknown reference", "write ${env:NAME}, ${env:NAME:-default} or ${file:PATH}, or $${ for a literal ${")
}
