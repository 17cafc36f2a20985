//go:build unix

package config

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Files that do not answer stop Load for 10 s together, unless they are of connectors that are left out.
func TestFilesThatDoNotAnswer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for i := range 4 {
		if err := syscall.Mkfifo(filepath.Join(dir, fmt.Sprint("fifo", i)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "good"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "t.yaml")
	data := []byte(`
version: 1
x-acme: &acme {provider: acme, base_url: https://h, client_id: "${file:fifo0}"}
defaults: {transport: {user_agent: "${file:fifo1}"}}
connectors:
  a: {<<: *acme, client_secret: "${file:fifo2}"}
  b: {<<: *acme, client_id: b, client_secret: "${file:good}"}
  left: {<<: *acme, client_id: b, client_secret: "${file:fifo3}"}
`)
	start := time.Now()
	_, err := Parse(name, data, append(testOptions(), WithOnly("a", "b"))...)
	took := time.Since(start)
	want := fmt.Sprintf(`%[1]s/t.yaml:3:64: connectors.a.client_id: %[1]s/fifo0 does not answer
%[1]s/t.yaml:4:36: defaults.transport.user_agent: %[1]s/fifo1 does not answer
%[1]s/t.yaml:6:33: connectors.a.client_secret: %[1]s/fifo2 does not answer`, dir)
	if diff := cmp.Diff(want, fmt.Sprint(err)); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if took > 19*time.Second { // two files one after the other
		t.Errorf("took %s", took)
	}
	for i := range 4 {
		f, err := os.OpenFile(filepath.Join(dir, fmt.Sprint("fifo", i)), os.O_RDWR|syscall.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.Close() // the read ends
	}
}
