package yamldoc

import (
	"os"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/itsmauth/itsmauth/auth"
)

// FuzzWork counts what a document costs, in allocations: not more than in proportion to its bytes and its values,
// with aliases written out. It also looks for panics of yaml.v3 behind the limits of Parse.
func FuzzWork(f *testing.F) {
	for _, doc := range []string{
		"a: 1\nb: [x, y]\nc: {k: v}\n", "a: &a [1, 2]\nb: [*a, *a]\n", "c: {<<: [&x {a: b}, *x], k: v}\n", "a: ${file:x}${env:A:-b}\n",
		"c: {a: {a: {a: {a: {}}}}}\n", "%TAG !a! tag:a\n---\na: !a!b c\n", "s: |\n  a\n\n  b\ns: 'a'\n", "? a\n: b\n# c\n---\nd", "a: [[[[[[\n", "d: {x: {secret: a}}\nn: -1\nzz: 1\n",
	} {
		f.Add([]byte(doc), byte(1))
		f.Add([]byte(doc), byte(100))
	}
	type inner struct {
		Secret auth.Secret `yaml:"secret" required:"true"`
		Words  []string    `yaml:"words"`
	}
	type outer struct {
		A string                 `yaml:"a"`
		B []string               `yaml:"b"`
		C map[string]string      `yaml:"c"`
		D map[string]inner       `yaml:"d"`
		S map[string]auth.Secret `yaml:"s"`
		N int                    `yaml:"n" min:"0"`
	}
	no := func(Node) bool { return false }
	f.Fuzz(func(t *testing.T, data []byte, times byte) {
		if times > 1 { // what costs most is often the same many times
			data = []byte(strings.Repeat(string(data), int(times)))
		}
		values := 0
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		d := New("/dir/t.yaml", nil)
		d.read = func(string) (string, error) { return "", os.ErrNotExist }
		root := d.Parse(data)
		if entries, ok := d.Entries(root); ok {
			for _, e := range entries {
				d.ReadAhead(e, no, no)
			}
			d.Decode(new(outer), root, entries)
		}
		lines := new(Lines)
		for _, fault := range d.Faults {
			NewMask(reflect.TypeFor[outer](), nil).Excerpt(lines, data, fault.Line, fault.Col, fault.Path.String())
		}
		runtime.ReadMemStats(&after)
		if !root.Missing() {
			values, _ = d.measure(root.value, 1, map[*yaml.Node]int{})
		}
		count, most := after.Mallocs-before.Mallocs, 20_000+100*uint64(len(data)+values)
		if count > most {
			t.Errorf("%d allocations for %d bytes and %d values", count, len(data), values)
		}
	})
}
