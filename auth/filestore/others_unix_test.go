//go:build unix

package filestore

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/itsmauth/itsmauth/auth"
)

// These helpers run as another user, with the arguments of the test.
var foreignHelpers = map[string]func(args []string) error{
	"open":    helpOpen,
	"replace": helpReplace,
	"swap":    helpSwap,
}

// become makes this process one of that user and these groups.
func become(uid, gid int, groups ...int) error {
	return errors.Join(syscall.Setgroups(groups), syscall.Setgid(gid), syscall.Setuid(uid))
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can be two users")
	}
}

// shared returns a directory that every user can write to.
func shared(t *testing.T) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	chmod(t, filepath.Dir(dir), 0o711)
	chmod(t, dir, 0o777)
	return dir
}

// A planted record is valid in all but its origin.
const plantedData = "of the attacker"

func planted() []byte {
	b, err := encode("k", auth.Record{Version: 1, Data: []byte(plantedData)})
	if err != nil {
		panic(err)
	}
	return b
}

// evil makes a directory that everybody can use, with a record for k.
func evil(dir string) error {
	return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o777),
		os.WriteFile(filepath.Join(dir, "k.json"), planted(), 0o644))
}

// helpReplace puts something in the place of the directory "dir".
func helpReplace(args []string) error {
	if err := become(nobody, nobody); err != nil {
		return err
	}
	dir, with := filepath.Join(args[0], "dir"), args[1]
	if err := errors.Join(os.Rename(dir, dir+".old"), evil(dir+".evil")); err != nil {
		return err
	}
	switch with {
	case "directory", "private directory":
		if with != "directory" {
			if err := os.Chmod(dir+".evil", 0o755); err != nil {
				return err
			}
		}
		return os.Rename(dir+".evil", dir)
	case "link":
		return os.Symlink(dir+".evil", dir)
	case "named pipe":
		return syscall.Mkfifo(dir, 0o666)
	case "file":
		return os.WriteFile(dir, planted(), 0o666)
	case "link to another store":
		return os.Symlink(args[2], dir)
	}
	return errors.New("unknown")
}

// A directory that was swapped by another user is an error, and the right one is used again when it is back.
func TestReplacedDirectory(t *testing.T) {
	t.Parallel()
	for with, want := range map[string]string{
		"directory":             "belongs to user 65534",
		"private directory":     "belongs to user 65534",
		"link":                  "belongs to user 65534",
		"named pipe":            syscall.ENOTDIR.Error(),
		"file":                  syscall.ENOTDIR.Error(),
		"link to another store": "", // with allow_writable_parents, it is used
	} {
		for _, allow := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, allow %t", with, allow), func(t *testing.T) {
				t.Parallel()
				parent := shared(t)
				dir, other := filepath.Join(parent, "dir"), filepath.Join(t.TempDir(), "other")
				save(t, open(t, other), "k", 0, "other")
				chmod(t, parent, 0o755)
				opened, err := Open(Config{Path: dir, AllowWritableParents: allow})
				if err != nil {
					t.Fatal(err)
				}
				s := opened.(*store)
				save(t, s, "k", 0, "ours")
				w := windowOf(s, time.Hour, auth.Limit{Requests: 5, Per: time.Hour})
				take(t, w, "1", 0)
				chmod(t, parent, 0o777)
				if out, err := helper(t.Context(), "replace", parent, with, other).CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				want := want
				if !allow {
					want = parent + " can be written by every user"
				}
				r, load := s.Load(t.Context(), "k")
				_, lock := s.Lock(t.Context(), "k")
				_, _, tryLock := s.TryLock(t.Context(), "k", 1)
				_, _, taken := w.Take(t.Context(), "2")
				changed := s.Save(t.Context(), "k", auth.Record{Version: 1, Data: []byte("secret")})
				if want == "" {
					if load != nil || string(r.Data) != "other" || lock != nil || tryLock != nil || taken != nil || changed != nil {
						t.Errorf("%v with %q, %v, %v, %v, %v, %v", r, r.Data, load, lock, tryLock, taken, changed)
					}
					return
				}
				if !cmp.Equal(r, auth.Record{}) {
					t.Errorf("Load gave %v with %q", r, r.Data)
				}
				for op, err := range map[string]error{
					"Load": load, "Lock": lock, "TryLock": tryLock, "Take": taken, "Save": changed, "Delete": s.Delete(t.Context(), "k", 1),
				} {
					if !errors.Is(err, auth.ErrStore) || !strings.Contains(err.Error(), "the token store was replaced: "+parent) &&
						!strings.Contains(err.Error(), "the token store was replaced: open "+parent) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), parent) {
						t.Errorf("%s: %v\nwant ErrStore with %s", op, err, want)
					}
				}
				for _, file := range []string{dir, dir + ".evil"} {
					if entries, _ := os.ReadDir(file); len(entries) > 1 && with != "link to another store" {
						t.Errorf("%s has files of the store: %v", file, entries)
					}
				}
				if err := errors.Join(os.RemoveAll(dir), os.Rename(dir+".old", dir)); err != nil {
					t.Fatal(err)
				}
				save(t, s, "k", 1, "ours again")
				take(t, w, "2", 0)
				if b, err := os.ReadFile(filepath.Join(dir, "k.json")); err != nil || !bytes.Contains(b, []byte(`"version":2`)) {
					t.Errorf("the record is %s, %v", b, err)
				}
			})
		}
	}
}

