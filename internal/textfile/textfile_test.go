//go:build unix

package textfile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Whatever a path leads to, a read ends and takes little memory.
func TestOddFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	large := filepath.Join(dir, "large")
	f, err := os.Create(large)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(4 << 30); err != nil {
		t.Skip(err)
	}
	f.Close()
	loop := filepath.Join(dir, "loop")
	if err := os.Symlink(loop, loop); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/dev/zero": "is larger than 1 MiB", large: "is larger than 1 MiB", dir: "is a directory", loop: "too many levels",
		"a\x00b": "invalid argument", strings.Repeat("a", 5000): "name too long",
	} {
		if text, err := Read(path); text != "" || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.50s: %d bytes, %v, want %s", path, len(text), err, want)
		}
	}
}
