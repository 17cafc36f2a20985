package filestore

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	mathrand "math/rand/v2"
	"os"
	"sync"
	"time"

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
	d, err := s.directory()
	if err != nil {
		return auth.Record{}, nil, fmt.Errorf("%w: %w", auth.ErrStore, err)
	}
	r, err := d.load(ctx, key)
	if err != nil || r.Version != known {
		return r, nil, err
	}
	unlock, err := s.tryLock(d, key)
	if err != nil {
		return auth.Record{}, nil, err
	}
	if unlock != nil {
		// The previous holder may have saved after our load.
		if r, err = d.load(ctx, key); err != nil || r.Version != known {
			unlock()
			return r, nil, err
		}
	}
	return auth.Record{Version: known}, unlock, nil
}

// Lock implements [auth.Store].
func (s *store) Lock(ctx context.Context, key string) (func(), error) {
	return poll(ctx, s.join(name(key)+".lock"), 10*time.Millisecond, s.beat/5, func() (func(), error) {
		d, err := s.directory()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", auth.ErrStore, err)
		}
		return s.tryLock(d, key)
	})
}

// tryLock takes key's lock, unless a responsive process holds it. unlock is nil if it does.
func (s *store) tryLock(d *dir, key string) (unlock func(), err error) {
	first, err := d.tryLock(name(key) + ".lock")
	if err != nil {
		return nil, err
	}
	if first == nil {
		if gone, err := s.unresponsive(d, key); !gone {
			return nil, err
		}
	}
	next, err := d.tryLock(name(key) + ".next.lock")
	takeover := first == nil || next == nil
	free := err == nil && (first != nil || next != nil)
	if free && takeover {
		free, err = s.unresponsive(d, key)
	}
	var stop func()
	if free {
		stop, err = s.startBeating(d, key, takeover)
	}
	if stop == nil {
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
func (s *store) unresponsive(d *dir, key string) (bool, error) {
	alive, err := d.read(name(key) + ".alive")
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		delete(s.observed, key)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return false, nil
		}
		return false, fmt.Errorf("%w: %w", auth.ErrStore, err)
	}
	now := time.Now()
	o := s.observed[key]
	gap := now.Sub(o.readAt)
	if string(alive) != o.alive || gap > maxGapBeats*s.beat {
		s.observed[key] = observation{alive: string(alive), readAt: now}
		return false, nil
	}
	// A longer gap counts as one beat: this process did not run, and perhaps the holder did not either.
	o.unchanged += min(gap, s.beat)
	o.readAt = now
	s.observed[key] = o
	return o.unchanged >= takeoverBeats*s.beat, nil
}

// startBeating writes KEY.alive at each beat until stop is called. stop removes the file, unless another
// process has written it since. After a takeover it does not remove it either: the old holder may still
// have its file locked, and could not be taken over again without KEY.alive.
func (s *store) startBeating(d *dir, key string, takeover bool) (stop func(), err error) {
	file, id := name(key)+".alive", rand.Text()
	if err := d.writeAlive(file, id, 0); err != nil {
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
				_ = d.writeAlive(file, id, n) // an error is retried at the next beat
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
		if alive, err := d.read(file); err == nil && bytes.HasPrefix(alive, []byte(id)) {
			_ = d.Remove(file)
		}
	}, nil
}

// writeAlive overwrites the file in place, which works on a full disk too.
func (d *dir) writeAlive(file, id string, n int) error {
	f, _, err := d.open(file, os.O_WRONLY|os.O_CREATE)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%s %010d\n", id, n)
	return errors.Join(err, f.Close())
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
