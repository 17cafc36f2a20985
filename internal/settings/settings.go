// Package settings checks the settings structs of providers and stores by the struct tags that config
// reads too, and collects the errors.
package settings

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
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

// AddSecret adds err, from reading the secret of the setting key, if the secret cannot be used. An error that only says
// that it was not read may pass.
func (e *Errors) AddSecret(key string, err error) {
	if errors.Is(err, auth.ErrSecret) {
		e.Add(key, err)
	}
}

// Check sets each zero field of the struct *c that is a string or a time.Duration to what its tag
// `default:"a"` says; other defaults are structured YAML, which the constructors give in Go. Then it
// adds an error for each field that is zero despite `required:"true"`, has a value that its tag
// `enum:"a,b"` does not list, or is a negative time.Duration. Structs in *c, lists of structs, and
// structs that pointers lead to are checked too.
func (e *Errors) Check(c any) { e.check(reflect.ValueOf(c).Elem(), "") }

func (e *Errors) check(v reflect.Value, prefix string) {
	for _, f := range Fields(v.Type()) {
		key, v := prefix+f.Key, v.FieldByIndex(f.Index)
		e.When(f.Required && v.IsZero(), key, "required")
		if d := f.Default(); v.IsZero() && !d.IsZero() { // a list may be shared, and is only read
			v.Set(d)
		}
		d, _ := v.Interface().(time.Duration)
		e.When(d < 0, key, "must not be negative")
		if !v.IsZero() {
			e.Add(key, f.CheckWord(v.String()))
		}
		if v.Kind() == reflect.Pointer && f.Tag.Get("flag") == "true" && !v.IsNil() {
			v = v.Elem()
		}
		switch v.Kind() {
		case reflect.Struct:
			e.check(v, key+".")
		case reflect.Pointer:
			if t := v.Type().Elem(); !v.IsNil() && t.Kind() == reflect.Struct && len(Fields(t)) > 0 {
				own := reflect.New(t) // the caller's is only read
				own.Elem().Set(v.Elem())
				e.check(own.Elem(), key+".")
				v.Set(own)
			}
		case reflect.Slice:
			for i := range v.Len() {
				if elem := v.Index(i); elem.Kind() == reflect.Struct {
					e.check(elem, fmt.Sprintf("%s.%d.", key, i))
				}
			}
		}
	}
}

var headerName = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$") // RFC 9110 section 5.6.2

// IsHeaderName reports whether name can be the name of a header. Schemes of authentication and names of cookies have the
// same characters.
func IsHeaderName(name string) bool { return headerName.MatchString(name) }

// Has reports whether there is an error for the setting key.
func (e Errors) Has(key string) bool {
	return slices.ContainsFunc(e, func(err error) bool { return err.(*auth.KeyError).Key == key })
}

// Err joins the errors. It is nil if there are none.
func (e Errors) Err() error { return errors.Join(e...) }

// A Field is a struct's field with a key in YAML, and what its tags say.
type Field struct {
	reflect.StructField
	Key      string
	Required bool
	Enum     []string // the words that it may be, or nil
	Least    int64
}

var fields sync.Map // what Fields found, by reflect.Type

// Fields lists the fields of a struct and of the structs embedded in it. The list is shared: do not change it.
func Fields(t reflect.Type) (list []Field) {
	if known, ok := fields.Load(t); ok {
		return known.([]Field)
	}
	for _, f := range reflect.VisibleFields(t) {
		key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if !f.IsExported() || key == "" || key == "-" {
			continue
		}
		field := Field{f, key, f.Tag.Get("required") == "true", nil, math.MinInt64}
		if words := f.Tag.Get("enum"); words != "" {
			field.Enum = strings.Split(words, ",")
		}
		// Not fmt.Sscan: it panics within, and each panic makes the race detector's stack longer.
		least, _, _ := strings.Cut(f.Tag.Get("min"), ",")
		if n, err := strconv.ParseInt(least, 10, 64); err == nil {
			field.Least = n
		}
		list = append(list, field)
	}
	fields.Store(t, list)
	return list
}

// CheckWord refuses a word that Enum does not list.
func (f Field) CheckWord(word string) error {
	if f.Enum == nil || slices.Contains(f.Enum, word) {
		return nil
	}
	return errors.New("must be one of " + strings.Join(f.Enum, ", "))
}

// Default is what the tag of a string or a time.Duration says, or zero.
func (f Field) Default() reflect.Value {
	v := reflect.New(f.Type).Elem()
	text := f.Tag.Get("default")
	switch field := v.Addr().Interface().(type) {
	case *string:
		*field = text
	case *time.Duration:
		*field, _ = time.ParseDuration(text)
	}
	return v
}