// helpSwap replaces the directory "dir" by its own and back, until its standard input ends.
func helpSwap(args []string) error {
	if err := become(nobody, nobody); err != nil {
		return err
	}
	dir := filepath.Join(args[0], "dir")
	if err := evil(dir + ".evil"); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); close(ended) }()
	fmt.Println("swapping")
	for {
		err := errors.Join(os.Rename(dir, dir+".ours"), os.Rename(dir+".evil", dir), os.Rename(dir, dir+".evil"), os.Rename(dir+".ours", dir))
		select {
		case <-ended:
			return err
		default:
		}
		if err != nil {
			return err
		}
	}
}

// However the directory is swapped, no operation reads or writes in another user's directory.
func TestSwappedDirectory(t *testing.T) {
	t.Parallel()
	parent := shared(t)
	dir := filepath.Join(parent, "dir")
	s, err := Open(Config{Path: dir, AllowWritableParents: true})
	if err != nil {
		t.Fatal(err)
	}
	save(t, s, "k", 0, "ours")
	cmd := helper(t.Context(), "swap", parent)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	if line, _ := lines.ReadString('\n'); line != "swapping\n" {
		t.Fatal(line)
	}
	defer cmd.Wait()
	defer in.Close()
	loaded, refused := 0, 0
	w := windowOf(s, time.Hour, auth.Limit{Requests: 1000, Per: time.Hour})
	for n := range 300 {
		r, err := s.Load(t.Context(), "k")
		switch {
		case err == nil && string(r.Data) == plantedData:
			t.Fatal("Load gives the attacker's record")
		case err == nil:
			loaded++
		default:
			refused++
		}
		if err == nil && n%10 == 0 {
			_ = s.Save(t.Context(), "k", r)
			_, _, _ = w.Take(t.Context(), strconv.Itoa(n))
		}
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	t.Logf("%d loaded, %d refused", loaded, refused)
	if diff := cmp.Diff([]string{"k.json"}, files(t, dir+".evil")); diff != "" {
		t.Errorf("the attacker's files (-want +got)\n%s", diff)
	}
	if b, err := os.ReadFile(filepath.Join(dir+".evil", "k.json")); err != nil || !bytes.Equal(b, planted()) {
		t.Errorf("the attacker's record is %s, %v", b, err)
	}
}

// What was put into the directory while others could write to it is refused, whatever file it stands for.
func TestPlantedFiles(t *testing.T) {
	t.Parallel()
	lock := func(s *store) error { _, _, err := s.TryLock(t.Context(), "k", 0); return err }
	ops := map[string]func(s *store) error{
		"k.json":      func(s *store) error { _, err := s.Load(t.Context(), "k"); return err },
		"k.save.lock": func(s *store) error { return s.Save(t.Context(), "k", auth.Record{Data: []byte("new")}) },
		"k.lock":      lock,
		"k.next.lock": lock,
		"k.alive":     lock,
		"k.window":    func(s *store) error { _, _, err := single(s).Take(t.Context(), "k"); return err },
	}
	me := os.Geteuid()
	for kind, tt := range map[string]struct {
		plant func(path, victim string) error
		root  bool
		want  string
	}{
		"directory":       {func(path, _ string) error { return os.Mkdir(path, 0o700) }, false, fmt.Sprintf("is no regular file but a directory of user %d; move it away", me)},
		"named pipe":      {func(path, _ string) error { return syscall.Mkfifo(path, 0o600) }, false, fmt.Sprintf("is no regular file but a named pipe of user %d; move it away", me)},
		"link":            {func(path, victim string) error { return os.Symlink(victim, path) }, false, fmt.Sprintf("is no regular file but a symbolic link of user %d; move it away", me)},
		"link to nothing": {func(path, victim string) error { return os.Symlink(victim+".new", path) }, false, "symbolic link"},
		"link within":     {func(path, _ string) error { return os.Symlink("victim", path) }, false, "symbolic link"},
		"link to zeros":   {func(path, _ string) error { return os.Symlink("/dev/zero", path) }, false, "symbolic link"},
		"hard link":       {func(path, victim string) error { return os.Link(victim, path) }, false, fmt.Sprintf(", of user %d, is a hard link: the file has 2 names", me)},
		"everybody's": {func(path, _ string) error {
			return errors.Join(os.WriteFile(path, planted(), 0o600), os.Chmod(path, 0o666))
		}, false, fmt.Sprintf(", of user %d, can be written by every user (mode 0666); move it away, or, if you know its content, run: chmod o-w ", me)},
		"socket": {listen, false, "socket"},
		"device": {func(path, _ string) error { return mknod(path) }, true, "is no regular file but a device of user 0; move it away"},
		"another user's": {func(path, _ string) error {
			return errors.Join(os.WriteFile(path, planted(), 0o644), os.Chown(path, nobody, nobody))
		}, true, "belongs to user 65534, but this process runs as user 0; move it away, or, if you know its content, run: chown 0 "},
		"another user's, 0": {func(path, _ string) error {
			return errors.Join(os.WriteFile(path, nil, 0o600), os.Chown(path, nobody, 0))
		}, true, "belongs to user 65534"},
		"another group's": {func(path, _ string) error {
			return errors.Join(os.WriteFile(path, planted(), 0o600), os.Chown(path, 0, nobody), os.Chmod(path, 0o660))
		}, true, "can be written by group 65534, which this process is not in (mode 0660); move it away, or, if you know its content, run: chmod g-w "},
	} {
		for file, op := range ops {
			t.Run(kind+", "+file, func(t *testing.T) {
				t.Parallel()
				if tt.root {
					needRoot(t)
				}
				dir := t.TempDir()
				path, victim := filepath.Join(dir, file), filepath.Join(dir, "victim")
				write(t, victim, "precious")
				if err := tt.plant(path, victim); errors.Is(err, fs.ErrPermission) && kind == "device" {
					t.Skip(err)
				} else if err != nil {
					t.Fatal(err)
				}
				err := op(beating(t, dir, beat))
				if !errors.Is(err, auth.ErrStore) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("got  %v\nwant ErrStore with %s %s", err, path, tt.want)
				}
				if b, err := os.ReadFile(victim); string(b) != "precious" {
					t.Errorf("the victim's file is now %q, %v", b, err)
				}
				if _, err := os.Lstat(victim + ".new"); err == nil {
					t.Error("a file was made where the link pointed to")
				}
			})
		}
	}
}

