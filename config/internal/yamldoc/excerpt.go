package yamldoc

import (
	"cmp"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

const hidden = "•••"

// A Mask shows lines of a file without its secrets. It knows the Go types into which the file is decoded. A
// value is shown if it is a reference, or if by its type it cannot be secret: a number, a duration, a URL, or
// a word of a fixed set.
type Mask struct {
	root   *shape
	unions map[string]Union
	keys   map[string]bool // all that the types have
}

// A shape is what is known of a value. Of a union it is what is true for all its kinds.
type shape struct {
	harmless bool              // a scalar here cannot be secret
	keys     map[string]*shape // a struct's
	names    *shape            // what is at each key of a mapping with any keys
}

func newShape() *shape { return &shape{true, map[string]*shape{}, nil} }

// NewMask makes the mask for files that are decoded into root. unions say what the fields of type [Node]
// hold, by key: one such mapping or, if the field has the tag `names:"true"`, one at each of any names.
func NewMask(root reflect.Type, unions map[string]Union) *Mask {
	m := &Mask{newShape(), unions, map[string]bool{}}
	m.learn(m.root, root, field{})
	return m
}

// learn adds to s what t says, the type of f.
func (m *Mask) learn(s *shape, t reflect.Type, f field) {
	var u Union
	structs := []reflect.Type{t}
	switch {
	case t == nodeType:
		u = m.unions[f.key]
		structs = slices.AppendSeq([]reflect.Type{u.Common}, maps.Values(u.Kinds))
		if f.Tag.Get("names") == "true" {
			s.harmless, s.names = false, newShape()
			s = s.names
		}
	case t.Kind() == reflect.Slice, t.Kind() == reflect.Pointer && t != urlType:
		m.learn(s, t.Elem(), f)
		return
	case t.Kind() != reflect.Struct:
		number := t.Kind() >= reflect.Bool && t.Kind() <= reflect.Float64
		s.harmless = s.harmless && (number || t == urlType || t.Kind() == reflect.String && f.enum != "")
		return
	}
	s.harmless = false // a scalar in the place of a mapping, or an auth.Secret
	for _, t := range structs {
		for _, f := range fields(t) {
			m.keys[f.key] = true
			if s.keys[f.key] == nil {
				s.keys[f.key] = newShape()
			}
			if f.key == u.Key {
				f.enum = "its kinds"
			}
			m.learn(s.keys[f.key], f.Type, f)
		}
	}
}

// A piece of a line is a key or a value, as it is shown.
type piece struct {
	col   int
	text  string
	exact bool // text is what stands there
	key   bool
}

var (
	wholeReference = regexp.MustCompile(`^\$\{(env:[A-Za-z_][A-Za-z0-9_]*|file:[^${}]+)\}$`)
	plainWord      = regexp.MustCompile(`^[A-Za-z0-9+-]{1,20}$`)
	plainURL       = regexp.MustCompile(`^https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._/-]*)?$`)
	separators     = regexp.MustCompile(`^[ \-{}\[\],:?]*$`)
	beginning      = regexp.MustCompile(`^([ \t]*(?:- +)*)(?:([A-Za-z_][A-Za-z0-9_-]*)( *:))?`)
)

// Excerpt gives the line of data, with secrets hidden, and where in it col is, from 0. line and col count
// from 1. A key that begins there is shown, even if it is unknown, if path ends with it. Text that is neither
// a key nor a value is left out. ok is false if there is no such line.
func (m *Mask) Excerpt(data []byte, line, col int, path string) (text string, caret int, ok bool) {
	lines := strings.Split(strings.TrimPrefix(string(data), "\ufeff"), "\n")
	if line < 1 || line > len(lines) {
		return "", 0, false
	}
	source := []rune(strings.TrimRight(lines[line-1], "\r"))
	if len(source) == 0 {
		return "", 0, false
	}
	x := excerpt{mask: m, line: line, col: col, path: path}
	if docs, err := documents(data); err == nil && len(docs) > 0 {
		x.add(docs[0].Content[0], m.root)
	}
	if len(x.pieces) == 0 {
		text, caret = m.lexical(string(source), col-1)
		return text, caret, true
	}
	slices.SortFunc(x.pieces, func(a, b piece) int { return cmp.Compare(a.col, b.col) })
	text, caret = x.join(source)
	return text, caret, true
}

// An excerpt collects the pieces of one line.
type excerpt struct {
	mask      *Mask
	line, col int
	path      string
	pieces    []piece
}

// add adds the pieces of n, of which s is known, or nothing.
func (x *excerpt) add(n *yaml.Node, s *shape) {
	switch n.Kind {
	case yaml.MappingNode:
		for pair := range slices.Chunk(n.Content, 2) {
			key, below := deref(pair[0]), (*shape)(nil)
			known := key.Tag == "!!merge"
			switch {
			case known:
				below = s
			case s != nil && s.names != nil:
				known, below = true, s.names
			case s != nil && len(s.keys) > 0:
				ours := x.line == key.Line && x.col == key.Column && strings.HasSuffix(x.path, "."+key.Value)
				known, below = ours || x.mask.keys[key.Value], s.keys[key.Value]
			}
			if key == pair[0] && key.Kind == yaml.ScalarNode {
				x.scalar(key, known, true)
			}
			x.add(pair[1], below)
		}
	case yaml.ScalarNode:
		shown := s != nil && s.harmless && (plainURL.MatchString(n.Value) || plainWord.MatchString(n.Value))
		x.scalar(n, shown || n.Tag == "!!null" || wholeReference.MatchString(n.Value), false)
	case yaml.AliasNode:
		if n.Line == x.line {
			x.pieces = append(x.pieces, piece{n.Column, "*" + n.Value, true, false})
		}
	case yaml.SequenceNode:
		for _, c := range n.Content {
			x.add(c, s)
		}
	}
}

func (x *excerpt) scalar(n *yaml.Node, shown, key bool) {
	text := n.Value
	switch n.Style &^ yaml.TaggedStyle {
	case 0:
	case yaml.DoubleQuotedStyle:
		text = `"` + text + `"`
	case yaml.SingleQuotedStyle:
		text = "'" + text + "'"
	default:
		shown = false
	}
	if !shown || n.Anchor != "" || n.Style&yaml.TaggedStyle != 0 || strings.ContainsAny(text, "\r\n\t") {
		text, shown = hidden, false
	}
	if n.Line == x.line && (text != "" || key) {
		x.pieces = append(x.pieces, piece{n.Column, text, shown, key})
	}
}

// join puts the pieces together, with the separators of line where these are certain.
func (x *excerpt) join(line []rune) (text string, caret int) {
	var out []rune
	caret = -1
	end, separator := 0, ""
	for _, piece := range x.pieces {
		gap := []rune(separator)
		if end >= 0 && end < piece.col && piece.col <= len(line)+1 && separators.MatchString(string(line[end:piece.col-1])) {
			gap = line[end : piece.col-1]
		}
		out = append(out, gap...)
		if caret < 0 && x.col <= piece.col {
			caret = len(out)
		}
		out = append(out, []rune(piece.text)...)
		end, separator = -1, ", "
		if piece.exact {
			end = piece.col - 1 + utf8.RuneCountInString(piece.text)
		}
		if piece.key {
			separator = ": "
		}
	}
	if x.pieces[len(x.pieces)-1].key {
		out = append(out, ':')
	}
	if caret < 0 {
		caret = len(out)
	}
	return string(out), caret
}

// lexical is for a line that is no YAML: it shows the indentation and a known key.
func (m *Mask) lexical(line string, at int) (text string, caret int) {
	parts := beginning.FindStringSubmatch(line)
	text, n := strings.ReplaceAll(parts[1], "\t", "⇥"), utf8.RuneCountInString(parts[1])
	if m.keys[parts[2]] {
		text, n = text+parts[2]+parts[3], n+len(parts[2]+parts[3])
	}
	if at < n {
		return text + " " + hidden, at
	}
	if rest := string([]rune(line)[n:]); strings.TrimSpace(rest) != "" {
		if n > 0 && !strings.HasSuffix(text, " ") && strings.HasPrefix(rest, " ") {
			text += " "
		}
		return text + hidden, utf8.RuneCountInString(text)
	}
	return text, utf8.RuneCountInString(text)
}
