package auth

import (
	"cmp"
	"encoding/json"
	"fmt"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/internal/jwt"
	"github.com/itsmauth/itsmauth/internal/tokenextra"
)

// recordFormat is the version of tokenRecord's JSON; a higher one is not understood.
const recordFormat = 1

// tokenRecord is what Session keeps in [Record.Data].
type tokenRecord struct {
	Format       int           `json:"format"`
	Generation   int64         `json:"generation,omitempty"` // the higher one is the newer record, also after the store lost some
	AccessToken  string        `json:"access_token,omitempty"`
	TokenType    string        `json:"token_type,omitempty"`
	RefreshToken string        `json:"refresh_token,omitempty"`
	SigningKey   string        `json:"signing_key,omitempty"` // of both tokens
	Cookies      string        `json:"cookies,omitempty"`     // that requests with AccessToken need
	Obtained     time.Time     `json:"obtained,omitzero"`     // when the exchange began
	Host         string        `json:"host,omitempty"`        // the machine that made the exchange
	Lifetime     time.Duration `json:"lifetime,omitempty"`    // of the access token
	Refreshed    time.Time     `json:"refreshed,omitzero"`    // when RefreshToken was received
	Seed         string        `json:"seed,omitempty"`        // digest of the configured refresh token that began the chain
	Pending      *pending      `json:"pending,omitempty"`     // an exchange that may have spent RefreshToken
	Interrupted  time.Time     `json:"interrupted,omitzero"`  // when an exchange without an answer may have spent RefreshToken
	ConsentLost  *consentLost  `json:"refused,omitempty"`     // RefreshToken was refused, or a person logged out
	Refreshes    bool          `json:"refreshes,omitempty"`   // a refresh has worked since the login
	ahead        bool          // Obtained was so far in the future that the token counts as stale
	Unavailable  time.Time     `json:"unavailable,omitzero"` // since when all refreshes with an expendable RefreshToken have failed with ErrUnavailable
}

// pending marks a refresh token that a process is about to spend.
type pending struct {
	Owner string    `json:"owner"`
	Since time.Time `json:"since"`
	Until time.Time `json:"until,omitzero"` // when the exchange will be over; zero is exchangeTimeout after Since
}

// lasts returns how long the exchange may take, by the clock of the process that made it.
func (m pending) lasts() time.Duration {
	if m.Until.IsZero() {
		return exchangeTimeout
	}
	return m.Until.Sub(m.Since)
}

// recordVersion is compared to see whether the store changed since a failure. Pending marks are left
// out: two failing processes would keep resetting each other's back-off.
type recordVersion struct {
	generation  int64
	consentLost bool
}

func (r tokenRecord) recordVersion() recordVersion {
	return recordVersion{r.Generation, r.ConsentLost != nil}
}

// newGeneration numbers a record that starts a new chain (login, logout, client credentials): the time
// in µs, but above the stored one. A refresh adds one instead, so clocks of different machines are
// never compared within a chain.
func newGeneration(stored int64, now time.Time) int64 { return max(stored+1, now.UnixMicro()) }

// consentLost says since when consent is required and, if an exchange was interrupted, when.
type consentLost struct {
	Since       time.Time `json:"since"`
	Interrupted time.Time `json:"interrupted,omitzero"`
	LoggedOut   bool      `json:"logged_out,omitempty"`
	Again       time.Time `json:"again,omitzero"` // when the refresh token is sent once more, or zero: the refusal is final
}

// sendsAgain reports whether r's refresh token, which was refused, is to be sent once more.
func (r tokenRecord) sendsAgain(now time.Time) bool {
	return r.ConsentLost != nil && !r.ConsentLost.Again.IsZero() && !now.Before(r.ConsentLost.Again)
}

// loggedOut reports whether a logout wrote r.
func (r tokenRecord) loggedOut() bool { return r.ConsentLost != nil && r.ConsentLost.LoggedOut }

// refusal returns the error of a record whose consent is lost.
func (r tokenRecord) refusal() *Error {
	return &Error{Op: "exchange", Err: fmt.Errorf("%w: %w", ErrConsentRequired, *r.ConsentLost)}
}

func (r consentLost) Error() (text string) {
	switch {
	case r.LoggedOut:
		return fmt.Sprintf("logged out at %s", r.Since.Format(time.RFC3339))
	case r.Interrupted.IsZero():
		text = fmt.Sprintf("the refresh token was refused at %s", r.Since.Format(time.RFC3339))
	default:
		text = fmt.Sprintf("an exchange was interrupted at %s: its answer was lost before the new refresh token was saved, and the old one is refused",
			r.Interrupted.Format(time.RFC3339))
	}
	if !r.Again.IsZero() {
		text += fmt.Sprintf("; it is tried once more after %s", r.Again.Format(time.RFC3339))
	}
	return text
}

// maxSkew is how far the clock of another machine may be ahead.
const maxSkew = 5 * time.Minute

