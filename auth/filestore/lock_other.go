//go:build !(darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd)

package filestore

import (
	"os"

	"github.com/gofrs/flock"
)

// tryLock locks a file. unlock is nil if it is locked already, and may be called more than once. It does
// not open the file itself: where closing a file ends all locks of the process, that would end another's.
func (d *dir) tryLock(name string) (unlock func(), err error) {
	path := d.join(name)
	if info, err := d.Lstat(name); err == nil {
		if err := d.me.checkFile(path, info); err != nil {
			return nil, lockError(path, err)
		}
	}
	l := flock.New(path, flock.SetFlag(os.O_RDWR|os.O_CREATE))
	if ok, err := l.TryLock(); err != nil {
		return nil, lockError(path, err)
	} else if !ok {
		return nil, nil
	}
	return func() { l.Unlock() }, nil
}

// tryLock locks a second file and opens the window's file, because a lock may also exclude its holder from
// reading. unlock is nil if the file is in use.
func (w *windowFile) tryLock(s *store, name string) (unlock func(), err error) {
	d, err := s.directory()
	if err != nil {
		return nil, lockError(s.join(name), err)
	}
	unlockFile, err := d.tryLock(name + ".lock")
	if unlockFile == nil || err != nil {
		return nil, err
	}
	if w.File, _, err = d.open(name, os.O_RDWR|os.O_CREATE); err != nil {
		unlockFile()
		return nil, lockError(s.join(name), err)
	}
	return func() {
		w.Close()
		unlockFile()
	}, nil
}
