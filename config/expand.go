package config

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
	errUnclosed = errors.New("${ is not closed; write $${ for a literal ${")
	errNested   = errors.New("${ inside ${ } is not supported")
	errScheme   = errors.New("unknown reference; write ${env:NAME}, ${env:NAME:-default} or ${file:PATH}, or $${ for a literal ${")
	errVariable = errors.New("${env: } needs the name of a variable: letters, digits and _")
	errPath     = errors.New("${file: } needs a path")

	variable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

// expand resolves the references in a scalar, a relative path against dir, and reports whether
// there were any. What it finds is not looked at again. Its errors name variables and paths and
// show nothing else of text, which may be a secret with a ${ in it.
func expand(text, dir string) (value string, expanded bool, err error) {
	var b strings.Builder
	for {
		i := strings.IndexByte(text, '$')
		if i < 0 {
			b.WriteString(text)
			return b.String(), expanded, nil
		}
		b.WriteString(text[:i])
		text = text[i:]
		switch {
		case strings.HasPrefix(text, "$${"):
			b.WriteString("${")
			text = text[len("$${"):]
		case strings.HasPrefix(text, "${"):
			ref, rest, closed := strings.Cut(text[len("${"):], "}")
			if strings.Contains(ref, "${") {
				return "", false, errNested
			}
			if !closed {
				return "", false, errUnclosed
			}
			v, err := lookup(ref, dir)
			if err != nil {
				return "", false, err
			}
			b.WriteString(v)
			text, expanded = rest, true
		default:
			b.WriteByte('$')
			text = text[1:]
		}
	}
}

func lookup(ref, dir string) (string, error) {
	scheme, arg, _ := strings.Cut(ref, ":")
	switch scheme {
	case "env":
		name, fallback, hasFallback := strings.Cut(arg, ":-")
		if !variable.MatchString(name) {
			return "", errVariable
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
	case "file":
		if arg == "" {
			return "", errPath
		}
		if !filepath.IsAbs(arg) {
			arg = filepath.Join(dir, arg)
		}
		v, err := auth.SecretFile(arg).Value()
		if err == nil && v == "" {
			err = fmt.Errorf("%s is empty", arg)
		}
		return v, err
	}
	return "", errScheme
}
