package config

import (
	"errors"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Connectors that WithOnly leaves out stop nothing, whatever they lack. What all of them need is still missed.
func TestWithOnly(t *testing.T) {
	t.Parallel()
	const (
		good = "  good: {provider: acme, base_url: https://h, client_id: a, client_secret: x}\n"
		same = "  same: {provider: acme, base_url: https://h, client_id: a, client_secret: other}\n"
	)
	for name, tc := range map[string]struct {
		others string
		only   []string
		want   []string
		err    string
	}{
		"an unset variable":             {"  bad: {provider: acme, base_url: https://h, client_id: '${env:CFG_UNSET}', client_secret: x}\n", []string{"good"}, []string{"good"}, ""},
		"an unset variable in a secret": {"  bad: {provider: acme, base_url: https://h, client_id: b, client_secret: '${env:CFG_UNSET}'}\n", []string{"good"}, []string{"good"}, ""},
		"a missing file":                {"  bad: {provider: acme, base_url: https://h, client_id: b, client_secret: '${file:none}'}\n", []string{"good"}, []string{"good"}, ""},
		"a missing CA":                  {"  bad: {provider: acme, base_url: https://h, client_id: b, client_secret: x, transport: {tls_config: {ca_file: none}}}\n", []string{"good"}, []string{"good"}, ""},
		"an unknown provider":           {"  bad: {provider: acne}\n", []string{"good"}, []string{"good"}, ""},
		"an unknown key":                {"  bad: {provider: acme, base_url: https://h, client_id: b, client_secret: x, odd: 1}\n", []string{"good"}, []string{"good"}, ""},
		"a name with spaces":            {"  ' bad ': {}\n", []string{"good"}, []string{"good"}, ""},
		"another secret":                {same, []string{"good"}, []string{"good"}, ""},
		"the one with the fault":        {"  bad: {provider: acme, base_url: https://h, client_id: b, client_secret: '${env:CFG_UNSET}'}\n", []string{"bad"}, nil, "t.yaml:4:75: connectors.bad.client_secret: environment variable CFG_UNSET is not set"},
		"two":                           {same, []string{"same", "good"}, nil, "t.yaml:4:76: connectors.same.client_secret: conflicts with connector good (same credentials, shared token); use equal values, or set a different account"},
		"none is all":                   {"  b: {provider: acme, base_url: https://h, client_id: b, client_secret: x}\n", nil, []string{"b", "good"}, ""},
		"unknown":                       {"", []string{"god"}, nil, ""},
		"the same name twice":           {"  good: {}\n", []string{"good"}, nil, "t.yaml:4:3: connectors.good: duplicate key, first on line 3"},
		"a default":                     {"defaults: {early_refresh: '${env:CFG_UNSET}'}\n", []string{"good"}, nil, "t.yaml:4:27: defaults.early_refresh: environment variable CFG_UNSET is not set"},
		"the store":                     {"token_store: {type: disk, path: '${env:CFG_UNSET}'}\n", []string{"good"}, nil, "t.yaml:4:33: token_store.path: environment variable CFG_UNSET is not set"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conns, err := Parse("t.yaml", []byte("version: 1\nconnectors:\n"+good+tc.others), append(testOptions(), WithOnly(tc.only...))...)
			if tc.err != "" {
				if err == nil || err.Error() != tc.err {
					t.Errorf("%v\nwant %s", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer conns.Close()
			if diff := cmp.Diff(tc.want, conns.Names()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Get knows the names of all connectors of the file.
func TestWithOnlyGet(t *testing.T) {
	t.Parallel()
	conns, err := parse1(t, "  shop: {}\n", WithOnly("a"))
	if err != nil {
		t.Fatal(err)
	}
	defer conns.Close()
	for name, want := range map[string]string{
		"shop": `t.yaml: connector "shop" was left out by config.WithOnly`,
		"shup": `t.yaml has no connector "shup"; did you mean shop?`,
	} {
		if _, err := conns.Get(name); err == nil || err.Error() != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err = parse1(t, "  b: {provider: acme, base_url: https://h, client_id: b, client_secret: '${file:none}'}\n")
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without WithOnly: %v", err)
	}
}
