// Package config makes authenticated clients from one YAML file.
//
//	conns, err := config.Load("itsmauth.yaml")
//	if err != nil { ... } // every problem of the file, each with its line and column
//	defer conns.Close()
//	support, err := conns.Get("support")
//	resp, err := support.Client().Do(req)
package config

import (
	"errors"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/itsmauth/itsmauth/config/internal/yamldoc"
	"github.com/itsmauth/itsmauth/internal/tlsfile"
)

// file is a configuration file. Other keys are allowed if they begin with x-, for anchors.
type file struct {
	// Version is the version of the format: 1.
	Version int `yaml:"version" required:"true"`
	// TokenStore is where tokens are kept: by default, in memory by the library and in files by the CLI.
	TokenStore yamldoc.Node `yaml:"token_store"`
	// Defaults are settings for all connectors.
	Defaults defaults `yaml:"defaults"`
	// Connectors are the connectors, each under its name.
	Connectors yamldoc.Node `yaml:"connectors" required:"true" names:"true"`
}

// Load reads the file at path and makes its connectors. If the file has faults, the error is [Problems],
// with all of them. Nothing is sent yet. The logger gets the [Connectors.Warnings].
func Load(path string, opts ...Option) (*Connectors, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, yamldoc.MaxSize+1))
	if err != nil {
		return nil, err
	}
	return Parse(path, data, opts...)
}

// Parse is [Load] for the content of a file. Problems name filename, and relative paths in the file are
// relative to its directory.
func Parse(filename string, data []byte, opts ...Option) (*Connectors, error) {
	l := newLoader(filename, opts)
	if c := l.connectors(data); c != nil {
		return c, nil
	}
	return nil, l.problems(l.doc.Faults)
}

// A loader makes the connectors of one file.
type loader struct {
	file  string
	doc   *yamldoc.Document
	opts  *options
	names []string // of all connectors
}

func newLoader(filename string, opts []Option) *loader {
	o := newOptions(opts)
	return &loader{file: filename, doc: yamldoc.New(filename, o.secretSources), opts: o}
}

// connectors makes all connectors, or returns nil if the file has faults.
func (l *loader) connectors(data []byte) *Connectors {
	f, ok := l.root(data)
	if !ok {
		return nil
	}
	c := newConnectors(l.file, l.opts)
	c.storeType, c.store = l.store(f.TokenStore)
	plans := l.plans(f)
	c.fileNames = l.names
	for _, p := range plans {
		if l.doc.Faults == nil {
			l.build(c, p)
		}
	}
	if l.doc.Faults != nil {
		c.Close() // no connector was used, so no token is lost
		return nil
	}
	for _, p := range plans {
		l.warn(p, c.storeType)
	}
	c.warnings = l.warnings(l.doc.Warnings)
	if l.opts.logger != nil {
		for _, w := range c.warnings {
			l.opts.logger.Warn("configuration", "warning", w.Error())
		}
	}
	return c
}

// leftOut reports whether [WithOnly] leaves out the connector.
func (l *loader) leftOut(name string) bool {
	return len(l.opts.only) > 0 && !slices.Contains(l.opts.only, name)
}

// root decodes the file except its connectors and its store.
func (l *loader) root(data []byte) (f file, ok bool) {
	root := l.doc.Parse(data)
	entries, ok := l.doc.Entries(root)
	if !ok {
		return f, false
	}
	entries = slices.DeleteFunc(entries, func(e yamldoc.Node) bool { return strings.HasPrefix(e.Name, "x-") })
	for _, e := range entries {
		l.doc.ReadAhead(e, func(n yamldoc.Node) bool {
			return len(n.Path) == 2 && n.Path[0] == "connectors" && l.leftOut(n.Name)
		}, func(n yamldoc.Node) bool {
			return n.Path[0] != "token_store" && slices.Contains(tlsfile.Files, n.Name) // the store reads its own
		})
	}
	l.doc.Decode(&f, root, entries)
	if f.Version != 1 {
		l.doc.Refuse(yamldoc.Path{"version"}, errors.New("must be 1, the only version"))
	}
	return f, true
}
