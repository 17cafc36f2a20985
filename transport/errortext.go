package transport

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"strings"

	"github.com/itsmauth/itsmauth/auth"
)

// net/http has no types for these errors, only texts. TestErrorTexts, TestFaults and TestSafeResends make
// net/http return each of them, so that they fail if a Go release changes a text.
const (
	textInvalid = "net/http: invalid " // method, header or trailer: nothing was sent
	textBroken  = "net/http: HTTP/1.x transport connection broken: "
	textLength  = textBroken + "http: ContentLength=" // the caller's body is shorter or longer
	textQuoting = "malformed"                         // also outside of textBroken: a chunk, a proxy's response, HTTP/2
	textGoAway  = "http2: Transport received GOAWAY from server ErrCode:"
	textIdle    = "http: server closed idle connection"
)

// invalidRequest reports whether net/http refused to send the request.
func invalidRequest(err error) bool { return strings.HasPrefix(err.Error(), textInvalid) }

// unprocessed reports whether an HTTP/2 server has closed the connection with an error and said that it
// has not processed this request, the first on the connection (RFC 9113 section 6.8). net/http resends
// the others itself.
func unprocessed(err error) bool { return strings.HasPrefix(err.Error(), textGoAway) }

// idleClosed reports whether the server closed an idle connection as net/http was about to use it.
func idleClosed(err error) bool { return strings.Contains(err.Error(), textIdle) }

// errNotHTTP replaces errors of net/http that quote what the server sent.
var errNotHTTP = fmt.Errorf("%w: the response is not valid HTTP", auth.ErrProtocol)

// redactServerText replaces net/http errors that quote bytes from the server, which may contain our
// token.
func redactServerText(err error) error {
	if err == nil {
		return nil
	}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, new(net.Error)):
		return err
	case errors.As(err, new(textproto.ProtocolError)), strings.Contains(err.Error(), textQuoting),
		strings.Contains(err.Error(), textBroken) && !strings.HasPrefix(err.Error(), textLength):
		return errNotHTTP
	}
	return err
}
