//go:build !(darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd)

package filestore

import "os"

// tryLock locks a second file and opens the file at path, because a lock may also exclude its holder from
// reading. unlock is nil if the file is in use.
func (w *windowFile) tryLock(path string) (unlock func(), err error) {
	unlockFile, err := tryLockFile(path + ".lock")
	if unlockFile == nil || err != nil {
		return nil, err
	}
	if w.File, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		unlockFile()
		return nil, lockError(path, err)
	}
	return func() {
		w.Close()
		unlockFile()
	}, nil
}
