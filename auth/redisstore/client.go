package redisstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/itsmauth/itsmauth/auth"
)

// Time in which this process did not run does not count as Redis's silence. So it is counted in ticks
// that the process has seen.
const (
	tick = 50 * time.Millisecond
	// silentTicks is how long an attempt may have no answer before another one begins beside it.
	silentTicks = int(2 * time.Second / tick)
	// doubtTicks is how long until the Sentinels are asked whether there is another master.
	doubtTicks = int(askEvery / tick)
	// refusedTicks is how long a single server may refuse connections before that is believed.
	refusedTicks = int(time.Second / tick)
)

const (
	// ownLimit ends an operation whose caller set no limit at all.
	ownLimit = 5 * time.Second
	// attempts is how many attempts of one operation may be under way, and one more after a failover.
	attempts = 3
	// attemptLimit ends an attempt, and its connection, whether somebody still waits for it or not.
	attemptLimit = 15 * time.Second
	// retryLeast and retryMost bound the wait before what failed in passing is tried again.
	retryLeast = 20 * time.Millisecond
	retryMost  = 200 * time.Millisecond
)

// A client runs operations. Its connections outlive the operations for which they were made, so that
// an operation whose time is too short to connect still leaves a connection for the next one.
type client struct {
	dialer  *dialer
	connect func(dialFunc) redis.UniversalClient

	running sync.WaitGroup // attempts

	mu      sync.Mutex
	closed  bool
	current *pool
	pools   map[*pool]struct{} // current and those that have attempts under way
}

// A pool is connections to one server, or to the nodes of one Cluster.
type pool struct {
	redis    redis.UniversalClient
	dialer   *dialer
	master   atomic.Pointer[string] // the address of its server, where Sentinels name it
	attempts int                    // under way
	answered time.Time              // when Redis last answered
}

// bind reports whether p's connections go to addr. The first one decides.
func (p *pool) bind(addr string) bool {
	return p.master.CompareAndSwap(nil, &addr) || *p.master.Load() == addr
}

// moved reports whether p's server is not the master any more.
func (p *pool) moved() bool {
	if p == nil {
		return false
	}
	addr := p.master.Load()
	return addr != nil && p.dialer.sentinels.replaced(*addr)
}

func newClient(d *dialer, connect func(dialFunc) redis.UniversalClient) *client {
	return &client{dialer: d, connect: connect, pools: map[*pool]struct{}{}}
}

// close ends all connections, and so the attempts that are under way. The dialer has been closed.
func (c *client) close() {
	c.mu.Lock()
	c.closed = true
	for p := range c.pools {
		p.redis.Close()
	}
	c.mu.Unlock()
	c.running.Wait()
}

var errClosed = errors.New("the store is closed")

// begin begins an attempt. The caller ends it with finish and running.Done.
func (c *client) begin() (*pool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errClosed
	}
	if p := c.current; p == nil || p.moved() {
		c.current = c.addPoolLocked()
		c.closeUnusedLocked(p)
	}
	c.current.attempts++
	c.running.Add(1)
	return c.current, nil
}

func (c *client) addPoolLocked() *pool {
	p := &pool{dialer: c.dialer}
	p.redis = c.connect(c.dialer.dial(p))
	c.pools[p] = struct{}{}
	return p
}

// finish ends an attempt. A pool that answers late was slow and not cut off, so it is used again if
// the pool that replaced it has not answered either.
func (c *client) finish(p *pool, answered bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.attempts--
	if answered && !p.moved() {
		p.answered = time.Now()
		if previous := c.current; previous != p && previous.answered.IsZero() {
			c.current = p
			c.closeUnusedLocked(previous)
		}
	}
	c.closeUnusedLocked(p)
}

// replace makes later attempts connect anew, unless p has answered since then. It is for a p whose
// server may be gone without a word, or may have moved.
func (c *client) replace(p *pool, since time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.current != p || p.answered.After(since) {
		return
	}
	c.current = c.addPoolLocked()
	c.closeUnusedLocked(p)
}

func (c *client) closeUnusedLocked(p *pool) {
	if p != nil && p != c.current && p.attempts == 0 {
		delete(c.pools, p)
		p.redis.Close()
	}
}

// An operation calls a function until it succeeds or fails for good.
type operation[T any] struct {
	client *client
	key    string // of the record, for the error if that is not ours
	hold   *hold
	call   func(context.Context, *pool) (T, error)

	ended    chan attempt[T]
	underWay int        // attempts
	newest   attempt[T] // that has begun
	last     error      // why there is no result yet
	again    <-chan time.Time
	wait     time.Duration // before the next try, once one has failed
	ticks    int           // since the operation began
	silent   int           // ticks since the newest attempt began
	refused  int           // ticks when the server began to do nothing but refuse, or -1
}

// An attempt is one call of an operation's function.
type attempt[T any] struct {
	pool  *pool
	begun time.Time
	v     T
	err   error
}

