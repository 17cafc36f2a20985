// Package peererror makes errors of connections that may be shown: they have no text that a server, a proxy, a
// certificate or a DNS server has chosen. A peer may repeat there what it was sent, or write to a terminal.
package peererror

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/textproto"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/net/http2"
)

// What an error becomes that is of no known type: each sentence says what to look at.
var (
	// ErrNotHTTP is a response that breaks the rules of HTTP.
	ErrNotHTTP = errors.New("the response is not valid HTTP: see which server is at that address, and the proxies before it")
	// ErrUnprocessed is an HTTP/2 connection that the server ended before it processed the request.
	ErrUnprocessed = errors.New("the server ended the HTTP/2 connection before it processed the request (GOAWAY)")
	// ErrBroken is any other error.
	ErrBroken = errors.New("the connection broke, or the response was not HTTP")

	errGoAway   = errors.New("the server ended the HTTP/2 connection (GOAWAY)")
	errLong     = fmt.Errorf("%w; its headers are too long", ErrNotHTTP)
	errGzip     = errors.New("the response's body is not valid gzip: see the proxies before the server")
	errTLS      = errors.New("tls: the handshake failed: see the server's certificate, and transport.tls_config")
	errNoTLS    = errors.New("tls: first record does not look like a TLS handshake: see whether that port is one of TLS")
	errLocation = errors.New("unreadable Location")
	errScheme   = errors.New("the URL begins with neither https:// nor http://")
	errNotSOCKS = errors.New("the answer is not one of SOCKS 5: see what kind of proxy it is")
	errSilent   = timeout("no answer in time: see the server and the network")
)

// classes are recognized by a part of the text, which is not shown. The first that fits counts.
var classes = []struct {
	err   error
	parts []string
}{
	{errLocation, []string{"parse Location"}},
	{ErrUnprocessed, []string{"http2: Transport received GOAWAY from server ErrCode:"}},
	{errGoAway, []string{"server sent GOAWAY"}},
	{errLong, []string{"response headers exceeded", "header list", "header line too long", "message too large", "suspiciously long"}},
	{errGzip, []string{"gzip: ", "flate: "}},
	{errTLS, []string{"tls: ", "x509: "}},
	{errScheme, []string{"unsupported protocol scheme"}},
	{ErrNotHTTP, []string{"malformed", "transport connection broken", "Content-Length", "ransfer encoding", "Transfer-Encoding", "railer", "chunk",
		"pseudo-header", "pseudo header", "header field", "frame"}},
}

// constants are errors with a text of their own.
var constants = []error{io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, net.ErrClosed, os.ErrDeadlineExceeded, context.Canceled,
	context.DeadlineExceeded, http.ErrSchemeMismatch, http.ErrBodyReadAfterClose}

// texts are what errors without a type say that are the standard library's alone.
var texts = []string{
	"net/http: TLS handshake timeout", "http: server closed idle connection", "http2: client connection lost",
	"net/http: cannot rewind body after connection loss", "http: no Host in request URL", "http: read on closed response body",
	"http2: response body closed", "http2: timeout awaiting response headers", "net/http: request canceled",
	"net/http: request canceled while waiting for connection", "i/o timeout", "operation was canceled",
	"no such host", "server misbehaving", "no answer from DNS server", "invalid DNS response", "cannot unmarshal DNS message", "lame referral",
	"no acceptable authentication methods", "username/password authentication failed", "invalid username/password version",
	"unknown error general SOCKS server failure", "unknown error connection not allowed by ruleset", "unknown error network unreachable",
	"unknown error host unreachable", "unknown error connection refused", "unknown error TTL expired",
	"unknown error command not supported", "unknown error address type not supported",
}

// An Error is an error as it may be shown. [errors.Is] finds what caused it too, and [errors.As] if the caller
// names its type, such as [x509.HostnameError]; nothing prints it.
type Error struct {
	shown error
	cause func() error // a function, so that no printer of fields reaches it
}

// Clean returns err as it may be shown. Of names only those given are, such as the host of base_url. An
// [io.EOF] and its like remain themselves.
func Clean(err error, names ...string) error {
	for u := (*url.Error)(nil); errors.As(err, &u); {
		err = u.Err
	}
	if err == nil || slices.Contains(constants, err) {
		return err
	}
	if proxy, ok := errors.AsType[*Proxy](err); ok {
		return proxy
	}
	if clean, ok := errors.AsType[*Error](err); ok {
		return clean
	}
	return &Error{allowed(names).shown(err), func() error { return err }}
}

func (e *Error) Error() string { return e.shown.Error() }
func (e *Error) Unwrap() error { return e.shown }

// Format prints the message for every verb.
func (e *Error) Format(f fmt.State, verb rune) {
	fmt.Fprintf(f, fmt.FormatString(f, verb), e.Error())
}

// Is is for [errors.Is].
func (e *Error) Is(target error) bool { return errors.Is(e.cause(), target) }

// As is for [errors.As]. An interface would be the type of any error, so it finds what is shown alone.
func (e *Error) As(target any) bool {
	return errors.As(e.shown, target) || reflect.TypeOf(target).Elem().Kind() != reflect.Interface && errors.As(e.cause(), target)
}

// Timeout is asked for by [net/url.Error].
func (e *Error) Timeout() bool { return isTimeout(e.cause()) }

// Temporary is there because [net.Error] asks for it.
func (e *Error) Temporary() bool { return e.Timeout() }

func isTimeout(err error) bool {
	t, ok := errors.AsType[net.Error](err)
	return ok && t.Timeout()
}

