package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A store that cannot be written: nobody is sent to the product in vain, and commands that can do
// without the store say once what is wrong.
func TestStoreCannotBeWritten(t *testing.T) {
	t.Parallel()
	for name, store := range map[string]func(*testing.T) string{"read-only directory": readOnly, "full disk": fullDisk} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			p, err := start(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer p.close()
			file := withStoreAt(t, dir, store(t))

			code, stdout, stderr := itsmauth(t.Context(), "--config", file, "login", "remedy", "--no-browser")
			if code != 1 || stdout != "" || strings.Count(stderr, "\n") != 1 ||
				!strings.HasPrefix(stderr, "itsmauth: remedy: store: token store failed: ") || !strings.HasSuffix(stderr, "; check token_store\n") {
				t.Errorf("login: exit %d, %s%s", code, stdout, stderr)
			}
			for _, args := range [][]string{{"call", "support", "/api/config/v1/jump-item"}, {"token", "support"}} {
				code, stdout, stderr := itsmauth(t.Context(), append([]string{"--config", file}, args...)...)
				if code != 0 || stdout == "" || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "itsmauth: support: token ") {
					t.Errorf("%s: exit %d, %s%s", args, code, stdout, stderr)
				}
			}
		})
	}
}

// readOnly is a directory in which nobody can make a file, root neither.
func readOnly(t *testing.T) string {
	const dir = "/proc/self/fd"
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("only Linux has %s", dir)
	}
	return dir
}

// fullDisk is a directory of a disk on which nothing is free.
func fullDisk(t *testing.T) string {
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=4k,mode=700", "none", dir).CombinedOutput(); err != nil {
		t.Skipf("a small disk cannot be mounted here: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	if err := os.WriteFile(filepath.Join(dir, "large"), make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}
