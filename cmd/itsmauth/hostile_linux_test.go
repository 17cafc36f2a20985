package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unicode"

	"github.com/itsmauth/itsmauth/config"
)

const hostileName = "a\x1b]0;owned\a\u009b31m"

// A configuration that another user left in the working directory is read when a shell completes a name.
func TestCompleteHostileFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pipe, large, names := filepath.Join(dir, "pipe"), filepath.Join(dir, "large"), filepath.Join(dir, "names")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("connectors: {%q: {}, \"_activeHelp_ run this\": {}, \"two\\nlines\": {}, ok: {}}\n", hostileName)
	many := filepath.Join(dir, "many") // takes minutes if each key is compared with all others
	manyText := "connectors: {" + strings.Repeat("k: 1, ", 170_000) + "}"
	for file, content := range map[string]string{names: text, large: text + strings.Repeat("#", 2<<20), many: manyText} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for file, want := range map[string]string{pipe: ":4\n", "/dev/zero": ":4\n", large: ":4\n", names: "ok\n:4\n", many: "k\n:4\n"} {
		code, stdout, stderr := itsmauth(t.Context(), "--config", file, "__complete", "token", "")
		if code != 0 || stdout != want {
			t.Errorf("%s: exit %d, %q, want %q %s", file, code, stdout, want, stderr)
		}
	}
}

// Text of the configuration and of the store is shown with its control characters escaped.
func TestNothingMovesTheCursor(t *testing.T) {
	t.Parallel()
	check := func(what, shown string) {
		if i := strings.IndexFunc(shown, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); i >= 0 || !strings.Contains(shown, "owned") && what != "an excerpt" {
			t.Errorf("%s: %q", what, shown)
		}
	}
	check("an excerpt", strings.Join(strings.Split(explained(t, fmt.Appendf(nil, "version: 1\nconnectors:\n  %q: {}\n", hostileName)), "\n")[1:], "\n"))

	file := filepath.Join(t.TempDir(), "itsmauth.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, "version: 1\nconnectors:\n  %q: {}\n", hostileName), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, stderr := itsmauth(t.Context(), "--config", file, "token", "elsewhere")
	if code != 2 {
		t.Errorf("exit %d", code)
	}
	check("an unknown connector", stderr)

	var printed strings.Builder
	if err := table(&printed, [][]cell{cells(plain, "x", hostileName+"\nrow")}); err != nil || strings.Count(printed.String(), "\n") != 1 {
		t.Errorf("%v %q", err, printed.String())
	}
	check("a table", printed.String())

	// A terminal shows no excerpt of a file that is too large, and does not read it.
	tty, written := openTerminal(t)
	_, err := config.Load("/dev/zero")
	if !errors.As(err, new(config.Problems)) {
		t.Fatal(err)
	}
	(&app{file: "/dev/zero", stderr: tty}).report(err)
	if got := written(); !strings.Contains(got, "larger than 1 MiB") {
		t.Errorf("%q", got)
	}
}

// Another user may have put a link in the place of the file.
func TestInitFollowsNoLink(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	link, target := filepath.Join(dir, "itsmauth.yaml"), filepath.Join(dir, "elsewhere")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := itsmauth(t.Context(), "--config", link, "init")
	if _, err := os.Lstat(target); code != 2 || !strings.Contains(stderr, "exists already") || !os.IsNotExist(err) {
		t.Errorf("exit %d, %v %s%s", code, err, stdout, stderr)
	}
}
