package peererror

import (
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

const said = "peersays"

// own is an error type that its owner may ask for.
type own struct{ text string }

func (e own) Error() string { return e.text }

func TestClean(t *testing.T) {
	t.Parallel()
	leaf := &x509.Certificate{DNSNames: []string{said}, NotBefore: time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC), NotAfter: time.Date(2021, 1, 2, 3, 4, 5, 0, time.UTC)}
	bad := func(err error) error {
		return &tls.CertificateVerificationError{UnverifiedCertificates: []*x509.Certificate{leaf}, Err: err}
	}
	tcp := func(ip string) net.Addr {
		addr := &net.TCPAddr{IP: net.ParseIP(ip), Port: 443}
		if addr.IP.To4() == nil {
			addr.Zone = said
		}
		return addr
	}
	lookup := func(name, text string) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: text, Name: name, Server: "10.0.0.53:53", IsNotFound: true}}
	}
	for name, tt := range map[string]struct {
		err  error
		want string // the message
		is   error
	}{
		"EOF":                 {io.EOF, "EOF", io.EOF},
		"wrapped EOF":         {fmt.Errorf("%s: %w", said, io.EOF), "EOF", io.EOF},
		"refused":             {&net.OpError{Op: "dial", Net: "tcp", Addr: tcp("10.0.0.1"), Err: &os.SyscallError{Syscall: "connect", Err: syscall.ECONNREFUSED}}, "dial tcp 10.0.0.1:443: connection refused", syscall.ECONNREFUSED},
		"IPv6":                {&net.OpError{Op: "dial", Net: "tcp", Addr: tcp("2001:db8::1"), Err: syscall.ECONNRESET}, "dial tcp [2001:db8::1]:443: connection reset by peer", syscall.ECONNRESET},
		"odd operation":       {&net.OpError{Op: said, Net: said, Addr: shownAddress{said, said + ":1"}, Err: errors.New(said)}, ": the connection broke, or the response was not HTTP", nil},
		"SOCKS":               {&net.OpError{Op: "socks connect", Net: "tcp", Addr: shownAddress{"tcp", "api.example.com:443"}, Err: errors.New("unknown error host unreachable")}, "socks connect tcp api.example.com:443: unknown error host unreachable", nil},
		"SOCKS, unknown":      {&net.OpError{Op: "socks connect", Net: "tcp", Err: errors.New("unknown error unknown code: " + said)}, "socks connect tcp: " + errNotSOCKS.Error(), nil},
		"DNS":                 {lookup("api.example.com", "no such host"), "dial tcp: lookup api.example.com on 10.0.0.53:53: no such host", nil},
		"DNS, another name":   {lookup(said, "no such host"), "dial tcp: lookup the host on 10.0.0.53:53: no such host", nil},
		"DNS, odd":            {lookup("api.example.com", said), "dial tcp: lookup api.example.com on 10.0.0.53:53: the look-up failed", nil},
		"alert":               {&net.OpError{Op: "remote error", Err: tls.AlertError(42)}, "remote error: tls: bad certificate", tls.AlertError(42)},
		"certificate":         {bad(x509.HostnameError{Certificate: leaf, Host: "api.example.com"}), "tls: failed to verify certificate: x509: certificate is not valid for api.example.com", nil},
		"another host":        {bad(x509.HostnameError{Certificate: leaf, Host: said}), "tls: failed to verify certificate: x509: certificate is not valid for the host", nil},
		"expired":             {bad(x509.CertificateInvalidError{Cert: leaf, Reason: x509.Expired, Detail: said}), "tls: failed to verify certificate: x509: certificate has expired or is not yet valid: it is valid from 2020-01-02T03:04:05Z to 2021-01-02T03:04:05Z", nil},
		"constraint":          {bad(x509.CertificateInvalidError{Cert: leaf, Reason: x509.CANotAuthorizedForThisName, Detail: said}), "tls: failed to verify certificate: x509: a root or intermediate certificate is not authorized to sign for this name", nil},
		"authority":           {bad(x509.UnknownAuthorityError{Cert: leaf}), "tls: failed to verify certificate: x509: certificate signed by unknown authority", nil},
		"odd certificate":     {bad(errors.New(said)), "tls: failed to verify certificate: x509: certificate cannot be verified", nil},
		"unreadable one":      {errors.New("tls: failed to parse certificate from server: x509: cannot parse dnsName " + said), errTLS.Error(), nil},
		"record":              {tls.RecordHeaderError{Msg: said, RecordHeader: [5]byte([]byte(said))}, errNoTLS.Error(), nil},
		"HTTP for TLS":        {fmt.Errorf("%w", http.ErrSchemeMismatch), "http: server gave HTTP response to HTTPS client", http.ErrSchemeMismatch},
		"GOAWAY":              {fmt.Errorf("http2: server sent GOAWAY and closed the connection; debug=%q", said), errGoAway.Error(), nil},
		"GOAWAY in text":      {errors.New("http2: Transport received GOAWAY from server ErrCode:" + said), ErrUnprocessed.Error(), ErrUnprocessed},
		"RST_STREAM":          {http2.StreamError{StreamID: 1, Code: http2.ErrCodeProtocol, Cause: errors.New(said)}, "stream error: stream ID 1; PROTOCOL_ERROR", nil},
		"HTTP/2":              {http2.ConnectionError(http2.ErrCodeProtocol), "connection error: PROTOCOL_ERROR", nil},
		"header name":         {fmt.Errorf("invalid header field name %q", said), ErrNotHTTP.Error(), ErrNotHTTP},
		"status line":         {fmt.Errorf("malformed HTTP response %q", said), ErrNotHTTP.Error(), ErrNotHTTP},
		"header line":         {textproto.ProtocolError(said), ErrNotHTTP.Error(), ErrNotHTTP},
		"trailer":             {fmt.Errorf("bad trailer key %q", said), ErrNotHTTP.Error(), ErrNotHTTP},
		"long headers":        {fmt.Errorf("net/http: server response headers exceeded %s bytes; aborted", said), errLong.Error(), ErrNotHTTP},
		"gzip":                {gzip.ErrChecksum, errGzip.Error(), gzip.ErrChecksum},
		"Location":            {fmt.Errorf("failed to parse Location header %q: net/url: invalid control character in URL", said), "unreadable Location", nil},
		"scheme":              {fmt.Errorf("unsupported protocol scheme %q", said), errScheme.Error(), nil},
		"handshake timeout":   {&net.OpError{Op: "read", Net: "tcp", Err: os.ErrDeadlineExceeded}, "read tcp: i/o timeout", os.ErrDeadlineExceeded},
		"a time limit":        {&url.Error{URL: said, Err: timeout(said)}, errSilent.Error(), nil},
		"context":             {fmt.Errorf("%s: %w", said, context.Canceled), "context canceled", context.Canceled},
		"a type of a user's":  {own{said}, ErrBroken.Error(), own{said}},
		"several":             {errors.Join(errors.New(said), io.ErrUnexpectedEOF), "unexpected EOF", io.ErrUnexpectedEOF},
		"a refusal":           {&Proxy{"the proxy http://proxy:3128", Refusal(502)}, "the proxy http://proxy:3128: it answered CONNECT with 502 Bad Gateway", Refusal(502)},
		"anything else":       {errors.New(said + "\x1b[31m\u202e"), ErrBroken.Error(), nil},
		"in net/http's words": {fmt.Errorf("net/http: HTTP/1.x transport connection broken: %w", errors.New(said)), ErrNotHTTP.Error(), ErrNotHTTP},
	} {
		got := Clean(&url.Error{Op: "Get", URL: "https://" + said, Err: tt.err}, "api.example.com")
		if got.Error() != tt.want || tt.is != nil && !errors.Is(got, tt.is) || Clean(got) != got {
			t.Errorf("%s: %v", name, got)
		}
		var out strings.Builder
		for _, v := range []any{got, []error{got}, struct{ E error }{got}, struct{ e error }{got}} {
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T", "%p"} {
				fmt.Fprintf(&out, verb+"\n", v)
			}
		}
		j, _ := json.Marshal(got)
		out.Write(j)
		for err := got; err != nil; err = errors.Unwrap(err) {
			fmt.Fprintf(&out, "%v %+v %#v\n", err, err, err)
		}
		if err, ok := errors.AsType[net.Error](got); ok {
			fmt.Fprintf(&out, "%v %#v %v\n", err, err, err.Timeout())
		}
		if s := out.String(); strings.Contains(s, said) || strings.Contains(s, fmt.Sprintf("%x", said)) {
			t.Errorf("%s: %s", name, s)
		}
	}
}

// Who names the type of an error gets it, and what it is not printed for.
func TestTypes(t *testing.T) {
	t.Parallel()
	leaf := &x509.Certificate{DNSNames: []string{said}}
	err := Clean(&tls.CertificateVerificationError{UnverifiedCertificates: []*x509.Certificate{leaf}, Err: x509.HostnameError{Certificate: leaf, Host: said}})
	var bad *tls.CertificateVerificationError
	var name x509.HostnameError
	if !errors.As(err, &bad) || !errors.As(err, &name) || name.Certificate != leaf {
		t.Error(err)
	}
	if e, ok := errors.AsType[own](Clean(own{said})); !ok || e.text != said {
		t.Error("the type is lost")
	}
	if op, ok := errors.AsType[*net.OpError](Clean(&net.OpError{Op: "dial", Net: "tcp", Err: own{said}})); !ok || op.Op != "dial" || strings.Contains(op.Error(), said) {
		t.Error(op)
	}
	for err, timeout := range map[error]bool{context.DeadlineExceeded: true, timeout(said): true, own{said}: false} {
		if u := (&url.Error{Err: Clean(fmt.Errorf("%w", err))}); u.Timeout() != timeout {
			t.Errorf("%v: %v", err, u.Timeout())
		}
	}
}
