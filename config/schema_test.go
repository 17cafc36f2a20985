package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"gopkg.in/yaml.v3"

	"github.com/itsmauth/itsmauth/config/internal/yamldoc"
)

// beyond lists what config refuses and a schema cannot: by the words of the problem, and for some by the
// value's YAML tag.
var beyond = []struct{ words, tag, why string }{
	{"missing; it is", "", "a preset needs a variable if the setting with it is not given"},
	{"must match", "!!int", "a pattern is for strings"},
	{"must match", "!!float", "a pattern is for strings"},
	{"conflicts with connector", "", "two connectors are compared"},
	{"plain http sends", "", "depends on allow_http, and on what is loopback"},
	{"required", "", "a constructor's rule, between keys"},
	{"must be a status", "", "a constructor's rule"},
	{"acme takes", "", "a constructor's rule"},
	{"must be at most 9", "", "a constructor's rule"},
	{"must be an absolute URI", "", "a constructor's rule"},
	{"must not contain a colon", "", "a constructor's rule"},
	{"must be base64", "", "what the secret holds"},
	{"has several lines", "", "what the secret holds"},
	{"must not be empty", "!!str", "what the secret holds: only newlines"},
	{"holds a control character", "", "what the secret holds"},
	{"must be a URL such as", "", "what the secret holds"},
	{"no such file", "", "the file system"},
	{"is neither PEM nor a JSON Web Key", "", "what the secret holds"},
	{"needs response.format json", "", "a rule between keys"},
	{"is not a JWT", "", "what the secret holds"},
	{"the private key", "", "what the secret holds: a certificate, or another algorithm"},
	{"holds no certificate", "", "what the secret holds"},
	{"used by", "", "a rule between keys"},
	{"must be at least 1s", "", "a constructor's rule"},
	{"has a setting of its own", "", "a constructor's rule"},
	{"would replace the Content-Type", "", "a constructor's rule"},
	{"cannot be set", "", "a constructor's rule"},
	{"is set for each JWT", "", "a constructor's rule"},
	{"is not a header name", "", "a constructor's rule"},
	{"needs pointer", "", "a rule between keys"},
	{"must be from 100 to 599", "", "a constructor's rule"},
	{"is empty and would match", "", "a constructor's rule"},
	{"must be 400 or more", "", "a rule between keys"},
	{"must be a JSON Pointer", "", "a constructor's rule"},
	{"must contain {access_token}", "", "a constructor's rule"},
	{"must be a number as in JSON", "", "YAML writes numbers in more ways"},
	{"unknown tag", "", "JSON has no tags"},
	{"must not hold a line break", "", "a rule of headers"},
	{"only ~/ is expanded in a path", "", "a rule of paths"},
	{"must have one scheme", "", "a constructor's rule"},
	{"must list hosts", "", "a list in one string"},
	{"must have a port", "", "a constructor's rule"},
	{"the disk is full", "", "the store"},
	{"encryption_keys is set, but", "", "a rule between keys"},
	{"needs encryption_keys", "", "a rule between keys"},
	{"needs key_file", "", "a rule between keys"},
	{"needs cert_file", "", "a rule between keys"},
	{"duplicate key", "", "an editor reads one of both"},
	{"find any PEM data", "", "the file system"},
}

