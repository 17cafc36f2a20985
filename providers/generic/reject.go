package generic

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/itsmauth/itsmauth/internal/refusals"
)

// Rejects reports whether resp refuses the token, by RejectedWhen and NotRejectedWhen. An exception
// with a pointer into a body that is not there to be read holds: whoever sees a token refused sends
// the request again, and it may be a write.
func (p *Provider) Rejects(resp *http.Response, body []byte) bool {
	holds := func(c Condition) bool { return c.holds(resp.StatusCode, body) }
	if !slices.ContainsFunc(p.c.RejectedWhen, holds) {
		return false
	}
	excepts := holds
	if unread(resp, body) {
		excepts = func(c Condition) bool {
			c.Pointer, c.Equals = "", ""
			return holds(c)
		}
	}
	return !slices.ContainsFunc(p.c.NotRejectedWhen, excepts)
}

// unread reports whether there is more to body than can be seen: its JSON breaks off, or it is
// compressed in a way that nobody has undone.
func unread(resp *http.Response, body []byte) bool {
	switch strings.ToLower(resp.Header.Get("Content-Encoding")) {
	case "", "identity", "gzip", "x-gzip":
		_, err := parse(body)
		return errors.Is(err, io.ErrUnexpectedEOF)
	}
	return true
}

func (c Condition) holds(status int, body []byte) bool {
	if c.Status != 0 && c.Status != status || !bytes.Contains(body, []byte(c.BodyContains)) {
		return false
	}
	return c.Pointer == "" || slices.ContainsFunc(find(decode(body), c.Pointer), func(v any) bool {
		if c.Equals != "" {
			return text(v) == c.Equals
		}
		return v != nil && v != ""
	})
}

// check refuses what is at fault in the condition at key.
func (c Condition) check(r *refusals.List, key string) {
	looks := c.Pointer != "" || c.BodyContains != ""
	r.When(c == Condition{}, key, "says nothing, so it would hold for every response")
	r.When(c.Status != 0 && (c.Status < 100 || c.Status > 599), key+".status", "must be from 100 to 599")
	r.When(c.Status >= 100 && c.Status < 400 && looks, key+".status", "a response below 400 streams, its body is not looked at")
	r.When(c.Equals != "" && c.Pointer == "", key+".equals", "needs a pointer")
	if c.Pointer != "" {
		r.Add(key+".pointer", checkPointer(c.Pointer))
	}
}
