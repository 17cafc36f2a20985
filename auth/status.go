package auth

import (
	"context"
	"errors"
	"time"
)

// State is where a session's token is in its life.
type State string

// The states that [Session.Status] tells.
const (
	StateNone            State = "none"             // there is no token yet
	StateFresh           State = "fresh"            // valid
	StateStale           State = "stale"            // valid, and to be replaced in the background
	StateExpired         State = "expired"          // the next call waits for an exchange
	StateConsentRequired State = "consent_required" // a person has to log in
)

// Status is what is known of a session without an exchange.
type Status struct {
	State State
	// Expiry is the access token's end; zero if there is none.
	Expiry time.Time
	// Obtained is when the exchange of the access token began, and Host the name of the machine or
	// container where; zero and "" if there is none.
	Obtained time.Time
	Host     string
	// ConsentExpiry is the refresh token's end; zero if there is none, or it is unknown.
	ConsentExpiry time.Time
	// Failure is how the last exchange of this process failed, or nil.
	Failure error
	// NextTry is when there will be another exchange after Failure, at the earliest; zero if only
	// a login helps.
	NextTry time.Time
}

// Status looks at memory and at the store. It makes no exchange. Its error is an [*Error] around
// [ErrStore]; the Status beside it is what memory knows, with State "" if that is nothing.
func (s *Session) Status(ctx context.Context) (Status, error) {
	r, _, err := s.load(ctx, s.store.Load)
	if err != nil {
		err = s.named(&Error{Op: "store", Err: err})
	}
	s.mu.Lock()
	snap, dropped := s.state.token, s.state.dropped
	var st Status
	if st.Failure = s.named(s.state.failure.err); !errors.Is(st.Failure, ErrConsentRequired) {
		st.NextTry = s.state.failure.backgroundAfter
	}
	s.mu.Unlock()
	if snap == nil && err != nil {
		return st, err
	}
	if snap == nil || r.Generation > snap.record.Generation || r.Generation == snap.record.Generation && r.ConsentLost != nil {
		snap, dropped = s.snapshot(r), false
	}
	r = snap.record
	if r.ConsentLost == nil {
		st.ConsentExpiry = s.refresh.consentExpiry(r)
	}
	if r.AccessToken != "" && r.ConsentLost == nil {
		st.Expiry, st.Obtained, st.Host = r.Obtained.Add(r.Lifetime), r.Obtained, r.Host
	}
	now := time.Now()
	switch {
	case r.AccessToken != "" && !dropped && r.ConsentLost == nil && now.UnixNano() < snap.stale:
		st.State = StateFresh
	case r.AccessToken != "" && !dropped && r.ConsentLost == nil && snap.valid(now):
		st.State = StateStale
	case s.unconsented(r, now):
		st.State = StateConsentRequired
	case r.AccessToken == "" && r.RefreshToken == "":
		st.State = StateNone
	default:
		st.State = StateExpired
	}
	return st, err
}

// unconsented reports whether only a person can make r useful again.
func (s *Session) unconsented(r tokenRecord, now time.Time) bool {
	if s.CodeFlow() == nil {
		return r.ConsentLost != nil
	}
	ends := s.refresh.consentExpiry(r)
	return r.ConsentLost != nil ||
		r.RefreshToken == "" && !s.rules.seeded ||
		!ends.IsZero() && now.After(ends)
}

// CheckStore writes a trial record to the store and removes it. Its error, an [*Error] around
// [ErrStore], says why a login could not be kept.
func (s *Session) CheckStore(ctx context.Context) error {
	if err := s.store.check(ctx); err != nil {
		return s.named(&Error{Op: "store", Err: err})
	}
	return nil
}
