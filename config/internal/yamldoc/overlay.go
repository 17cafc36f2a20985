package yamldoc

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// A Value replaces a placeholder, such as {region}.
type Value struct {
	Text string
	From Node // where it is written, or should be, or zero
	Used bool
}

// Null reports whether the node is missing or null.
func (n Node) Null() bool { return n.Missing() || isNull(n.value) }

// Text is what a scalar says, with its references, and "" for anything else.
func (n Node) Text() string {
	if n.Missing() || deref(n.value).Kind != yaml.ScalarNode {
		return ""
	}
	return deref(n.value).Value
}

// YAML is an entry of a mapping as it is written.
func (n Node) YAML() string {
	var b strings.Builder
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	_ = e.Encode(&yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{n.key, n.value}}) // what was parsed can be encoded
	return b.String()
}

// EntriesOf lists the entries of a mapping that is known to be right.
func EntriesOf(n Node) []Node {
	list, _ := New(".", nil).Entries(n)
	return list
}

var placeholder = regexp.MustCompile(`\{([a-z][a-z0-9_]*)\}`)

// Overlay adds entries of another document to those of n: what is absent or null in n. Mappings merge, everything
// else is replaced. In texts that are added, {name} is replaced by values[name]. A fault in one of these is
// refused at its value, and a fault in anything else that was added at where.
func (d *Document) Overlay(n Node, entries, others []Node, values map[string]*Value, where Node) []Node {
	for _, o := range others {
		i := slices.IndexFunc(entries, func(e Node) bool { return e.Name == o.Name })
		path := n.Path.key(o.Name)
		switch {
		case i < 0 || isNull(entries[i].value):
			entries = slices.DeleteFunc(slices.Clone(entries), func(e Node) bool { return e.Name == o.Name })
			entries = append(entries, Node{path, o.Name, where.value, d.added(path, o.value, values, where)})
		case deref(o.value).Kind == yaml.MappingNode && deref(entries[i].value).Kind == yaml.MappingNode:
			inner, _ := d.Entries(entries[i])
			more, _ := d.Entries(Node{path, o.Name, o.key, o.value})
			merged := *deref(entries[i].value)
			merged.Content, merged.Anchor = nil, ""
			for _, e := range d.Overlay(entries[i], inner, more, values, where) {
				key := *deref(e.key)
				key.Kind, key.Tag, key.Value = yaml.ScalarNode, "!!str", e.Name
				merged.Content = append(merged.Content, &key, e.value)
			}
			entries = slices.Clone(entries)
			entries[i].value = &merged
		}
	}
	return entries
}

// added copies n, which will be at p, with its placeholders replaced.
func (d *Document) added(p Path, n *yaml.Node, values map[string]*Value, where Node) *yaml.Node {
	c := *deref(n)
	c.Anchor, c.Content = "", slices.Clone(c.Content)
	c.Line, c.Column = where.value.Line, where.value.Column
	switch c.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(c.Content); i += 2 {
			name := deref(c.Content[i]).Value
			c.Content[i] = d.added(p.key(name), c.Content[i], nil, where)
			c.Content[i+1] = d.added(p.key(name), c.Content[i+1], values, where)
		}
	case yaml.SequenceNode:
		for i, e := range c.Content {
			c.Content[i] = d.added(p.Index(i), e, values, where)
		}
	case yaml.ScalarNode:
		c.Value = placeholder.ReplaceAllStringFunc(c.Value, func(name string) string {
			v, ok := values[name[1:len(name)-1]]
			if !ok {
				return name
			}
			v.Used, c.Tag, c.Style = true, "!!str", yaml.DoubleQuotedStyle
			if !v.From.Missing() {
				c.Line, c.Column = v.From.value.Line, v.From.value.Column
			}
			if from, _, _ := d.source(v.From.Path); from != nil {
				d.madeOf[p.String()] = from
			}
			return v.Text
		})
	}
	return &c
}

// source is where to report a fault at p: at what an overlay made p of, if it did. wrap says so in the error. ok is
// false if there is a fault already.
func (d *Document) source(p Path) (at Path, wrap func(error) error, ok bool) {
	from, made := d.madeOf[p.String()]
	if !made {
		return p, func(err error) error { return err }, true
	}
	what := p[min(len(p), len(from)-1):]
	return from, func(err error) error { return fmt.Errorf("%s, which is made of it, %w", what, err) }, !d.faulty[from.String()]
}

// RefuseMissing refuses n, at its key, because the key name below is missing. about says what that is.
func (d *Document) RefuseMissing(n Node, name, about string) {
	d.add(n.key, n.Path.key(name), Advise("missing", about))
}
