package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"
)

var update = flag.Bool("update", false, "write docs/itsmauth.schema.json and docs/yaml.md")

// current checks that a generated file is up to date.
func current(t *testing.T, name, want string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, strings.ReplaceAll(string(have), "\r\n", "\n")); diff != "" {
		t.Errorf("run go generate ./config\n-want +have\n%s", diff)
	}
}

func TestSchemaFile(t *testing.T) {
	t.Parallel()
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), []string{"schema"}, nil, &stdout, &stderr); code != 0 {
		t.Fatal(stderr.String())
	}
	current(t, "../../docs/itsmauth.schema.json", stdout.String())
}

func TestSchemaReference(t *testing.T) {
	t.Parallel()
	b, err := jsonSchema()
	if err != nil {
		t.Fatal(err)
	}
	var root node
	if err := json.Unmarshal(b, &root); err != nil {
		t.Fatal(err)
	}
	current(t, "../../docs/yaml.md", reference(t, root))
}

// A node has the parts of a schema that the reference shows.
type node struct {
	Ref         string          `json:"$ref"`
	Type        any             `json:"type"`
	Description string          `json:"description"`
	Default     string          `json:"default"`
	Examples    []string        `json:"examples"`
	Enum        []string        `json:"enum"`
	Const       any             `json:"const"`
	AnyOf       []node          `json:"anyOf"`
	Items       *node           `json:"items"`
	Additional  json.RawMessage `json:"additionalProperties"`
	Properties  keys            `json:"properties"`
	Required    []string        `json:"required"`
	AllOf       []struct{ If, Then node }
	Defs        map[string]node `json:"$defs"`
}

// resolve is n, or what it refers to in another provider's settings.
func (n node) resolve(root node) node {
	if path := strings.Split(n.Ref, "/"); len(path) == 5 {
		return root.Defs[path[2]].Properties[path[4]]
	}
	return n
}

// keys are the properties of a schema, without those that are true: these only allow a key that is
// described elsewhere.
type keys map[string]node

func (k *keys) UnmarshalJSON(b []byte) error {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(b, &raw); err != nil {
		return err
	}
	*k = keys{}
	for name, r := range raw {
		if string(r) == "true" {
			continue
		}
		var n node
		if err := json.Unmarshal(r, &n); err != nil {
			return err
		}
		(*k)[name] = n
	}
	return nil
}

// additional returns the schema of a mapping's values if its keys are free.
func (n node) additional() (elem node, free bool) {
	if len(n.Additional) == 0 || string(n.Additional) == "false" {
		return node{}, false
	}
	return elem, json.Unmarshal(n.Additional, &elem) == nil
}

// mapping returns the mapping that n may be, or n.
func (n node) mapping() node {
	if i := slices.IndexFunc(n.AnyOf, func(c node) bool { return c.Properties != nil }); i >= 0 {
		return n.AnyOf[i]
	}
	return n
}

func (n node) kind() string {
	name, list := "", n.Enum
	if i := slices.IndexFunc(n.AnyOf, func(c node) bool { return c.Enum != nil }); i >= 0 {
		list = n.AnyOf[i].Enum
	}
	if elem, free := n.additional(); free {
		return "mapping to " + elem.kind()
	}
	switch {
	case list != nil:
		return "`" + strings.Join(list, "`, `") + "`"
	case n.Const != nil:
		return "number"
	case n.Ref != "":
		name = strings.TrimPrefix(n.Ref, "#/$defs/")
	case n.Items != nil && n.Items.Properties != nil:
		return "list"
	case n.Items != nil:
		return "list of " + n.Items.kind() + "s"
	case len(n.AnyOf) > 0 && n.mapping().Properties != nil:
		return n.AnyOf[1].kind() + ", or a mapping"
	case len(n.AnyOf) > 0:
		return n.AnyOf[0].kind()
	default:
		name = fmt.Sprint(n.Type)
	}
	return map[string]string{"[object null]": "mapping", "object": "mapping", "boolean": "true or false", "integer": "number", "url": "URL", "scalar": "text, number, true or false"}[name] +
		map[bool]string{true: name}[slices.Contains([]string{"text", "secret", "duration", "size"}, name)]
}