// do runs one operation: call, again and again with jitter while it fails in passing, until ctx ends.
// The caller leaves then, but an attempt that is under way goes on, so that its connection is made. If
// it takes something, h is told what became of it.
func do[T any](ctx context.Context, c *client, key string, h *hold, call func(context.Context, *pool) (T, error)) (v T, err error) {
	if ctx.Done() == nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, ownLimit)
		defer cancel()
	}
	if ctx.Err() != nil {
		return v, &unanswered{errNoAnswer, ctx.Err()}
	}
	o := operation[T]{
		client: c, key: key, hold: h, call: call,
		ended: make(chan attempt[T], attempts+1), wait: retryLeast, refused: -1,
	}
	o.begin()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case a := <-o.ended:
			if o.settles(&a) {
				return a.v, a.err
			}
		case <-o.again:
			o.again = nil
			if o.underWay < attempts {
				o.begin()
			}
		case <-ticker.C:
			o.ticks++
			if o.silent++; o.silent%doubtTicks == 0 {
				c.doubt()
			}
			switch moved := o.newest.pool.moved(); {
			case o.underWay == 0:
			case moved && o.underWay <= attempts:
				o.begin()
			case o.silent >= silentTicks && o.underWay < attempts:
				c.replace(o.newest.pool, o.newest.begun)
				o.begin()
			}
		case <-ctx.Done():
			for len(o.ended) > 0 {
				if a := <-o.ended; o.settles(&a) {
					return a.v, a.err
				}
			}
			if o.last == nil {
				o.last = c.dialer.silence()
			}
			return v, &unanswered{o.last, ctx.Err()}
		}
	}
}

// begin begins an attempt.
func (o *operation[T]) begin() {
	o.underWay++
	o.silent = 0
	p, err := o.client.begin()
	o.newest = attempt[T]{pool: p, begun: time.Now(), err: err}
	if err != nil {
		o.ended <- o.newest
		return
	}
	o.hold.begin()
	go func(a attempt[T]) {
		defer o.client.running.Done()
		ctx, cancel := context.WithTimeout(o.client.dialer.life, attemptLimit)
		defer cancel()
		a.v, a.err = o.call(ctx, a.pool)
		o.hold.end(a.err)
		o.client.finish(a.pool, a.err == nil || isReply(a.err))
		o.ended <- a
	}(o.newest)
}

// settles reports whether a, which has ended, is the operation's result. If so, it has the caller's
// error. Otherwise there will be another attempt.
func (o *operation[T]) settles(a *attempt[T]) bool {
	o.underWay--
	if a.err == nil {
		o.hold.told()
		return true
	}
	cause, c := a.err, o.client
	if c.dialer.life.Err() != nil {
		a.err = fmt.Errorf("%w: %w", auth.ErrStore, errClosed)
		return true
	}
	meaning, passing := c.explain(cause, o.key)
	a.err = fmt.Errorf("%w: %w", auth.ErrStore, meaning)
	switch {
	case !passing:
		return true
	case !errors.Is(cause, syscall.ECONNREFUSED):
		o.refused = -1
	case o.refused < 0:
		o.refused = o.ticks
	case c.dialer.single() && o.ticks-o.refused >= refusedTicks:
		return true
	}
	if o.last == nil || !errors.As(meaning, new(*brokenError)) {
		o.last = meaning
	}
	if isDial(cause) {
		c.replace(a.pool, a.begun)
	}
	if o.again == nil {
		o.again = time.After(o.wait/2 + rand.N(o.wait))
		o.wait = min(2*o.wait, retryMost)
	}
	return false
}

// unanswered is the error of an operation whose ctx ended before it had a result. It says what Redis
// said last, which tells more than that the time was over.
type unanswered struct{ last, ctx error }

func (e *unanswered) Error() string   { return fmt.Sprintf("%s: %s", auth.ErrStore, e.last) }
func (e *unanswered) Unwrap() []error { return []error{auth.ErrStore, e.last, e.ctx} }

// A hold is a lock or a slot that scripts take for one id. An attempt whose caller has left may take
// it later, or once more after it was given back. Then it is given back again, when the last attempt
// has ended. A nil hold is an operation that takes nothing.
type hold struct {
	mu       sync.Mutex
	attempts int    // under way
	loose    int    // attempts that have ended and may have taken it unknown to the caller
	giveBack func() // called when the last attempt has ended, if some are loose
}

func (h *hold) begin() {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.attempts++
}

func (h *hold) end(err error) {
	if h == nil {
		return
	}
	h.mu.Lock()
	h.attempts--
	if err == nil || !isReply(err) && !isDial(err) {
		h.loose++
	}
	giveBack := h.giveBack
	if h.attempts > 0 || h.loose == 0 {
		giveBack = nil
	}
	h.mu.Unlock()
	if giveBack != nil {
		giveBack()
	}
}

// told notes that the caller knows the result of one attempt.
func (h *hold) told() {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.loose--
}

// release gives back what the caller has held: now, and if an attempt under way takes it once more.
func (h *hold) release(giveBack func()) {
	h.mu.Lock()
	h.giveBack = giveBack
	h.mu.Unlock()
	giveBack()
}

// abandon gives back what the caller was not told to hold, if an attempt has taken it or does so later.
func (h *hold) abandon(giveBack func()) {
	h.mu.Lock()
	h.giveBack = giveBack
	now := h.attempts == 0 && h.loose > 0
	h.mu.Unlock()
	if now {
		giveBack()
	}
}

// unsettled reports whether attempts are under way.
func (h *hold) unsettled() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.attempts > 0
}
