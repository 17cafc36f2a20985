package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/itsmauth/itsmauth/config"
)

func TestExplain(t *testing.T) {
	t.Parallel()
	const head = "version: 1\nconnectors:\n  remedy:\n    provider: remedy\n    base_url: https://ar.example.com\n"
	for name, tc := range map[string]struct{ data, want string }{
		"unknown key": {head + "    client_secrt: hunter2\n", `
    6 |     client_secrt: •••
      |     ^ did you mean client_secret?
`},
		"plain value": {head + "    transport: {timeout: 30, proxy_url: hunter2, user_agent: x} # hunter2\n", `
    6 |     transport: {timeout: 30, proxy_url: •••, user_agent: •••
      |                          ^
`},
		"before it": {head + "    transport: {proxy_url: 'hunter2, timeout: 1s', timeout: 30, retry: {max_attempts: 3}}\n", `
    6 |     transport: {proxy_url: •••, timeout: 30, retry: {max_attempts: 3
      |                                          ^
`},
		"url with a secret": {head + "    sso_url: ftp://u:hunter2@h\n", `
    6 |     sso_url: •••
      |              ^
`},
		"reference": {head + "    client_secret: \"${env:NOT_SET_ANYWHERE}\"\n", `
    6 |     client_secret: "${env:NOT_SET_ANYWHERE}"
      |                    ^
`},
		"half a reference": {head + "    client_secret: hunter2${env:NOT_SET_ANYWHERE}\n", `
    6 |     client_secret: •••
      |                    ^
`},
		"syntax": {head + "    client_secret: hunter2: x\n", `
    6 |     client_secret: •••
      |     ^ check the indentation, or put the value in quotes
`},
		"tab": {head + "\tclient_secret: hunter2\n", `
    6 | ⇥client_secret: •••
      | ^ indent with spaces
`},
		"a secret as a key": {head + "    hunter2 hunter2: x\n    client_id: &hunter2 5\n", `
    6 |     •••: •••
      |     ^
      | known:
`},
		"non-ASCII": {head + "    client_secrét: hunter2\n", `
    6 |     client_secrét: •••
      |     ^ did you mean client_secret?
`},
		"multi-line": {head + "    transport: {user_agent: \"x\n      hunter2\", timeout: 3}\n", `
    7 | timeout: 3
      |          ^
`},
		"anchor": {"x-all: &all\n  timeout: 1\n  password: hunter2\n" + head + "    transport: *all\n", `
    2 |   •••: •••
      |        ^
`},
		"under params": {head + "    timout: 1\n    params: {timeout: hunter2, timeout: 3}\n", `
    6 |     timout: •••
`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := explained(t, []byte(tc.data))
			if !strings.Contains(got, tc.want[1:]) && !strings.Contains(got, strings.TrimSuffix(tc.want[1:], "\n")) {
				t.Error(cmp.Diff(tc.want[1:], got))
			}
			if strings.Contains(got, "hunter2") {
				t.Errorf("shows a secret:\n%s", got)
			}
		})
	}
}

// explained is what a terminal shows of the problems of a file.
func explained(t testing.TB, data []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "itsmauth.yaml")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := config.Load(file)
	var problems config.Problems
	if !errors.As(err, &problems) {
		t.Fatal("no problems:", err)
	}
	var stderr bytes.Buffer
	(&app{file: file, stderr: &stderr}).printProblems(problems)
	return stderr.String()
}

// TestExplainShowsNoSecret explains each broken file of package config, whose secrets contain these words.
func TestExplainShowsNoSecret(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../config/testdata/*.yaml")
	if err != nil || len(files) < 60 {
		t.Fatal(len(files), err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := config.Parse(file, data); err == nil {
			continue
		}
		got := explained(t, data)
		for _, part := range []string{"hunter2", "s3cr"} {
			if strings.Contains(got, part) {
				t.Errorf("%s shows %s:\n%s", file, part, got)
			}
		}
		for _, line := range strings.Split(got, "\n") {
			if strings.Contains(line, " | ") && len([]rune(line)) > width {
				t.Errorf("%s: wider than a terminal: %s", file, line)
			}
		}
	}
}

// FuzzExplain looks for panics and for secrets in what is shown.
func FuzzExplain(f *testing.F) {
	files, _ := filepath.Glob("../../config/testdata/*.yaml")
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, 1, 1)
		f.Add(data, 8, 15)
	}
	f.Fuzz(func(t *testing.T, data []byte, line, col int) {
		if col < 1 {
			return
		}
		got, caret, ok := excerpt(data, config.Problem{Line: line, Col: col, Path: "connectors.a.b"})
		if ok && (caret < 0 || caret > len([]rune(got)) || len([]rune(got)) > width) {
			t.Errorf("%q %d", got, caret)
		}
		if strings.Contains(got, "s3cr") {
			t.Errorf("shows a secret: %q of %q", got, data)
		}
	})
}