func escaped(s string) string { return strings.ReplaceAll(s, "|", `\|`) }

func code(s string) string {
	if s == "" {
		return ""
	}
	return "`" + s + "`"
}

// sentence leaves out the key's name, with which a Go comment begins: the table has it already.
func sentence(key, comment string) string {
	rest, ok := strings.CutPrefix(comment, key)
	if m := predicate.FindStringSubmatch(rest); ok && m != nil {
		return strings.ToUpper(m[1][:1]) + m[1][1:]
	}
	return comment
}

var predicate = regexp.MustCompile(`^ (?:are|is) ((?:the|a|how|where|what|further|keys|settings) .*)`)

// literal matches a default that is a value, not a description of one.
func literal(s string) string {
	if strings.Contains(s, " ") && !strings.ContainsAny(s, `[{"`) || s == "none" || s == "any" || s == "unknown" {
		return s
	}
	return code(s)
}

func reference(t *testing.T, root node) string {
	var b strings.Builder
	b.WriteString(referenceIntro)
	seen := 0
	var rows func(n node, prefix string, deep bool)
	rows = func(n node, prefix string, deep bool) {
		names := slices.Sorted(maps.Keys(n.Properties))
		slices.SortStableFunc(names, func(a, b string) int {
			return boolInt(slices.Contains(n.Required, b)) - boolInt(slices.Contains(n.Required, a))
		})
		for _, name := range names {
			p := n.Properties[name].resolve(root)
			seen++
			value := literal(p.Default)
			if slices.Contains(n.Required, name) {
				value = "*required*"
			}
			nested := p.mapping().Properties
			if p.Items != nil {
				nested = p.Items.Properties
			}
			if p.Description == "" || p.kind() == "" || len(p.Examples) == 0 && nested == nil && prefix+name != "connectors" {
				t.Errorf("%s%s lacks a description, a type or an example", prefix, name)
			}
			example := ""
			if len(p.Examples) > 0 {
				example = p.Examples[0]
				var v any
				if err := yaml.Unmarshal([]byte(name+": "+example), &v); err != nil {
					t.Errorf("%s%s: the example: %v", prefix, name, err)
				}
			}
			fmt.Fprintf(&b, "| `%s%s` | %s | %s | %s | %s |\n", prefix, name, escaped(p.kind()), escaped(value), escaped(code(example)), escaped(sentence(name, p.Description)))
			switch {
			case !deep:
			case p.Items != nil && p.Items.Properties != nil:
				rows(*p.Items, prefix+name+"[].", true)
			case nested != nil:
				rows(p.mapping(), prefix+name+".", true)
			}
		}
	}
	section := func(title, text string, n node, deep bool) {
		b.WriteString("\n" + title + "\n\n")
		if text != "" {
			b.WriteString(text + "\n\n")
		}
		if len(n.Properties) == 0 {
			b.WriteString("No keys of its own.\n")
			return
		}
		b.WriteString("| key | type | default | example | |\n| --- | --- | --- | --- | --- |\n")
		rows(n, "", deep)
	}
	section("## The file", "", root, false)
	store := root.Properties["token_store"]
	section("## `token_store`", "", store, true)
	for _, c := range store.AllOf {
		for _, name := range c.If.Properties["type"].Enum {
			section(fmt.Sprintf("### `type: %s`", name), "", c.Then, true)
		}
	}
	section("## `defaults`", "Each of these overrides the ones before it: built-in settings, `defaults`, the product's own limits, the connector. Mappings merge, lists replace.", root.Properties["defaults"], true)
	connector, _ := root.Properties["connectors"].additional()
	shared := connector
	shared.Properties = maps.Clone(connector.Properties)
	shared.Required = append(shared.Required, "base_url")
	shared.Properties["provider"] = shortened(shared.Properties["provider"])
	for name := range root.Properties["defaults"].Properties {
		delete(shared.Properties, name)
	}
	section("## Every connector", "Every key of `defaults` may also be set here. A connector of a [preset](products.md) may have every key of the preset's engine,\n`oauth2` or `static`, and need not have those that the preset gives.", shared, true)
	for _, c := range connector.AllOf {
		for _, name := range c.If.Properties["provider"].Enum {
			if about, ok := described[name]; ok && c.Then.Properties != nil {
				section(fmt.Sprintf("## `provider: %s`", name), strings.ToUpper(about[0][:1])+about[0][1:]+".", c.Then, true)
			}
		}
	}
	if seen < 80 {
		t.Errorf("%d keys", seen)
	}
	return b.String()
}

