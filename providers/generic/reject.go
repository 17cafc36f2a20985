package generic

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/itsmauth/itsmauth/internal/settings"
)

// Rejects reports whether resp rejects the token, by RejectedWhen and NotRejectedWhen. If the body
// cannot be read, a NotRejectedWhen with a pointer counts as met: a rejected request is sent again,
// and it may be a write.
func (p *Provider) Rejects(resp *http.Response, body []byte) bool {
	matches := func(c Condition) bool { return c.matches(resp.StatusCode, body) }
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
		_, err := parse(body)
		return errors.Is(err, io.ErrUnexpectedEOF)
	}
	return true
}

func (c Condition) matches(status int, body []byte) bool {
	return (c.Status == 0 || c.Status == status) && bytes.Contains(body, []byte(c.BodyContains)) &&
		(c.Pointer == "" || holds(decode(body), c.Pointer, c.Equals))
}

func (e ResponseError) matches(status int, doc any) bool {
	return (e.Status == 0 || e.Status == status) && (e.Pointer == "" || holds(doc, e.Pointer, e.Equals))
}

// holds reports whether a value at pointer equals equals, or, if that is "", is neither null nor "".
func holds(doc any, pointer, equals string) bool {
	return slices.ContainsFunc(find(doc, pointer), func(v any) bool {
		if equals != "" {
			return text(v) == equals
		}
		return v != nil && v != ""
	})
}

func (c Condition) readsBody() bool { return c.Pointer != "" || c.BodyContains != "" }

// check adds an error for each wrong field of the condition at key.
func (c Condition) check(errs *settings.Errors, key string) {
	errs.When(c == Condition{}, key, "is empty and would match every response")
	errs.When(c.Status != 0 && (c.Status < 100 || c.Status > 599), key+".status", "must be from 100 to 599")
	errs.When(c.Equals != "" && c.Pointer == "", key+".equals", "needs pointer")
	if c.Pointer != "" {
		errs.Add(key+".pointer", checkPointer(c.Pointer))
	}
}
