package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/itsmauth/itsmauth/internal/emulator"
)

// A guide tells the demo's tour, in 80 columns.
type guide struct {
	out   io.Writer
	paint func(style, string) string
	err   error // the first of writing
}

func (g *guide) print(text string) {
	if g.err == nil {
		_, g.err = io.WriteString(g.out, text)
	}
}

func (g *guide) title(text string) { g.print("\n" + g.paint(bold, text) + "\n\n") }

func (g *guide) say(text string) { g.print(text + "\n\n") }

// quote is what a file, a terminal or the wire has.
func (g *guide) quote(text string) {
	for line := range strings.Lines(strings.TrimRight(text, "\n") + "\n") {
		g.print("    " + line)
	}
	g.print("\n")
}

// show tells what came over the wire: with headers and bodies, or counted.
func (g *guide) show(requests []emulator.Request, whole bool) {
	var lines []string
	counts := map[string]int{}
	for _, r := range requests {
		line := g.answered(r)
		if whole {
			lines = append(append(lines, line), details(r)...)
			continue
		}
		if counts[line]++; counts[line] == 1 {
			lines = append(lines, line)
		}
	}
	for i, line := range lines {
		if n := counts[line]; n > 1 {
			lines[i] = fmt.Sprintf("%s  %d times", line, n)
		}
	}
	g.quote(strings.Join(lines, "\n"))
}

// answered is the request line and the status of its answer.
func (g *guide) answered(r emulator.Request) string {
	colour := dim
	if r.Status >= 400 {
		colour = yellow
	}
	return fmt.Sprintf("%s %s  %s", r.Method, r.Path, g.paint(colour, fmt.Sprint(r.Status)))
}

// details are the headers that matter here, and the body, with little of what is secret.
func details(r emulator.Request) (lines []string) {
	for _, name := range []string{"Authorization", "access_token", "Connection", "Content-Type"} {
		for _, value := range r.Header[name] {
			switch scheme, credentials, ok := strings.Cut(value, " "); {
			case name == "Authorization" && ok:
				value = scheme + " " + mask(credentials)
			case name == "Authorization" || name == "access_token":
				value = mask(value)
			}
			lines = append(lines, "  "+name+": "+value)
		}
	}
	fields := map[string]string{}
	if json.Unmarshal(r.Body, &fields) != nil {
		form, err := url.ParseQuery(string(r.Body))
		if err != nil {
			return lines
		}
		for name := range form {
			fields[name] = form.Get(name)
		}
	}
	line := ""
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		value := fields[name]
		if !public[name] {
			value = mask(value)
		}
		if field := "  " + name + "=" + value; len(line)+len(field) > 72 {
			lines, line = append(lines, line), field
		} else {
			line += field
		}
	}
	if line != "" {
		lines = append(lines, line)
	}
	return lines
}

var public = map[string]bool{"grant_type": true, "redirect_uri": true}

// mask leaves enough to tell secrets apart, and nothing to use.
func mask(s string) string { return cut(s, 4) }

func cut(s string, n int) string {
	if runes := []rune(s); len(runes) > n {
		return string(runes[:n]) + "…"
	}
	return s
}

var secretLine = regexp.MustCompile(`(?m)^(\s+(?:client_id|client_secret|username|password): ".{4}).*"$`)

// masked is a configuration for everybody's eyes.
func masked(yaml string) string { return secretLine.ReplaceAllString(yaml, `$1…"`) }
