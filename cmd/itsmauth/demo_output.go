package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/itsmauth/itsmauth/internal/emulator"
)

// A narrator prints the demo's tour in 80 columns.
type narrator struct {
	app   *app
	paint func(style, string) string
}

func (n *narrator) title(text string) { n.app.printf("\n%s\n\n", n.paint(bold, text)) }

func (n *narrator) say(text string) { n.app.printf("%s\n\n", text) }

// quote prints text indented.
func (n *narrator) quote(text string) {
	n.app.printf("    %s\n\n", strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n    "))
}

// show prints requests, with headers and bodies or with equal ones counted.
func (n *narrator) show(requests []emulator.Request, whole bool) {
	var lines []string
	counts := map[string]int{}
	for _, r := range requests {
		line := n.summary(r)
		if whole {
			lines = append(append(lines, line), details(r)...)
			continue
		}
		if counts[line]++; counts[line] == 1 {
			lines = append(lines, line)
		}
	}
	for i, line := range lines {
		if count := counts[line]; count > 1 {
			lines[i] = fmt.Sprintf("%s  %d times", line, count)
		}
	}
	n.quote(strings.Join(lines, "\n"))
}

// summary returns the method, path and status of a request.
func (n *narrator) summary(r emulator.Request) string {
	colour := dim
	if r.Status >= 400 {
		colour = yellow
	}
	return fmt.Sprintf("%s %s  %s", r.Method, r.Path, n.paint(colour, fmt.Sprint(r.Status)))
}

// details returns the interesting headers and the body of a request, with secrets shortened.
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
	var text []string
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		value := fields[name]
		if !public[name] {
			value = mask(value)
		}
		text = append(text, name+"="+value)
	}
	for _, line := range wrap(strings.Join(text, " "), 72) {
		lines = append(lines, "  "+line)
	}
	return lines
}

var public = map[string]bool{"grant_type": true, "redirect_uri": true}

// mask shortens a secret so that it can be recognized but not used.
func mask(s string) string { return cut(s, 4) }

func cut(s string, n int) string {
	if runes := []rune(s); len(runes) > n {
		return string(runes[:n]) + "…"
	}
	return s
}

var secretLine = regexp.MustCompile(`(?m)^(\s+(?:client_id|client_secret|username|password): ".{4}).*"$`)

// masked returns a configuration with its secrets shortened.
func masked(yaml string) string { return secretLine.ReplaceAllString(yaml, `$1…"`) }
