//go:build unix

package consent

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// In a container without xdg-open, $BROWSER is a program that opens the browser outside.
func TestBrowserVariable(t *testing.T) {
	program := filepath.Join(t.TempDir(), "a browser")
	opened := program + ".opened"
	if err := errors.Join(syscall.Mkfifo(opened, 0o600), os.WriteFile(program, []byte("#!/bin/sh\nprintf %s \"$1\" >\"$0.opened\"\n"), 0o700)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("BROWSER", program)
	const address = "https://sso.example.com/authorize?a=b&c=d%20e"
	if err := openBrowser(address); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(opened); string(got) != address || err != nil { // waits for the program
		t.Errorf("opened %s, %v", got, err)
	}
}
