package auth

import "time"

// watchEvery is how often a session with a refresh token at stake looks at its record, used or not:
// for a logout or a login elsewhere, for a store that lost its last write, and to renew a refresh
// token that is halfway through its life.
const watchEvery = 10 * time.Second

// watchLocked sets the timer for the next look, if a refresh token is at stake.
func (c *core) watchLocked() {
	known := c.state.token
	if c.closing.Err() != nil || !c.rules.atStake(known) {
		return
	}
	every := watchEvery
	if known != nil {
		if life := c.refresh.consentLife(known.record); life > 0 {
			every = min(every, life/10)
		}
	}
	c.watcher.Reset(jitter(every))
}

func (c *core) startWatchingLocked() {
	if c.flight != nil && c.flight.reason == offer {
		c.watcher.Reset(jitter(askEvery))
	}
	c.startLocked(watch) // if there is another flight, its end sets the timer again
}

// storeBack is called when a store that failed works again. A token that was obtained without it is
// offered to it.
func (c *core) storeBack() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state.storeBack()
	c.showLocked()
	c.expectOffersLocked()
	c.startOfferingLocked()
}

// expectOffersLocked has the session look for tokens of other processes for three times the store's
// timeout: each process has to notice that the store is back, to look, and to save.
func (c *core) expectOffersLocked() {
	c.state.offersUntil = time.Now().Add(3 * c.store.timeout)
}

// startOfferingLocked offers the current token to the store, or looks for those of others.
func (c *core) startOfferingLocked() {
	if now := time.Now(); c.state.unsettled(now) && c.state.current().valid(now) {
		c.startLocked(offer)
	}
}

// lookForOffersLocked sets the timer for the next look at what others offer after an outage.
func (c *core) lookForOffersLocked() {
	if c.closing.Err() != nil || !c.state.unsettled(time.Now()) || c.store.now().failure != nil { // storeBack is called
		return
	}
	wait := askEvery
	if c.state.unreadable {
		wait = watchEvery
	}
	c.offerer.Reset(jitter(wait))
}

// stoppedTimer returns a timer that calls f with core.mu held.
func (c *core) stoppedTimer(f func()) *time.Timer {
	t := time.AfterFunc(forever, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		f()
	})
	t.Stop()
	return t
}
