package yamldoc

import (
	"reflect"
	"regexp"
	"slices"
	"sort"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"gopkg.in/yaml.v3"

	"github.com/itsmauth/itsmauth/internal/settings"
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
	m.learn(m.root, root, settings.Field{})
	return m
}

// learn adds to s what t says, the type of f.
func (m *Mask) learn(s *shape, t reflect.Type, f settings.Field) {
	var u Union
	structs := []reflect.Type{t}
	switch {
	case t == nodeType:
		u = m.unions[f.Key]
		structs = []reflect.Type{u.Common}
		for _, kind := range u.Kinds {
			for _, t := range []reflect.Type{kind().Settings, kind().Variables} {
				if !slices.Contains(structs, t) {
					structs = append(structs, t)
				}
			}
		}
		if f.Tag.Get("names") == "true" {
			s.harmless, s.names = false, newShape()
			s = s.names
		}
	case t.Kind() == reflect.Slice, t.Kind() == reflect.Pointer && t != urlType:
		m.learn(s, t.Elem(), f)
		return
	case t.Kind() != reflect.Struct:
		number := t.Kind() >= reflect.Bool && t.Kind() <= reflect.Float64
		s.harmless = s.harmless && (number || t == urlType || t.Kind() == reflect.String && f.Enum != nil)
		return
	}
	s.harmless = false // a scalar in the place of a mapping, or an auth.Secret
	for _, t := range structs {
		for _, f := range settings.Fields(t) {
			m.keys[f.Key] = true
			if s.keys[f.Key] == nil {
				s.keys[f.Key] = newShape()
			}
			if f.Key == u.Key {
				f.Enum = []string{"its kinds"}
			}
			m.learn(s.keys[f.Key], f.Type, f)
		}
	}
}

var (
	wholeReference = regexp.MustCompile(`^\$\{(env:[A-Za-z_][A-Za-z0-9_]*|file:[^${}]+)\}$`)
	plainWord      = regexp.MustCompile(`^[A-Za-z0-9+-]{1,20}$`)
	plainURL       = regexp.MustCompile(`^https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._/-]*)?$`)
	separators     = regexp.MustCompile(`^[ \-{}\[\],:?]*$`)
	beginning      = regexp.MustCompile(`^([ \t]*(?:- +)*)(?:([A-Za-z_][A-Za-z0-9_-]*)( *:))?`)
)

// Lines are the lines of a file, which is parsed once for all its excerpts. It is safe for concurrent use.
type Lines struct {
	mu    sync.Mutex
	text  string
	lines []string
	root  *yaml.Node // or nil
}

// of returns the lines of data, and its root.
func (l *Lines) of(data []byte) ([]string, *yaml.Node) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lines == nil || l.text != string(data) {
		l.text, l.root = string(data), nil
		l.lines = strings.Split(strings.TrimPrefix(l.text, "\ufeff"), "\n")
		if docs, err := documents(data); err == nil && len(docs) > 0 {
			l.root = docs[0].Content[0]
		}
	}
	return l.lines, l.root
}

// maxLine is the longest line of which more than the beginning is shown, in bytes.
const maxLine = 2000

// Excerpt gives the line of data, with secrets hidden, and where in it col is, from 0. line and col count
// from 1. A key that begins there is shown, even if it is unknown, if path ends with it. Text that is neither
// a key nor a value is left out. ok is false if there is no such line. parsed is for all excerpts of data.
func (m *Mask) Excerpt(parsed *Lines, data []byte, line, col int, path string) (text string, caret int, ok bool) {
	lines, root := parsed.of(data)
	if line < 1 || line > len(lines) {
		return "", 0, false
	}
	source := strings.TrimRight(lines[line-1], "\r")
	if source == "" {
		return "", 0, false
	}
	if len(source) > maxLine {
		text, caret = m.lexical(source[:maxLine], col-1)
		return text, caret, true
	}
	x := excerpt{mask: m, source: []rune(source), line: line, col: col, path: path, caret: -1}
	if root != nil {
		x.add(root, m.root)
	}
	switch x.separator {
	case "": // nothing was shown
		text, caret = m.lexical(source, col-1)
		return text, caret, true
	case afterKey:
		x.shown = append(x.shown, ':')
	}
	if x.caret < 0 {
		x.caret = len(x.shown)
	}
	return string(x.shown), x.caret, true
}

const afterKey = ": "

// An excerpt shows the keys and values of one line, in the order in which they stand there.
type excerpt struct {
	mask      *Mask
	source    []rune
	line, col int
	path      string

	shown     []rune
	caret     int    // the place of col in shown, or -1
	end       int    // where in source the last key or value ends, or -1
	separator string // what comes next if that is not certain, or "" at first
}

// add shows what of n is on the line. s is what is known of n, or nil.
func (x *excerpt) add(n *yaml.Node, s *shape) {
	switch n.Kind {
	case yaml.MappingNode:
		for pair := range slices.Chunk(x.near(n.Content, 2), 2) {
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
			x.show(n.Column, "*"+n.Value, true, false)
		}
	case yaml.SequenceNode:
		for _, c := range x.near(n.Content, 1) {
			x.add(c, s)
		}
	}
}

// near is the part of a node's content, which has items of size nodes, that may be on the line.
func (x *excerpt) near(content []*yaml.Node, size int) []*yaml.Node {
	n := len(content) / size
	from := sort.Search(n, func(i int) bool { return i == n-1 || content[(i+1)*size].Line >= x.line })
	to := sort.Search(n, func(i int) bool { return content[i*size].Line > x.line })
	return content[from*size : max(from, to)*size]
}

func (x *excerpt) scalar(n *yaml.Node, exact, key bool) {
	quote := map[yaml.Style]string{yaml.DoubleQuotedStyle: `"`, yaml.SingleQuotedStyle: "'"}[n.Style]
	text := quote + n.Value + quote
	if !exact || n.Anchor != "" || n.Style != 0 && quote == "" || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		text, exact = hidden, false
	}
	if n.Line == x.line && (text != "" || key) {
		x.show(n.Column, text, exact, key)
	}
}

// show appends a key or a value and, before it, the separators of the line where these are certain. exact
// says that text is what stands at col.
func (x *excerpt) show(col int, text string, exact, key bool) {
	gap := []rune(x.separator)
	if x.end >= 0 && x.end < col && col <= len(x.source)+1 && separators.MatchString(string(x.source[x.end:col-1])) {
		gap = x.source[x.end : col-1]
	}
	x.shown = append(x.shown, gap...)
	if x.caret < 0 && x.col <= col {
		x.caret = len(x.shown)
	}
	x.shown = append(x.shown, []rune(text)...)
	x.end, x.separator = -1, ", "
	if exact {
		x.end = col - 1 + utf8.RuneCountInString(text)
	}
	if key {
		x.separator = afterKey
	}
}

// lexical is for a line that is no YAML: it shows the indentation and a known key.
func (m *Mask) lexical(line string, at int) (text string, caret int) {
	parts := beginning.FindStringSubmatch(line)
	text = strings.ReplaceAll(parts[1], "\t", "⇥")
	if m.keys[parts[2]] {
		text += parts[2] + parts[3]
	}
	n := utf8.RuneCountInString(text)
	rest := string([]rune(line)[n:])
	switch {
	case at < n:
		return text + " " + hidden, at
	case strings.TrimSpace(rest) == "":
		return text, n
	case strings.HasPrefix(rest, " "):
		text += " "
	}
	return text + hidden, utf8.RuneCountInString(text)
}
