package auth

import (
	"net/http"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/internal/follow"
)

// headers are a token's headers, and a digest of the secrets that they were made with.
type headers struct {
	http.Header
	secrets string
}

// makeHeaders makes tok's headers. It reads secrets, which may take long. If a [Static] provider has none, because a
// secret cannot be read, they are made again at the next look.
func (c *core) makeHeaders(tok *oauth2.Token) *headers {
	secrets, _ := c.readSecrets(Secret.Value) // before the headers: they may be newer than the digest, but never older
	h := c.provider.Header(tok)
	if h == nil && c.credentials != nil {
		secrets = ""
	}
	return &headers{h, secrets}
}

// newFollower returns what makes the current token's headers again after a secret has changed: Token asks it
// to look. It is nil if no secret can change.
func (c *core) newFollower() *follow.Value[struct{}] {
	fixed := true
	for _, s := range c.opts.Secrets {
		fixed = fixed && s.fixed
	}
	if fixed {
		return nil
	}
	const every = time.Second - wallClockEvery // Token asks every wallClockEvery
	return follow.New(every, follow.Patience, func() (struct{}, error) {
		snap := c.current.Load()
		if c.credentials != nil {
			c.followStatic(snap)
			return struct{}{}, nil
		}
		secrets, err := c.readSecrets(Secret.Value)
		if err == nil && snap != nil && snap.record.AccessToken != "" && snap.headers.Load().secrets != secrets {
			snap.headers.Store(c.makeHeaders(snap.public))
		}
		return struct{}{}, nil
	}).Know(struct{}{})
}
