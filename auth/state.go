package auth

import (
	"errors"
	"time"
)

// state is what a session knows. Its methods decide what follows from an event; they are given the
// time, wait for nothing, and are called with core.mu held.
type state struct {
	token    *snapshot // the newest known, or nil
	dropped  bool      // token is not to be used: it was refused, invalidated or revoked
	unproven bool      // token replaced a refused one, and no response has accepted it yet
	unsaved  bool      // token was obtained without the store, or could not be saved
	failure  failure
	forcing  forcing

	backgroundAfter time.Time // a stale token starts no exchange before
	unreadable      bool      // the store could not be read when it was last looked at
	offersUntil     time.Time // until then other processes may offer newer tokens, after an outage of the store
}

// A task is what one exchange is to do. It does not change once it has begun.
type task struct {
	reason   reason
	replaces *snapshot // what was known when it began, or nil: nothing older is adopted
	forced   bool      // because the product refused replaces
	suppress error     // if not nil, read the store but make no exchange, and fail with this
}

type reason int

const (
	needed reason = iota // a caller waits
	stale                // the token is still valid, and a new one is due
	watch                // a refresh token is at stake: look for a login, a logout or a loss
	look                 // the token was refused and exchanges are backed off: adopt what others obtain
	offer                // the store works again: give it the token that it does not have
	login                // a person has given consent
	logout
)

// errNotDue suppresses an exchange for which there is no reason now.
var errNotDue = errors.New("not due")

// failure is the memory of the last exchange that failed. It stops exchanges, not looks at the store.
type failure struct {
	err              error
	foregroundAfter  time.Time // no exchange for a waiting caller before
	backgroundAfter  time.Time // no other exchange before
	foregroundFails  int       // consecutive ones
	backgroundFails  int
	secrets          string    // digest of the secrets that were refused
	secretsCheckedAt time.Time // when they were last compared
	record           recordVersion
}

const (
	// maxRetryAfter is the longest Retry-After that is believed: a wrong one must not stop us for days.
	maxRetryAfter = time.Hour
	// refusedFor is how long refused credentials are not tried again: accounts get locked.
	refusedFor = time.Minute
	// lookEvery is how often the secrets, and the store, are compared with what failed.
	lookEvery = time.Second
	// forever outlives the process.
	forever = 100 * 365 * 24 * time.Hour
)

// backoff is first, doubling with each failure up to most.
func backoff(n int, first, most time.Duration) time.Duration {
	return min(first<<min(n-1, 16), most)
}

// current is the token that callers may be given if it is valid, or nil.
func (s *state) current() *snapshot {
	if s.dropped {
		return nil
	}
	return s.token
}

// want makes a task.
func (s *state) want(now time.Time, why reason) *task {
	t := &task{reason: why, replaces: s.token, forced: s.dropped && s.token.record.AccessToken != ""}
	m := &s.failure
	switch {
	case why == needed && now.Before(m.foregroundAfter) && !errors.Is(m.err, ErrStore), // the store is asked each time
		why == stale && now.Before(m.backgroundAfter):
		t.suppress = m.err
	case why == look, why == offer, why == watch && now.Before(m.backgroundAfter):
		t.suppress = errNotDue
	}
	return t
}

// obtained makes token the current one and forgets the failures before it. It reports whether the
// token, which another process obtained, is stale already.
func (s *state) obtained(now time.Time, t *task, token *snapshot, adopted bool) (renew bool) {
	forced := t.forced && !adopted
	if s.unproven = forced; forced && t.replaces.record.AccessToken == token.record.AccessToken {
		s.forcing.fail(now)
		s.unproven = false // it is counted already
	}
	// A record that was there already when the exchange failed does not end the failure.
	if !adopted || token.record.recordVersion() != s.failure.record {
		s.failure = failure{}
	}
	if adopted {
		s.unsaved = false
	}
	s.token, s.dropped = token, false
	// Wait at least min(1 s, lifetime/5) before the next background exchange: an endpoint that repeats one
	// token until it expires would be asked more and more often. Exchanges start at least a second apart.
	s.backgroundAfter = now.Add(min(time.Second, token.record.Lifetime/5))
	for _, after := range []time.Time{token.record.Obtained.Add(time.Second), s.failure.backgroundAfter} {
		if after.After(s.backgroundAfter) {
			s.backgroundAfter = after
		}
	}
	return adopted && left(now, token.stale) <= 0
}

