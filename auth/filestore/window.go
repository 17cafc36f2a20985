package filestore

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

// Window implements [auth.Windower]. It uses the clock of this machine. The file stays open until the
// window is garbage.
func (s *store) Window(key string, limits []auth.Limit, hold time.Duration) auth.Window {
	return &window{
		s: s, name: name(key) + ".window", limits: slices.Clone(limits), hold: hold,
		process: rand.Int64(), mu: make(chan struct{}, 1),
	}
}

type window struct {
	s       *store
	name    string
	limits  []auth.Limit
	hold    time.Duration
	process int64
	mu      chan struct{} // guards file; a mutex that a context can interrupt
	file    windowFile
}

// Take implements [auth.Window]. It counts at most 128 processes.
func (w *window) Take(ctx context.Context, id string) (wait time.Duration, processes int, err error) {
	if err := ctx.Err(); err != nil {
		return 0, 0, lockError(w.s.join(w.name), err)
	}
	err = w.update(ctx, func(now int64) error {
		processes = w.file.countProcess(w.process, now)
		s := slot{hashID(id), now + w.hold.Microseconds(), w.hold.Microseconds()}
		if w.file.find(s.id) >= 0 {
			return nil
		}
		us, err := w.file.wait(w.limits, now)
		if us > 0 || err != nil {
			wait = time.Duration(us) * time.Microsecond
			return err
		}
		return w.file.addSlot(s)
	})
	if err != nil {
		return 0, 0, err
	}
	return wait, processes, nil
}

// Release implements [auth.Window].
func (w *window) Release(id string, sent bool) {
	release := func(now int64) error { return w.file.release(hashID(id), sent, now) }
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	if err := w.update(canceled, release); errors.Is(err, context.Canceled) {
		// Another goroutine or process is using the file. After hold, the slot expires anyway.
		w.s.goBackground(w.hold, func(ctx context.Context) { _ = w.update(ctx, release) })
	}
}

// update runs f while this goroutine alone uses the file. If ctx has ended, it does not wait for the file,
// but still runs f if nothing else uses it.
func (w *window) update(ctx context.Context, f func(now int64) error) error {
	select {
	case w.mu <- struct{}{}:
	default:
		select {
		case w.mu <- struct{}{}:
		case <-ctx.Done():
			return lockError(w.s.join(w.name), ctx.Err())
		}
	}
	defer func() { <-w.mu }()
	tryLock := func() (func(), error) { return w.file.tryLock(w.s, w.name) }
	unlock, err := tryLock()
	if unlock == nil && err == nil {
		unlock, err = poll(ctx, w.s.join(w.name), 50*time.Microsecond, 10*time.Millisecond, tryLock)
	}
	if err != nil {
		return err
	}
	defer unlock()
	if err := w.file.update(w.limits, f); err != nil {
		return fmt.Errorf("%w: %w", auth.ErrStore, err)
	}
	return nil
}

// hashID returns the id as it is in the file.
func hashID(id string) int64 {
	sum := sha256.Sum256([]byte(id))
	return int64(binary.LittleEndian.Uint64(sum[:]))
}
