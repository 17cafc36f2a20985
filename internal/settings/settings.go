// Package settings checks the settings structs of providers and stores by the struct tags that config
// reads too, and collects the errors.
package settings

import (
	"cmp"
	"errors"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

// Errors has an [auth.KeyError] for each wrong setting.
type Errors []error

// Add adds an error for the setting key, unless err is nil.
func (e *Errors) Add(key string, err error) {
	if err != nil {
		*e = append(*e, &auth.KeyError{Key: key, Err: err})
	}
}

// When adds an error for the setting key if it is wrong.
func (e *Errors) When(wrong bool, key, text string) {
	if wrong {
		e.Add(key, errors.New(text))
	}
}

// Check sets each zero field of the struct *c that is a string or a time.Duration to what its tag
// `default:"a"` says; other defaults are structured YAML, which the constructors give in Go. Then it
// adds an error for each field that is zero despite `required:"true"`, has a value that its tag
// `enum:"a,b"` does not list, or is a negative time.Duration.
func (e *Errors) Check(c any) { e.check(reflect.ValueOf(c).Elem(), "") }

func (e *Errors) check(v reflect.Value, prefix string) {
	for _, field := range reflect.VisibleFields(v.Type()) {
		key, _, _ := strings.Cut(field.Tag.Get("yaml"), ",")
		if key == "" || key == "-" {
			continue
		}
		key = prefix + key
		v := v.FieldByIndex(field.Index)
		required := field.Tag.Get("required") == "true"
		e.When(required && v.IsZero(), key, "required")
		text := field.Tag.Get("default")
		switch field := v.Addr().Interface().(type) {
		case *string:
			*field = cmp.Or(*field, text)
		case *time.Duration:
			usual, _ := time.ParseDuration(text)
			*field = cmp.Or(*field, usual)
			e.When(*field < 0, key, "must not be negative")
		}
		if enum := field.Tag.Get("enum"); enum != "" && !v.IsZero() {
			words := strings.Split(enum, ",")
			e.When(!slices.Contains(words, v.String()), key, "must be one of "+strings.Join(words, ", "))
		}
		if v.Kind() == reflect.Struct {
			e.check(v, key+".")
		}
	}
}

// Has reports whether there is an error for the setting key.
func (e Errors) Has(key string) bool {
	return slices.ContainsFunc(e, func(err error) bool { return err.(*auth.KeyError).Key == key })
}

// Err joins the errors. It is nil if there are none.
func (e Errors) Err() error { return errors.Join(e...) }
