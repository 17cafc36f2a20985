package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// If the store cannot be written, login fails before it shows the URL. Commands that can do without the
// store print one warning.
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

// readOnly returns a directory in which not even root can create a file.
func readOnly(t *testing.T) string {
	const dir = "/proc/self/fd"
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("only Linux has %s", dir)
	}
	return dir
}

// If the store becomes read-only, logout fails, but has told the product, and says both.
func TestLogoutFromReadOnlyStore(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	mount(t, dir, "size=1m,mode=700")
	s := newServer(t, withLogin+"    revoke_url: URL/revoke\n")
	s.store(dir)
	s.answers(200, `{"access_token": "a1", "expires_in": 3600, "refresh_token": "r1"}`)
	if code, _, _, stderr := s.logIn(); code != 0 {
		t.Fatal(stderr)
	}
	s.seen()
	if out, err := exec.Command("mount", "-o", "remount,ro", dir).CombinedOutput(); err != nil {
		t.Skipf("%v: %s", err, out)
	}
	code, stdout, stderr := s.run("logout", "api")
	if code != 1 || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "itsmauth: api: store: token store failed: ") ||
		!strings.HasSuffix(stderr, "read-only file system; the product has revoked the tokens, but the store still has them; check token_store\n") {
		t.Errorf("exit %d, %s%s", code, stdout, stderr)
	}
	if got := s.seen(); got != "POST /revoke token=r1, POST /revoke token=a1" {
		t.Error(got)
	}
}

// mount mounts a small disk at dir.
func mount(t *testing.T, dir, options string) {
	t.Helper()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", options, "none", dir).CombinedOutput(); err != nil {
		t.Skipf("a small disk cannot be mounted here: %v: %s", err, out)
	}
	t.Cleanup(func() {
		// -l, because a rate limit's file stays open until it is garbage
		if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// fullDisk returns a directory on a full disk.
func fullDisk(t *testing.T) string {
	dir := t.TempDir()
	mount(t, dir, "size=4k,mode=700")
	if err := os.WriteFile(filepath.Join(dir, "large"), make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// While the store does not answer, nothing has been sent, so an interrupted command does not wait for it.
func TestInterruptedWhileStoreIsSilent(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p, err := start(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	redis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer redis.Close()
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	go func() {
		for {
			conn, err := redis.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			interrupt()
		}
	}()
	file := withStoreBlock(t, dir, fmt.Sprintf("{type: redis, url: 'redis://%s', encryption: none}", redis.Addr()))
	code, stdout, stderr := itsmauth(ctx, "--config", file, "token", "support")
	if code != 1 || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "context canceled") {
		t.Errorf("exit %d, %s%s", code, stdout, stderr)
	}
	if n := p["support"].Stats().TokenRequests; n != 0 {
		t.Errorf("%d token requests", n)
	}
}

// check --online reports a damaged record as a fault of the store, also for a connector without consent.
func TestCheckOnlineStore(t *testing.T) {
	t.Parallel()
	file := onlineFile(t, lines(appliance(t).URL))
	if code, stdout, stderr := checkOnline(t, file); code != 0 {
		t.Fatal(code, stdout, stderr)
	}
	records, err := filepath.Glob(filepath.Join(filepath.Dir(file), "store", "*.json"))
	if err != nil || len(records) != 1 {
		t.Fatal(records, err)
	}
	if err := os.WriteFile(records[0], []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, stdout, _ := checkOnline(t, file)
	if code != 1 || !strings.Contains(stdout, "target: store: failed: token store failed: ") || strings.Contains(stdout, "consent") || !strings.Contains(stdout, "token: ok: a new token") {
		t.Errorf("exit %d\n%s", code, stdout)
	}
}

// Each command warns of parents that only allow_writable_parents accepts, and works.
func TestWritableParents(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("modes say nothing on Windows")
	}
	dir, parent := t.TempDir(), t.TempDir()
	p, err := start(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	if err := os.Chmod(parent, 0o777); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(parent, "store")
	file := withStoreBlock(t, dir, fmt.Sprintf("{type: file, path: %s, allow_writable_parents: true}", path))
	want := "itsmauth: token_store: other users could replace the token store: " + parent + " can be written by every user (mode 0777): " +
		"they could replace the token store below it; run: chmod o-w " + parent + ", or choose another directory\n"
	for _, args := range [][]string{{"token", "support"}, {"check"}} {
		code, stdout, stderr := itsmauth(t.Context(), append([]string{"--config", file}, args...)...)
		stderr, _, _ = strings.Cut(stderr, "warning: ") // check's, about the secrets in the file
		if code != 0 || stdout == "" || stderr != want {
			t.Errorf("%s: exit %d, %s%s, want on stderr %s", args, code, stdout, stderr, want)
		}
	}
}
