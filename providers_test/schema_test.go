package providers_test

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"gopkg.in/yaml.v3"
)

// TestSchemaTakesTheRepository validates each complete configuration in the repository's files and docs.
func TestSchemaTakesTheRepository(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../docs/itsmauth.schema.json") // another test checks that itsmauth schema prints it
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("schema.json", doc); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("schema.json")
	if err != nil {
		t.Fatal(err)
	}
	fenced := regexp.MustCompile("(?ms)^```ya?ml\n(.*?)^```")
	n := 0
	err = filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			if err == nil && (d.Name() == "testdata" || d.Name() == ".git") {
				return fs.SkipDir // broken on purpose, and tested by package config
			}
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var files [][]byte
		switch filepath.Ext(path) {
		case ".yaml", ".yml":
			files = [][]byte{data}
		case ".md":
			for _, m := range fenced.FindAllSubmatch(data, -1) {
				files = append(files, m[1])
			}
		}
		for _, f := range files {
			if !regexp.MustCompile(`(?m)^version:`).Match(f) || !regexp.MustCompile(`(?m)^connectors:`).Match(f) {
				continue
			}
			n++
			var v any
			if err := yaml.Unmarshal(f, &v); err != nil {
				t.Errorf("%s: %v", path, err)
			} else if err := schema.Validate(v); err != nil {
				t.Errorf("%s: %v\n%s", path, err, f)
			}
		}
		return nil
	})
	if err != nil || n == 0 {
		t.Errorf("%d configurations: %v", n, err)
	}
}
