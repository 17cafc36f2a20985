package transport

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/peererror"
)

// net/http has no types for these errors, only texts. TestErrorTexts, TestFaults and TestSafeResends make
// net/http return each of them, so that they fail if a Go release changes a text.
const (
	textInvalid = "net/http: invalid "                                                   // method, header or trailer: nothing was sent
	textLength  = "net/http: HTTP/1.x transport connection broken: http: ContentLength=" // the caller's body is shorter or longer
	textIdle    = "http: server closed idle connection"
)

var wrongLength = regexp.MustCompile("^" + regexp.QuoteMeta(textLength) + "[0-9]+ with Body length [0-9]+$")

// invalidRequest reports whether net/http refused to send the request.
func invalidRequest(err error) bool { return strings.HasPrefix(err.Error(), textInvalid) }

// unprocessed reports whether an HTTP/2 server has closed the connection with an error and said that it
// has not processed this request, the first on the connection (RFC 9113 section 6.8). net/http resends
// the others itself.
func unprocessed(err error) bool { return errors.Is(err, peererror.ErrUnprocessed) }

// idleClosed reports whether the server closed an idle connection as net/http was about to use it.
func idleClosed(err error) bool { return strings.Contains(err.Error(), textIdle) }

// redactServerText returns an error of net/http without text of the server or a proxy, which may contain our
// token. Of names it may have those given.
func redactServerText(err error, names ...string) error {
	if err == nil || invalidRequest(err) || wrongLength.MatchString(err.Error()) { // the caller's own text
		return err
	}
	if ours, ok := errors.AsType[*auth.Error](err); ok {
		return ours
	}
	if err = peererror.Clean(err, names...); errors.Is(err, peererror.ErrNotHTTP) {
		return fmt.Errorf("%w: %w", auth.ErrProtocol, err)
	}
	return err
}

// redact is redactServerText for an error with which the attempt failed. The caller's own body may fail too.
func (a *attempt) redact(err error) error {
	if err == nil {
		return nil
	}
	c := a.call
	if own := c.body.failure(); own != nil && errors.Is(err, own) {
		return own
	}
	var names []string
	if proxy := a.proxy.Load(); proxy != nil {
		names = append(names, proxy.Hostname())
	}
	if c.origin != nil { // of another origin, the name is a server's
		names = append(names, c.req.URL.Hostname(), toASCII(c.req.URL.Hostname()))
		if c.t.o.TLS != nil {
			names = append(names, c.t.o.TLS.ServerName)
		}
	}
	return redactServerText(err, names...)
}
