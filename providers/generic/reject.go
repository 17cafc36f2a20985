package generic

import (
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/itsmauth/itsmauth/internal/jsonbody"
)

// Rejects reports whether resp rejects the token, by RejectedWhen and NotRejectedWhen. If the body
// cannot be read, a NotRejectedWhen with a pointer counts as met: a rejected request is sent again,
// and it may be a write. A response that wants another DPoP nonce does not reject the token.
func (p *Provider) Rejects(resp *http.Response, body []byte) bool {
	if p.dpop != nil && p.wantsNonce(resp, body) {
		return false
	}
	matches := func(c Condition) bool { return c.Matches(resp.StatusCode, body) }
	if !slices.ContainsFunc(p.c.RejectedWhen, matches) {
		return false
	}
	mayMatch := matches
	if incomplete(resp, body) {
		mayMatch = func(c Condition) bool {
			c.Pointer, c.Equals = "", ""
			return matches(c)
		}
	}
	return !slices.ContainsFunc(p.c.NotRejectedWhen, mayMatch)
}

// incomplete reports whether body is cut off within its JSON, or compressed in an encoding that the
// session does not decode.
func incomplete(resp *http.Response, body []byte) bool {
	switch strings.ToLower(resp.Header.Get("Content-Encoding")) {
	case "", "identity", "gzip", "x-gzip":
		_, err := jsonbody.Parse(body)
		return errors.Is(err, io.ErrUnexpectedEOF)
	}
	return true
}

func (e ResponseError) matches(status int, doc any) bool {
	return (e.Status == 0 || e.Status == status) && (e.Pointer == "" || jsonbody.Holds(doc, e.Pointer, e.Equals))
}