// A file that is planted while the lock is held is refused by those who wait, and by the holder's beat.
func TestPlantedAlive(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	defer stopped(t, dir, "k.lock", "")()
	victim := filepath.Join(dir, "victim")
	write(t, victim, "precious")
	link(t, victim, dir, "k.alive")
	if _, err := beating(t, dir, beat).Lock(t.Context(), "k"); !errors.Is(err, auth.ErrStore) || !strings.Contains(err.Error(), "k.alive is no regular file") {
		t.Errorf("Lock: %v", err)
	}
	if b, err := os.ReadFile(victim); string(b) != "precious" {
		t.Errorf("the victim's file is now %q, %v", b, err)
	}
}

func listen(path, _ string) error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err == nil {
		l.SetUnlinkOnClose(false)
		err = l.Close()
	}
	return err
}

// Files of the process's own group are accepted: Kubernetes makes those of a volume so, if fsGroup is set.
func TestFilesOfOwnGroup(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir).(*store)
	save(t, s, "k", 0, "data")
	unlock := tryLock(t, s, 1)
	take(t, single(s), "1", 0)
	unlock()
	for _, name := range files(t, dir) {
		chmod(t, filepath.Join(dir, name), 0o660)
	}
	s = open(t, dir).(*store)
	save(t, s, "k", 1, "new")
	tryLock(t, s, 2)()
	take(t, single(s), "1", 0)
}

