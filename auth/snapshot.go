package auth

import (
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"
)

// snapshot is one token as callers see it. Only its atomics change.
type snapshot struct {
	record   tokenRecord
	public   *oauth2.Token
	headers  atomic.Pointer[headers]
	fresh    atomic.Int64 // until then by the monotonic clock, ns since core.epoch
	stale    time.Time
	expires  time.Time
	accepted atomic.Bool // a response has shown that the product accepts it

	// Of a [Static] provider:
	refusal        atomic.Pointer[Error] // the last one, or nil
	unchangedUntil atomic.Int64          // until then a refusal does not have the secrets read again, ns since core.epoch
}

// left returns how long it is until t: the shorter of what the monotonic and the wall clock say. The monotonic
// clock stops while the machine is suspended, and the wall clock may be set back.
func left(now, t time.Time) time.Duration {
	return min(t.Sub(now), t.Round(0).Sub(now.Round(0)))
}

// valid reports whether the token may be sent at now.
func (s *snapshot) valid(now time.Time) bool { return s != nil && left(now, s.expires) > 0 }

// snapshot makes what callers see of r.
func (c *core) snapshot(r tokenRecord) *snapshot {
	now, expires := time.Now(), r.Obtained.Add(r.Lifetime)
	s := &snapshot{
		record:  r,
		public:  r.withExtra(&oauth2.Token{AccessToken: r.AccessToken, TokenType: r.TokenType, Expiry: expires}),
		stale:   now,
		expires: now.Add(expires.Sub(now)), // by both clocks
	}
	if !r.ahead {
		s.stale = s.expires.Add(-jitter(min(c.opts.EarlyRefresh, r.Lifetime/5)))
	}
	if c.credentials != nil {
		s.public.Expiry, s.expires = time.Time{}, now.Add(forever)
		s.stale = s.expires
	}
	if r.AccessToken != "" {
		s.headers.Store(c.makeHeaders(s.public))
	}
	return s
}
