package yamldoc

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type more struct {
	Extra string `yaml:"extra"`
}

// Layers decode into one value: structs merge, everything else is replaced. A copy of the value below does
// not change.
func TestDecodeInPlace(t *testing.T) {
	t.Parallel()
	type inner struct {
		A int `yaml:"a"`
		B int `yaml:"b"`
	}
	type outer struct {
		Struct  inner            `yaml:"struct"`
		Pointer *inner           `yaml:"pointer"`
		Map     map[string]inner `yaml:"map"`
		List    []inner          `yaml:"list"`
		Null    int              `yaml:"nothing"`
		more    `yaml:",inline"`
	}
	layer := func(v outer, text string) outer {
		t.Helper()
		d := New(".", nil)
		root := d.Parse([]byte(text))
		entries, _ := d.Entries(root)
		if d.Decode(&v, root, entries); d.Faults != nil {
			t.Fatal(d.Faults)
		}
		return v
	}
	base := layer(outer{}, "{struct: {a: 1, b: 1}, pointer: {a: 1, b: 1}, map: {x: {a: 1, b: 1}, y: {a: 1}}, list: [{a: 1}, {a: 2}], nothing: 1, extra: e}")
	got := layer(base, "{struct: {b: 2}, pointer: {b: 2}, map: {x: {b: 2}, z: {}}, list: [{b: 2}], nothing: }")
	want := outer{inner{1, 2}, &inner{0, 2}, map[string]inner{"x": {0, 2}, "z": {}}, []inner{{0, 2}}, 1, more{"e"}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(outer{})); diff != "" {
		t.Error(diff)
	}
	want = outer{inner{1, 1}, &inner{1, 1}, map[string]inner{"x": {1, 1}, "y": {1, 0}}, []inner{{1, 0}, {2, 0}}, 1, more{"e"}}
	if diff := cmp.Diff(want, base, cmp.AllowUnexported(outer{})); diff != "" {
		t.Error(diff)
	}
}

func TestPath(t *testing.T) {
	t.Parallel()
	for want, p := range map[string]Path{
		"":                   nil,
		"a.b[0].c":           Path{"a"}.key("b").Index(0).Below("c"),
		`a."b.c"."[0]"[1]`:   Path{"a"}.key("b.c").key("[0]").Index(1),
		`""."a.[b"."\"".d/e`: Path{}.key("").key("a.[b").key(`"`).key("d/e"),
		"a.b-c":              Path{"a"}.unknownKey("b-c", false),
		"a":                  Path{"a"}.unknownKey("two words", true),
		"b":                  Path{"b"}.unknownKey("with/slash", true),
		"c":                  Path{"c"}.unknownKey(strings.Repeat("x", 41), true),
		"d":                  Path{"d"}.unknownKey("a.b", true),
		"e":                  Path{"e"}.unknownKey("hunter2Secret", false),
		"f.tokenURL":         Path{"f"}.unknownKey("tokenURL", true),
	} {
		if got := p.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestSuggest(t *testing.T) {
	t.Parallel()
	known := []string{"client_secret", "client_id", "pkce", "scopes", "id"}
	for name, want := range map[string]string{
		"client_secrt": "client_secret", "clientSecret": "client_secret", "client-id": "client_id", "cleint_id": "client_id",
		"pcke": "pkce", "scope": "scopes", "SCOPES": "scopes", "is": "id",
		"password": "", "x": "", "": "", strings.Repeat("client_id", 1000): "",
	} {
		got := Suggest(name, slices.Values(known))
		if want != "" && got != "did you mean "+want+"?" || want == "" && got != "known: client_id, client_secret, id, pkce, scopes" {
			t.Errorf("%.20s: %s", name, got)
		}
	}
	if got := Suggest("x", slices.Values([]string{})); got != "" {
		t.Error(got)
	}
}

// FuzzExpand looks for lost text: a value without ${ stays as it is.
func FuzzExpand(f *testing.F) {
	for _, s := range []string{"", "a", "$", "$$", "${", "$${", "$$${", "${env:CFG_ID}", "${env:X:-}", "${env:X:-$${}", "a${file:secret.txt}b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if strings.Contains(s, "${file:") {
			return
		}
		got, expanded, err := expand(s, sources{dir: "testdata", room: new(maxReferenced)})
		if !strings.Contains(s, "${") && (got != s || expanded || err != nil) {
			t.Errorf("%q became %q, %v, %v", s, got, expanded, err)
		}
		literal, expanded, err := expand(strings.ReplaceAll(s, "${", "$${"), sources{dir: "testdata"})
		if literal != s && !strings.Contains(s, "$${") || expanded || err != nil {
			t.Errorf("%q became %q, %v", s, literal, err)
		}
	})
}

func TestOverlay(t *testing.T) {
	t.Parallel()
	d := New(".", nil)
	root := d.Parse([]byte("word: here\na: mine\nm: {x: {p: 1}, <<: {s: 2}}\nn:\nl: [1]\nr: eu\n"))
	entries, _ := d.Entries(root)
	other := EntriesOf(New(".", nil).Parse([]byte("a: other\nb: 'to {r}, {unknown}'\nm: {x: {p: 2, q: '{r}'}, y: 3, s: 4}\nn: {z: 1}\nl: [2, 3]\n")))
	values := map[string]*Value{"r": {Text: "eu", From: entries[5]}, "unused": {}}
	entries = d.Overlay(root, entries, other, values, entries[0])
	var got struct {
		Word string `yaml:"word"`
		A    string `yaml:"a"`
		B    string `yaml:"b"`
		N    struct {
			Z string `yaml:"z"`
		} `yaml:"n"`
		L     []int `yaml:"l"`
		Outer struct {
			X struct {
				P int    `yaml:"p"`
				Q string `yaml:"q"`
			} `yaml:"x"`
			Y int `yaml:"y"`
			S int `yaml:"s"`
		} `yaml:"m"`
	}
	d.Fill(&got, root, entries)
	o := got.Outer
	if d.Faults != nil || got.A != "mine" || got.B != "to eu, {unknown}" || o.X.P != 1 || o.X.Q != "eu" || o.Y != 3 || o.S != 2 || got.N.Z != "1" || !slices.Equal(got.L, []int{1}) {
		t.Errorf("%+v %v", got, d.Faults)
	}
	if !values["r"].Used || values["unused"].Used {
		t.Error("used", values["r"].Used, values["unused"].Used)
	}
	// Faults are where the value is, or at the given place, once.
	for path, want := range map[string]string{"b": "6:4 r b, which is made of it, wrong", "n.z": "1:7 n.z wrong", "a": "2:4 a wrong"} {
		d.Faults = nil
		d.Refuse(strings.Split(path, "."), errors.New("wrong"))
		f := d.Faults[0]
		if got := fmt.Sprintf("%d:%d %s %s", f.Line, f.Col, f.Path, f.Message); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	d.Faults = nil
	if d.Refuse(Path{"m", "x", "q"}, errors.New("wrong")); d.Faults != nil || !d.Reported(Path{"m", "x", "q"}) {
		t.Error("what is made of a refused value is refused too", d.Faults)
	}
}
