package transport

import (
	"crypto/tls"
	"log/slog"
	"net/http"
	"net/url"
	"time"
)

// Options shape a connector's traffic. The zero value of each field is its default.
type Options struct {
	// Connector names the connector in errors and logs.
	Connector string
	// BaseURL gives the origin that credentials go to. Required by [New].
	BaseURL *url.URL
	// AllowedOrigins are further ones; only scheme, host and port count.
	AllowedOrigins []*url.URL
	// AllowHTTP permits plain http to hosts other than loopback.
	AllowHTTP bool

	// Timeout (60 s) is until the headers of the returned response, waits and retries included.
	// It does not cut a body that flows, up or down.
	Timeout time.Duration
	// AttemptTimeout (30 s) is the longest silence: connecting, from request written to headers,
	// between two writes or reads of a body.
	AttemptTimeout time.Duration
	Retry          Retry
	// MaxReplayBody (1 MiB) is how much of a body without GetBody is kept for a replay. Negative
	// keeps nothing.
	MaxReplayBody int64

	// Limiter is the identity's, shared by its connectors and its exchanges. nil is without limits.
	Limiter *Limiter
	// Close makes each connection serve one request.
	Close bool
	// TLS configures the connections to allowed origins. It is not changed.
	TLS *tls.Config
	// Proxy finds the proxy of a request; nil is [http.ProxyFromEnvironment].
	Proxy func(*http.Request) (*url.URL, error)
	// UserAgent is sent where the request has none. "" leaves it to net/http.
	UserAgent string

	// Wrap, if not nil, is put around the innermost RoundTripper: it sees each attempt.
	Wrap func(http.RoundTripper) http.RoundTripper
	// Logger, if not nil, gets a record of each attempt: method, URL without query, status,
	// attempt, wait.
	Logger *slog.Logger
}

// Retry bounds the retries of a call.
type Retry struct {
	MaxAttempts int `yaml:"max_attempts" min:"1, the first attempt included"` // 4

	MinBackoff    time.Duration `yaml:"min_backoff"`     // 500 ms
	MaxBackoff    time.Duration `yaml:"max_backoff"`     // 30 s
	MaxRetryAfter time.Duration `yaml:"max_retry_after"` // 30 s: a longer Retry-After is not waited for
}