// A file that is too large for a record is not read.
func TestLargeFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir).(*store)
	for _, file := range []string{"k.json", "k.alive", "k.lock", "k.window"} {
		write(t, filepath.Join(dir, file), "")
		if err := os.Truncate(filepath.Join(dir, file), 1<<40); err != nil {
			t.Skip(err)
		}
	}
	const want = " has 1099511627776 bytes, but this store writes at most 16777216; move it away"
	for _, err := range []error{
		func() error { _, err := s.Load(t.Context(), "k"); return err }(),
		s.Save(t.Context(), "k", auth.Record{}),
		func() error {
			defer stopped(t, dir, "k.lock", "")()
			_, err := s.unresponsive(s.opened.Load(), "k")
			return err
		}(),
	} {
		if !errors.Is(err, auth.ErrStore) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want ErrStore with %s", err, want)
		}
	}
	take(t, single(s), "1", 0) // zeros are a new file, and no more than is needed is read
}

// What would be refused when it is read is not written.
func TestLargeRecord(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir()).(*store)
	save(t, s, "k", 0, "old")
	if err := s.opened.Load().replace("k.json", make([]byte, maxFile+1)); err == nil || err.Error() != "the record needs 16777217 bytes, more than 16777216" {
		t.Errorf("replace: %v", err)
	}
	want(t, s, "k", 1, "old")
}

// A directory that others can write to from now on is an error, until they no longer can.
func TestOthersCanWriteLater(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	save(t, s, "k", 0, "data")
	chmod(t, dir, 0o777)
	if _, err := s.Load(t.Context(), "k"); !errors.Is(err, auth.ErrStore) || !strings.Contains(err.Error(), "run: chmod 700 "+dir) {
		t.Errorf("Load: %v", err)
	}
	chmod(t, dir, 0o700)
	want(t, s, "k", 1, "data")
}

// A link to the directory may be changed while it is used, by who may do so.
func TestChangedLink(t *testing.T) {
	t.Parallel()
	top := t.TempDir()
	a, b := filepath.Join(top, "a"), filepath.Join(top, "b")
	save(t, open(t, a), "k", 0, "of a")
	save(t, open(t, b), "k", 0, "of b")
	s := open(t, link(t, a, top, "link"))
	want(t, s, "k", 1, "of a")
	if err := os.Rename(link(t, "b", top, "new"), filepath.Join(top, "link")); err != nil {
		t.Fatal(err)
	}
	want(t, s, "k", 1, "of b")
	save(t, s, "k", 1, "new")
	want(t, open(t, b), "k", 2, "new")
}

// helpOpen opens a store as a user with a group and other groups, and saves and loads.
func helpOpen(args []string) error {
	var ids []int
	for _, arg := range args[1:] {
		id, err := strconv.Atoi(arg)
		if err != nil {
			return err
		}
		ids = append(ids, id)
	}
	if err := become(ids[0], ids[1], ids[2:]...); err != nil {
		return err
	}
	s, err := Open(Config{Path: args[0]})
	if err != nil {
		return err
	}
	r, err := s.Load(context.Background(), "k")
	if err != nil {
		return err
	}
	return s.Save(context.Background(), "k", r)
}

