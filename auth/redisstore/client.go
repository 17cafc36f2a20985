package redisstore

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// A client runs operations. Its connections outlive the operations that made them: an operation whose
// time is too short to connect still leaves a connection for the next one.
type client struct {
	dialer  *dialer
	connect func(dialFunc) redis.UniversalClient

	running sync.WaitGroup // attempts, and background requests to the Sentinels

	mu      sync.Mutex
	closed  bool
	current *pool              // used by new attempts
	pools   map[*pool]struct{} // current, and those with running attempts
}

// A pool is a set of connections to one server, or to the nodes of one Cluster.
type pool struct {
	redis    redis.UniversalClient
	master   atomic.Pointer[string] // with Sentinels: the server's address
	attempts int                    // running
	replied  time.Time              // when Redis last replied
}

// bind reports whether p may connect to addr: all of its connections go to the address of the first.
func (p *pool) bind(addr string) bool {
	return p.master.CompareAndSwap(nil, &addr) || *p.master.Load() == addr
}

func newClient(d *dialer, connect func(dialFunc) redis.UniversalClient) *client {
	return &client{dialer: d, connect: connect, pools: map[*pool]struct{}{}}
}

// close closes all connections, which ends the running attempts. The dialer must be closed before.
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

// startAttempt returns the pool for an attempt. The attempt ends with endAttempt and running.Done.
func (c *client) startAttempt() (*pool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errClosed
	}
	if c.current == nil || c.dialer.demoted(c.current) {
		c.addPoolLocked()
	}
	c.current.attempts++
	c.running.Add(1)
	return c.current, nil
}

func (c *client) addPoolLocked() {
	p := &pool{}
	p.redis = c.connect(c.dialer.dial(p))
	c.pools[p] = struct{}{}
	c.setCurrentLocked(p)
}

func (c *client) setCurrentLocked(p *pool) {
	previous := c.current
	c.current = p
	c.closeUnusedLocked(previous)
}

// endAttempt ends an attempt on p. A late reply shows that p is slow and not dead: p becomes current
// again, unless the pool that replaced it has had a reply too.
func (c *client) endAttempt(p *pool, replied bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.attempts--
	if replied && !c.dialer.demoted(p) {
		p.replied = time.Now()
		if c.current != p && c.current.replied.IsZero() {
			c.setCurrentLocked(p)
		}
	}
	c.closeUnusedLocked(p)
}

// replacePool makes later attempts use new connections, unless p had a reply after since. It is for a
// pool whose server may be dead, or not the master any more.
func (c *client) replacePool(p *pool, since time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed && c.current == p && !p.replied.After(since) {
		c.addPoolLocked()
	}
}

func (c *client) closeUnusedLocked(p *pool) {
	if p != nil && p != c.current && p.attempts == 0 {
		delete(c.pools, p)
		p.redis.Close()
	}
}