func compiled(t testing.TB, opts ...Option) *jsonschema.Schema {
	t.Helper()
	b, err := Schema(opts...)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	if err := c.AddResource("schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// plainValue is the value as an editor of YAML 1.2 sees it: aliases and merges are written out.
func plainValue(n *yaml.Node) any {
	n = deref(n)
	switch n.Kind {
	case yaml.MappingNode:
		m := map[string]any{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			if key := n.Content[i]; key.Tag == "!!merge" {
				from := []*yaml.Node{deref(n.Content[i+1])}
				if from[0].Kind == yaml.SequenceNode {
					from = from[0].Content
				}
				for _, f := range from {
					merged, _ := plainValue(f).(map[string]any)
					for k, v := range merged {
						if _, ok := m[k]; !ok {
							m[k] = v
						}
					}
				}
			}
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			if key := deref(n.Content[i]); key.Tag != "!!merge" {
				m[key.Value] = plainValue(n.Content[i+1])
			}
		}
		return m
	case yaml.SequenceNode:
		list := []any{}
		for _, c := range n.Content {
			list = append(list, plainValue(c))
		}
		return list
	}
	switch n.Tag {
	case "!!null":
		return nil
	case "!!bool":
		return strings.EqualFold(n.Value, "true")
	case "!!int", "!!float":
		var v any
		if n.Decode(&v) == nil {
			if b, err := json.Marshal(v); err == nil {
				return json.Number(b)
			}
		}
	}
	return n.Value
}

// parsed is the document, or nil if package yamldoc does not decode it.
func parsed(data []byte) *yaml.Node {
	d := yamldoc.New(".", nil)
	var doc yaml.Node
	if root := d.Parse(data); root.Missing() || d.Faults != nil || yaml.Unmarshal(data, &doc) != nil {
		return nil
	}
	return doc.Content[0]
}

func deref(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

var reference = regexp.MustCompile(`(^|[^$])\$\{`)

// agree compares schema and config on one file. It reports whether both accept it.
func agree(t *testing.T, s *jsonschema.Schema, used *sync.Map, name string, data []byte) (both bool) {
	t.Helper()
	root := parsed(data)
	if root == nil {
		return false // there is nothing to validate
	}
	bySchema := s.Validate(plainValue(root))
	conns, err := Parse(name, data, testOptions()...)
	var problems Problems
	switch {
	case err == nil:
		conns.Close()
	case !errors.As(err, &problems):
		t.Errorf("%s: %v", name, err)
		return false
	}
	switch {
	case bySchema == nil && problems == nil:
		return true
	case bySchema != nil && problems == nil:
		t.Errorf("%s: only the schema refuses this: %v\n%s", name, bySchema, data)
	case bySchema == nil:
		for _, p := range problems {
			n := scalarAt(root, p)
			if n.Tag == "!!str" && reference.MatchString(n.Value) {
				continue // what it refers to is not known
			}
			i := slices.IndexFunc(beyond, func(b struct{ words, tag, why string }) bool {
				return strings.Contains(p.Message, b.words) && (b.tag == "" || b.tag == n.Tag)
			})
			if i < 0 {
				t.Errorf("%s: the schema takes this: %v\n%s", name, p, data)
			} else {
				used.Store(i, true)
			}
		}
	}
	return false
}

// scalarAt finds the scalar at a problem, or returns the zero node.
func scalarAt(n *yaml.Node, p Problem) (found yaml.Node) {
	if n.Kind == yaml.ScalarNode && n.Line == p.Line && n.Column == p.Col {
		return *n
	}
	for _, c := range n.Content {
		if found = scalarAt(c, p); found.Kind != 0 {
			break
		}
	}
	return found
}

func TestSchemaAgrees(t *testing.T) {
	t.Parallel()
	schemaAgrees(t, 41, 401)
}

// schemaAgrees checks that schema and config agree on each file of testdata and on some of its mutants: on
// one in fromGood of the mutants of an accepted file, and on one in fromBad of the others.
func schemaAgrees(t *testing.T, fromGood, fromBad int) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) < 60 {
		t.Fatal(len(files), err)
	}
	s := compiled(t, testOptions()...)
	var used sync.Map // as a set of the indexes in beyond
	var mutants atomic.Int64
	var wg sync.WaitGroup
	running := make(chan bool, runtime.GOMAXPROCS(0))
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			running <- true
			defer func() { <-running }()
			every := fromBad
			if agree(t, s, &used, file, data) {
				every = fromGood
			}
			mutate(data, every, func(what string, mutant []byte) {
				mutants.Add(1)
				agree(t, s, &used, filepath.Join("testdata", filepath.Base(file)+":"+what), mutant)
			})
		})
	}
	wg.Wait()
	for i, b := range beyond {
		if _, ok := used.Load(i); !ok {
			t.Errorf("no file has this exception: %s", b.words)
		}
	}
	if n := mutants.Load(); n < 200 {
		t.Errorf("%d mutants", n)
	}
}

var replacements = []string{"null", "true", "yes", "0", "7", "-1", "1.5", `""`, "30", "5m", "0s", "-5m", "1h30m", ".5s", "1MiB", "https://h", "ftp://h",
	"https://h/?a=b", "https://u@h", "http://[::1]:80/x", "x", `"x"`, `"7"`, `"true"`, "[]", "{}", "[x]", "{x: y}", "2020-01-01", "$", "a$b", "$${x", "${env:CFG_SEVEN}", "${env:CFG_ID:-x}",
	"a${file:secret.txt}b", "${env}", "${env:}", "${file:}", "${x:y}", `"${"`, `"a ${env:A"`, `"${env:A${env:B}}"`, "beyondtrust", "keepalive", "disk"}

// mutate calls f with mutants of the file: one value replaced, or one key removed or renamed. It skips all
// but each every-th.
func mutate(data []byte, every int, f func(what string, mutant []byte)) {
	root := parsed(data)
	if root == nil {
		return
	}
	var values []*yaml.Node
	for _, r := range replacements {
		var doc yaml.Node
		if err := yaml.Unmarshal([]byte(r), &doc); err != nil {
			panic(err)
		}
		values = append(values, doc.Content[0])
	}
	i := 0
	give := func(what string, n *yaml.Node) {
		if i++; i%every != 0 {
			return
		}
		b, err := yaml.Marshal(root)
		if err == nil {
			f(fmt.Sprintf("%d:%d-%s.yaml", n.Line, n.Column, what), b)
		}
	}
	var walk func(n *yaml.Node)
	walk = func(n *yaml.Node) {
		for i, c := range n.Content {
			if n.Kind == yaml.MappingNode && i%2 == 0 {
				if c.Kind == yaml.ScalarNode {
					old := c.Value
					c.Value += "x"
					give("renamed", c)
					c.Value = old
				}
				all := n.Content
				n.Content = slices.Delete(slices.Clone(all), i, i+2)
				give("removed", c)
				n.Content = all
				continue
			}
			for j, v := range values {
				n.Content[i] = v
				give(fmt.Sprint("replaced-", j), c)
			}
			n.Content[i] = c
			walk(c)
		}
	}
	walk(root)
}
