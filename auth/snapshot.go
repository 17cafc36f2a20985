package auth

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/internal/jwt"
)

// snapshot is one token as callers see it. Only its atomics change.
type snapshot struct {
	record   tokenRecord
	public   *oauth2.Token
	header   http.Header
	fresh    atomic.Int64 // until then by the monotonic clock, ns since core.epoch
	stale    int64        // wall clock, ns
	expires  int64
	forced   bool // obtained because the one before was refused
	accepted atomic.Bool
}

// valid reports whether the token may be sent now.
func (s *snapshot) valid() bool { return s != nil && time.Now().UnixNano() < s.expires }

// snapshot makes what is published of r.
func (c *core) snapshot(r tokenRecord) *snapshot {
	expires := r.Obtained.Add(r.Lifetime)
	s := &snapshot{
		record:  r,
		public:  &oauth2.Token{AccessToken: r.AccessToken, TokenType: r.TokenType, Expiry: expires},
		stale:   expires.Add(-less(min(c.opts.EarlyRefresh, r.Lifetime/5))).UnixNano(),
		expires: expires.UnixNano(),
	}
	if r.AccessToken != "" {
		s.header = c.provider.Header(s.public)
	}
	return s
}

// recordFormat is the version of tokenRecord's JSON; a higher one is not understood.
const recordFormat = 1

// tokenRecord is what Session keeps in [Record.Data].
type tokenRecord struct {
	Format       int           `json:"format"`
	Generation   int64         `json:"generation,omitempty"` // tells the newer record, whatever the store lost meanwhile
	AccessToken  string        `json:"access_token,omitempty"`
	TokenType    string        `json:"token_type,omitempty"`
	RefreshToken string        `json:"refresh_token,omitempty"`
	Obtained     time.Time     `json:"obtained,omitzero"`    // when the exchange began
	Host         string        `json:"host,omitempty"`       // where that was
	Lifetime     time.Duration `json:"lifetime,omitempty"`   // of the access token
	Refreshed    time.Time     `json:"refreshed,omitzero"`   // when RefreshToken came
	Seed         string        `json:"seed,omitempty"`       // fingerprint of the token that began the chain
	Pending      *pending      `json:"pending,omitempty"`    // RefreshToken may have been spent
	Interrupted  time.Time     `json:"interrupted,omitzero"` // when it may have been, by who was not heard of again
	Refused      *refused      `json:"refused,omitempty"`    // RefreshToken was refused: consent required
}

// pending marks a refresh token that somebody is about to spend.
type pending struct {
	Owner string    `json:"owner"`
	Since time.Time `json:"since"`
}

// news is what of a record ends the memory of a failure. The mark of an exchange does not: each of two
// processes would end the other's.
type news struct {
	generation int64
	refused    bool
}

func (r tokenRecord) news() news { return news{r.Generation, r.Refused != nil} }

// beginning is the generation of a record that nothing links to the stored one: a login, a logout, a
// token for the credentials alone. Whoever is not heard of counts from an earlier time. A refresh
// counts on by one: so within a chain no clocks are compared.
func beginning(stored int64) int64 { return max(stored+1, time.Now().UnixMicro()) }

// refused says since when consent is required, and, if an exchange was interrupted, when.
type refused struct {
	Since       time.Time `json:"since"`
	Interrupted time.Time `json:"interrupted,omitzero"`
	LoggedOut   bool      `json:"logged_out,omitempty"`
}

// loggedOut reports whether r is what a logout leaves.
func (r tokenRecord) loggedOut() bool { return r.Refused != nil && r.Refused.LoggedOut }

// refusal is the error of a refused record.
func (r tokenRecord) refusal() *Error {
	return &Error{Op: "exchange", Err: fmt.Errorf("%w: %w", ErrConsentRequired, *r.Refused)}
}

func (r refused) Error() string {
	switch {
	case r.LoggedOut:
		return fmt.Sprintf("logged out at %s", r.Since.Format(time.RFC3339))
	case r.Interrupted.IsZero():
		return fmt.Sprintf("the refresh token was refused at %s", r.Since.Format(time.RFC3339))
	}
	return fmt.Sprintf("an exchange was interrupted at %s before the new refresh token was saved, and the old one is refused",
		r.Interrupted.Format(time.RFC3339))
}

// decodeRecord reads what encode wrote; an absent record is the zero tokenRecord.
func decodeRecord(r Record) (tokenRecord, error) {
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
	return t, nil
}

// encode makes the record that Save stores over version.
func (c *core) encode(t tokenRecord, version uint64) Record {
	t.Format = recordFormat
	b, _ := json.Marshal(t) // strings and times: cannot fail
	expires := t.Obtained.Add(t.Lifetime)
	if t.RefreshToken != "" && !c.refresh.Expendable {
		// Zero where the refresh token's end is unknown: it may live for ever.
		expires = c.consentExpiry(t)
	}
	return Record{Version: version, Expires: expires, Data: b}
}

// consentExpiry is when t's refresh token ends: as it says itself, else as the provider knows, else
// zero.
func (c *core) consentExpiry(t tokenRecord) time.Time {
	if t.RefreshToken == "" {
		return time.Time{}
	}
	// Not exp alone, by the product's clock; but a token obtained elsewhere is older than its Refreshed.
	if d, ok := jwt.Lifetime(t.RefreshToken); ok && !t.Refreshed.IsZero() && digest(t.RefreshToken) != t.Seed {
		return t.Refreshed.Add(d)
	}
	if at, ok := jwt.Expiry(t.RefreshToken); ok {
		return at
	}
	if c.refresh.Lifetime > 0 && !t.Refreshed.IsZero() {
		return t.Refreshed.Add(c.refresh.Lifetime)
	}
	return time.Time{}
}

// consentLife is the whole life of t's refresh token, or zero if that is unknown.
func (c *core) consentLife(t tokenRecord) time.Duration {
	if ends := c.consentExpiry(t); !ends.IsZero() {
		return ends.Sub(t.Refreshed)
	}
	return 0
}

// maxLifetime bounds what is believed of a token's lifetime.
const maxLifetime = 10 * 365 * 24 * time.Hour

// received makes the record of an answered exchange. An answer without a refresh token leaves the
// old one in force (RFC 6749 section 6).
func received(tok *oauth2.Token, prev tokenRecord, start time.Time) tokenRecord {
	r := tokenRecord{
		AccessToken:  tok.AccessToken,
		TokenType:    tok.TokenType,
		RefreshToken: tok.RefreshToken,
		Obtained:     start.Round(0),
		Host:         host(),
		Lifetime:     lifetime(tok, start),
		Refreshed:    start.Round(0),
		Seed:         prev.Seed,
	}
	if r.RefreshToken == "" || r.RefreshToken == prev.RefreshToken {
		r.RefreshToken, r.Refreshed = prev.RefreshToken, prev.Refreshed
	}
	return r
}

// host names this replica: in a container its hostname is the container's.
func host() string {
	name, _ := os.Hostname() // "" is unknown
	return name
}

func lifetime(tok *oauth2.Token, start time.Time) time.Duration {
	if tok.ExpiresIn > 0 && tok.ExpiresIn <= int64(maxLifetime/time.Second) {
		return time.Duration(tok.ExpiresIn) * time.Second
	}
	if d := tok.Expiry.Sub(start); !tok.Expiry.IsZero() && d > 0 && d <= maxLifetime {
		return d
	}
	if d, ok := jwt.Lifetime(tok.AccessToken); ok && d > 0 && d <= maxLifetime {
		return d
	}
	return time.Hour
}