// Usual places are accepted, as the user that they are made for.
func TestUsualPlaces(t *testing.T) {
	t.Parallel()
	const user, other, group = "1000", "65534", 2000
	for name, tt := range map[string]struct {
		make func(t *testing.T, top string) (path string)
		as   []string // user, group, other groups
		want string   // in the error
	}{
		"StateDirectory of systemd": {func(t *testing.T, top string) string { return placeOf(t, top, "itsmauth", 1000, 1000, 0o700) }, []string{user, user}, ""},
		"StateDirectory, mode 0755": {func(t *testing.T, top string) string { return placeOf(t, top, "itsmauth", 1000, 1000, 0o755) }, []string{user, user}, ""},
		"below it, missing":         {func(t *testing.T, top string) string { return placeOf(t, top, "itsmauth", 1000, 1000, 0o755) + "/a/b" }, []string{user, user}, ""},
		"home of a private group": {func(t *testing.T, top string) string {
			return placeOf(t, top, "home", 1000, 1000, 0o775) + "/.local/state/itsmauth"
		}, []string{user, user}, ""},
		"home of another group": {func(t *testing.T, top string) string {
			return placeOf(t, top, "home", 1000, group, 0o775) + "/.local/state/itsmauth"
		}, []string{user, user}, "can be written by group 2000, which this process is not in"},
		"volume of an fsGroup": {func(t *testing.T, top string) string {
			return placeOf(t, top, "data", 0, group, 0o775|fs.ModeSetgid) + "/itsmauth"
		}, []string{user, user, strconv.Itoa(group)}, ""},
		"volume of an fsGroup itself": {func(t *testing.T, top string) string {
			return placeOf(t, top, "data", 0, group, 0o775|fs.ModeSetgid)
		}, []string{user, user, strconv.Itoa(group)}, "belongs to user 0, but this process runs as user 1000"},
		"emptyDir": {func(t *testing.T, top string) string {
			return placeOf(t, top, "data", 0, group, 0o777|fs.ModeSetgid) + "/itsmauth"
		}, []string{user, user, strconv.Itoa(group)}, "can be written by every user (mode 0777)"},
		"any user of OpenShift": {func(t *testing.T, top string) string { return placeOf(t, top, "data", 0, 0, 0o775) + "/itsmauth" }, []string{"1000650000", "0"}, ""},
		"sticky": {func(t *testing.T, top string) string {
			return placeOf(t, top, "tmp", 0, 0, 0o777|fs.ModeSticky) + "/itsmauth"
		}, []string{user, user}, ""},
		"sticky, of another user": {func(t *testing.T, top string) string {
			return placeOf(t, top, "tmp", 65534, 0, 0o777|fs.ModeSticky) + "/itsmauth"
		}, []string{user, user}, "tmp belongs to user 65534"},
		"root in a user's home": {func(t *testing.T, top string) string {
			return placeOf(t, top, "home", 1000, 1000, 0o755) + "/.local/state/itsmauth"
		}, []string{"0", "0"}, "home belongs to user 1000"},
		"root in a user's store": {func(t *testing.T, top string) string { return placeOf(t, top, "store", 1000, 1000, 0o700) }, []string{"0", "0"},
			"belongs to user 1000, but this process runs as user 0"},
		"link of root, as /var of macOS": {func(t *testing.T, top string) string {
			placeOf(t, top, "private", 0, 0, 0o755)
			placeOf(t, top, "private/var", 1000, 1000, 0o755)
			return link(t, "private/var", top, "var") + "/itsmauth"
		}, []string{user, user}, ""},
		"link of root in a sticky directory": {func(t *testing.T, top string) string {
			tmp := placeOf(t, top, "tmp", 0, 0, 0o777|fs.ModeSticky)
			return link(t, placeOf(t, top, "store", 1000, 1000, 0o700), tmp, "link")
		}, []string{user, user}, ""},
		"link of another user in a sticky directory": {func(t *testing.T, top string) string {
			tmp := placeOf(t, top, "tmp", 0, 0, 0o777|fs.ModeSticky)
			l := link(t, placeOf(t, top, "store", 1000, 1000, 0o700), tmp, "link")
			if err := os.Lchown(l, 65534, 65534); err != nil {
				t.Fatal(err)
			}
			return l
		}, []string{user, user}, "link belongs to user 65534"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			needRoot(t)
			top := t.TempDir()
			chmod(t, filepath.Dir(top), 0o755)
			chmod(t, top, 0o755)
			out, err := helper(t.Context(), "open", append([]string{tt.make(t, top)}, tt.as...)...).CombinedOutput()
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(string(out), tt.want)) {
				t.Errorf("%v: %s\nwant %s", err, out, tt.want)
			}
		})
	}
}

// placeOf makes a directory that belongs to others.
func placeOf(t *testing.T, top, name string, uid, gid int, mode fs.FileMode) string {
	t.Helper()
	dir := filepath.Join(top, name)
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, uid, gid), os.Chmod(dir, mode)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// AllowWritableParents warns if it is needed, and says of what.
func TestWritableParentsWarn(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	for _, writable := range []bool{false, true} {
		var log bytes.Buffer
		if writable {
			chmod(t, parent, 0o777)
		}
		dir := filepath.Join(parent, "dir")
		s, err := Open(Config{Path: dir, AllowWritableParents: true, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil { // the warning comes once
			t.Fatal(err)
		}
		if _, err := s.Load(t.Context(), "k"); err != nil {
			t.Error(err)
		}
		want := ""
		if writable {
			want = `level=WARN msg="other users could replace the token store" error="path: token store failed: ` + parent +
				` can be written by every user (mode 0777): they could replace the token store below it; run: chmod o-w ` + parent + `, or choose another directory"` + "\n"
		}
		if _, got, _ := strings.Cut(log.String(), " "); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}
