package settings

import (
	"cmp"
	"reflect"
	"slices"

	"github.com/itsmauth/itsmauth/auth"
)

// Secrets lists the secrets in the struct c: fields, and elements of lists and maps, in the same order for equal
// settings.
func Secrets(c any) (secrets []auth.Secret) { return appendSecrets(nil, reflect.ValueOf(c)) }

func appendSecrets(secrets []auth.Secret, v reflect.Value) []auth.Secret {
	if s, ok := v.Interface().(auth.Secret); ok {
		if !s.IsZero() {
			secrets = append(secrets, s)
		}
		return secrets
	}
	switch v.Kind() {
	case reflect.Struct:
		for _, f := range Fields(v.Type()) {
			secrets = appendSecrets(secrets, v.FieldByIndex(f.Index))
		}
	case reflect.Pointer:
		if !v.IsNil() {
			secrets = appendSecrets(secrets, v.Elem())
		}
	case reflect.Slice:
		for i := range v.Len() {
			secrets = appendSecrets(secrets, v.Index(i))
		}
	case reflect.Map:
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int { return cmp.Compare(a.String(), b.String()) })
		for _, k := range keys {
			secrets = appendSecrets(secrets, v.MapIndex(k))
		}
	}
	return secrets
}
