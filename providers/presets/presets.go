// Package presets has products as data: in NAME.yaml the settings of an engine (oauth2 or static) that make
// provider: NAME. Package config decodes them and documents their keys.
package presets

import "embed"

// Files has the presets. The first line of each is its engine.
//
//go:embed *.yaml
var Files embed.FS