// timeout is the message of a time limit.
type timeout string

func (t timeout) Error() string { return string(t) }
func (timeout) Timeout() bool   { return true }
func (timeout) Temporary() bool { return true }

// allowed are the names that may be shown.
type allowed []string

// host returns a name if it may be shown, and addresses, which are numbers.
func (a allowed) host(name string) string {
	if addr, err := netip.ParseAddr(name); err == nil {
		return addr.WithZone("").String()
	}
	for _, known := range a {
		if strings.EqualFold(known, strings.TrimSuffix(name, ".")) {
			return known
		}
	}
	return ""
}

func (a allowed) shown(err error) error {
	if known := a.known(err); known != nil {
		return known
	}
	if isTimeout(err) {
		return errSilent
	}
	text := err.Error()
	for _, c := range classes {
		if slices.ContainsFunc(c.parts, func(part string) bool { return strings.Contains(text, part) }) {
			return c.err
		}
	}
	if errors.As(err, new(textproto.ProtocolError)) {
		return ErrNotHTTP
	}
	return ErrBroken
}

// known returns the outermost error in err that has a known type or text, made anew. Without one it returns nil.
func (a allowed) known(err error) error {
	if err == nil || slices.Contains(constants, err) {
		return err
	}
	if text := err.Error(); slices.Contains(texts, text) {
		if isTimeout(err) {
			return timeout(text)
		}
		return errors.New(text)
	}
	if v := reflect.ValueOf(err); v.Kind() == reflect.Uint8 && v.Type().PkgPath() == "crypto/tls" {
		return tls.AlertError(v.Uint())
	}
	switch e := err.(type) {
	case Refusal:
		return e
	case syscall.Errno:
		return e
	case *net.OpError:
		return a.opError(e)
	case *net.DNSError:
		return a.dnsError(e)
	case *tls.CertificateVerificationError:
		return fmt.Errorf("tls: failed to verify certificate: %w", a.certificateError(e.Err))
	case x509.HostnameError, x509.UnknownAuthorityError, x509.CertificateInvalidError, x509.SystemRootsError:
		return a.certificateError(err)
	case tls.RecordHeaderError:
		return errNoTLS
	case http2.StreamError:
		return http2.StreamError{StreamID: e.StreamID, Code: e.Code}
	case http2.ConnectionError:
		return e
	case interface{ Unwrap() error }:
		return a.known(e.Unwrap())
	case interface{ Unwrap() []error }:
		for _, err := range e.Unwrap() {
			if known := a.known(err); known != nil {
				return known
			}
		}
	}
	return nil
}

func (a allowed) opError(e *net.OpError) *net.OpError {
	made := &net.OpError{Source: a.address(e.Source), Addr: a.address(e.Addr), Err: a.shown(e.Err)}
	if slices.Contains([]string{"dial", "read", "write", "proxyconnect", "socks connect", "remote error", "local error"}, e.Op) {
		made.Op = e.Op
	}
	if e.Op == "socks connect" && made.Err == ErrBroken {
		made.Err = errNotSOCKS
	}
	if slices.Contains([]string{"tcp", "tcp4", "tcp6", "udp", "unix"}, e.Net) {
		made.Net = e.Net
	}
	return made
}

// shownAddress is an address whose host may be shown.
type shownAddress struct{ network, address string }

func (a shownAddress) Network() string { return a.network }
func (a shownAddress) String() string  { return a.address }

func (a allowed) address(addr net.Addr) net.Addr {
	if addr == nil {
		return nil
	}
	host, port, err := net.SplitHostPort(addr.String())
	if host = a.host(host); err != nil || host == "" || strings.Trim(port, "0123456789") != "" {
		return nil
	}
	return shownAddress{"tcp", net.JoinHostPort(host, port)}
}

func (a allowed) dnsError(e *net.DNSError) *net.DNSError {
	made := &net.DNSError{Err: "the look-up failed", Name: a.host(e.Name), IsTimeout: e.IsTimeout, IsTemporary: e.IsTemporary, IsNotFound: e.IsNotFound}
	if slices.Contains(texts, e.Err) {
		made.Err = e.Err
	}
	if made.Name == "" {
		made.Name = "the host"
	}
	if server, err := netip.ParseAddrPort(e.Server); err == nil {
		made.Server = server.String()
	}
	return made
}

// certificateError says what is wrong with a certificate, without the certificate's own names.
func (a allowed) certificateError(err error) error {
	var (
		name    x509.HostnameError
		invalid x509.CertificateInvalidError
	)
	say := func(text string, args ...any) error { return fmt.Errorf("x509: "+text, args...) }
	switch {
	case errors.As(err, &name) && a.host(name.Host) != "":
		return say("certificate is not valid for %s", a.host(name.Host))
	case errors.As(err, &name):
		return say("certificate is not valid for the host")
	case errors.As(err, new(x509.UnknownAuthorityError)):
		return say("certificate signed by unknown authority")
	case errors.As(err, new(x509.SystemRootsError)):
		return say("failed to load system roots and no roots provided")
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && invalid.Cert != nil:
		const layout = "2006-01-02T15:04:05Z"
		return say("certificate has expired or is not yet valid: it is valid from %s to %s", invalid.Cert.NotBefore.UTC().Format(layout), invalid.Cert.NotAfter.UTC().Format(layout))
	case errors.As(err, &invalid):
		invalid.Detail = "" // names that the certificate has
		return errors.New(strings.TrimSuffix(invalid.Error(), ": "))
	}
	return say("certificate cannot be verified")
}
