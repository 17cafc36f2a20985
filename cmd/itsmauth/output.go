package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/itsmauth/itsmauth/auth"
)

// json prints v on stdout.
func (a *app) json(v any) error {
	e := json.NewEncoder(a.stdout)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// printf prints on stdout. It keeps the first error in printErr and then prints no more.
func (a *app) printf(format string, args ...any) {
	if a.printErr == nil {
		_, a.printErr = fmt.Fprintf(a.stdout, format, args...)
	}
}

// isTerminal reports whether stream is a terminal.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	null, nerr := os.Stat(os.DevNull) // also a character device
	return err == nil && nerr == nil && info.Mode()&os.ModeCharDevice != 0 && !os.SameFile(info, null)
}

// canRedraw reports whether w is a terminal whose current line can be overwritten.
func canRedraw(w io.Writer) bool { return isTerminal(w) && os.Getenv("TERM") != "dumb" }

// redraw overwrites w's current line. The terminal cuts a long text, because a wrapped line could not
// be overwritten.
func redraw(w io.Writer, text string) {
	fmt.Fprintf(w, "\r\x1b[K\x1b[?7l%s\x1b[?7h", text)
}

// A style is an SGR parameter (ECMA-48 section 8.3.117).
type style string

const (
	plain  style = ""
	bold   style = "1"
	dim    style = "2"
	red    style = "31"
	green  style = "32"
	yellow style = "33"
)

// painter returns a function that styles text if w is a terminal and $NO_COLOR is not set (see
// https://no-color.org).
func painter(w io.Writer) func(style, string) string {
	colour := canRedraw(w) && os.Getenv("NO_COLOR") == ""
	return func(s style, text string) string {
		if !colour || s == plain || text == "" {
			return text
		}
		return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
	}
}

type cell struct {
	text  string
	style style
}

// table prints rows with aligned columns. A [text/tabwriter] would count the bytes of the colours.
func table(w io.Writer, rows [][]cell) error {
	var widths []int
	for _, row := range rows {
		for i := range row {
			c := &row[i]
			c.text = strings.ReplaceAll(visible(c.text), "\n", `\n`) // such as the name of a host, from the store
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	paint := painter(w)
	for _, row := range rows {
		var line strings.Builder
		for i, c := range row {
			line.WriteString(paint(c.style, c.text))
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text)+2))
			}
		}
		if _, err := fmt.Fprintln(w, line.String()); err != nil {
			return err
		}
	}
	return nil
}

// header returns a table's first row.
func header(titles ...string) []cell { return cells(bold, titles...) }

func cells(s style, texts ...string) []cell {
	row := make([]cell, len(texts))
	for i, t := range texts {
		row[i] = cell{t, s}
	}
	return row
}

// exact returns t in UTC with whole seconds, or nil, which is null in JSON, for the zero time.
func exact(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC().Truncate(time.Second)
	return &t
}

// when returns t for a table: relative on a terminal, else exact.
func when(t time.Time, terminal bool) string {
	switch {
	case t.IsZero():
		return "-"
	case !terminal:
		return exact(t).Format(time.RFC3339)
	}
	if d := time.Until(t); d <= 0 {
		return about(-d) + " ago"
	} else {
		return "in " + about(d)
	}
}

// about returns d in its largest unit, with the minutes if that is hours.
func about(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%d days", int(d.Hours())/24)
}

// splitAdvice returns err's message without its advice, and the advice.
func splitAdvice(err error) (message, advice string) {
	if e := (*auth.Error)(nil); errors.As(err, &e) {
		advice = e.Advice()
	}
	return strings.TrimSuffix(err.Error(), "; "+advice), advice
}
