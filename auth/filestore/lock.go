package filestore

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/gofrs/flock"

	"github.com/itsmauth/itsmauth/auth"
)

// A process that holds a key's lock has KEY.lock locked and rewrites KEY.alive at each beat. The operating
// system unlocks KEY.lock when the process ends, but not while it is stopped. Others then see that
// KEY.alive does not change, and one of them takes over with KEY.next.lock. The stopped process does no
// harm when it continues: its save has an outdated version.
//
// To begin to hold the lock, a process needs both files locked, or one of them while the holder of the
// other is unresponsive. It writes KEY.alive before it unlocks the file that it does not need. So no
// process can mistake a new holder for an unresponsive one.

const (
	// beat is how often a holder rewrites KEY.alive.
	beat = time.Second
	// takeoverBeats is after how many beats without a change a holder is unresponsive.
	takeoverBeats = 5
	// maxGapBeats is the longest time between two looks at KEY.alive. After a longer one, a waiter begins
	// to observe the holder anew.
	maxGapBeats = 2
)

// TryLock implements [auth.TryLocker].
func (s *store) TryLock(ctx context.Context, key string, known uint64) (auth.Record, func(), error) {
	r, err := s.Load(ctx, key)
	if err != nil || r.Version != known {
		return r, nil, err
	}
	unlock, err := s.tryLock(key)
	if err != nil {
		return auth.Record{}, nil, err
	}
	if unlock != nil {
		// The previous holder may have saved after our Load.
		if r, err = s.Load(ctx, key); err != nil || r.Version != known {
			unlock()
			return r, nil, err
		}
	}
	return auth.Record{Version: known}, unlock, nil
}

// Lock implements [auth.Store].
func (s *store) Lock(ctx context.Context, key string) (func(), error) {
	return poll(ctx, s.path(key, ".lock"), 10*time.Millisecond, s.beat/5, func() (func(), error) { return s.tryLock(key) })
}

// tryLock takes key's lock, unless a responsive process holds it. unlock is nil if it does.
func (s *store) tryLock(key string) (unlock func(), err error) {
	first, err := tryLockFile(s.path(key, ".lock"))
	if err != nil || first == nil && !s.unresponsive(key) {
		return nil, err
	}
	next, err := tryLockFile(s.path(key, ".next.lock"))
	takeover := first == nil || next == nil
	if err != nil || first == nil && next == nil || takeover && !s.unresponsive(key) {
		unlockAll(first, next)
		return nil, err
	}
	stop, err := s.startBeating(key, takeover)
	if err != nil {
		unlockAll(first, next)
		return nil, err
	}
	if !takeover {
		unlockAll(next)
	}
	return sync.OnceFunc(func() {
		stop()
		unlockAll(first, next)
	}), nil
}

// An observation is what a waiter knows of the holder of a lock.
type observation struct {
	alive     string // content of KEY.alive
	readAt    time.Time
	unchanged time.Duration // how long the content has not changed
}

// unresponsive reports whether KEY.alive has not changed for takeoverBeats. Without KEY.alive it is
// false: the holder is an older version, which does not write one.
func (s *store) unresponsive(key string) bool {
	alive, err := readFile(s.path(key, ".alive"))
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		delete(s.observed, key)
		return false
	}
	now := time.Now()
	o := s.observed[key]
	gap := now.Sub(o.readAt)
	if string(alive) != o.alive || gap > maxGapBeats*s.beat {
		s.observed[key] = observation{alive: string(alive), readAt: now}
		return false
	}
	// A longer gap counts as one beat: this process did not run, and perhaps the holder did not either.
	o.unchanged += min(gap, s.beat)
	o.readAt = now
	s.observed[key] = o
	return o.unchanged >= takeoverBeats*s.beat
}

// startBeating writes KEY.alive at each beat until stop is called. stop removes the file, unless another
// process has written it since. After a takeover it does not remove it either: the old holder may still
// have its file locked, and could not be taken over again without KEY.alive.
func (s *store) startBeating(key string, takeover bool) (stop func(), err error) {
	path, id := s.path(key, ".alive"), rand.Text()
	if err := writeAlive(path, id, 0); err != nil {
		return nil, fmt.Errorf("%w: %w", auth.ErrStore, err)
	}
	ended := make(chan struct{})
	var beating sync.WaitGroup
	beating.Go(func() {
		ticker := time.NewTicker(s.beat)
		defer ticker.Stop()
		for n := 1; ; n++ {
			select {
			case <-ticker.C:
				_ = writeAlive(path, id, n) // an error is retried at the next beat
			case <-ended:
				return
			}
		}
	})
	return func() {
		close(ended)
		beating.Wait()
		if takeover {
			return
		}
		if alive, err := readFile(path); err == nil && bytes.HasPrefix(alive, []byte(id)) {
			os.Remove(path)
		}
	}, nil
}

// writeAlive overwrites the file in place, which works on a full disk too.
func writeAlive(path, id string, n int) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%s %010d\n", id, n)
	return errors.Join(err, f.Close())
}

// readFile reads a regular file. Of a named pipe it returns an error, and does not wait for a writer.
func readFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(err, fmt.Errorf("%s is not a regular file", path))
	}
	return io.ReadAll(f)
}

// tryLockFile locks a file. unlock is nil if it is locked already, and may be called more than once.
func tryLockFile(path string) (unlock func(), err error) {
	l := flock.New(path, flock.SetFlag(os.O_RDWR|os.O_CREATE))
	if ok, err := l.TryLock(); err != nil {
		return nil, lockError(path, err)
	} else if !ok {
		return nil, nil
	}
	return func() { l.Unlock() }, nil
}

// poll calls try until it returns an unlock or ctx ends. Between calls it waits, first for wait, then
// longer, up to maxWait. path is for errors.
func poll(ctx context.Context, path string, wait, maxWait time.Duration, try func() (func(), error)) (unlock func(), err error) {
	for ; ; wait = min(2*wait, maxWait) {
		if err := ctx.Err(); err != nil {
			return nil, lockError(path, err)
		}
		if unlock, err := try(); unlock != nil || err != nil {
			return unlock, err
		}
		select {
		case <-time.After(wait/2 + mathrand.N(wait/2)):
		case <-ctx.Done():
		}
	}
}

func lockError(path string, err error) error {
	return fmt.Errorf("%w: locking %s: %w", auth.ErrStore, path, err)
}

// unlockAll calls the unlocks that are not nil.
func unlockAll(unlocks ...func()) {
	for _, unlock := range unlocks {
		if unlock != nil {
			unlock()
		}
	}
}