// failed notes that p, which is finished, obtained no token. It returns a warning to be logged once core.mu
// is free, or "".
func (s *state) failed(now time.Time, p *protocol) (warning string, attrs []any) {
	if p.nothing {
		if p.task.reason == stale {
			s.backgroundAfter = now.Add(lookEvery)
		}
		return "", nil
	}
	m := &s.failure
	store := errors.Is(p.err, ErrStore)
	known := store && errors.Is(m.err, ErrStore)
	m.err, m.record = p.err, p.record.recordVersion()
	if p.secrets != "" {
		m.secrets = p.secrets
	}
	after := retryAfter(now, p.err)
	wait := time.Duration(0)
	if s.current().valid(now) || p.task.reason != needed && store {
		warning = "background exchange failed; the current token stays"
		m.backgroundFails++
		wait = max(jitter(backoff(m.backgroundFails, time.Second, time.Minute)), after)
		m.foregroundAfter = now.Add(after)
	} else {
		warning = "exchange failed"
		m.foregroundFails++
		wait = max(backoff(m.foregroundFails, time.Second, 30*time.Second), after)
		m.foregroundAfter = now.Add(wait)
	}
	m.backgroundAfter = now.Add(wait)
	s.backgroundAfter = m.backgroundAfter
	if errors.Is(p.err, ErrCredentials) {
		s.backgroundAfter = now.Add(min(wait, lookEvery))
	}
	if known {
		return "", nil
	}
	attrs = []any{"error", p.err}
	if after != forever && !store {
		attrs = append(attrs, "next_try", wait)
	}
	return warning, attrs
}

// retryAfter is how long an exchange that failed with err is not tried again, whatever the back-off.
func retryAfter(now time.Time, err error) (d time.Duration) {
	var e *Error
	if errors.As(err, &e) {
		d = min(e.RetryAfter, maxRetryAfter)
	}
	var lost consentLost
	switch {
	case errors.As(err, &lost) && !lost.Again.IsZero():
		return max(d, lost.Again.Sub(now))
	case errors.Is(err, ErrConsentRequired):
		return forever
	case errors.Is(err, ErrCredentials):
		return max(d, refusedFor)
	}
	return d
}

// compareSecrets returns the digest of the secrets that were refused, to be compared with what they
// are now, or "" if they are not to be compared now.
func (s *state) compareSecrets(now time.Time) string {
	m := &s.failure
	if m.secrets == "" || now.Sub(m.secretsCheckedAt) < lookEvery {
		return ""
	}
	m.secretsCheckedAt = now
	return m.secrets
}

// forcing counts the exchanges that refused tokens force, and slows them down: a product that refuses
// everything, or other processes that obtain tokens of the same account, must not turn each call into
// an exchange.
type forcing struct {
	fails       int       // consecutive ones
	notBefore   time.Time // of the next
	burstFullAt time.Time // when all of forcedBurst are available again
}

const (
	forcedBurst = 3
	forcedEvery = 5 * time.Second
	forcedMost  = time.Minute
)

// fail notes that a forced exchange came to nothing.
func (f *forcing) fail(now time.Time) {
	if now.Sub(f.notBefore) > forcedMost {
		f.fails = 0 // it was long ago
	}
	f.fails++
	f.notBefore = now.Add(backoff(f.fails, time.Second, forcedMost))
}

// take takes one forced exchange from the burst. It reports false if none is left.
func (f *forcing) take(now time.Time) bool {
	left := max(0, f.burstFullAt.Sub(now))
	if left > (forcedBurst-1)*forcedEvery {
		return false
	}
	f.burstFullAt = now.Add(left + forcedEvery)
	return true
}

// A verdict is what follows from a refused token.
type verdict int

const (
	replaced  verdict = iota // it is not the current token, or not any more: try again
	backedOff                // another exchange would do no good now
	tooOften                 // as before: tokens are refused as fast as they are obtained
)

// refused gives up the current token if accessToken is that. byProduct is false if the caller
// invalidated it without a response.
func (s *state) refused(now time.Time, accessToken string, byProduct bool) verdict {
	current := s.current()
	if current == nil || current.record.AccessToken != accessToken {
		return replaced
	}
	if byProduct && s.unproven {
		s.unproven = false // it counts once
		if current.accepted.Load() {
			s.forcing.fails = 0
		} else {
			s.forcing.fail(now)
		}
	}
	switch {
	case now.Before(s.forcing.notBefore):
		return backedOff
	case !s.forcing.take(now):
		return tooOften
	}
	s.dropped = true
	return replaced
}

// ended replaces the token with what is left of a consent that was ended, or with nothing.
func (s *state) ended(left *snapshot) { s.token, s.dropped = left, left != nil }

// storeRead notes whether the store could be read. Without it each process was on its own and they may
// have invalidated each other's tokens. One exchange mends that, so the back-off of refused tokens ends.
func (s *state) storeRead(ok bool) {
	if ok && s.unreadable {
		s.forcing = forcing{burstFullAt: s.forcing.burstFullAt}
	}
	s.unreadable = !ok
}

// storeBack notes that a store that failed works again: what only failed for the store is tried at once.
func (s *state) storeBack() {
	if errors.Is(s.failure.err, ErrStore) {
		s.failure, s.backgroundAfter = failure{}, time.Time{}
	}
}

// unsettled reports whether other processes may have, or need, another token than this one.
func (s *state) unsettled(now time.Time) bool { return s.unsaved || now.Before(s.offersUntil) }
