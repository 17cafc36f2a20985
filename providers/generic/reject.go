package generic

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
)

// Rejects reports whether resp refuses the token, by RejectedWhen and NotRejectedWhen. An exception
// with a pointer into a body that is not there to be read holds: whoever sees a token refused sends
// the request again, and it may be a write.
func (p *Provider) Rejects(resp *http.Response, body []byte) bool {
	holds := func(c Condition) bool { return c.holds(resp.StatusCode, body) }
	excepts := holds
	if unread(resp, body) {
		excepts = func(c Condition) bool {
			c.Pointer, c.Equals = "", ""
			return holds(c)
		}
	}
	return slices.ContainsFunc(p.c.RejectedWhen, holds) && !slices.ContainsFunc(p.c.NotRejectedWhen, excepts)
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

func (c Condition) check() error {
	looks := c.Pointer != "" || c.BodyContains != ""
	switch {
	case c == Condition{}:
		return errors.New("says nothing, so it would hold for every response")
	case c.Status != 0 && (c.Status < 100 || c.Status > 599):
		return errors.New("status must be from 100 to 599")
	case c.Status != 0 && c.Status < 400 && looks:
		return errors.New("a response below 400 streams, its body is not looked at")
	case c.Equals != "" && c.Pointer == "":
		return errors.New("equals needs a pointer")
	case c.Pointer != "":
		return checkPointer(c.Pointer)
	}
	return nil
}
