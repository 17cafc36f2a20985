package redisstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

const (
	// tick is the unit in which silence is counted: a process that was suspended, or got no CPU, sees few
	// ticks, and does not conclude that Redis is down.
	tick = 50 * time.Millisecond
	// silentTicks is how long an attempt may be without a reply before another one is started.
	silentTicks = int(2 * time.Second / tick)
	// askTicks is how long it may be without a reply before the Sentinels are asked for the master.
	askTicks = int(askInterval / tick)
	// refusedTicks is how long a single server must refuse connections before an operation fails.
	refusedTicks = int(time.Second / tick)

	// defaultTimeout is for operations whose context never ends.
	defaultTimeout = 5 * time.Second
	// maxAttempts is how many attempts of one operation may run at once. A failover allows one more.
	maxAttempts = 3
	// attemptTimeout ends an attempt and its connection, even after its operation has ended.
	attemptTimeout = 15 * time.Second
	// minRetryWait and maxRetryWait bound the wait before a retry.
	minRetryWait = 20 * time.Millisecond
	maxRetryWait = 200 * time.Millisecond
)

// An operation calls a function until it succeeds or fails with an error that is not temporary.
type operation[T any] struct {
	client      *client
	key         string // of the record, for errors
	acquisition *acquisition
	call        func(context.Context, *pool) (T, error)

	ended        chan attempt[T]
	running      int              // attempts
	newest       attempt[T]       // the attempt that was started last
	lastErr      error            // why there is no result yet
	retry        <-chan time.Time // when to start another attempt after a failed one
	retryWait    time.Duration
	ticks        int // since the operation started
	newestTicks  int // since the newest attempt started
	refusedSince int // the tick since which the server has refused all connections, or -1
}

// An attempt is one call of an operation's function.
type attempt[T any] struct {
	pool  *pool
	start time.Time
	v     T
	err   error
}

// do calls call, and retries it with jitter after temporary errors, until ctx ends. Attempts that are
// running then go on, so that their connections are made. a is nil for operations that take nothing.
func do[T any](ctx context.Context, c *client, key string, a *acquisition, call func(context.Context, *pool) (T, error)) (v T, err error) {
	if ctx.Done() == nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, defaultTimeout)
		defer cancel()
	}
	if ctx.Err() != nil {
		return v, &canceledError{errNoReply, ctx.Err()}
	}
	if a == nil {
		a = new(acquisition)
	}
	o := operation[T]{
		client: c, key: key, acquisition: a, call: call,
		ended: make(chan attempt[T], maxAttempts+1), retryWait: minRetryWait, refusedSince: -1,
	}
	o.startAttempt()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case a := <-o.ended:
			if o.finishAttempt(&a) {
				return a.v, a.err
			}
		case <-o.retry:
			o.retry = nil
			if o.running < maxAttempts {
				o.startAttempt()
			}
		case <-ticker.C:
			o.ticks++
			if o.newestTicks++; o.newestTicks%askTicks == 0 {
				c.askInBackground()
			}
			switch {
			case o.running == 0:
			case c.dialer.demoted(o.newest.pool) && o.running <= maxAttempts:
				o.startAttempt()
			case o.newestTicks >= silentTicks && o.running < maxAttempts:
				c.replacePool(o.newest.pool, o.newest.start)
				o.startAttempt()
			}
		case <-ctx.Done():
			for len(o.ended) > 0 {
				if a := <-o.ended; o.finishAttempt(&a) {
					return a.v, a.err
				}
			}
			if o.lastErr == nil {
				o.lastErr = errNoReply
				if c.dialer.handshaking.Load() > 0 { // a Redis without TLS does not reply to it
					o.lastErr = errNoHandshake
				}
			}
			return v, &canceledError{o.lastErr, ctx.Err()}
		}
	}
}

func (o *operation[T]) startAttempt() {
	o.running++
	o.newestTicks = 0
	p, err := o.client.startAttempt()
	o.newest = attempt[T]{pool: p, start: time.Now(), err: err}
	if err != nil {
		o.ended <- o.newest
		return
	}
	o.acquisition.attemptStarted()
	go func(a attempt[T]) {
		defer o.client.running.Done()
		ctx, cancel := context.WithTimeout(o.client.dialer.ctx, attemptTimeout)
		defer cancel()
		a.v, a.err = o.call(ctx, a.pool)
		o.acquisition.attemptEnded(a.err)
		o.client.endAttempt(a.pool, a.err == nil || isReply(a.err))
		o.ended <- a
	}(o.newest)
}

// finishAttempt handles the end of a. If done, a has the operation's result or its error. Otherwise
// another attempt follows.
func (o *operation[T]) finishAttempt(a *attempt[T]) (done bool) {
	o.running--
	if a.err == nil {
		o.acquisition.resultReturned()
		return true
	}
	cause, c := a.err, o.client
	if c.dialer.ctx.Err() != nil {
		a.err = fmt.Errorf("%w: %w", auth.ErrStore, errClosed)
		return true
	}
	meaning, temporary := c.classify(cause, o.key)
	a.err = fmt.Errorf("%w: %w", auth.ErrStore, meaning)
	switch {
	case !temporary:
		return true
	case !errors.Is(cause, syscall.ECONNREFUSED):
		o.refusedSince = -1
	case o.refusedSince < 0:
		o.refusedSince = o.ticks
	case !c.dialer.cluster && c.dialer.masterName == "" && o.ticks-o.refusedSince >= refusedTicks:
		return true
	}
	// Of no reply, or a broken connection, an earlier error says why.
	if o.lastErr == nil || !errors.Is(meaning, errNoReply) && !errors.Is(meaning, errBroken) {
		o.lastErr = meaning
	}
	if isConnectError(cause) {
		c.replacePool(a.pool, a.start)
	}
	if o.retry == nil {
		o.retry = time.After(o.retryWait/2 + rand.N(o.retryWait))
		o.retryWait = min(2*o.retryWait, maxRetryWait)
	}
	return false
}

// A canceledError is the error of an operation whose context ended. Its text is the reason why there
// was no result by then, which says more than the context's error.
type canceledError struct{ reason, ctx error }

func (e *canceledError) Error() string   { return fmt.Sprintf("%s: %s", auth.ErrStore, e.reason) }
func (e *canceledError) Unwrap() []error { return []error{auth.ErrStore, e.reason, e.ctx} }
