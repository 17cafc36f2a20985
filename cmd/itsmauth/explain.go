package main

import (
	"fmt"
	"os"
	"strings"
	"unicode/utf8"

	"github.com/itsmauth/itsmauth/auth/redisstore"
	"github.com/itsmauth/itsmauth/config"
	"github.com/itsmauth/itsmauth/internal/textfile"
)

// printProblems shows a file's problems to a person: each with its line and a caret, and what to do.
func (a *app) printProblems(problems config.Problems) {
	data := a.text() // without it there are no lines to show
	paint := painter(a.stderr)
	for _, p := range problems {
		advice := p.Advice()
		message := strings.TrimSuffix(p.Message, "; "+advice)
		if p.Path != "" {
			message = p.Path + ": " + message
		}
		message, advice = visible(message), visible(advice)
		at := fmt.Sprintf("%s:%d:%d:", p.File, p.Line, p.Col)
		said := wrap(at+" "+message, width-2)
		said[0] = paint(bold, at) + strings.TrimPrefix(said[0], at)
		fmt.Fprintln(a.stderr, strings.Join(said, "\n  "))
		line, caret, ok := excerpt(data, p)
		if ok {
			fmt.Fprintf(a.stderr, "%s%s\n", paint(dim, fmt.Sprintf("%5d | ", p.Line)), line)
			afterCaret := ""
			if caret+len(margin)+2+utf8.RuneCountInString(advice) <= width {
				afterCaret, advice = " "+advice, ""
			}
			fmt.Fprintf(a.stderr, "%s%s%s%s\n", paint(dim, margin), strings.Repeat(" ", caret), paint(red, "^"), paint(green, strings.TrimRight(afterCaret, " ")))
		}
		for _, l := range wrap(advice, width-len(margin)) {
			fmt.Fprintf(a.stderr, "%s%s\n", paint(dim, margin), paint(green, l))
		}
	}
	if n := len(problems); n > 1 {
		fmt.Fprintf(a.stderr, "%d problems\n", n)
	}
}

// text is the text of the configuration or, if that is larger than 1 MiB or no regular file, nothing: it is only
// for explaining and completing, and a pipe may never answer.
func (a *app) text() []byte {
	if info, err := os.Stat(a.path()); err != nil || !info.Mode().IsRegular() {
		return nil
	}
	text, _ := textfile.Read(a.path())
	return []byte(text)
}

const (
	margin = "      | "
	width  = 80
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

// excerpt is the line of p without secrets, cut to what fits after the margin, with the caret in it.
func excerpt(data []byte, p config.Problem) (text string, caret int, ok bool) {
	text, caret, ok = p.Excerpt(data, config.WithStore("redis", redisstore.Open))
	const room = width - len(margin)
	r := []rune(text)
	if from := caret - room*2/3; from > 0 && len(r) > room {
		r, caret = append([]rune("…"), r[from+1:]...), caret-from
	}
	if len(r) > room {
		r = append(r[:room-1:room-1], '…')
	}
	return string(r), min(caret, len(r)), ok
}
