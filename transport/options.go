package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/http"
	"net/url"
	"time"
)

// Options say how a connector sends its requests. The zero value of each field is its default.
type Options struct {
	// Connector names the connector in errors and logs.
	Connector string
	// BaseURL gives the origin that credentials go to. Required by [New].
	BaseURL *url.URL
	// AllowedOrigins are further origins for credentials; only scheme, host and port count.
	AllowedOrigins []*url.URL
	// AllowHTTP permits plain http to hosts other than loopback, and through a proxy. Without it, the URL
	// must say localhost, a name below it (RFC 6761 section 6.3) or a loopback address. Then only loopback
	// addresses are dialed, and no proxy is used.
	AllowHTTP bool

	// Timeout (60 s) limits the time until the headers of the returned response, waits and retries
	// included. It does not end a request or response body that keeps moving.
	Timeout time.Duration
	// AttemptTimeout (30 s) limits each silence: while connecting, from the written request to the
	// response's headers, and between two reads or writes of a body.
	AttemptTimeout time.Duration
	Retry          Retry
	// MaxReplayBody (1 MiB) is how many bytes of a body without GetBody are kept for a retry. If it is
	// negative, none are.
	MaxReplayBody int64

	// Limiter is shared by the connectors and exchanges of one identity. nil means no limits.
	Limiter *Limiter
	// Close makes each connection serve a single request.
	Close bool
	// TLS configures the connections to allowed origins. It is not changed.
	TLS *tls.Config
	// RootCAs, if not nil, returns the certificate authorities to trust in place of TLS.RootCAs. It is
	// called for each request. If they have changed, new connections are verified with them, and earlier
	// ones are closed when they are idle. If it returns nil, they have not.
	RootCAs func(context.Context) *x509.CertPool
	// Proxy returns the proxy of a request; nil means [ProxyFromEnvironment].
	Proxy func(*http.Request) (*url.URL, error)
	// NoProxy lists hosts that Proxy is not asked for, in the syntax of the environment variable NO_PROXY:
	// "example.com, .internal, 10.0.0.0/8, intranet:8443". "" lists none.
	NoProxy string
	// UserAgent is sent with requests that set none. "" leaves it to net/http.
	UserAgent string

	// Wrap, if not nil, wraps the innermost RoundTripper, so that it sees each attempt. It sees a request
	// again if its idle connection closed before it was written. errors.Is and errors.As find the errors that
	// it returns. Only of an [*auth.Error] is the text shown, because others may quote a server; those of the
	// wrapped RoundTripper do.
	Wrap func(http.RoundTripper) http.RoundTripper
	// Logger, if not nil, gets a debug record of each attempt (method, URL without query, status) and
	// of each wait before another.
	Logger *slog.Logger
}

// Retry limits the retries of a call. The zero value of each field is its default.
type Retry struct {
	MaxAttempts int `yaml:"max_attempts" min:"1, the first attempt included"` // 4

	MinBackoff    time.Duration `yaml:"min_backoff"`     // 500 ms
	MaxBackoff    time.Duration `yaml:"max_backoff"`     // 30 s
	MaxRetryAfter time.Duration `yaml:"max_retry_after"` // 30 s; a response with a longer Retry-After is returned
}
