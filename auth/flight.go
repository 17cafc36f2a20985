package auth

import (
	"errors"
	"math"
	"sync"
	"time"
)

// flight is the one exchange of a session: whoever needs its outcome waits for it.
type flight struct {
	kind     flightKind
	login    bool            // a person has just given consent
	giveUp   <-chan struct{} // closed when a login that is not saved is lost; or nil
	held     error           // a remembered failure: look at the store, but do not exchange
	last     *snapshot       // what is to be replaced
	forced   bool            // because last, which there is, was refused
	seen     news            // of the record as last seen
	next     int64           // what the session's next was before
	answered chan struct{}
	done     chan struct{} // its save is finished as well
	stuck    chan struct{} // its save failed, and is repeated
	once     sync.Once     // of answer

	// What came of it, to be read once answered is closed.
	snap    *snapshot
	adopted bool // from the store
	renew   bool // it is stale already
	err     error
	saving  error // how the save failed, once stuck is closed
}

type flightKind int

const (
	foreground flightKind = iota // somebody waits
	background                   // the current token is stale
	watching                     // a refresh token is at stake
	looking                      // the token is refused; another exchange would do no good, but somebody else's may
	offering                     // the current token was obtained without the store, which works again
)

// answer lets those go who wait for f's outcome.
func (f *flight) answer() { f.once.Do(func() { close(f.answered) }) }

func newFlight() *flight {
	return &flight{answered: make(chan struct{}), done: make(chan struct{}), stuck: make(chan struct{})}
}

// startBackground starts an exchange that nobody waits for.
func (c *core) startBackground() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Now().UnixNano() >= c.next.Load() {
		c.start(background)
	}
}

// start begins a flight, unless there is one or the session is closed. c.mu is held.
func (c *core) start(kind flightKind) {
	if c.flight != nil || !c.begun() {
		return
	}
	f := newFlight()
	f.kind, f.last = kind, c.last
	f.forced = c.last != nil && c.last.record.AccessToken != "" && c.current.Load() == nil
	switch now := time.Now(); {
	case kind == foreground && now.Before(c.failure.until) && !errors.Is(c.failure.err, ErrStore), // the store is asked each time
		kind == background && now.Before(c.failure.next):
		f.held = c.failure.err
	case kind == looking, kind == offering, kind == watching && now.Before(c.failure.next):
		f.held = errNotDue
	}
	c.flight = f
	f.next = c.next.Swap(math.MaxInt64)
	go c.run(f)
}

func (c *core) run(f *flight) {
	defer c.over()
	err := c.obtain(c.life, f)

	log := func() {}
	c.mu.Lock()
	defer func() { c.mu.Unlock(); log() }() // a handler may want a token
	c.flight = nil
	switch {
	case f.snap == nil:
		f.err = err
		log = c.failed(f)
	case f.renew:
		c.start(background) // before the answer, which may be all that a command line asks for
	}
	f.answer()
	close(f.done)
	c.settle()
	if f.kind != offering {
		c.watch()
	}
}

// publish makes snap the current token, forgets failures before it, and answers the flight, unless that ends with it.
func (c *core) publish(f *flight, snap *snapshot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	snap.forced = f.forced
	if f.forced && f.last.record.AccessToken == snap.record.AccessToken {
		c.forced.fail()
		snap.forced = false // and is counted
	}
	if !f.adopted || snap.record.news() != c.failure.seen { // else it is known, and failed since
		c.failure = failure{}
	}
	if f.adopted {
		c.alone = false
	}
	c.last = snap
	c.current.Store(snap)
	// Not sooner, whatever the lifetime: an endpoint that hands out the same token until its end
	// would be asked ever faster.
	next := time.Now().Add(min(time.Second, snap.record.Lifetime/5))
	if c.failure.next.After(next) {
		next = c.failure.next
	}
	c.next.Store(next.UnixNano())
	f.renew = f.adopted && time.Now().UnixNano() >= snap.stale
	if f.snap = snap; !f.renew {
		f.answer()
	}
}

// watchEvery is how often a session with a refresh token at stake looks at its record, used or not:
// for a logout or a login elsewhere, for a store that lost its last write, and to renew a refresh
// token that is halfway through its life.
const watchEvery = 10 * time.Second

var errNotDue = errors.New("not due")

// watch sets the timer for the next look, if a refresh token is at stake. c.mu is held.
func (c *core) watch() {
	if c.closing.Err() != nil || !c.atStake(c.last) {
		return
	}
	every := watchEvery
	if c.last != nil {
		if life := c.consentLife(c.last.record); life > 0 {
			every = min(every, life/10)
		}
	}
	if every = less(every); c.watcher == nil {
		c.watcher = time.AfterFunc(every, c.startWatching)
		return
	}
	c.watcher.Reset(every)
}

func (c *core) startWatching() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flight != nil && c.flight.kind == offering {
		c.watcher.Reset(less(askEvery))
	}
	c.start(watching) // if there is another flight, its end sets the timer again
}

// due reports whether r's refresh token is halfway through its life. One that does not rotate stays
// so, and is not used again at once.
func (c *core) due(r tokenRecord) bool {
	life := c.consentLife(r)
	return life > 0 && time.Since(r.Refreshed) >= life/2 && time.Since(r.Obtained) >= life/10
}
