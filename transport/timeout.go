package transport

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Time. `timeout` is for the call, until the headers of its answer; a body that flows, up or down, does
// not count. `attempt_timeout` is the longest silence: until the headers it ends an attempt, later the
// call. All that passes only notes when it did, and one timer looks at that: a timer set for each
// piece of it, or net/http's own for the headers, costs as much as the rest of the call.

// timeoutError is a limit that was passed.
type timeoutError struct {
	what    string
	attempt bool // which is over, and not the call
}

func (e timeoutError) Error() string        { return e.what }
func (e timeoutError) Timeout() bool        { return true }
func (e timeoutError) Temporary() bool      { return true }
func (e timeoutError) Is(target error) bool { return target == context.DeadlineExceeded }

// clock is the time since the call began, never 0.
func (c *call) clock() int64 { return int64(time.Since(c.began)) + 1 }

// attempt is the context of one, which leads to its call.
type attempt struct {
	context.Context
	call *call
}

type callKey struct{}

func (a *attempt) Value(key any) any {
	if key == (callKey{}) {
		return a.call
	}
	return a.Context.Value(key)
}

// due is by when the call, begun now, has to have its headers. What a client sends for a redirect has
// the time that is left, if its response is as it left here; but once, as whoever finds the request in
// a response may send it again.
func (c *call) due(now time.Time) int64 {
	if led := c.req.Response; led != nil {
		if d, ok := led.Body.(*download); ok {
			d.c.uploaded()
			if due := d.c.deadline.Swap(0); due != 0 {
				return due
			}
		}
	}
	return now.Add(c.t.o.Timeout).UnixNano()
}

// begin gives the next attempt a context of its own.
func (c *call) begin() {
	ctx, cancel := context.WithCancelCause(c.req.Context())
	next := &c.first
	if next.call != nil {
		next = new(attempt)
	}
	*next = attempt{ctx, c}
	c.drawn = 0
	c.dialed.Store(nil)
	c.upstart.Store(0)
	c.answered.Store(false)
	c.silent.Store(0) // an early answer leaves the upload's; the waits before send are no silence
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cancel != nil {
		c.cancel(nil)
	}
	c.ctx, c.cancel = next, cancel
	if c.timer == nil {
		c.timer = time.AfterFunc(min(c.t.o.Timeout, c.t.o.AttemptTimeout), c.expire)
		if c.req.Response == nil { // all of timeout is left
			return
		}
	}
	c.look()
}

func (c *call) late() error {
	return timeoutError{what: fmt.Sprintf("no response within %s (timeout)", c.t.o.Timeout)}
}

// expire is the timer's.
func (c *call) expire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.look()
}

// look ends what has passed its limit, or sees when to look again. c.mu is held.
func (c *call) look() {
	if c.ended {
		return
	}
	limit := c.t.o.AttemptTimeout
	left := limit
	if since := c.silent.Load(); since != 0 {
		left -= time.Duration(c.clock() - max(since, int64(c.dialed.Load().flowed(limit).Sub(c.began))))
	}
	flows := c.answered.Load() || c.upstart.Load() != 0
	due := time.Duration(c.deadline.Load() - time.Now().UnixNano())
	switch {
	case flows && left <= 0:
		c.cancel(timeoutError{fmt.Sprintf("the body did not flow for %s (attempt_timeout)", limit), c.answered.Load()})
		return
	case flows:
	case due <= 0:
		c.cancel(c.late())
		return
	case left <= 0:
		c.cancel(timeoutError{fmt.Sprintf("silence for %s (attempt_timeout)", limit), true})
		left = min(limit, due)
	default:
		left = min(left, due)
	}
	c.timer.Reset(left)
}

// fellSilent reports whether the attempt was ended by its silence, which need not end the call.
func (c *call) fellSilent() bool {
	var t timeoutError
	return c.ctx.Err() != nil && errors.As(context.Cause(c.ctx), &t) && t.attempt
}

// flowing notes that a piece of the request's body is on its way.
func (c *call) flowing() {
	if c.upstart.Load() == 0 && !c.answered.Load() {
		c.upstart.Store(time.Now().UnixNano())
	}
	c.stir()
}

// uploaded notes that the body has been handed over, or how far it has. Its time does not count
// against timeout.
func (c *call) uploaded() {
	if start := c.upstart.Swap(0); start != 0 {
		c.deadline.Add(time.Now().UnixNano() - start)
		c.stir()
	}
}

// stir notes that there is no silence, if there might have been.
func (c *call) stir() {
	if since := c.silent.Load(); since != 0 {
		c.silent.CompareAndSwap(since, c.clock())
	}
}
