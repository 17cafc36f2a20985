//go:build unix

package filestore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

// A place is a directory dir in parent, which is in other directories of this user.
type place struct{ parent, dir string }

func TestParents(t *testing.T) {
	t.Parallel()
	const (
		allow     = "set token_store.allow_writable_parents: true"
		everybody = "can be written by every user (mode 0777): they could replace the token store below it; run: chmod o-w %s, or choose another directory"
	)
	for name, tt := range map[string]struct {
		root   bool                               // only root can set this up
		make   func(t *testing.T, p place) string // returns the path to open
		want   string                             // in the error, with %s for the wrong directory
		fault  string                             // the wrong directory, below the parent
		always bool                               // an error even with allow_writable_parents
	}{
		"private":   {make: func(t *testing.T, p place) string { return p.dir }},
		"missing":   {make: func(t *testing.T, p place) string { return filepath.Join(p.dir, "b", "c") }},
		"unclean":   {make: func(t *testing.T, p place) string { return p.parent + "/../" + filepath.Base(p.parent) + "//./dir/" }},
		"own group": {make: func(t *testing.T, p place) string { chmod(t, p.parent, 0o775); return p.dir }},
		"sticky":    {make: func(t *testing.T, p place) string { chmod(t, p.parent, 0o777|fs.ModeSticky); return p.dir }},
		"other group": {root: true, make: func(t *testing.T, p place) string {
			chgrp(t, p.parent, nobody)
			chmod(t, p.parent, 0o755)
			return p.dir
		}},
		"writable": {
			make: func(t *testing.T, p place) string { chmod(t, p.parent, 0o777); return p.dir },
			want: everybody,
		},
		"writable, above what is missing": {
			make: func(t *testing.T, p place) string { chmod(t, p.dir, 0o777); return filepath.Join(p.dir, "b", "c") },
			want: everybody, fault: "dir",
		},
		"writable by another group": {
			root: true,
			make: func(t *testing.T, p place) string {
				chgrp(t, p.parent, nobody)
				chmod(t, p.parent, 0o775)
				return p.dir
			},
			want: "can be written by group 65534, which this process is not in (mode 0775): they could replace the token store below it; " +
				"run: chmod g-w %s, or choose another directory",
		},
		"of another user": {
			root: true,
			make: func(t *testing.T, p place) string { chown(t, p.parent, nobody); return p.dir },
			want: "belongs to user 65534: they could replace the token store below it; choose another directory",
		},
		"of another user, sticky": {
			root: true,
			make: func(t *testing.T, p place) string {
				chmod(t, p.parent, 0o777|fs.ModeSticky)
				chown(t, p.dir, nobody)
				return filepath.Join(p.dir, "b")
			},
			want: "belongs to user 65534", fault: "dir",
		},
		"link": {
			make: func(t *testing.T, p place) string { return filepath.Join(link(t, p.dir, p.parent, "link"), "b") },
		},
		"relative link": {
			make: func(t *testing.T, p place) string {
				return filepath.Join(link(t, "../parent/./dir", p.parent, "link"), "b")
			},
		},
		"link as the directory": {
			make: func(t *testing.T, p place) string { return link(t, p.dir, p.parent, "link") },
		},
		"link to what others can replace": {
			make: func(t *testing.T, p place) string {
				chmod(t, p.dir, 0o777)
				store := filepath.Join(p.dir, "store")
				if err := os.Mkdir(store, 0o700); err != nil {
					t.Fatal(err)
				}
				return link(t, store, p.parent, "link")
			},
			want: everybody, fault: "dir",
		},
		"link of another user": {
			root: true,
			make: func(t *testing.T, p place) string {
				chmod(t, p.parent, 0o777|fs.ModeSticky)
				l := link(t, p.dir, p.parent, "link")
				if err := os.Lchown(l, nobody, -1); err != nil {
					t.Fatal(err)
				}
				return l
			},
			want: "belongs to user 65534", fault: "link",
		},
		"links in a circle": {
			make: func(t *testing.T, p place) string {
				return filepath.Join(link(t, link(t, filepath.Join(p.parent, "a"), p.parent, "b"), p.parent, "a"), "c")
			},
			want: syscall.ELOOP.Error(), always: true,
		},
		"through a file": {
			make: func(t *testing.T, p place) string {
				write(t, filepath.Join(p.dir, "file"), "")
				return filepath.Join(p.dir, "file", "store")
			},
			want: syscall.ENOTDIR.Error(), fault: "dir/file", always: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tt.root && os.Geteuid() != 0 {
				t.Skip("only root can make it so")
			}
			p := place{parent: filepath.Join(t.TempDir(), "parent")}
			p.dir = filepath.Join(p.parent, "dir")
			if err := os.MkdirAll(p.dir, 0o700); err != nil {
				t.Fatal(err)
			}
			path := tt.make(t, p)
			check := func(err error) {
				t.Helper()
				fault := filepath.Join(p.parent, tt.fault)
				var key *auth.KeyError
				switch want := strings.ReplaceAll(tt.want, "%s", fault); {
				case tt.want == "" && err != nil:
					t.Error(err)
				case tt.want == "":
				case !errors.Is(err, auth.ErrStore) || !errors.As(err, &key) || key.Key != "path":
					t.Errorf("Open: %v, want a KeyError for path around ErrStore", err)
				case !strings.Contains(err.Error(), want) || tt.fault != "" && !strings.Contains(err.Error(), fault):
					t.Errorf("Open: %v\nwant %s %s", err, fault, want)
				case !tt.always && !strings.Contains(err.Error(), allow):
					t.Errorf("Open: %v, want it to say %s", err, allow)
				}
			}
			_, err := Open(Config{Path: path})
			check(err)
			if _, e := os.Stat(path); err != nil && strings.HasPrefix(path, p.dir+"/") && e == nil {
				t.Error("the directory was made all the same")
			}
			if !tt.always {
				tt.want = ""
			}
			_, err = Open(Config{Path: path, AllowWritableParents: true})
			check(err)
		})
	}
}

