// Package peek reads the beginning of a response's body and puts it back.
package peek

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
)

// most is how much of a response's body a provider is shown.
const most = 64 << 10

// Body returns the first 64 KiB of an error response's body, which can still be read from its beginning. For
// a status below 400 it returns nil: a successful response is streamed. It undoes gzip, which net/http leaves
// in place if the caller asked for it.
func Body(resp *http.Response) []byte {
	if resp.StatusCode < 400 || resp.Body == nil || resp.Body == http.NoBody {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, most))
	rest := io.Reader(resp.Body)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		rest = unreadable{err}
	}
	resp.Body = &peeked{io.MultiReader(bytes.NewReader(b), rest), resp.Body}
	return plain(resp, b)
}

// plain undoes gzip. body may be cut off; then the result is too.
func plain(resp *http.Response, body []byte) []byte {
	switch strings.ToLower(resp.Header.Get("Content-Encoding")) {
	case "gzip", "x-gzip": // RFC 9110 section 8.4.1.3
		if z, err := gzip.NewReader(bytes.NewReader(body)); err == nil {
			body, _ = io.ReadAll(io.LimitReader(z, most))
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
