// Package proxyerror tells failures of a proxy from those of the product behind it. Its texts hold nothing
// that a server sent.
package proxyerror

import (
	"fmt"
	"net/http"
)

// Error is a failure to get through the proxy.
type Error struct {
	// Proxy names it, such as "the proxy http://proxy:3128".
	Proxy string
	Err   error
}

func (e *Error) Error() string { return e.Proxy + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Refusal is a status other than 200 with which a proxy answers CONNECT (RFC 9110 section 9.3.6).
type Refusal int

func (r Refusal) Error() string {
	return fmt.Sprintf("it answered CONNECT with %d %s", int(r), http.StatusText(int(r)))
}
