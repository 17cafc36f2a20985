package yamldoc

import (
	"slices"

	"gopkg.in/yaml.v3"
)

// ReadAhead begins to read the files and secrets that n refers to, and the files at the keys that isFile is true for, except in
// nodes to skip. A file that does not answer then takes no time from the others.
func (d *Document) ReadAhead(n Node, skip, isFile func(Node) bool) {
	if n.Missing() || skip(n) {
		return
	}
	switch value := deref(n.value); value.Kind {
	case yaml.ScalarNode:
		var refers bool
		source := sources{dir: d.dir, room: &d.ahead, read: func(path string) (string, error) {
			refers = true
			d.Files.Begin(path)
			return "-", nil
		}}
		source.schemes = d.secrets.sources
		source.source = func(r sourceRef) (string, error) {
			refers = true
			d.secrets.begin(r)
			return "-", nil
		}
		text, _, err := expand(value.Value, source) // decoding reports the error
		if err != nil || refers || !isFile(n) {
			return
		}
		if path, err := source.path(text); err == nil {
			d.Files.Begin(path)
		}
	case yaml.SequenceNode:
		for _, v := range value.Content {
			d.ReadAhead(Node{Path: n.Path, value: v}, skip, isFile)
		}
	case yaml.MappingNode:
		for pair := range slices.Chunk(value.Content, 2) {
			d.ReadAhead(Node{Path: n.Path.key(pair[0].Value), Name: pair[0].Value, value: pair[1]}, skip, isFile)
		}
	}
}
