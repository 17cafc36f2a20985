package generic

import (
	"reflect"
	"testing"

	"gopkg.in/yaml.v3"
)

// The tags of structured defaults, which the schema and the documentation show, say what fillDefaults does.
func TestStructuredDefaults(t *testing.T) {
	t.Parallel()
	var filled Config
	filled.fillDefaults()
	for _, name := range []string{"TokenHeaders", "RejectedWhen"} {
		field, _ := reflect.TypeFor[Config]().FieldByName(name)
		want := reflect.New(field.Type)
		if err := yaml.Unmarshal([]byte(field.Tag.Get("default")), want.Interface()); err != nil {
			t.Fatal(err)
		}
		if got := reflect.ValueOf(filled).FieldByName(name).Interface(); !reflect.DeepEqual(got, want.Elem().Interface()) {
			t.Errorf("%s is %v, its tag says %v", name, got, want.Elem())
		}
	}
}