// shortened leaves out the presets, which docs/products.md has.
func shortened(provider node) node {
	provider.AnyOf = slices.Clone(provider.AnyOf)
	provider.AnyOf[0].Enum = slices.DeleteFunc(slices.Clone(provider.AnyOf[0].Enum), func(name string) bool {
		_, ok := described[name]
		return !ok
	})
	return provider
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

const referenceIntro = "# YAML reference\n\n" +
	"To begin a configuration, run `itsmauth init`; to find everything that is wrong with one, run `itsmauth check`. For\n" +
	"completion in an editor with the YAML language server, put this in the first line:\n\n" +
	"```yaml\n# yaml-language-server: $schema=https://raw.githubusercontent.com/itsmauth/itsmauth/main/docs/itsmauth.schema.json\n```\n\n" +
	"This page and [itsmauth.schema.json](itsmauth.schema.json), which `itsmauth schema` prints, are generated from the Go\n" +
	"types of the settings.\n\n" +
	"| type | is written | unit |\n| --- | --- | --- |\n" +
	"| text | `itsm-sync` | |\n" +
	"| secret | `${file:/run/secrets/name}`, `${env:NAME}`; read again at each use, never shown | |\n" +
	"| duration | `500ms`, `30s`, `5m`, `1h30m`; longer than 0, at most ten years | required: `ms`, `s`, `m`, `h` |\n" +
	"| size | `4096`, `512KiB`, `1MiB` | bytes, or `KiB`, `MiB`, `GiB` |\n" +
	"| URL | `https://host:8443/path`, absolute, `http` or `https`, without user and password | |\n" +
	"| number | `4`, in decimal digits, without quotes | |\n" +
	"| true or false | without quotes | |\n\n" +
	"Any value may contain references:\n\n" +
	"| reference | is replaced by |\n| --- | --- |\n" +
	"| `${env:NAME}` | the environment variable without its last newline; it must not be empty |\n" +
	"| `${env:NAME:-default}` | the environment variable, or `default` if it is not set or empty |\n" +
	"| `${file:PATH}` | the file's content, in UTF-8, of at most 1 MiB, without a byte order mark and its last newline |\n" +
	"| `${SCHEME:REF}` | in a secret: what the service's [`config.WithSecretSource`](https://pkg.go.dev/github.com/itsmauth/itsmauth/config#WithSecretSource) reads, such as `${vault:kv/itsm#secret}`; the command line cannot read it |\n" +
	"| `$${` | a literal `${` |\n\n" +
	"A secret is used without a byte order mark and without newlines at its end, wherever it comes from. A secret in UTF-16\n" +
	"(which PowerShell's `>` writes), with a control character, or with several lines is an error; keys and certificates (PEM,\n" +
	"JSON Web Keys) may have several lines. If the file or the variable of a secret changes, calls use the new value within a\n" +
	"second (`static_headers`, the credentials of `provider: static`, `encryption_keys`, `proxy_url`), and token requests at\n" +
	"once. If reading it hangs, the last value is used, and one call waits for 50 ms.\n\n" +
	"The files of all references and of all `tls_config` are read at the same time when the configuration is loaded. A file\n" +
	"that does not answer within 10 s, such as a pipe or a mount that is gone, is an error at its place.\n\n" +
	"Relative paths are relative to the directory of the YAML file: in `${file:PATH}`, `ca_file`, `cert_file`, `key_file` and\n" +
	"the store's `path`. `~/` at the beginning is the home directory. In a path, `~user`, `$NAME` and `%NAME%` are\n" +
	"refused: write `${env:NAME}`. Top-level keys that begin with `x-` are ignored; use them for anchors.\n"