func link(t *testing.T, target, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
	return path
}

func chgrp(t *testing.T, path string, gid int) {
	t.Helper()
	if err := os.Chown(path, -1, gid); err != nil {
		t.Fatal(err)
	}
}

// A named pipe instead of a file is an error or harmless. No operation waits for it.
func TestNamedPipes(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]func(s *store) error{
		"k.next.lock": func(s *store) error { _, _, err := s.TryLock(t.Context(), "k", 0); return err },
		"k.json":      func(s *store) error { _, err := s.Load(t.Context(), "k"); return err },
		"k.save.lock": func(s *store) error { return s.Save(t.Context(), "k", auth.Record{}) },
		"k.lock":      func(s *store) error { _, _, err := s.TryLock(t.Context(), "k", 0); return err },
		"k.alive":     func(s *store) error { _, _, err := s.TryLock(t.Context(), "k", 0); return err },
		"k.alive ": func(s *store) error {
			defer stopped(t, s.dir, "k.lock", "")()
			_, err := s.unresponsive(s.opened.Load(), "k")
			return err
		},
		"k.window": func(s *store) error { _, _, err := single(s).Take(t.Context(), "k"); return err },
	} {
		for _, writer := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, writer %t", name, writer), func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				path := filepath.Join(dir, strings.TrimSpace(name))
				if err := syscall.Mkfifo(path, 0o600); err != nil {
					t.Fatal(err)
				}
				if writer {
					f, err := os.OpenFile(path, os.O_RDWR, 0)
					if err != nil {
						t.Fatal(err)
					}
					defer f.Close()
				}
				if err := tt(beating(t, dir, time.Hour)); err != nil && (!errors.Is(err, auth.ErrStore) || !strings.Contains(err.Error(), path)) {
					t.Errorf("%v, want ErrStore with the path", err)
				}
			})
		}
	}
}
