package auth

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"
)

const (
	// lockSlack is how much longer than two exchanges the store's lock is waited for: its holder may wait
	// for another process's exchange before its own.
	lockSlack = 10 * time.Second
	// The lock is tried again after lockPauseLeast, then less often, and after a second each lockPauseMost.
	lockPauseLeast = 10 * time.Millisecond
	lockPauseMost  = 200 * time.Millisecond
)

// lock takes the store's lock, for f.unlock to free. It returns without it as soon as p sees a record
// that is enough.
func (c *core) lock(f *flight, p *protocol) (r tokenRecord, version uint64, err error) {
	ctx, cancel := context.WithTimeout(c.life, 2*c.timeout+lockSlack)
	defer cancel()
	closed, stop := outlasting(c.closing, closeGrace) // the holder may need long
	defer stop()
	defer context.AfterFunc(closed, cancel)()
	if f.lockCtx != nil {
		defer context.AfterFunc(f.lockCtx, cancel)()
	}
	wait := c.waitForLock
	if c.store.locker != nil {
		wait = c.tryLock
	}
	l := locked{p.record, p.version, nil}
	if err = wait(ctx, &l, p); err != nil && f.lockCtx != nil && f.lockCtx.Err() != nil {
		err = fmt.Errorf("%w: waiting for the lock: %w", ErrStore, contextError(f.lockCtx))
	}
	f.unlock = l.unlock
	return l.tokenRecord, l.version, err
}

// locked is the record as last seen, and what frees its lock, or nil without the lock.
type locked struct {
	tokenRecord
	version uint64
	unlock  func()
}

// tryLock is lock for a [TryLocker].
func (c *core) tryLock(ctx context.Context, l *locked, p *protocol) error {
	pause := lockPauseLeast
	for began := time.Now(); ; {
		r, unlock, err := c.store.tryLock(ctx, c.key, l.version)
		if err != nil || unlock != nil {
			l.unlock = unlock
			return err
		}
		if r.Version != l.version {
			l.version = r.Version
			now := time.Now()
			if l.tokenRecord, err = decodeRecord(r, now); err != nil || p.enough(now, l.tokenRecord) {
				return err
			}
			continue
		}
		select {
		case <-time.After(pause + rand.N(pause)):
		case <-ctx.Done():
			return fmt.Errorf("%w: waiting for the lock: %w", ErrStore, contextError(ctx))
		}
		if pause = min(pause*3/2, lockPauseMost/2); time.Since(began) > time.Second {
			pause = lockPauseMost
		}
	}
}

// waitForLock is lock for other stores. It waits in the store's own way, and looks at the record once a
// second, to see what others save and that the store answers.
func (c *core) waitForLock(ctx context.Context, l *locked, p *protocol) error {
	if err := c.store.gate(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	locks, left := start(ctx, c.store, func(ctx context.Context) (func(), error) { return c.store.Store.Lock(ctx, c.key) }, func(unlock func()) { unlock() })
	defer close(left)
	timer := time.NewTicker(askEvery)
	defer timer.Stop()
	for {
		var lock answer[func()]
		select {
		case lock = <-locks:
			if lock.err != nil {
				return storeError(lock.err)
			}
		case <-timer.C:
		}
		known, err := l.version, error(nil)
		l.tokenRecord, l.version, err = c.load(ctx, c.store.Load)
		switch {
		case lock.v != nil && err != nil:
			lock.v()
			return err
		case lock.v != nil:
			l.unlock = lock.v
			return nil
		case err != nil || l.version != known && p.enough(time.Now(), l.tokenRecord):
			return err
		}
	}
}
