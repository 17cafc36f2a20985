package transport

import (
	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/transport/internal/limit"
)

// Limiter keeps one identity within its rate limits. Its connectors and its exchanges share it, in
// [Options].Limiter. It is safe for concurrent use; a nil Limiter has no limits.
//
// The server never sees more requests than a limit allows in any window of the limit's length, as long
// as a request takes less than 100 ms to reach it. A request counts until one length after its response
// headers came, or after 100 ms past its writing, whichever is first.
type Limiter struct{ queue *limit.Queue }

// NewLimiter returns the Limiter of one identity. All limits hold together; a limit without requests or
// length is ignored. maxConcurrency is the number of calls, without exchanges, that may be in flight
// until their response bodies end; 0 is any number.
func NewLimiter(limits []auth.Limit, maxConcurrency int) *Limiter {
	return &Limiter{limit.New(limits, maxConcurrency)}
}

// Share makes all processes that have w keep the limits together. It must be called before the Limiter
// is used, with the window of the limits that it was made for. If w fails, each process keeps to its
// share: the limits divided by the number of processes last reported, and at least one request.
func (l *Limiter) Share(w auth.Window) { l.queue.Share(w) }
