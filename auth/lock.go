package auth

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"
)

const (
	// lockTimeout bounds the wait for the store's lock: longer than its holder can need.
	lockTimeout = 70 * time.Second
	// A store's lock is tried after 10 ms, then less often, and after a second five times a second.
	lockPauseLeast = 10 * time.Millisecond
	lockPauseMost  = 200 * time.Millisecond
)

// lock takes the store's lock, h being the record as last seen. It gives nil, without the lock, once
// enough is true of a record that another process saved. If the store lost last, it is written back
// before anything else.
func (c *core) lock(ctx context.Context, last *snapshot, h held, enough func(tokenRecord) bool) (*held, error) {
	lctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	defer context.AfterFunc(c.closing, func() { // who holds it may be long
		select {
		case <-time.After(closeGrace):
			cancel()
		case <-lctx.Done():
		}
	})()
	wait := c.waitForLock
	if c.store.locker != nil {
		wait = c.tryLock
	}
	if err := wait(lctx, &h, enough); err != nil {
		return nil, err
	}
	if h.unlock == nil {
		return nil, nil
	}
	if c.ahead(last, h.tokenRecord) {
		if err := c.save(ctx, &h, last.record); err != nil {
			h.unlock()
			return nil, err
		}
		c.opts.Logger.Warn("the token store had lost the newest record; it is written back", "connector", c.opts.Connector)
	}
	return &h, nil
}

// tryLock tries until it has the lock, or a record that is enough.
func (c *core) tryLock(ctx context.Context, h *held, enough func(tokenRecord) bool) error {
	pause := lockPauseLeast
	for began := time.Now(); ; {
		r, unlock, err := c.store.tryLock(ctx, c.key, h.version)
		if err != nil || unlock != nil {
			h.unlock = unlock
			return err
		}
		if r.Version != h.version {
			h.version = r.Version
			if h.tokenRecord, err = decodeRecord(r); err != nil || enough(h.tokenRecord) {
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

// waitForLock waits in the store's own way, and meanwhile looks at the record once a second, to see
// what others save and that the store answers.
func (c *core) waitForLock(ctx context.Context, h *held, enough func(tokenRecord) bool) error {
	if err := c.store.gate(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type outcome struct {
		unlock func()
		err    error
	}
	locked, left := make(chan outcome), make(chan struct{})
	defer close(left)
	c.store.spawn(func() {
		unlock, err := c.store.Store.Lock(ctx, c.key)
		select {
		case locked <- outcome{unlock, err}:
		case <-left:
			if err == nil {
				unlock()
			}
		}
	})
	look := time.NewTicker(askEvery)
	defer look.Stop()
	for {
		var o outcome
		select {
		case o = <-locked:
			if o.err != nil {
				return storeError(o.err)
			}
		case <-look.C:
		}
		known, err := h.version, error(nil)
		h.tokenRecord, h.version, err = c.load(ctx)
		switch {
		case o.unlock != nil && err != nil:
			o.unlock()
			return err
		case o.unlock != nil:
			h.unlock = o.unlock
			return nil
		case err != nil || h.version != known && enough(h.tokenRecord):
			return err
		}
	}
}
