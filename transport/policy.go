package transport

import (
	"cmp"
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/go-retryablehttp"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/retryafter"
)

// shouldRetry reports whether to make another attempt, and after which wait. If so, it has taken a retry
// from the budget and the request body from the attempt that failed.
func (c *call) shouldRetry(resp *http.Response, err error) (time.Duration, bool) {
	o := &c.t.o.Retry
	if c.attempts == 0 || c.attempts >= o.MaxAttempts || c.current.Err() != nil && !c.current.endedAlone() ||
		!c.retryable(resp, err) || !c.body.replayable() {
		return 0, false
	}
	now := time.Now()
	wait := cmp.Or(c.current.pause, c.backoff())
	if resp != nil {
		if after, ok := retryafter.Parse(resp.Header, now); ok {
			if after > o.MaxRetryAfter {
				return 0, false
			}
			wait = max(wait, after)
		}
	}
	c.current.creditUpload()
	return wait, c.fitsDeadline(wait, now) && c.budget().takeRetry(now.Unix()) && c.body.abandon()
}

// fitsDeadline reports whether another attempt can be sent in time after this wait and the limiter's,
// as far as is known. If not, the response at hand is better than none.
func (c *call) fitsDeadline(wait time.Duration, now time.Time) bool {
	if c.origin != nil {
		wait = max(wait, c.t.limits.Wait(c.t.auth == nil))
	}
	if left := time.Duration(c.deadline.Load() - now.UnixNano()); wait >= left {
		return false
	}
	end, ok := c.current.Deadline()
	return !ok || !now.Add(wait).After(end)
}

// backoff returns a random wait before the next attempt. The second wait and later ones are in the upper half
// of their range, so that the attempts outlast a restart of the server of a second.
func (c *call) backoff() time.Duration {
	o := &c.t.o.Retry
	most := max(retryablehttp.DefaultBackoff(o.MinBackoff, o.MaxBackoff, c.attempts-1, nil), 1)
	if c.attempts == 1 {
		return rand.N(most)
	}
	return most - rand.N(most/2+1)
}

// retryable reports whether another attempt may succeed, and is safe: a request that is not idempotent
// (RFC 9110 section 9.2.2) must not be processed twice.
func (c *call) retryable(resp *http.Response, err error) bool {
	exchange := c.t.auth == nil
	if err != nil {
		if err == errRefused {
			return !exchange
		}
		_, ours := errors.AsType[*auth.Error](err)
		return !ours && !permanentSendError(err) && (neverConnected(err) || !exchange && (unprocessed(err) || c.idempotent()))
	}
	transient, _ := retryablehttp.DefaultRetryPolicy(c.req.Context(), resp, nil) // 429, and 5xx but 501
	switch status := resp.StatusCode; {
	case exchange:
		return false
	case status == http.StatusTooManyRequests:
		return transient
	case status == http.StatusRequestTimeout, transient && status >= 500 && status <= http.StatusGatewayTimeout:
		return c.idempotent()
	}
	return false
}

// permanentSendError reports whether another attempt would fail in the same way.
func permanentSendError(err error) bool {
	dns, ok := errors.AsType[*net.DNSError](err)
	alert, ok2 := errors.AsType[*net.OpError](err)
	return ok && dns.IsNotFound || ok2 && alert.Op == "remote error" ||
		errors.As(err, new(*tls.CertificateVerificationError)) || errors.As(err, new(tls.RecordHeaderError)) ||
		invalidRequest(err)
}

func (c *call) idempotent() bool {
	switch c.req.Method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return true
	}
	for k, v := range c.req.Header { // Get finds only the canonical spelling
		if strings.EqualFold(k, "Idempotency-Key") && len(v) > 0 && v[0] != "" {
			return true
		}
	}
	return false
}

// pauseIdentity pauses all calls of the identity if the response says that it sends too many.
func (a *attempt) pauseIdentity(resp *http.Response) {
	if resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusServiceUnavailable {
		return
	}
	now := time.Now()
	after, ok := retryafter.Parse(resp.Header, now)
	if !ok {
		if resp.StatusCode == http.StatusServiceUnavailable {
			return
		}
		a.pause = a.call.backoff()
		after = a.pause
	}
	t := a.call.t
	t.limits.Pause(now.Add(min(after, t.o.Retry.MaxRetryAfter)))
}
