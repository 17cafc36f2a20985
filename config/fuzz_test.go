package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"
)

// FuzzParse looks for panics, hangs and secrets in errors. No problem may show a part of the value of a
// secret, a file or a variable.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		// The input may read only our own file and variables, and must not contain their value itself.
		if strings.Contains(string(data), "${file:") && !strings.Contains(string(data), "${file:secret.txt}") ||
			strings.Contains(string(data), "_file:") || strings.Contains(strings.ToLower(string(data)), "s3cr") {
			return
		}
		conns, err := Parse("testdata/fuzz.yaml", data, append(testOptions(), WithStore("file", openDisk))...)
		if err == nil {
			conns.Close()
			return
		}
		problems, ok := err.(Problems)
		if !ok || len(problems) == 0 {
			t.Fatalf("%T", err)
		}
		lines := strings.Count(string(data), "\n") + strings.Count(string(data), "\r") + strings.Count(string(data), "\u0085") +
			strings.Count(string(data), "\u2028") + strings.Count(string(data), "\u2029") + 1
		for _, p := range problems {
			if p.Line < 1 || p.Line > lines || p.Col < 1 {
				t.Errorf("%v: position", p)
			}
			if strings.Contains(p.Error(), "s3cr") || strings.ContainsFunc(p.Message, unicode.IsControl) {
				t.Errorf("%q", p.Error())
			}
		}
	})
}
