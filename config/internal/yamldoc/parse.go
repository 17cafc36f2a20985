package yamldoc

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// MaxSize is the largest file that is parsed, in bytes.
const MaxSize = 1 << 20

const (
	maxNodes = 100_000 // with aliases written out
	maxDepth = 100
	maxTags  = 100 // yaml.v3 compares each %TAG with all others
)

// Parse parses data, of at most 1 MiB, 100,000 values and a depth of 100. The root is missing if there is
// nothing to decode.
func (d *Document) Parse(data []byte) (root Node) {
	start := &yaml.Node{Line: 1, Column: 1}
	if len(data) > MaxSize {
		d.add(start, nil, errors.New("larger than 1 MiB"))
		return root
	}
	docs, err := documents(data)
	if err == errTags {
		d.add(start, nil, err)
		return root
	}
	if err != nil {
		at, err := syntax(data, err)
		d.add(at, nil, err)
		return root
	}
	if len(docs) == 0 || isNull(docs[0].Content[0]) {
		d.add(start, nil, errors.New("the file is empty"))
		return root
	}
	n := docs[0].Content[0]
	if _, ok := d.measure(n, 1, map[*yaml.Node]int{}); !ok {
		return root
	}
	if len(docs) > 1 {
		d.add(docs[1], nil, Advise("a second document", "a file holds one"))
	}
	root = Node{key: n, value: n}
	d.nodes[root.Path.String()] = root
	return root
}

var errTags = fmt.Errorf("more than %d %%TAG directives", maxTags)

// documents gives the first two documents, or fewer.
func documents(data []byte) (docs []*yaml.Node, err error) {
	if bytes.Count(data, []byte("%TAG")) > maxTags {
		return nil, errTags
	}
	// yaml.v3 panics on some input.
	defer func() {
		if recover() != nil {
			err = errors.New("not understood")
		}
	}()
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for len(docs) < 2 {
		var doc yaml.Node
		if err := dec.Decode(&doc); err == io.EOF {
			break
		} else if err != nil {
			return nil, err
		}
		docs = append(docs, &doc)
	}
	return docs, nil
}

// measure counts n's nodes as if each alias were written out. It refuses the node where that is too
// many, too deep, or never ends. An anchor precedes its aliases, so each is counted once.
func (d *Document) measure(n *yaml.Node, depth int, anchors map[*yaml.Node]int) (count int, ok bool) {
	const inside = -1
	if n.Kind == yaml.AliasNode {
		if anchors[n.Alias] == inside {
			d.add(n, nil, errors.New("the alias contains itself"))
		}
		return anchors[n.Alias], anchors[n.Alias] != inside
	}
	if depth > maxDepth {
		d.add(n, nil, fmt.Errorf("nested more than %d deep", maxDepth))
		return 0, false
	}
	if n.Anchor != "" {
		anchors[n] = inside
	}
	count = 1
	for _, c := range n.Content {
		more, ok := d.measure(c, depth+1, anchors)
		if !ok {
			return 0, false
		}
		if count += more; count > maxNodes {
			d.add(c, nil, fmt.Errorf("more than %d values, with aliases written out", maxNodes))
			return 0, false
		}
	}
	if n.Anchor != "" {
		anchors[n] = count
	}
	return count, true
}

// phrases reword yaml.v3's errors, which repeat parts of values. The column is that of the first of
// the characters in at, if there is one.
var phrases = []struct{ said, fault, advice, at string }{
	{"unknown anchor", "an alias to an anchor that is not defined above", "put a value that begins with * in quotes", "*"},
	{"cannot start any token", "a value cannot begin with @, ` or %", "put it in quotes", "@`%"},
	{"mapping values are not allowed", "a colon is not allowed here", "check the indentation, or put the value in quotes", ""},
	{"could not find expected ':'", "a key without a colon and a space after it", "", ""},
	{"did not find expected key", "not a key of the mapping above", "check the indentation and the quotes", ""},
	{"did not find expected '-'", "not an item of the list above", "check the indentation", ""},
	{"did not find expected ',' or ']'", "a [ is not closed, or lacks a comma", "within [ ] a ${ } needs quotes", "["},
	{"did not find expected ',' or '}'", "a { is not closed, or lacks a comma", "within { } a ${ } needs quotes", "{"},
	{"did not find expected node content", "a value is missing", "", ""},
	{"did not find expected alphabetic", "& and * need a name", "put a value that begins with one in quotes", "&*"},
	{"unexpected end of stream", "a quote is not closed", "", "\"'"},
	{"unexpected document indicator", "a quote is not closed", "", "\"'"},
	{"escape", "an unknown escape", "use single quotes, within which a backslash is an ordinary character", "\\"},
	{"control characters", "a control character", "", ""},
	{"max depth", "nested too deeply", "", ""},
	{"tag", "an unknown tag", "put a value that begins with ! in quotes", "!"},
}

// syntax rewords an error of yaml.v3 and finds its place. yaml.v3 names the line on which the broken
// construct begins, or none. The fault itself is on the last line of the shortest beginning of the file that
// fails with the same words.
func syntax(data []byte, err error) (at *yaml.Node, reworded error) {
	lines := bytes.SplitAfter(bytes.TrimPrefix(data, []byte("\ufeff")), []byte("\n"))
	for i, l := range lines {
		if !utf8.Valid(l) {
			good := strings.ToValidUTF8(string(l), "\x00")
			return place(i, []byte(good), strings.IndexByte(good, 0)), errors.New("not valid YAML: not UTF-8 text")
		}
	}
	i := min(len(lines)-1, sort.Search(len(lines), func(i int) bool {
		_, e := documents(bytes.Join(lines[:i+1], nil))
		return e != nil && e.Error() == err.Error()
	}))
	line := lines[i]
	start := len(line) - len(bytes.TrimLeft(line, " "))
	if bytes.HasPrefix(line[start:], []byte("\t")) {
		return place(i, line, start), Advise("a tab", "indent with spaces")
	}
	for _, p := range phrases {
		if strings.Contains(err.Error(), p.said) {
			return place(i, line, max(start, bytes.IndexAny(line, p.at))), Advise("not valid YAML: "+p.fault, p.advice)
		}
	}
	return place(i, line, start), errors.New("not valid YAML")
}

// place is the byte at of the line i, which counts from 0.
func place(i int, line []byte, at int) *yaml.Node {
	return &yaml.Node{Line: i + 1, Column: utf8.RuneCount(line[:at]) + 1}
}
