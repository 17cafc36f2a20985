package auth

import (
	"context"
	"errors"
	"time"
)

// State is the state of a session's token.
type State string

// The states of [Session.Status].
const (
	StateNone            State = "none"             // there is no token yet
	StateFresh           State = "fresh"            // valid
	StateStale           State = "stale"            // valid, and about to be replaced in the background
	StateExpired         State = "expired"          // the next call waits for an exchange
	StateConsentRequired State = "consent_required" // a person has to log in
)

// Status is what is known about a session without an exchange.
type Status struct {
	State State
	// Expiry is when the access token expires. Zero if there is none.
	Expiry time.Time
	// Obtained is when the exchange that gave the access token began, and Host the name of the machine or
	// container that made it. Zero and "" if there is none.
	Obtained time.Time
	Host     string
	// ConsentExpiry is when the refresh token expires. Zero if there is none, or that is unknown.
	ConsentExpiry time.Time
	// Refreshable says that there is a refresh token. Without one, a login ends at Expiry.
	Refreshable bool
	// Failure is how the last exchange of this process failed, or nil.
	Failure error
	// NextTry is the earliest time of another exchange after Failure. Zero if only a login helps.
	NextTry time.Time
}

// Status reads memory and the store. It makes no exchange. Its error is an [*Error] that wraps
// [ErrStore]; the Status is then what memory knows, with State "" if that is nothing.
//
// If the provider is [Static], nothing is read: State is [StateFresh] without Expiry, and Failure may be that the
// product refused the credentials.
func (s *Session) Status(ctx context.Context) (Status, error) {
	if s.credentials != nil {
		return s.staticStatus(), nil
	}
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
		st.ConsentExpiry, st.Refreshable = s.refresh.consentExpiry(r), r.RefreshToken != ""
	}
	if r.AccessToken != "" && r.ConsentLost == nil {
		st.Expiry, st.Obtained, st.Host = r.Obtained.Add(r.Lifetime), r.Obtained, r.Host
	}
	now := time.Now()
	switch {
	case r.AccessToken != "" && !dropped && r.ConsentLost == nil && left(now, snap.stale) > 0:
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
	return !s.refresh.inForce(r, now) && !(s.rules.seeded && r.ConsentLost == nil && r.RefreshToken == "")
}

// CheckStore reads the session's record, because one that cannot be read is not replaced. It then writes
// a trial record to the store and removes it. Its error, an [*Error] that wraps [ErrStore], says why a
// login could not be saved. If the provider is [Static], no store is used, and it is nil.
func (s *Session) CheckStore(ctx context.Context) error {
	if _, err := s.Status(ctx); err != nil {
		return err
	}
	if err := s.store.check(ctx); err != nil {
		return s.named(&Error{Op: "store", Err: err})
	}
	return nil
}
