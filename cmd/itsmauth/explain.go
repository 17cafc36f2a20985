package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"

	"github.com/itsmauth/itsmauth/config"
)

// explain shows a file's problems to a person: each with its line and a caret, and what to do.
func (a *app) explain(problems config.Problems, v words) {
	data, _ := os.ReadFile(a.path()) // without it there are no lines to show
	paint := painter(a.stderr)
	for _, p := range problems {
		message, fix, _ := strings.Cut(p.Message, "; ")
		if p.Path != "" {
			message = p.Path + ": " + message
		}
		at := fmt.Sprintf("%s:%d:%d:", p.File, p.Line, p.Col)
		said := wrap(at+" "+message, width-2)
		said[0] = paint(bold, at) + strings.TrimPrefix(said[0], at)
		fmt.Fprintln(a.stderr, strings.Join(said, "\n  "))
		line, caret, ok := v.excerpt(data, p)
		if ok {
			fmt.Fprintf(a.stderr, "%s%s\n", paint(dim, fmt.Sprintf("%5d | ", p.Line)), line)
			beside := ""
			if caret+len(margin)+2+utf8.RuneCountInString(fix) <= width {
				beside, fix = " "+fix, ""
			}
			fmt.Fprintf(a.stderr, "%s%s%s%s\n", paint(dim, margin), strings.Repeat(" ", caret), paint(red, "^"), paint(green, strings.TrimRight(beside, " ")))
		}
		for _, l := range wrap(fix, width-len(margin)) {
			fmt.Fprintf(a.stderr, "%s%s\n", paint(dim, margin), paint(green, l))
		}
	}
	if n := len(problems); n > 1 {
		fmt.Fprintf(a.stderr, "%d problems\n", n)
	}
}

const (
	margin      = "      | "
	width       = 80
	hiddenValue = "•••"
)

func wrap(text string, width int) (lines []string) {
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			lines, line = append(lines, line), ""
		}
		line = strings.TrimPrefix(line+" "+word, " ")
	}
	if line != "" {
		lines = append(lines, line)
	}
	return lines
}

// words say which parts of a file are no secret, whoever wrote them where.
type words struct {
	known map[string]bool // keys
	plain map[string]bool // whose values are durations, sizes, URLs and the like, wherever they stand
	free  map[string]bool // whose values are mappings with any keys
}

// vocabulary reads the schema, which says of each key what it holds.
func vocabulary() words {
	v := words{map[string]bool{}, map[string]bool{}, map[string]bool{}}
	b, err := jsonSchema()
	var root any
	if err != nil || json.Unmarshal(b, &root) != nil {
		return v // which hides everything
	}
	var walk func(n any)
	walk = func(n any) {
		switch n := n.(type) {
		case []any:
			for _, c := range n {
				walk(c)
			}
		case map[string]any:
			properties, _ := n["properties"].(map[string]any)
			for name, p := range properties {
				if p, ok := p.(map[string]any); ok && name != "connectors" {
					v.plain[name] = plainly(p) && (v.plain[name] || !v.known[name])
					v.known[name] = true
					_, free := p["additionalProperties"].(map[string]any)
					v.free[name] = v.free[name] || free
				}
			}
			for _, c := range n {
				walk(c)
			}
		}
	}
	walk(root)
	v.known["connectors"] = true
	return v
}

