package preset_test

import (
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/config/internal/preset"
	"github.com/itsmauth/itsmauth/config/internal/yamldoc"
	"github.com/itsmauth/itsmauth/internal/settings"
	"github.com/itsmauth/itsmauth/providers"
)

// common are the keys of connectors of every provider.
var common = []string{"provider", "base_url", "account", "probe", "early_refresh", "transport"}

// TestFiles checks the rules that each file keeps, beside its types.
func TestFiles(t *testing.T) {
	t.Parallel()
	engines := map[string][]string{} // their keys
	for _, d := range providers.All() {
		if d.Preset() == nil {
			engines[d.Name()] = append(keys(d.Settings()), common...)
		}
	}
	placeholder := regexp.MustCompile(`\{([a-z_]+)\}`)
	for _, d := range providers.All() {
		if d.Preset() == nil {
			continue
		}
		t.Run(d.Name(), func(t *testing.T) {
			t.Parallel()
			p, faults := preset.Decode(d.Preset())
			if faults != nil {
				t.Fatal(faults)
			}
			if !strings.HasPrefix(string(d.Preset()), "engine: "+p.Engine+"\n") {
				t.Error("the engine is not on the first line")
			}
			if day, err := time.Parse(time.DateOnly, p.Read); err != nil || day.Year() < 2026 {
				t.Errorf("read: %q, %v", p.Read, err)
			}
			optional, known := map[string]bool{}, []string{"base_url", "client_id", "client_secret", "access_token"}
			for _, v := range p.Variables {
				known = append(known, v.Name)
				optional[v.Name] = !v.Required && v.Default == ""
				whole, err := regexp.Compile(v.Regexp())
				switch {
				case slices.Contains(engines[p.Engine], v.Name):
					t.Errorf("%s is a key of %s", v.Name, p.Engine)
				case err != nil:
					t.Error(err)
				case v.Pattern == "" && !v.Secret || v.Pattern != "" && v.Secret:
					t.Errorf("%s: a pattern is for what is not secret", v.Name)
				case v.Default != "" && !whole.MatchString(v.Default):
					t.Errorf("%s: its default does not match its pattern", v.Name)
				case whole.MatchString("a/../b?c#d") && !v.Secret && !strings.Contains(v.Pattern, "://"):
					t.Errorf("%s: its pattern takes the end of a URL", v.Name)
				}
			}
			check := func(settings yamldoc.Node, when []string) {
				var text string
				for _, e := range yamldoc.EntriesOf(settings) {
					text += e.YAML()
				}
				for _, m := range placeholder.FindAllStringSubmatch(text, -1) {
					if !slices.Contains(known, m[1]) {
						t.Errorf("%s is not known", m[0])
					}
					if optional[m[1]] && !slices.Contains(when, m[1]) {
						t.Errorf("%s may have no value", m[0])
					}
				}
				if strings.Contains(text, "$") {
					t.Errorf("a reference in %s", text)
				}
			}
			check(p.Settings, nil)
			for i, v := range p.Variants {
				if last := i == len(p.Variants)-1; last != (v.When == nil) {
					t.Errorf("variant %d: only the last has no when", i)
				}
				check(v.Settings, v.When)
				for _, key := range v.When {
					if !slices.Contains(engines[p.Engine], key) && !slices.Contains(known, key) {
						t.Errorf("when: %s is no key", key)
					}
				}
			}
		})
	}
}

func keys(t reflect.Type) (list []string) {
	for _, f := range settings.Fields(t) {
		list = append(list, f.Key)
	}
	return list
}
