package transport

import (
	"context"
	"fmt"
	"net/http"
	"strings"
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

// headerDeadline returns when headers are due. A redirect inherits what is left of the redirecting call,
// found through the response body that we returned. It is taken once: the caller may send resp.Request
// again later.
func (c *call) headerDeadline(now time.Time) int64 {
	if led := c.req.Response; led != nil {
		if b, ok := led.Body.(*returnedBody); ok {
			b.attempt.creditUpload()
			if due := b.attempt.call.deadline.Swap(0); due != 0 {
				return due
			}
		}
	}
	return now.Add(c.t.o.Timeout).UnixNano()
}

// due returns the deadline for the response headers.
func (c *call) due() time.Time { return time.Unix(0, c.deadline.Load()) }

// isEventStream reports whether the response is a stream of server-sent events, which may be silent for
// any time (https://html.spec.whatwg.org/multipage/server-sent-events.html).
func isEventStream(resp *http.Response) bool {
	media, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	return strings.EqualFold(strings.TrimSpace(media), "text/event-stream")
}

// endLimits ends the limits: the response's body may be silent for any time.
func (c *call) endLimits() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endless = true
	c.timer.Stop()
}

// follow is called before [http.Client] follows the redirect response: before it sends the next request, it reads
// of the body, which a server may send slowly or not at all.
func (c *call) follow() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.returned, c.endless, c.leads = false, false, true
	c.checkLimitsLocked()
}

// expire is called by the timer.
func (c *call) expire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.checkLimitsLocked()
}

// checkLimitsLocked cancels what exceeds its limit, or sets the timer for the next check.
func (c *call) checkLimitsLocked() {
	if c.ended || c.endless {
		return
	}
	limit := c.t.o.AttemptTimeout
	left, a := limit, c.current
	if since := a.waitingSince.Load(); since != 0 {
		left -= time.Duration(c.clock() - max(since, int64(a.conn.Load().lastWrite(limit).Sub(c.began))))
	}
	answered, uploading := a.answered.Load(), a.uploadSince.Load() != 0
	due := time.Duration(c.deadline.Load() - time.Now().UnixNano())
	switch {
	case (answered || uploading) && left <= 0:
		a.cancel(timeoutError{fmt.Sprintf("no data of the body for %s (attempt_timeout)", limit), answered})
		return
	case uploading, answered && !c.leads:
	case due <= 0:
		a.cancel(timeoutError{what: fmt.Sprintf("no response within %s (timeout)", c.t.o.Timeout)})
		return
	case left <= 0:
		a.cancel(timeoutError{fmt.Sprintf("no sign of %s for %s (attempt_timeout)", a.peer(), limit), true})
		left = min(limit, due)
	default:
		left = min(left, due)
	}
	c.timer.Reset(left)
}
