package config

import (
	"cmp"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/config/internal/yamldoc"
	"github.com/itsmauth/itsmauth/internal/endpoint"
	"github.com/itsmauth/itsmauth/internal/tlsfile"
	"github.com/itsmauth/itsmauth/transport"
)

// connectorConfig holds the settings that connectors of every provider have.
type connectorConfig struct {
	// Provider is the adapter for the product.
	Provider string `yaml:"provider" required:"true"`
	// BaseURL of the product's API. Credentials go to its origin.
	BaseURL *url.URL `yaml:"base_url" required:"true"`
	// Account is a label that separates identities, such as two consents of one client.
	Account string `yaml:"account"`
	// Probe is a harmless path of the API, for check --online.
	Probe    string `yaml:"probe"`
	defaults `yaml:",inline"`
}

// defaults are the settings that connectors can have in common.
type defaults struct {
	// EarlyRefresh is how long before it expires a token is replaced, at most: 5m, and never more
	// than 20 % of its lifetime.
	EarlyRefresh time.Duration `yaml:"early_refresh" default:"5m"`
	// Transport shapes the traffic.
	Transport transportConfig `yaml:"transport"`
}

// transportConfig shapes a connector's traffic.
type transportConfig struct {
	// Timeout is until the headers of the response, waits and retries included: 60s.
	Timeout time.Duration `yaml:"timeout"`
	// AttemptTimeout is the longest silence of one attempt: 30s.
	AttemptTimeout time.Duration `yaml:"attempt_timeout"`
	// Retry bounds the retries of a call.
	Retry transport.Retry `yaml:"retry"`
	// MaxReplayBody is how much of a request's body is kept for a retry: 1MiB. 0 keeps nothing.
	MaxReplayBody *yamldoc.Size `yaml:"max_replay_body"`
	// RateLimits are windows that hold all at once, exchanges included. The default is the
	// product's own.
	RateLimits []auth.Limit `yaml:"rate_limits"`
	// MaxConcurrency is how many calls run at once. 0 is any number.
	MaxConcurrency int `yaml:"max_concurrency" min:"0, which is any number"`
	// Connection is keepalive, or close: one request a connection. The default is the product's.
	Connection string `yaml:"connection" enum:"keepalive,close"`
	// TLS of the connections.
	TLS tlsfile.Config `yaml:"tls_config"`
	// Proxy is a URL, of scheme http, https or socks5, and may hold a user and password. The
	// default is the environment's.
	Proxy auth.Secret `yaml:"proxy_url"`
	// AllowedOrigins are others that credentials may go to.
	AllowedOrigins []*url.URL `yaml:"allowed_origins"`
	// AllowHTTP permits plain http to other hosts than loopback.
	AllowHTTP bool `yaml:"allow_http"`
	// UserAgent of requests that have none: itsmauth/VERSION.
	UserAgent string `yaml:"user_agent"`
}

// transport checks the rules of p's transport that its types cannot express, and sets p.transport.
func (l *loader) transport(p *plan) {
	t := &p.Transport
	p.transport = transport.Options{
		Connector: p.name, BaseURL: p.BaseURL, AllowedOrigins: t.AllowedOrigins, AllowHTTP: t.AllowHTTP,
		Timeout: t.Timeout, AttemptTimeout: t.AttemptTimeout, Retry: t.Retry,
		Close: t.Connection == "close", UserAgent: cmp.Or(t.UserAgent, "itsmauth/"+version()), Logger: l.opts.logger,
		Proxy: http.ProxyFromEnvironment,
	}
	if m := t.MaxReplayBody; m != nil {
		p.transport.MaxReplayBody = cmp.Or(int64(*m), -1)
	}
	if l.opts.wrap != nil {
		p.transport.Wrap = func(next http.RoundTripper) http.RoundTripper { return l.opts.wrap(p.name, next) }
	}
	if strings.ContainsAny(t.UserAgent, "\r\n\x00") {
		l.doc.Refuse(p.path.Below("transport", "user_agent"), errors.New("must not hold a line break"))
	}
	var err error
	if p.transport.TLS, err = t.TLS.Client(); err != nil {
		l.doc.RefuseKeys(p.path.Below("transport", "tls_config"), err)
	}
	if !t.Proxy.IsZero() {
		u, err := proxyURL(t.Proxy)
		if err != nil {
			l.doc.Refuse(p.path.Below("transport", "proxy_url"), err)
		}
		proxy := &proxy{secret: t.Proxy, url: u, read: time.Now()}
		p.transport.Proxy = proxy.of
	}
}

// proxy is proxy_url, which net/http asks for at each request. It is read again once a second. If it
// cannot be read or is not a URL, the last one stays in force.
type proxy struct {
	secret auth.Secret
	mu     sync.Mutex
	url    *url.URL
	read   time.Time
}

func (p *proxy) of(*http.Request) (*url.URL, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.read) >= time.Second {
		p.read = time.Now()
		if u, err := proxyURL(p.secret); err == nil {
			p.url = u
		}
	}
	return p.url, nil
}

// proxyURL reads proxy_url. Its errors show nothing of the value.
func proxyURL(secret auth.Secret) (*url.URL, error) {
	text, err := secret.Value()
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || !slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme) {
		return nil, errors.New("must be a URL such as http://user:password@proxy:3128, of scheme http, https or socks5, with special characters as %XX")
	}
	return u, nil
}

// plainHTTP refuses URLs to which credentials would go unencrypted.
func (l *loader) plainHTTP(p *plan) {
	if l.doc.Reported(p.path.Below("transport", "allow_http")) {
		return
	}
	urls := append(slices.Collect(maps.Values(p.settings)), yamldoc.Setting{Path: yamldoc.Path{"base_url"}, Value: p.BaseURL})
	for i, u := range p.Transport.AllowedOrigins {
		urls = append(urls, yamldoc.Setting{Path: yamldoc.Path{"transport", "allowed_origins"}.Index(i), Value: u})
	}
	for _, s := range urls {
		u, _ := s.Value.(*url.URL)
		if u != nil && u.Scheme == "http" && !p.Transport.AllowHTTP && !endpoint.Loopback(u.Hostname()) {
			l.doc.RefuseKeys(p.path.Below(s.Path...), &yamldoc.Advised{Fault: "plain http sends credentials in the clear",
				Advice: "use https, or say transport.allow_http: true", Cause: auth.ErrInsecure})
		}
	}
}

// version is the version of this module in the running program, or devel.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range append(info.Deps, &info.Main) {
			if m.Path == module && m.Version != "" && m.Version != "(devel)" {
				return m.Version
			}
		}
	}
	return "devel"
}
