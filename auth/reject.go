package auth

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/oauth2"
)

// forced counts the exchanges that refused tokens force, and slows them down: a product that
// refuses everything, or other processes that make tokens of the same account, must not turn each
// call into an exchange.
type forced struct {
	fails int       // in a row
	until time.Time // none before
	whole time.Time // when the row of forcedRow is whole again
}

const (
	forcedRow   = 3
	forcedEvery = 5 * time.Second
	forcedMost  = time.Minute
)

// fail notes that a forced exchange came to nothing.
func (f *forced) fail() {
	now := time.Now()
	if now.Sub(f.until) > forcedMost {
		f.fails = 0 // it was long ago
	}
	f.fails++
	f.until = now.Add(backoff(f.fails, time.Second, forcedMost))
}

// allow takes one of the row, if there is one.
func (f *forced) allow() bool {
	left := max(0, time.Until(f.whole))
	if left > (forcedRow-1)*forcedEvery {
		return false
	}
	f.whole = time.Now().Add(left + forcedEvery)
	return true
}

// Rejected implements [Authenticator]. It is false also for a response that does refuse tok while
// another exchange would do no good: forced exchanges that fail back off from 1 s to 60 s, and come
// at most three in a row, then one every 5 s. The caller then gets the product's own response.
func (s *Session) Rejected(resp *http.Response, tok *oauth2.Token) bool {
	var body []byte
	if resp.StatusCode >= 400 {
		body = peek(resp)
	}
	if s.provider.Rejects(resp, plain(resp, body)) {
		return s.drop(tok, true)
	}
	if accepts(resp.StatusCode) {
		if snap := s.current.Load(); snap != nil && tok != nil && snap.record.AccessToken == tok.AccessToken && !snap.accepted.Load() {
			snap.accepted.Store(true)
		}
	}
	return false
}

// accepts reports whether a status shows that the token was good. Those that a gateway answers
// before it looks at the token show nothing.
func accepts(status int) bool {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusProxyAuthRequired,
		http.StatusRequestTimeout, http.StatusTooManyRequests:
		return false
	}
	return status < 500
}

// Invalidate sees to it that tok is not used again, as if a response had refused it. A later token
// stays. Exchanges that it forces come at most three in a row, then one every 5 s.
func (s *Session) Invalidate(tok *oauth2.Token) { s.drop(tok, false) }

// drop gives up tok if it is the current one, and reports whether there is reason to try again.
func (s *Session) drop(tok *oauth2.Token, refused bool) bool {
	log := func() {}
	s.mu.Lock()
	defer func() { s.mu.Unlock(); log() }()
	snap := s.current.Load()
	if tok == nil || snap == nil || snap.record.AccessToken != tok.AccessToken {
		return true
	}
	if refused && snap.forced {
		snap.forced = false // counted once
		if snap.accepted.Load() {
			s.forced.fails = 0
		} else {
			s.forced.fail()
		}
	}
	if time.Now().Before(s.forced.until) {
		s.start(looking)
		return false
	}
	if !s.forced.allow() {
		log = func() {
			s.opts.Logger.Warn("the account's tokens are being killed elsewhere; a token store shared by all its processes ends that",
				"connector", s.opts.Connector)
		}
		s.start(looking)
		return false
	}
	s.current.Store(nil)
	return true
}

// maxPeek is how much of a refusing response a provider gets to see.
const maxPeek = 64 << 10

// peek reads the beginning of resp's body and makes the body whole again.
func peek(resp *http.Response) []byte {
	if resp.Body == nil || resp.Body == http.NoBody {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxPeek))
	rest := io.Reader(resp.Body)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		rest = broken{err}
	}
	resp.Body = &peeked{io.MultiReader(bytes.NewReader(b), rest), resp.Body}
	return b
}

// plain undoes gzip, which net/http leaves to a caller who asked for it. body may break off, and so may
// what comes of it.
func plain(resp *http.Response, body []byte) []byte {
	switch strings.ToLower(resp.Header.Get("Content-Encoding")) {
	case "gzip", "x-gzip": // RFC 9110 section 8.4.1.3
		if z, err := gzip.NewReader(bytes.NewReader(body)); err == nil {
			body, _ = io.ReadAll(io.LimitReader(z, maxPeek))
		}
	}
	return body
}

type peeked struct {
	io.Reader
	io.Closer
}

// broken is the rest of a body that could not be read.
type broken struct{ err error }

func (b broken) Read([]byte) (int, error) { return 0, b.err }