// decodeRecord reads what encode wrote. An absent record is the zero tokenRecord. If another host's clock is
// ahead, the times that it wrote become now.
func decodeRecord(r Record, now time.Time) (tokenRecord, error) {
	if r.Version == 0 {
		return tokenRecord{}, nil
	}
	if sealed(r.Data) {
		return tokenRecord{}, fmt.Errorf("%w: the record is encrypted; set token_store.encryption_keys", ErrStore)
	}
	var t tokenRecord
	if err := json.Unmarshal(r.Data, &t); err != nil || t.Format == 0 {
		return t, fmt.Errorf("%w: the record is damaged, or not one of ours", ErrStore)
	}
	if t.Format > recordFormat {
		return t, fmt.Errorf("%w: the record has format %d, newer than this program's %d", ErrStore, t.Format, recordFormat)
	}
	t.ahead = t.Obtained.Sub(now) > maxSkew
	for _, at := range []*time.Time{&t.Obtained, &t.Refreshed} {
		if at.After(now) {
			*at = now.Round(0)
		}
	}
	return t, nil
}

// encode makes the record that Save stores over version.
func (r *Refresh) encode(t tokenRecord, version uint64) Record {
	t.Format = recordFormat
	b, _ := json.Marshal(t) // strings and times: cannot fail
	expires := t.Obtained.Add(t.Lifetime)
	if t.RefreshToken != "" && !r.Expendable {
		// Zero if the end of the refresh token is unknown: it may never expire.
		expires = r.consentExpiry(t)
	}
	return Record{Version: version, Expires: expires, Data: b}
}

// consentExpiry returns when t's refresh token expires: by its JWT, else by Lifetime, else zero.
func (r *Refresh) consentExpiry(t tokenRecord) time.Time {
	if t.RefreshToken == "" {
		return time.Time{}
	}
	// The lifetime is counted by our clock, exp by the product's. For a configured refresh token only exp
	// is known: it is older than its Refreshed.
	if d, ok := jwt.Lifetime(t.RefreshToken, t.Refreshed); ok && !t.Refreshed.IsZero() && digest(t.RefreshToken) != t.Seed {
		return t.Refreshed.Add(max(d, leastConsent))
	}
	if at, ok := jwt.Expiry(t.RefreshToken); ok {
		return at
	}
	if r.Lifetime > 0 && !t.Refreshed.IsZero() {
		return t.Refreshed.Add(max(r.Lifetime, leastConsent))
	}
	return time.Time{}
}

// inForce reports whether t's refresh token can probably still be used.
func (r *Refresh) inForce(t tokenRecord, now time.Time) bool {
	ends := r.consentExpiry(t)
	return t.RefreshToken != "" && t.ConsentLost == nil && (ends.IsZero() || now.Before(ends))
}

// consentLife returns the whole lifetime of t's refresh token, or zero if it is unknown.
func (r *Refresh) consentLife(t tokenRecord) time.Duration {
	if life := r.consentExpiry(t).Sub(t.Refreshed); life > 0 {
		return max(life, leastConsent)
	}
	return 0
}

// renewalDue reports whether t's refresh token is halfway through its life. One that does not rotate
// stays halfway, and is not used again at once.
func (r *Refresh) renewalDue(t tokenRecord, now time.Time) bool {
	life := r.consentLife(t)
	return life > 0 && now.Sub(t.Refreshed) >= life/2 && now.Sub(t.Obtained) >= life/10
}

const (
	// maxLifetime is the longest plausible lifetime of a token.
	maxLifetime = 10 * 365 * 24 * time.Hour
	// leastLifetime and leastConsent are the shortest lifetimes of access and refresh tokens. With shorter
	// ones, exchanges would never stop.
	leastLifetime = time.Second
	leastConsent  = 10 * time.Second
)

// received makes the record of a successful exchange. A response without a refresh token leaves the old
// one in force (RFC 6749 section 6).
func received(tok *oauth2.Token, prev tokenRecord, start time.Time, host string) tokenRecord {
	r := tokenRecord{
		AccessToken:  tok.AccessToken,
		TokenType:    tok.TokenType,
		RefreshToken: tok.RefreshToken,
		SigningKey:   SigningKey(tok),
		Cookies:      tokenextra.Cookies(tok),
		Obtained:     start.Round(0),
		Host:         host,
		Lifetime:     lifetime(tok, start),
		Refreshed:    start.Round(0),
		Seed:         prev.Seed,
		Refreshes:    prev.RefreshToken != "",
	}
	if r.RefreshToken == "" || r.RefreshToken == prev.RefreshToken {
		r.RefreshToken, r.Refreshed = prev.RefreshToken, prev.Refreshed
	}
	return r
}

// lifetime returns the lifetime that the provider says or, if the access token is a JWT, its own if that is
// shorter.
func lifetime(tok *oauth2.Token, start time.Time) time.Duration {
	var life time.Duration
	if tok.ExpiresIn > 0 && tok.ExpiresIn <= int64(maxLifetime/time.Second) {
		life = time.Duration(tok.ExpiresIn) * time.Second
	} else if d := tok.Expiry.Sub(start); !tok.Expiry.IsZero() && d > 0 && d <= maxLifetime {
		life = d
	}
	issued := start
	if life > 0 {
		issued = time.Time{} // without iat, exp does not count: the provider may know the product's clock
	}
	if own, ok := jwt.Lifetime(tok.AccessToken, issued); ok && own <= maxLifetime && (life == 0 || own < life) {
		life = own
	}
	return max(cmp.Or(life, time.Hour), leastLifetime)
}
