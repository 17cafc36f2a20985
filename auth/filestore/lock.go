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

// A process holds a key's lock while it has KEY.lock locked and rewrites KEY.alive once a beat. The
// system frees KEY.lock when its process ends, however it ends. A process that was stopped keeps
// it. Others see that by KEY.alive, which then does not change any more, and one of them goes on
// with KEY.next.lock in place of KEY.lock. The stopped process does no harm when it wakes up: what
// it saves has to follow the version that it has read.
//
// A process begins to hold the lock only while it has both files locked, or one of them and the
// holder of the other shows no life. It writes KEY.alive before it lets go of the file that it
// does not need, so that no other process can take a lock that is new for one without life.

const (
	// beat is how often a holder rewrites KEY.alive.
	beat = time.Second
	// lifelessBeats is after how many beats without a change a holder is passed over.
	lifelessBeats = 5
	// forgetBeats is how many beats without a look end what a waiter knows of the holder.
	forgetBeats = 2
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
		// The holder before us may have saved after we looked.
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

// tryLock takes key's lock unless a living process holds it; unlock is nil then.
func (s *store) tryLock(key string) (unlock func(), err error) {
	first, err := try(s.path(key, ".lock"))
	if err != nil || first == nil && !s.lifeless(key) {
		return nil, err
	}
	next, err := try(s.path(key, ".next.lock"))
	passing := first == nil || next == nil
	if err != nil || first == nil && next == nil || passing && !s.lifeless(key) {
		free(first, next)
		return nil, err
	}
	stop, err := s.live(key, passing)
	if err != nil {
		free(first, next)
		return nil, err
	}
	if !passing {
		free(next)
	}
	return sync.OnceFunc(func() {
		stop()
		free(first, next)
	}), nil
}

// A sighting is what a waiter knows of the holder of a lock.
type sighting struct {
	alive     string        // what KEY.alive held
	at        time.Time     // when it was read last
	unchanged time.Duration // how long it has not changed
}

// lifeless reports whether the holder of key's lock has shown no life for so long that it is passed
// over. Without KEY.alive the holder is of an older version, which writes none.
func (s *store) lifeless(key string) bool {
	alive, err := readFile(s.path(key, ".alive"))
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		delete(s.seen, key)
		return false
	}
	now := time.Now()
	old := s.seen[key]
	gap := now.Sub(old.at)
	if string(alive) != old.alive || gap > forgetBeats*s.beat {
		s.seen[key] = sighting{alive: string(alive), at: now}
		return false
	}
	// In a longer gap this process did not run, and maybe the holder neither.
	old.unchanged += min(gap, s.beat)
	old.at = now
	s.seen[key] = old
	return old.unchanged >= lifelessBeats*s.beat
}

// live writes KEY.alive, again and again until stop is called. stop removes it, unless another
// process has written it since, or passing is set: the process that was passed over may still have
// its file locked, and without KEY.alive it would not be passed over again.
func (s *store) live(key string, passing bool) (stop func(), err error) {
	path, id := s.path(key, ".alive"), rand.Text()
	if err := writeAlive(path, id, 0); err != nil {
		return nil, fmt.Errorf("%w: %w", auth.ErrStore, err)
	}
	ended := make(chan struct{})
	var beating sync.WaitGroup
	beating.Go(func() {
		tick := time.NewTicker(s.beat)
		defer tick.Stop()
		for n := 1; ; n++ {
			select {
			case <-tick.C:
				_ = writeAlive(path, id, n) // what fails is tried again at the next beat
			case <-ended:
				return
			}
		}
	})
	return func() {
		close(ended)
		beating.Wait()
		if passing {
			return
		}
		if alive, err := readFile(path); err == nil && bytes.HasPrefix(alive, []byte(id)) {
			os.Remove(path)
		}
	}, nil
}

// writeAlive overwrites the file in place, which also succeeds on a full disk.
func writeAlive(path, id string, n int) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%s %010d\n", id, n)
	return errors.Join(err, f.Close())
}

// readFile reads a regular file. It does not wait for a writer, as reading a named pipe would.
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

// try locks a file; unlock is nil if it is locked already, and may be called more than once.
func try(path string) (unlock func(), err error) {
	l := flock.New(path, flock.SetFlag(os.O_RDWR|os.O_CREATE))
	if ok, err := l.TryLock(); err != nil {
		return nil, lockError(path, err)
	} else if !ok {
		return nil, nil
	}
	return func() { l.Unlock() }, nil
}

// poll calls try until it gives an unlock or ctx ends, first after the wait given, then with longer
// waits, up to the longest.
func poll(ctx context.Context, path string, wait, longest time.Duration, try func() (func(), error)) (unlock func(), err error) {
	for ; ; wait = min(2*wait, longest) {
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

// free calls those of unlocks that there are.
func free(unlocks ...func()) {
	for _, unlock := range unlocks {
		if unlock != nil {
			unlock()
		}
	}
}
