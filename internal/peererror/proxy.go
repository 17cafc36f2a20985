package peererror

import (
	"fmt"
	"net/http"
)

// A Proxy is a failure to get through a proxy, as opposed to one of the product behind it.
type Proxy struct {
	// Name names it, such as "the proxy http://proxy:3128".
	Name string
	Err  error
}

func (e *Proxy) Error() string { return e.Name + ": " + e.Err.Error() }
func (e *Proxy) Unwrap() error { return e.Err }

// Timeout is asked for by [net/url.Error].
func (e *Proxy) Timeout() bool { return isTimeout(e.Err) }

// Refusal is a status other than 200 with which a proxy answers CONNECT (RFC 9110 section 9.3.6).
type Refusal int

func (r Refusal) Error() string {
	return fmt.Sprintf("it answered CONNECT with %d %s", int(r), http.StatusText(int(r)))
}
