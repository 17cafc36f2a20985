//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package filestore

import (
	"os"
	"syscall"
)

// tryLock locks the file at path. unlock is nil if the file is in use. The file stays open between calls,
// because opening it takes longer than all the rest.
func (w *windowFile) tryLock(path string) (unlock func(), err error) {
	if w.File == nil {
		if w.File, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600); err == nil {
			w.opened, err = w.Stat()
		}
		if err != nil {
			return nil, lockError(path, err)
		}
	}
	fd := int(w.Fd())
	switch err := syscall.Flock(fd, syscall.LOCK_EX|syscall.LOCK_NB); err {
	case nil:
	case syscall.EWOULDBLOCK, syscall.EINTR:
		return nil, nil
	default:
		return nil, lockError(path, err)
	}
	if current, _ := os.Stat(path); os.SameFile(w.opened, current) {
		return func() { _ = syscall.Flock(fd, syscall.LOCK_UN) }, nil
	}
	// The file was removed or replaced. The next call opens the current one.
	w.Close()
	w.File = nil
	return nil, nil
}
