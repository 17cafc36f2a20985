//go:build unix

package filestore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// makeDir makes dir and its parents. Unless allowWritable is set, it returns an error if another user
// could replace dir in one of its parents. It resolves symbolic links itself, in order to check each
// directory on the way.
func makeDir(dir string, allowWritable bool) error {
	groups, err := os.Getgroups()
	if err != nil {
		return err
	}
	links := 0
	at, rest := "/", strings.Split(dir, "/")
	for {
		info, err := os.Lstat(at)
		if errors.Is(err, fs.ErrNotExist) {
			if err = os.Mkdir(at, 0o700); err == nil || errors.Is(err, fs.ErrExist) {
				info, err = os.Lstat(at)
			}
		}
		if err != nil {
			return err
		}
		link := info.Mode().Type() == fs.ModeSymlink
		if !link && !info.IsDir() {
			return &fs.PathError{Op: "open", Path: at, Err: syscall.ENOTDIR}
		}
		if !link && len(rest) == 0 {
			return nil
		}
		if !allowWritable {
			if err := checkSafe(at, info, os.Geteuid(), append(groups, os.Getegid())); err != nil {
				return err
			}
		}
		if !link {
			at, rest = filepath.Join(at, rest[0]), rest[1:]
			continue
		}
		target, err := os.Readlink(at)
		if links++; err == nil && links > 40 {
			err = &fs.PathError{Op: "open", Path: dir, Err: syscall.ELOOP}
		}
		if err != nil {
			return err
		}
		if at = filepath.Dir(at); filepath.IsAbs(target) {
			at = "/"
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
}

// checkSafe returns an error if a user other than root and uid could replace an entry of a directory, or
// a symbolic link. In a sticky directory, only an entry's owner can replace it.
func checkSafe(path string, info fs.FileInfo, uid int, groups []int) error {
	mode, stat := info.Mode(), info.Sys().(*syscall.Stat_t)
	notSticky := mode.IsDir() && mode&fs.ModeSticky == 0
	var who, fix string
	switch {
	case stat.Uid != 0 && int(stat.Uid) != uid:
		who = fmt.Sprintf("belongs to user %d", stat.Uid)
	case notSticky && mode.Perm()&0o002 != 0:
		who = fmt.Sprintf("can be written by every user (mode %04o)", mode.Perm())
		fix = "run: chmod o-w " + path + ", or "
	case notSticky && mode.Perm()&0o020 != 0 && !slices.Contains(groups, int(stat.Gid)):
		who = fmt.Sprintf("can be written by group %d, which this process is not in (mode %04o)", stat.Gid, mode.Perm())
		fix = "run: chmod g-w " + path + ", or "
	default:
		return nil
	}
	return fmt.Errorf("%s %s: they could replace the token store below it; %schoose another directory, "+
		"or, if you trust them, set token_store.allow_writable_parents: true", path, who, fix)
}

// checkPrivate returns an error if anyone but uid can put a file into dir.
func checkPrivate(dir string, uid int) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if owner := int(info.Sys().(*syscall.Stat_t).Uid); owner != uid {
		return fmt.Errorf("%s belongs to user %d, but this process runs as user %d; choose another directory, or run: chown %[3]d %[1]s", dir, owner, uid)
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return fmt.Errorf("%s can be written by others (mode %04o); run: chmod 700 %[1]s", dir, mode)
	}
	return nil
}

// syncDir makes a rename in dir survive a power failure.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	// Some network file systems cannot sync a directory.
	if err := d.Sync(); !errors.Is(err, syscall.EINVAL) && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}
