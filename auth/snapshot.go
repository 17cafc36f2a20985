package auth

import (
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"
)

// snapshot is one token as callers see it. Only its atomics change.
type snapshot struct {
	record   tokenRecord
	public   *oauth2.Token
	header   http.Header
	fresh    atomic.Int64 // until then by the monotonic clock, ns since core.epoch
	stale    int64        // wall clock, ns
	expires  int64
	accepted atomic.Bool // a response has shown that the product accepts it
}

// valid reports whether the token may be sent at now.
func (s *snapshot) valid(now time.Time) bool { return s != nil && now.UnixNano() < s.expires }

// snapshot makes what callers see of r.
func (c *core) snapshot(r tokenRecord) *snapshot {
	expires := r.Obtained.Add(r.Lifetime)
	s := &snapshot{
		record:  r,
		public:  &oauth2.Token{AccessToken: r.AccessToken, TokenType: r.TokenType, Expiry: expires},
		stale:   expires.Add(-jitter(min(c.opts.EarlyRefresh, r.Lifetime/5))).UnixNano(),
		expires: expires.UnixNano(),
	}
	if r.AccessToken != "" {
		s.header = c.provider.Header(s.public)
	}
	return s
}
