//go:build unix

package consent

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// In a container without xdg-open, $BROWSER is a program that opens the browser outside.
func TestBrowserVariable(t *testing.T) {
	program := filepath.Join(t.TempDir(), "a browser")
	script := "#!/bin/sh\nprintf %s \"$1\" >\"$0.new\" && mv \"$0.new\" \"$0.opened\"\n"
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("BROWSER", program)
	const address = "https://sso.example.com/authorize?a=b&c=d%20e"
	if err := openBrowser(address); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		got, err := os.ReadFile(program + ".opened")
		if err == nil && string(got) != address {
			t.Errorf("opened %s", got)
		}
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}
