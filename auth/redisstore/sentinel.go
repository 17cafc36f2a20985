package redisstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// lateAfter is how long a change may take. If it took longer, the master may have been replaced
	// meanwhile, so the Sentinels are asked.
	lateAfter = time.Second
	// confirmTimeout is how long to wait for the Sentinels, and confirmRest for the rest of them after a
	// majority has replied.
	confirmTimeout = 1800 * time.Millisecond
	confirmRest    = 500 * time.Millisecond
	// askInterval is the least time between two requests to the Sentinels in the background.
	askInterval = time.Second
	// forgetAfter is how long a reply's epoch counts: Sentinels that were set up anew begin at 0.
	forgetAfter = 30 * time.Second
)

// sentinels remembers which master the Sentinels named.
//
// A master that hung, or was cut off from the network, may still reply some 10 s after the Sentinels
// named another one. What is written to it then is lost. So the Sentinels are asked again after a lock
// was taken, and after a change that took long. They do not all learn of a failover at the same time:
// the reply with the highest epoch counts.
type sentinels struct {
	mu         sync.Mutex
	newest     sentinelReply
	acceptedAt time.Time
	askedAt    time.Time // in the background
}

type sentinelReply struct {
	addr  string // of the master
	epoch int    // grows with each failover; 0 if the user may not read it
	err   error
}

// accept reports whether r is not outdated. If so, r is the newest reply now.
func (s *sentinels) accept(r sentinelReply) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.epoch < s.newest.epoch && time.Since(s.acceptedAt) < forgetAfter {
		return false
	}
	s.newest, s.acceptedAt = r, time.Now()
	return true
}

// demoted reports whether the newest reply names another master than p's server.
func (d *dialer) demoted(p *pool) bool {
	if p == nil || p.master.Load() == nil {
		return false
	}
	d.sentinels.mu.Lock()
	defer d.sentinels.mu.Unlock()
	newest := d.sentinels.newest.addr
	return newest != "" && newest != *p.master.Load()
}

// startAsking reports whether to ask the Sentinels in the background: at most once in askInterval.
func (s *sentinels) startAsking() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.askedAt) < askInterval {
		return false
	}
	s.askedAt = time.Now()
	return true
}

// askAll asks all Sentinels for the master and remembers their replies.
func (d *dialer) askAll(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, confirmTimeout)
	defer cancel()
	replies := 0
	for r := range d.sentinelReplies(ctx) {
		if r.err != nil {
			continue
		}
		d.sentinels.accept(r)
		if replies++; replies == len(d.addrs)/2+1 {
			defer time.AfterFunc(confirmRest, cancel).Stop()
		}
	}
}

// confirmMaster asks the Sentinels, and returns errFailover if they name another master than p's. If
// none replies, p's server counts as the master.
func (d *dialer) confirmMaster(ctx context.Context, p *pool) error {
	if d.masterName == "" {
		return nil
	}
	if d.askAll(ctx); d.demoted(p) {
		return errFailover
	}
	return nil
}

// askInBackground asks the Sentinels, so that operations notice when there is another master.
func (c *client) askInBackground() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d := c.dialer; !c.closed && d.masterName != "" && d.sentinels.startAsking() {
		c.running.Go(func() { d.askAll(d.ctx) })
	}
}

// findMaster asks all Sentinels for the master's address and takes the first reply that is not outdated.
func (d *dialer) findMaster(ctx context.Context) (string, error) {
	failed := errFailover
	for r := range d.sentinelReplies(ctx) {
		switch {
		case r.err == nil && d.sentinels.accept(r):
			return r.addr, nil
		case r.err == nil:
		case failed == errFailover, isReply(r.err) && !isReply(failed), errors.Is(r.err, redis.Nil):
			failed = r.err
		}
	}
	return "", failed
}

// sentinelReplies asks all Sentinels at once and yields their replies as they come.
func (d *dialer) sentinelReplies(ctx context.Context) iter.Seq[sentinelReply] {
	return func(yield func(sentinelReply) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		replies := make(chan sentinelReply, len(d.addrs))
		for _, sentinel := range d.addrs {
			go func() { replies <- d.askSentinel(ctx, sentinel) }()
		}
		for range d.addrs {
			if !yield(<-replies) {
				return
			}
		}
	}
}

// askSentinel asks one Sentinel for the master, in one round trip after connecting.
func (d *dialer) askSentinel(ctx context.Context, sentinel string) (r sentinelReply) {
	o := options
	o.Addrs, o.Username, o.Password = []string{sentinel}, d.sentinelUsername, d.sentinelPassword
	o.Dialer = func(_ context.Context, network, addr string) (net.Conn, error) {
		return d.connect(ctx, network, addr) // go-redis's ctx does not end with ctx
	}
	c := redis.NewClient(o.Simple())
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })() // ending ctx does not end a read
	address := redis.NewStringSliceCmd(ctx, "sentinel", "get-master-addr-by-name", d.masterName)
	all := redis.NewMapStringStringCmd(ctx, "sentinel", "master", d.masterName)
	_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
		_ = p.Process(ctx, address)
		return p.Process(ctx, all)
	})
	at := address.Val()
	if r.err = cmp.Or(address.Err(), err); len(at) == 2 {
		r.err = nil // reading the epoch may have failed: the user may not be allowed to
		r.addr = net.JoinHostPort(at[0], at[1])
		r.epoch, _ = strconv.Atoi(all.Val()["config-epoch"])
	} else if r.err == nil {
		r.err = fmt.Errorf("unexpected reply from the Sentinel %s", sentinel)
	}
	return r
}