// plainly reports whether a schema takes neither text nor secrets.
func plainly(s map[string]any) bool {
	if r, ok := s["$ref"].(string); ok {
		return slices.Contains([]string{"#/$defs/duration", "#/$defs/size", "#/$defs/url", "#/$defs/reference"}, r)
	}
	if items, ok := s["items"].(map[string]any); ok {
		return plainly(items)
	}
	if choices, ok := s["anyOf"].([]any); ok {
		return !slices.ContainsFunc(choices, func(c any) bool { return !plainly(c.(map[string]any)) })
	}
	_, enum := s["enum"]
	_, one := s["const"]
	return enum || one || slices.Contains([]any{"integer", "number", "boolean", "null"}, s["type"])
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

// excerpt gives a problem's line with each value hidden that might be a secret, and where in it,
// from 0, the problem is. What it does not recognise it leaves out.
func (v words) excerpt(data []byte, p config.Problem) (text string, caret int, ok bool) {
	lines := strings.Split(strings.TrimPrefix(string(data), "\ufeff"), "\n")
	if p.Line < 1 || p.Line > len(lines) {
		return "", 0, false
	}
	line := []rune(strings.TrimRight(lines[p.Line-1], "\r"))
	if len(line) == 0 {
		return "", 0, false
	}
	var pieces []piece
	if root := document(data); root != nil {
		v.pieces(root, p, "", false, &pieces)
		slices.SortFunc(pieces, func(a, b piece) int { return cmp.Compare(a.col, b.col) })
	}
	caret = -1
	if len(pieces) == 0 {
		text, caret = v.lexical(string(line), p.Col-1)
		return crop(text, caret)
	}
	var out []rune
	end, separator := 0, ""
	for _, piece := range pieces {
		gap := []rune(separator)
		if end >= 0 && end < piece.col && piece.col <= len(line)+1 && separators.MatchString(string(line[end:piece.col-1])) {
			gap = line[end : piece.col-1]
		}
		out = append(out, gap...)
		if caret < 0 && p.Col <= piece.col {
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
	if last := pieces[len(pieces)-1]; last.key {
		out = append(out, ':')
	}
	if caret < 0 {
		caret = len(out)
	}
	return crop(string(out), caret)
}

// document is nil if there is none.
func document(data []byte) *yaml.Node {
	defer func() { _ = recover() }() // yaml.v3 panics at times
	var doc yaml.Node
	if yaml.NewDecoder(bytes.NewReader(data)).Decode(&doc) != nil {
		return nil
	}
	return &doc
}

// pieces collects those on the problem's line. under is the key above n; hidden says that nothing
// there is known.
func (v words) pieces(n *yaml.Node, p config.Problem, under string, hidden bool, into *[]piece) {
	add := func(n *yaml.Node, shown, key bool) {
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
			text, shown = hiddenValue, false
		}
		if n.Line == p.Line && (text != "" || key) {
			*into = append(*into, piece{n.Column, text, shown, key})
		}
	}
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			free := under == "connectors"
			known := !hidden && (v.known[key.Value] || free || p.Line == key.Line && p.Col == key.Column && strings.HasSuffix(p.Path, "."+key.Value)) || key.Tag == "!!merge"
			if key.Kind == yaml.ScalarNode {
				add(key, known, true)
			}
			next := key.Value
			if free {
				next = ""
			}
			v.pieces(value, p, next, !known || v.free[key.Value], into)
		}
	case yaml.ScalarNode:
		shown := !hidden && v.plain[under] && (plainURL.MatchString(n.Value) || plainWord.MatchString(n.Value)) || wholeReference.MatchString(n.Value)
		add(n, shown || n.Tag == "!!null", false)
	case yaml.AliasNode:
		if n.Line == p.Line {
			*into = append(*into, piece{n.Column, "*" + n.Value, true, false})
		}
	default:
		for _, c := range n.Content {
			v.pieces(c, p, under, hidden, into)
		}
	}
}

// lexical is for what is no YAML: it shows the indentation and a key at most.
func (v words) lexical(line string, at int) (string, int) {
	m := beginning.FindStringSubmatch(line)
	shown, n := strings.ReplaceAll(m[1], "\t", "⇥"), utf8.RuneCountInString(m[1])
	if m[2] != "" && v.known[m[2]] {
		shown, n = shown+m[2]+m[3], n+len(m[2]+m[3])
	}
	if at < n {
		return shown + " " + hiddenValue, at
	}
	if rest := string([]rune(line)[n:]); strings.TrimSpace(rest) != "" {
		if n > 0 && !strings.HasSuffix(shown, " ") && strings.HasPrefix(rest, " ") {
			shown += " "
		}
		return shown + hiddenValue, utf8.RuneCountInString(shown)
	}
	return shown, utf8.RuneCountInString(shown)
}

// crop keeps what fits beside the margin, the caret in it.
func crop(text string, caret int) (string, int, bool) {
	const room = width - len(margin)
	r := []rune(text)
	if from := caret - room*2/3; from > 0 && len(r) > room {
		r, caret = append([]rune("…"), r[from+1:]...), caret-from
	}
	if len(r) > room {
		r = append(r[:room-1:room-1], '…')
	}
	return string(r), min(caret, len(r)), true
}
