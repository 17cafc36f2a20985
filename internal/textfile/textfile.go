// Package textfile reads small files of UTF-8 text, such as secrets and certificates.
package textfile

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// maxSize is the largest file that is read.
const maxSize = 1 << 20

// slots limits the threads that reads take: a mount that hangs keeps each read's thread, and Go ends a program
// that has 10,000.
var slots = make(chan struct{}, 1000)

// Read returns the content of a file of at most 1 MiB.
func Read(path string) (string, error) {
	slots <- struct{}{}
	defer func() { <-slots }()
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return "", err
	}
	if len(b) > maxSize {
		return "", fmt.Errorf("%s is larger than 1 MiB", path)
	}
	return string(b), nil
}

// Secret is the text of a secret: without byte order marks, and without newlines at its end. Its errors say what
// the text is.
func Secret(text string) (string, error) {
	text, err := Decode(text)
	if err != nil {
		return "", err
	}
	text = strings.TrimRight(text, "\r\n")
	rest := strings.ReplaceAll(text, "\r\n", "\n")
	oneLine := !strings.Contains(rest, "\n")
	if isKey := strings.Contains(rest, "-----BEGIN ") || strings.HasPrefix(rest, "{"); isKey { // PEM, or a JSON Web Key
		rest, oneLine = strings.ReplaceAll(rest, "\n", ""), true
	}
	switch {
	case !oneLine:
		return "", errors.New("has several lines, which only a key or a certificate may have")
	case strings.ContainsFunc(rest, func(r rune) bool { return r < ' ' || r == '\x7f' }):
		return "", errors.New("holds a control character (U+0000 to U+001F, or U+007F)")
	}
	return text, nil
}

var errUTF16 = errors.New("is UTF-16, which PowerShell's > writes; save it as UTF-8")

// Decode removes byte order marks. It refuses UTF-16: its error says what the text is.
func Decode(text string) (string, error) {
	for _, start := range []string{"\xff\xfe", "\xfe\xff"} {
		if strings.HasPrefix(text, start) {
			return "", errUTF16
		}
	}
	// Without a mark, every other byte of Latin letters is 0.
	if len(text) >= 4 && (text[0] == 0 && text[2] == 0 || text[1] == 0 && text[3] == 0) {
		return "", errUTF16
	}
	return strings.TrimLeft(text, "\ufeff"), nil
}
