//go:build !unix

package filestore

import (
	"fmt"
	"io/fs"
	"os"
)

// nonblock is nothing: no file name of a directory is a named pipe here.
const nonblock = 0

// A user is unknown: access control lists decide, and a directory in the user's profile inherits the right
// ones.
type user struct{}

func thisUser() (user, error) { return user{}, nil }

func checkParents(path string, _ user, create bool, _ func(error) error) error {
	if !create {
		return nil
	}
	return os.MkdirAll(path, 0o700)
}

func (user) checkDir(string, fs.FileInfo) error { return nil }

func (user) checkFile(path string, info fs.FileInfo) error {
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file (%v); move it away", path, info.Mode())
	}
	return nil
}

// sync does nothing: directories cannot be synced here.
func (d *dir) sync() error { return nil }
