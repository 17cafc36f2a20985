package transport

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Two limits, one timer. `timeout` runs until the response headers, without the time of an upload.
// `attempt_timeout` limits each silence: before the headers it ends the attempt, after them the call.
// Reads and writes store a timestamp, which the timer compares: a timer for each read, or net/http's own
// for the headers, costs as much as the rest of the call.

// timeoutError says which limit was exceeded.
type timeoutError struct {
	what    string
	attempt bool // ends the attempt, not the call
}

func (e timeoutError) Error() string        { return e.what }
func (e timeoutError) Timeout() bool        { return true }
func (e timeoutError) Temporary() bool      { return true }
func (e timeoutError) Is(target error) bool { return target == context.DeadlineExceeded }

// clock returns the time since the call began in ns, never 0.
func (c *call) clock() int64 { return int64(time.Since(c.began)) + 1 }

// attempt is the context of one attempt; Value finds its call.
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

// headerDeadline returns when headers are due. A redirect inherits what is left of the redirecting call,
// found through the response body that we returned. It is taken once: the caller may send resp.Request
// again later.
func (c *call) headerDeadline(now time.Time) int64 {
	if led := c.req.Response; led != nil {
		if d, ok := led.Body.(*returnedBody); ok {
			d.c.creditUpload()
			if due := d.c.deadline.Swap(0); due != 0 {
				return due
			}
		}
	}
	return now.Add(c.t.o.Timeout).UnixNano()
}

// begin starts the next attempt.
func (c *call) begin() {
	ctx, cancel := context.WithCancelCause(c.req.Context())
	next := &c.first
	if next.call != nil {
		next = new(attempt)
	}
	*next = attempt{ctx, c}
	c.pauseFor = 0
	c.dialed.Store(nil)
	c.uploadSince.Store(0)
	c.answered.Store(false)
	c.waitingSince.Store(0) // waits for slot and token are no silence
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cancel != nil {
		c.cancel(nil)
	}
	c.ctx, c.cancel = next, cancel
	if c.timer == nil {
		c.timer = time.AfterFunc(min(c.t.o.Timeout, c.t.o.AttemptTimeout), c.expire)
		if c.req.Response == nil { // the timer was set for all of Timeout
			return
		}
	}
	c.checkLimitsLocked()
}

func (c *call) timeoutError() error {
	return timeoutError{what: fmt.Sprintf("no response within %s (timeout)", c.t.o.Timeout)}
}

// expire is called by the timer.
func (c *call) expire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.checkLimitsLocked()
}

// checkLimitsLocked cancels what exceeds its limit, or sets the timer for the next check.
func (c *call) checkLimitsLocked() {
	if c.ended {
		return
	}
	limit := c.t.o.AttemptTimeout
	left := limit
	if since := c.waitingSince.Load(); since != 0 {
		left -= time.Duration(c.clock() - max(since, int64(c.dialed.Load().lastWrite(limit).Sub(c.began))))
	}
	moving := c.answered.Load() || c.uploadSince.Load() != 0
	due := time.Duration(c.deadline.Load() - time.Now().UnixNano())
	switch {
	case moving && left <= 0:
		c.cancel(timeoutError{fmt.Sprintf("no data of the body for %s (attempt_timeout)", limit), c.answered.Load()})
		return
	case moving:
	case due <= 0:
		c.cancel(c.timeoutError())
		return
	case left <= 0:
		c.cancel(timeoutError{fmt.Sprintf("no sign of the server for %s (attempt_timeout)", limit), true})
		left = min(limit, due)
	default:
		left = min(left, due)
	}
	c.timer.Reset(left)
}

// wasSilent reports whether silence ended the attempt, which need not end the call.
func (c *call) wasSilent() bool {
	var t timeoutError
	return c.ctx.Err() != nil && errors.As(context.Cause(c.ctx), &t) && t.attempt
}

// uploading notes that the request body moves.
func (c *call) uploading() {
	if c.uploadSince.Load() == 0 && !c.answered.Load() {
		c.uploadSince.Store(time.Now().UnixNano())
	}
	c.touch()
}

// creditUpload adds the time that the upload has taken to the deadline.
func (c *call) creditUpload() {
	if start := c.uploadSince.Swap(0); start != 0 {
		c.deadline.Add(time.Now().UnixNano() - start)
		c.touch()
	}
}

// touch restarts the current silence, if there is one.
func (c *call) touch() {
	if since := c.waitingSince.Load(); since != 0 {
		c.waitingSince.CompareAndSwap(since, c.clock())
	}
}
