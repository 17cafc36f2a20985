package config

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"maps"
	"reflect"
	"strings"

	"github.com/itsmauth/itsmauth/config/internal/yamldoc"
)

// The comments of the settings' types, which are not there at run time, as annotations of the schema.
//
//go:generate go test -run ^TestKeys$ -update
//go:generate go test ../cmd/itsmauth -run ^Test(Schema|Products) -update
//go:embed keys.json
var keysJSON []byte

const module = "github.com/itsmauth/itsmauth"

// Schema is the JSON Schema (2020-12) of the files that [Parse] takes with these options, for
// editors. Keys of this module's providers and stores have descriptions, those of other modules only
// their types. A schema cannot check everything that [Parse] checks, such as whether a variable is set.
func Schema(opts ...Option) ([]byte, error) {
	o := newOptions(opts)
	var docs map[string]yamldoc.Object
	if err := json.Unmarshal(keysJSON, &docs); err != nil {
		return nil, err
	}
	s := yamldoc.Schema(func(owner reflect.Type, field string) yamldoc.Object {
		if owner.Name() == "" { // of a preset
			return describeVariable(owner, field)
		}
		return docs[strings.TrimPrefix(owner.PkgPath(), module+"/")+"."+owner.Name()+"."+field]
	})
	root := s.Struct(reflect.TypeFor[file]())
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["$id"] = "https://raw.githubusercontent.com/itsmauth/itsmauth/main/docs/itsmauth.schema.json"
	root["title"] = "itsmauth"
	defs := maps.Clone(yamldoc.Defs)
	root["$defs"] = defs
	root["patternProperties"] = yamldoc.Object{"^x-": true}
	top := root["properties"].(yamldoc.Object)
	maps.Copy(top["version"].(yamldoc.Object), yamldoc.Object{"anyOf": []yamldoc.Object{{"const": 1}, yamldoc.Ref("reference")}})

	connector := s.Union(o.connector, defs)
	connector["properties"].(yamldoc.Object)["base_url"].(yamldoc.Object)["pattern"] = "^[^?#]*$"
	maps.Copy(top["connectors"].(yamldoc.Object), yamldoc.Object{
		"type": "object", "minProperties": 1,
		"propertyNames":        yamldoc.Object{"pattern": `^\S(?:.*\S)?$`, "maxLength": 200},
		"additionalProperties": connector,
	})
	maps.Copy(top["token_store"].(yamldoc.Object), yamldoc.Nullable(s.Union(o.tokenStore, defs)))
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(root)
	return b.Bytes(), err
}
