// Package settings checks the settings structs of providers and stores by the struct tags that config
// reads too, and collects the errors.
package settings

import (
	"errors"
	"fmt"
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

// Check adds an error for each field of the struct c that is zero despite `required:"true"`, or has a
// value that its tag `enum:"a,b"` does not list.
func (e *Errors) Check(c any) {
	walk(reflect.ValueOf(c), "", func(key string, v reflect.Value, tag reflect.StructTag) {
		e.When(v.IsZero() && tag.Get("required") == "true", key, "required")
		if enum := tag.Get("enum"); enum != "" && !v.IsZero() {
			words := strings.Split(enum, ",")
			e.When(!slices.Contains(words, v.String()), key, "must be one of "+strings.Join(words, ", "))
		}
	})
}

// Has reports whether there is an error for the setting key.
func (e Errors) Has(key string) bool {
	return slices.ContainsFunc(e, func(err error) bool { return err.(*auth.KeyError).Key == key })
}

// Err joins the errors. It is nil if there are none.
func (e Errors) Err() error { return errors.Join(e...) }

// FillDefaults sets each zero field of the struct *c that is a string or a time.Duration to what its tag
// `default:"a"` says. Other defaults are structured YAML, which the constructors give in Go.
func FillDefaults[C any](c *C) {
	walk(reflect.ValueOf(c).Elem(), "", func(key string, v reflect.Value, tag reflect.StructTag) {
		text := tag.Get("default")
		if text == "" || !v.IsZero() {
			return
		}
		switch field := v.Addr().Interface().(type) {
		case *string:
			*field = text
		case *time.Duration:
			d, err := time.ParseDuration(text)
			if err != nil {
				panic(fmt.Sprintf("default of %s: %v", key, err))
			}
			*field = d
		}
	})
}

// walk calls f for each field of the struct v that has a YAML key, and for those of structs in it.
func walk(v reflect.Value, prefix string, f func(key string, v reflect.Value, tag reflect.StructTag)) {
	for _, field := range reflect.VisibleFields(v.Type()) {
		key, _, _ := strings.Cut(field.Tag.Get("yaml"), ",")
		if key == "" || key == "-" {
			continue
		}
		v := v.FieldByIndex(field.Index)
		f(prefix+key, v, field.Tag)
		if v.Kind() == reflect.Struct {
			walk(v, prefix+key+".", f)
		}
	}
}
