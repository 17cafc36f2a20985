package auth

import (
	"log/slog"
	"net/http"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/internal/peek"
)

// Rejected implements [Authenticator]. It is false also for a response that does refuse tok while
// another exchange would do no good: forced exchanges that fail back off from 1 s to 60 s, and come
// at most three in a row, then one every 5 s. The caller then gets the product's own response. If the
// provider is [Static], it is true only if a secret has changed since tok's headers were made.
func (s *Session) Rejected(resp *http.Response, tok *oauth2.Token) bool {
	if s.provider.Rejects(resp, peek.Body(resp)) {
		if s.credentials != nil {
			return s.staticRefused(resp, tok)
		}
		return s.refused(tok, true)
	}
	if accepts(resp.StatusCode) {
		if snap := s.current.Load(); snap != nil && tok != nil && snap.record.AccessToken == tok.AccessToken && !snap.accepted.Load() {
			snap.accepted.Store(true)
		}
	}
	return false
}

// accepts reports whether a response with that status shows that the token was accepted. A gateway
// may send some of them before it looks at the token.
func accepts(status int) bool {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusProxyAuthRequired,
		http.StatusRequestTimeout, http.StatusTooManyRequests:
		return false
	}
	return status < 500
}

// Invalidate stops the use of tok, as if a response had refused it. Newer tokens are unaffected.
// Exchanges that it forces come at most three in a row, then one every 5 s. If the provider is [Static], it
// does nothing.
func (s *Session) Invalidate(tok *oauth2.Token) {
	if s.credentials == nil {
		s.refused(tok, false)
	}
}

// refused gives up tok if it is the current token, and reports whether there is reason to try again.
func (c *core) refused(tok *oauth2.Token, byProduct bool) bool {
	if tok == nil {
		return true
	}
	c.mu.Lock()
	verdict := c.state.refused(time.Now(), tok.AccessToken, byProduct)
	if verdict != replaced {
		c.startLocked(look)
	}
	c.showLocked()
	c.mu.Unlock()
	if verdict == tooOften {
		c.log(slog.LevelWarn, "the account's tokens are being killed elsewhere; a token store shared by all its processes ends that")
	}
	return verdict == replaced
}
