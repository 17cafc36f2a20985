package auth

import (
	"context"
	"math"
	"sync"
	"time"

	"golang.org/x/oauth2"
)

// A flight is a running task, for the callers who wait for what comes of it.
type flight struct {
	*task
	answered chan struct{}
	done     chan struct{} // its save is finished as well
	stuck    chan struct{} // its save has failed for long, and is tried again
	once     sync.Once     // of answer
	unlock   func()        // frees the store's lock while the flight has it

	// Of a login or a logout, else nil.
	lockCtx context.Context // the lock is waited for until it ends
	redeem  func(context.Context) (*oauth2.Token, error)
	giveUp  <-chan struct{} // closed when a login that is not saved is lost

	// What came of it, to be read once answered is closed.
	snap  *snapshot
	renew bool // snap is stale already
	err   error

	saving error // how the save failed, once stuck is closed
}

func newFlight(t *task) *flight {
	return &flight{task: t, answered: make(chan struct{}), done: make(chan struct{}), stuck: make(chan struct{})}
}

// answer lets those go who wait for f's outcome.
func (f *flight) answer() { f.once.Do(func() { close(f.answered) }) }

// startBackground starts an exchange that replaces a stale token.
func (c *core) startBackground() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if int64(time.Since(c.epoch)) >= c.next.Load() {
		c.startLocked(stale)
	}
}

// startLocked starts a flight, unless there is one or the session is closed.
func (c *core) startLocked(why reason) {
	if c.flight != nil || !c.startWorkLocked() {
		return
	}
	c.flight = newFlight(c.state.want(time.Now(), why))
	c.showLocked()
	go c.run(c.flight)
}

// showLocked makes visible to Token what the state says.
func (c *core) showLocked() {
	c.current.Store(c.state.current())
	next := c.state.backgroundAfter.Sub(c.epoch)
	if c.flight != nil {
		next = math.MaxInt64
	}
	c.next.Store(int64(next))
}
