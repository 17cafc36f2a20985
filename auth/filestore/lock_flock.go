//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package filestore

import (
	"os"
	"syscall"
)

// tryFlock locks an open file. unlock is nil if the file is locked already.
func tryFlock(f *os.File) (unlock func(), err error) {
	switch err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err {
	case nil:
		return func() { _ = syscall.Flock(int(f.Fd()), syscall.LOCK_UN) }, nil
	case syscall.EWOULDBLOCK, syscall.EINTR:
		return nil, nil
	default:
		return nil, err
	}
}

// tryLock locks a file. unlock is nil if it is locked already, and may be called more than once.
func (d *dir) tryLock(name string) (unlock func(), err error) {
	f, _, err := d.open(name, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, lockError(d.join(name), err)
	}
	free, err := tryFlock(f)
	if err != nil {
		err = lockError(d.join(name), err)
	}
	if free == nil {
		f.Close()
		return nil, err
	}
	return func() {
		free() // a child process that is being started may have the file open too
		f.Close()
	}, nil
}

// tryLock locks the window's file. unlock is nil if the file is in use. The file stays open between calls,
// because opening it takes longer than all the rest.
func (w *windowFile) tryLock(s *store, name string) (unlock func(), err error) {
	path := s.join(name)
	if w.File == nil {
		d, err := s.directory()
		if err == nil {
			w.File, w.opened, err = d.open(name, os.O_RDWR|os.O_CREATE)
		}
		if err != nil {
			return nil, lockError(path, err)
		}
	}
	if unlock, err = tryFlock(w.File); err != nil {
		return nil, lockError(path, err)
	}
	if unlock == nil {
		return nil, nil
	}
	if current, _ := os.Lstat(path); os.SameFile(w.opened, current) {
		return unlock, nil
	}
	// The file was removed or replaced. The next call opens the current one.
	w.Close()
	w.File = nil
	return nil, nil
}
