package auth

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
)

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

// maxPeek is how much of a response's body a provider is shown.
const maxPeek = 64 << 10

// peek reads the beginning of resp's body and puts it back.
func peek(resp *http.Response) []byte {
	if resp.Body == nil || resp.Body == http.NoBody {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxPeek))
	rest := io.Reader(resp.Body)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		rest = unreadable{err}
	}
	resp.Body = &peeked{io.MultiReader(bytes.NewReader(b), rest), resp.Body}
	return b
}

// plain undoes gzip, which net/http leaves in place if the caller asked for it. body may be cut off;
// then the result is too.
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

// unreadable is the rest of a body that could not be read.
type unreadable struct{ err error }

func (b unreadable) Read([]byte) (int, error) { return 0, b.err }
