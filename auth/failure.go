package auth

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"time"
)

// failure is the memory of the last exchange that failed. It stops exchanges, not looks at the
// store.
type failure struct {
	err     error
	until   time.Time // nobody who waits starts an exchange before
	next    time.Time // nobody at all does, but one who finds the token expired
	waits   int       // failures in a row while somebody waited
	quiet   int       // failures in a row in the background
	secrets string    // fingerprint of the secrets that were refused
	looked  time.Time // when the secrets were last compared
	seen    news      // of the record that was there
}

// maxRetryAfter bounds what is believed of Retry-After: a wrong one must not stop us for days.
const maxRetryAfter = time.Hour

// refusedFor is how long refused credentials are not tried again: accounts get locked.
const refusedFor = time.Minute

// lookEvery is how often it is looked whether a secret has changed that the product refused.
const lookEvery = time.Second

// forever outlives the process.
const forever = 100 * 365 * 24 * time.Hour

// backoff is first, doubling with each failure up to most.
func backoff(n int, first, most time.Duration) time.Duration {
	return min(first<<min(n-1, 16), most)
}

// remember notes with which secrets err was met.
func (c *core) remember(err *Error, secrets string) *Error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failure.secrets = secrets
	return err
}

// failed takes note that f failed, and returns what logs it. c.mu is held.
func (c *core) failed(f *flight) (log func()) {
	if f.err == f.held {
		if f.kind == background {
			f.next = time.Now().Add(lookEvery).UnixNano()
		}
		c.next.Store(f.next)
		return func() {}
	}
	now := time.Now()
	m := &c.failure
	store := errors.Is(f.err, ErrStore) // which is asked each time
	known := store && errors.Is(m.err, ErrStore)
	m.err, m.seen = f.err, f.seen
	var e *Error
	var after time.Duration
	if errors.As(f.err, &e) {
		after = min(e.RetryAfter, maxRetryAfter)
	}
	switch {
	case errors.Is(f.err, ErrConsentRequired):
		after = forever
	case errors.Is(f.err, ErrCredentials):
		after = max(after, refusedFor)
	}
	message, wait := "exchange failed", time.Duration(0)
	if c.current.Load().valid() || f.kind != foreground && errors.Is(f.err, ErrStore) {
		m.quiet++
		wait = max(less(backoff(m.quiet, time.Second, time.Minute)), after)
		m.until = now.Add(after)
		message = "background exchange failed; the current token stays"
	} else {
		m.waits++
		wait = max(backoff(m.waits, time.Second, 30*time.Second), after)
		m.until = now.Add(wait)
	}
	m.next = now.Add(wait)
	next := m.next
	if errors.Is(f.err, ErrCredentials) {
		next = now.Add(min(wait, lookEvery))
	}
	c.next.Store(next.UnixNano())
	attrs := []any{"connector", c.opts.Connector, "error", f.err}
	if after != forever && !store {
		attrs = append(attrs, "next_try", wait)
	}
	if known {
		return func() {}
	}
	return func() { c.opts.Logger.Warn(message, attrs...) }
}

// secretsChanged reports whether a secret differs from the ones that were refused. It does not look more
// often than each lookEvery.
func (c *core) secretsChanged() bool {
	c.mu.Lock()
	refused := c.failure.secrets
	skip := refused == "" || time.Since(c.failure.looked) < lookEvery
	if !skip {
		c.failure.looked = time.Now()
	}
	c.mu.Unlock()
	return !skip && c.secrets() != refused
}

// secrets is a fingerprint of the settings' secrets as they are now.
func (c *core) secrets() string {
	var b strings.Builder
	for _, s := range append([]Secret{c.refresh.Token}, c.opts.Secrets...) {
		v, err := s.Value()
		if err != nil {
			v = "unreadable"
		}
		b.WriteString(digest(v))
	}
	return digest(b.String())
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:8])
}
