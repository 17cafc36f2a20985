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

// Window implements [auth.Windower], by the clock of this machine.
func (s *store) Window(key string, limits []auth.Limit, hold time.Duration) auth.Window {
	return &window{
		s: s, path: s.path(key, ".window"), limits: slices.Clone(limits), hold: hold,
		process: rand.Int64(), turn: make(chan struct{}, 1),
	}
}

type window struct {
	s       *store
	path    string
	limits  []auth.Limit
	hold    time.Duration
	process int64
	turn    chan struct{} // full while a goroutine uses file
	file    windowFile
}

// Take implements [auth.Window]. Of more than 128 processes that asked in a minute, 128 are counted.
func (w *window) Take(ctx context.Context, id string) (wait time.Duration, processes int, err error) {
	if err := ctx.Err(); err != nil {
		return 0, 0, lockError(w.path, err)
	}
	err = w.update(ctx, func(now int64) error {
		processes = w.file.meet(w.process, now)
		s := slot{number(id), now + w.hold.Microseconds(), w.hold.Microseconds()}
		if w.file.find(s.id) >= 0 {
			return nil
		}
		us, err := w.file.wait(w.limits, now)
		if us > 0 || err != nil {
			wait = time.Duration(us) * time.Microsecond
			return err
		}
		return w.file.take(s)
	})
	if err != nil {
		return 0, 0, err
	}
	return wait, processes, nil
}

// Release implements [auth.Window].
func (w *window) Release(id string, sent bool) {
	release := func(now int64) error { return w.file.release(number(id), sent, now) }
	once, cancel := context.WithCancel(context.Background())
	cancel()
	if err := w.update(once, release); errors.Is(err, context.Canceled) {
		// Another goroutine or process has the file. After its hold the slot counts as received anyway.
		w.s.background(w.hold, func(ctx context.Context) { _ = w.update(ctx, release) })
	}
}

// update runs f on the file while no other goroutine and no other process uses it. If ctx has ended,
// it does so only if it need not wait.
func (w *window) update(ctx context.Context, f func(now int64) error) (err error) {
	lock := w.path + ".lock"
	select {
	case w.turn <- struct{}{}:
	default:
		select {
		case w.turn <- struct{}{}:
		case <-ctx.Done():
			return lockError(lock, ctx.Err())
		}
	}
	defer func() { <-w.turn }()
	unlock, err := try(lock)
	if unlock == nil && err == nil {
		unlock, err = poll(ctx, lock, 50*time.Microsecond, 10*time.Millisecond, func() (func(), error) { return try(lock) })
	}
	if err != nil {
		return err
	}
	defer unlock()
	if err := w.file.update(w.path, w.limits, f); err != nil {
		return fmt.Errorf("%w: %w", auth.ErrStore, err)
	}
	return nil
}

// number is the id as the file has it.
func number(id string) int64 {
	sum := sha256.Sum256([]byte(id))
	return int64(binary.LittleEndian.Uint64(sum[:]))
}
