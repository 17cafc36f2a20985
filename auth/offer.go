package auth

import (
	"context"
	"errors"
	"time"
)

// unsaved notes that the current token is not in the store, and reports whether that is news.
func (c *core) unsaved() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	news := !c.alone
	c.alone = true
	return news
}

// saved notes that the store has the current token.
func (c *core) saved() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.alone = false
}

// storeBack is called when a store that failed works again: what only failed for the store is tried
// at once, and a token that was obtained without it is offered to it.
func (c *core) storeBack() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if errors.Is(c.failure.err, ErrStore) {
		c.failure = failure{}
		if c.flight == nil {
			c.next.Store(0)
		}
	}
	c.keepLooking()
	c.startOffering()
}

// keepLooking has the session look for the tokens that others offer, for three times the store's
// timeout: each of them has to notice that the store is back, to look, and to save. c.mu is held.
func (c *core) keepLooking() { c.settling = time.Now().Add(3 * c.store.timeout) }

// unsettled reports whether other processes may have, or need, another token than this one. c.mu is
// held.
func (c *core) unsettled() bool { return c.alone || time.Now().Before(c.settling) }

// startOffering offers the current token to the store, or looks for those of others. c.mu is held.
func (c *core) startOffering() {
	if c.unsettled() && c.current.Load().valid() {
		c.start(offering)
	}
}

// offer saves the current token, if the store does not have it, unless the store has a newer one,
// which is adopted. It is called again until the store has the token that this process has, and
// the others have had their time to offer theirs.
func (c *core) offer(ctx context.Context, f *flight) error {
	settled := func(r tokenRecord) bool {
		if r.Generation < f.last.record.Generation {
			return false // it never had ours, or a failover lost it
		}
		if !c.adopt(f, r) { // ours, or of no use
			c.saved()
			return true
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.keepLooking()
		return true
	}
	r, version, err := c.look(ctx)
	if err != nil || settled(r) {
		return errNotDue
	}
	h, err := c.lock(ctx, nil, held{tokenRecord: r, version: version}, settled)
	if err != nil || h == nil {
		return errNotDue
	}
	defer h.unlock()
	if c.current.Load() == f.last { // else it was refused meanwhile
		_ = c.save(ctx, h, f.last.record) // the next look tells
		c.mu.Lock()
		defer c.mu.Unlock()
		c.keepLooking()
	}
	return errNotDue
}

// settle sets the timer for the next look at what others offer after an outage. c.mu is held.
func (c *core) settle() {
	wait := askEvery
	if c.unread { // a record that cannot be read
		wait = watchEvery
	}
	switch {
	case c.closing.Err() != nil || !c.unsettled() || c.store.failed(): // storeBack is called
	case c.offerer == nil:
		c.offerer = time.AfterFunc(less(wait), func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.startOffering()
		})
	default:
		c.offerer.Reset(less(wait))
	}
}
