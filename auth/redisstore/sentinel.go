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
	// lateAfter is when a change is answered so late that the master may have been replaced meanwhile.
	lateAfter = time.Second
	// confirmLimit is how long the Sentinels are waited for: confirmMore once most of them have answered.
	confirmLimit = 2500 * time.Millisecond
	confirmMore  = 500 * time.Millisecond
	// askEvery is how often they are asked in the background while a master is in doubt.
	askEvery = time.Second
	// forgetAfter is when what the Sentinels said is forgotten: they may have been set up anew.
	forgetAfter = 30 * time.Second
)

// sentinels is what the Sentinels say of the master.
//
// A master that hung, or was cut off, may answer for some 10 s after they have named another one, and
// lose what it is told then. So they are asked again before a lock counts, and a change that was answered
// late. Some of them learn of a failover later than others: the greatest epoch is the newest.
type sentinels struct {
	mu     sync.Mutex
	newest opinion
	heard  time.Time
	asked  time.Time // in the background
}

// An opinion is what one Sentinel says.
type opinion struct {
	addr  string // of the master
	epoch int    // grows with each failover; 0 if this user may not ask for it
	err   error
}

// believe reports whether o is the newest.
func (s *sentinels) believe(o opinion) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.epoch < s.newest.epoch && time.Since(s.heard) < forgetAfter {
		return false
	}
	s.newest, s.heard = o, time.Now()
	return true
}

// replaced reports whether another server than addr is the master.
func (s *sentinels) replaced(addr string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.newest.addr != "" && s.newest.addr != addr
}

// due reports whether the Sentinels may be asked in the background again.
func (s *sentinels) due() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.asked) < askEvery {
		return false
	}
	s.asked = time.Now()
	return true
}

// hear asks all Sentinels who the master is.
func (d *dialer) hear(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, confirmLimit)
	defer cancel()
	answers := 0
	for o := range d.opinions(ctx) {
		if o.err != nil {
			continue
		}
		d.sentinels.believe(o)
		if answers++; answers == len(d.addrs)/2+1 {
			defer time.AfterFunc(confirmMore, cancel).Stop()
		}
	}
}

// confirm gives errMoved if the Sentinels name another master than p's. Without an answer of theirs it
// is taken for the master: there is no telling.
func (d *dialer) confirm(ctx context.Context, p *pool) error {
	if d.masterName == "" {
		return nil
	}
	if d.hear(ctx); p.moved() {
		return errMoved
	}
	return nil
}

// doubt asks the Sentinels in the background, for operations to go to another master if there is one.
func (c *client) doubt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d := c.dialer; !c.closed && d.masterName != "" && d.sentinels.due() {
		c.running.Go(func() { d.hear(d.life) })
	}
}

// master asks all Sentinels for the master's address and takes the first answer that is not outdated.
func (d *dialer) master(ctx context.Context) (string, error) {
	failed := errMoved
	for o := range d.opinions(ctx) {
		switch {
		case o.err == nil && d.sentinels.believe(o):
			return o.addr, nil
		case o.err == nil:
		case failed == errMoved, isReply(o.err) && !isReply(failed), errors.Is(o.err, redis.Nil):
			failed = o.err
		}
	}
	return "", failed
}

// opinions asks all Sentinels, and gives their answers as they come.
func (d *dialer) opinions(ctx context.Context) iter.Seq[opinion] {
	return func(yield func(opinion) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		answers := make(chan opinion, len(d.addrs))
		for _, sentinel := range d.addrs {
			go func() { answers <- d.ask(ctx, sentinel) }()
		}
		for range d.addrs {
			if !yield(<-answers) {
				return
			}
		}
	}
}

// ask asks one Sentinel, in one round trip once it is connected.
func (d *dialer) ask(ctx context.Context, sentinel string) (o opinion) {
	c := redis.NewClient(&redis.Options{
		Addr:             sentinel,
		Username:         d.sentinelUsername,
		Password:         d.sentinelPassword,
		Dialer:           d.connect,
		Protocol:         2,
		DisableIdentity:  true,
		DialTimeout:      attemptLimit,
		DialerRetries:    1,
		ReadTimeout:      attemptLimit,
		WriteTimeout:     attemptLimit,
		MaxRetries:       -1,
		PipelinePoolSize: -1,
	})
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })() // a read does not end with ctx
	address := redis.NewStringSliceCmd(ctx, "sentinel", "get-master-addr-by-name", d.masterName)
	all := redis.NewMapStringStringCmd(ctx, "sentinel", "master", d.masterName)
	_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
		_ = p.Process(ctx, address)
		return p.Process(ctx, all)
	})
	at := address.Val()
	if o.err = cmp.Or(address.Err(), err); len(at) == 2 {
		o.err = nil // err may be that the epoch is not for this user
		o.addr = net.JoinHostPort(at[0], at[1])
		o.epoch, _ = strconv.Atoi(all.Val()["config-epoch"])
	} else if o.err == nil {
		o.err = fmt.Errorf("unexpected answer of the Sentinel %s", sentinel)
	}
	return o
}
