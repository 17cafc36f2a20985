package auth

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/internal/follow"
)

// A Static is a [Provider] without a token endpoint: it sends credentials of its settings as they are, such as
// an API key. Its Exchange reads and checks them, and returns an opaque token, another one each time. Its Header
// returns nil if one of them cannot be read. A [Session] uses no store for it, and its token does not expire. If
// one of the secrets changes, Session makes another exchange. If a response refuses the credentials, it looks for
// a change at once.
type Static interface {
	// StaticCredentials names the settings that hold the credentials, such as headers.X-API-Key. nil: this
	// configuration has a token endpoint.
	StaticCredentials() []string
}

// StaticCredentials names the settings that hold the credentials, if the provider is [Static]. Otherwise it
// returns nil.
func (c *core) StaticCredentials() []string { return c.credentials }

// followStatic replaces the token of a [Static] provider if a secret has changed.
func (c *core) followStatic(known *snapshot) {
	read := Secret.Value
	if c.credentialsRefused.Swap(false) {
		ctx, cancel := context.WithTimeout(c.life, secretPatience)
		defer cancel()
		read = func(s Secret) (string, error) { return s.valueAfter(ctx) }
	}
	secrets, err := c.readSecrets(read)
	if err != nil || known == nil || known.headers.Load().secrets == secrets {
		return
	}
	tok, err := c.provider.Exchange(c.life, nil)
	if err != nil {
		return
	}
	r := known.record
	r.AccessToken = tok.AccessToken
	snap := c.snapshot(r)
	if snap.headers.Load().Header == nil { // a secret can no longer be read
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state.token = snap
	c.showLocked()
}

// staticRefused reports whether there is another token than tok, which resp refuses. The secrets are read again: by
// one call for all that wait, and if that takes long and they have not changed, at most once a second.
func (s *Session) staticRefused(resp *http.Response, tok *oauth2.Token) bool {
	ctx := context.Background()
	if resp.Request != nil {
		ctx = resp.Request.Context()
	}
	start := time.Since(s.epoch)
	if snap := s.current.Load(); s.follower != nil && snap != nil && int64(start) >= snap.unchangedUntil.Load() {
		s.credentialsRefused.Store(true)
		s.follower.Again(ctx) // also if tok is an older token: the call may have been sent with the newer headers
	}
	snap := s.current.Load()
	if snap == nil || tok == nil || snap.public.AccessToken != tok.AccessToken {
		return true
	}
	if end := time.Since(s.epoch); end-start >= follow.Patience {
		snap.unchangedUntil.Store(int64(end + lookEvery))
	}
	snap.accepted.Store(false)
	e := &Error{Op: "request", Status: resp.StatusCode, Err: ErrCredentials}
	if snap.refusal.Swap(e) == nil {
		s.log(slog.LevelWarn, "the product refuses the credentials", "error", s.named(e))
	}
	return false
}

// staticStatus is Status for a [Static] provider. Its Failure is a refusal, if no later response has accepted
// the credentials, or why they cannot be read.
func (s *Session) staticStatus() Status {
	s.mu.Lock()
	snap, err := s.state.token, s.state.failure.err
	s.mu.Unlock()
	if snap != nil && !snap.accepted.Load() {
		if e := snap.refusal.Load(); e != nil {
			err = e
		}
	}
	return Status{State: StateFresh, Failure: s.named(err)}
}

var errStatic = errors.New("there is nothing to revoke: the credentials are in the settings, and the product has no token endpoint")
