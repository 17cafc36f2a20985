//go:build unix

package filestore

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// private refuses a directory in which anybody but uid could put a file.
func private(dir string, uid int) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if owner := int(info.Sys().(*syscall.Stat_t).Uid); owner != uid {
		return fmt.Errorf("%s belongs to user %d, not to user %d, who runs this; choose another directory, or run: chown %[3]d %[1]s", dir, owner, uid)
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return fmt.Errorf("%s can be written by others (mode %04o); run: chmod 700 %[1]s", dir, mode)
	}
	return nil
}

// syncDir makes a rename last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	// Some network file systems know no fsync of a directory.
	if err := d.Sync(); !errors.Is(err, syscall.EINVAL) && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}
