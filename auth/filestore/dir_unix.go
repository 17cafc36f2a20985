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

// nonblock makes opening a named pipe return at once.
const nonblock = syscall.O_NONBLOCK

// A user is who this process runs as.
type user struct {
	uid    int
	groups []int
}

func thisUser() (user, error) {
	groups, err := os.Getgroups()
	return user{os.Geteuid(), append(groups, os.Getegid())}, err
}

// checkParents checks the directories above path, which create makes if they are missing, and path too. If
// another user could replace path in one of them, accept decides. It resolves symbolic links itself, in
// order to check each directory on the way.
func checkParents(path string, me user, create bool, accept func(unsafe error) error) error {
	links := 0
	at, rest := "/", strings.Split(path, "/")
	for {
		info, err := os.Lstat(at)
		if create && errors.Is(err, fs.ErrNotExist) {
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
		if err := me.checkParent(at, info); err != nil {
			if err := accept(err); err != nil {
				return err
			}
		}
		if !link {
			at, rest = filepath.Join(at, rest[0]), rest[1:]
			continue
		}
		target, err := os.Readlink(at)
		if links++; err == nil && links > 40 {
			err = &fs.PathError{Op: "open", Path: path, Err: syscall.ELOOP}
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

// checkParent returns an error if a user other than root and this one could replace an entry of a
// directory, or a symbolic link. In a sticky directory, only an entry's owner can replace it.
func (u user) checkParent(path string, info fs.FileInfo) error {
	who, bits := u.writers(info)
	fix := ""
	switch owner := stat(info).Uid; {
	case owner != 0 && int(owner) != u.uid:
		who = fmt.Sprintf("belongs to user %d", owner)
	case who == "" || !info.IsDir() || info.Mode()&fs.ModeSticky != 0:
		return nil
	default:
		fix = fmt.Sprintf("run: chmod %s-w %s, or ", bits, path)
	}
	return fmt.Errorf("%s %s: they could replace the token store below it; %schoose another directory", path, who, fix)
}

// checkDir returns an error if another user can put a file into the store's directory.
func (u user) checkDir(path string, info fs.FileInfo) error {
	if owner := stat(info).Uid; int(owner) != u.uid {
		return fmt.Errorf("%s belongs to user %d, but this process runs as user %d; choose another directory, or run: chown %[3]d %[1]s", path, owner, u.uid)
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return fmt.Errorf("%s can be written by others (mode %04o); run: chmod 700 %[1]s", path, mode)
	}
	return nil
}

// checkFile returns an error if another user may have made or written a file of the store: while others
// could write to the directory, or by another name of the file.
func (u user) checkFile(path string, info fs.FileInfo) error {
	mode, stat := info.Mode(), stat(info)
	who, bits := u.writers(info)
	switch {
	case !mode.IsRegular():
		return fmt.Errorf("%s is no regular file but a %s of user %d; move it away", path, kinds[mode.Type()], stat.Uid)
	case int(stat.Uid) != u.uid:
		return fmt.Errorf("%s belongs to user %d, but this process runs as user %d; move it away, or, if you know its content, run: chown %[3]d %[1]s", path, stat.Uid, u.uid)
	case stat.Nlink > 1:
		return fmt.Errorf("%s, of user %d, is a hard link: the file has %d names, and may be changed by another one; move it away, or put a copy in its place", path, stat.Uid, stat.Nlink)
	case who != "":
		return fmt.Errorf("%s, of user %d, %s; move it away, or, if you know its content, run: chmod %s-w %[1]s", path, stat.Uid, who, bits)
	}
	return nil
}

var kinds = map[fs.FileMode]string{
	fs.ModeDir: "directory", fs.ModeSymlink: "symbolic link", fs.ModeNamedPipe: "named pipe", fs.ModeSocket: "socket",
	fs.ModeDevice: "device", fs.ModeDevice | fs.ModeCharDevice: "device",
}

// writers says which users other than the owner can write, and the letter that chmod has for them.
func (u user) writers(info fs.FileInfo) (who, letter string) {
	mode, group := info.Mode().Perm(), int(stat(info).Gid)
	switch {
	case mode&0o002 != 0:
		return fmt.Sprintf("can be written by every user (mode %04o)", mode), "o"
	case mode&0o020 != 0 && !slices.Contains(u.groups, group):
		return fmt.Sprintf("can be written by group %d, which this process is not in (mode %04o)", group, mode), "g"
	}
	return "", ""
}

func stat(info fs.FileInfo) *syscall.Stat_t { return info.Sys().(*syscall.Stat_t) }

// sync makes a rename in the directory survive a power failure.
func (d *dir) sync() error {
	f, err := d.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	// Some network file systems cannot sync a directory.
	if err := f.Sync(); !errors.Is(err, syscall.EINVAL) && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}
