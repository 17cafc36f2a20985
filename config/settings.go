package config

import (
	"cmp"
	"errors"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/config/internal/yamldoc"
	"github.com/itsmauth/itsmauth/internal/endpoint"
	"github.com/itsmauth/itsmauth/internal/follow"
	"github.com/itsmauth/itsmauth/internal/tlsfile"
	"github.com/itsmauth/itsmauth/transport"
)

// connectorConfig holds the settings that connectors of every provider have.
type connectorConfig struct {
	// Provider is the adapter for the product: one of these, or a product of docs/products.md.
	Provider string `yaml:"provider" required:"true"`
	// BaseURL is the URL of the product's API. Credentials are sent to its origin.
	BaseURL *url.URL `yaml:"base_url" required:"true"`
	// Account is a label that separates identities, such as two logins of one client.
	Account string `yaml:"account"`
	// Probe is a harmless path of the API, which check --online requests.
	Probe    string `yaml:"probe"`
	defaults `yaml:",inline"`
}

// defaults are the settings that connectors can have in common.
type defaults struct {
	// EarlyRefresh is how long before its expiry a token is renewed, but at most 20 % of its lifetime.
	EarlyRefresh time.Duration `yaml:"early_refresh" default:"5m"`
	// Transport is how requests are sent: retries, time limits, rate limits and connections.
	Transport transportConfig `yaml:"transport"`
}

// transportConfig is how a connector sends its requests.
type transportConfig struct {
	// Timeout limits the time until the response headers, waits and retries included.
	Timeout time.Duration `yaml:"timeout"`
	// AttemptTimeout is the longest silence of one attempt.
	AttemptTimeout time.Duration `yaml:"attempt_timeout"`
	// Retry limits the retries of a call.
	Retry transport.Retry `yaml:"retry"`
	// MaxReplayBody is how much of a request body is kept for a retry. 0 keeps nothing.
	MaxReplayBody *yamldoc.Size `yaml:"max_replay_body"`
	// RateLimits are the limits of the account. All of them hold, and token requests count too.
	RateLimits []auth.Limit `yaml:"rate_limits"`
	// MaxConcurrency is how many calls run at once. 0 means no limit.
	MaxConcurrency int `yaml:"max_concurrency" min:"0, which means no limit"`
	// Connection is keepalive, or close for one request per connection.
	Connection string `yaml:"connection" enum:"keepalive,close"`
	// The TLS settings of connections to the product.
	TLS tlsfile.Config `yaml:"tls_config"`
	// Proxy is the proxy's URL (http, https or socks5), which may contain a user and password.
	Proxy auth.Secret `yaml:"proxy_url"`
	// NoProxy lists hosts that are reached without a proxy, as NO_PROXY does: names, which stand for their
	// subdomains too, .name for the subdomains alone, addresses, CIDR ranges, each with or without a port, or *.
	NoProxy *string `yaml:"no_proxy"`
	// AllowedOrigins are further origins that credentials may be sent to.
	AllowedOrigins []*url.URL `yaml:"allowed_origins"`
	// AllowHTTP permits plain http to hosts other than loopback, and through a proxy.
	AllowHTTP bool `yaml:"allow_http" warn:"credentials and tokens may be sent unencrypted; use https"`
	// UserAgent is the User-Agent of requests that have none.
	UserAgent string `yaml:"user_agent"`
}

// transport checks the rules of p's transport that its types cannot express, and sets p.transport.
func (l *loader) transport(p *plan) {
	t := &p.Transport
	p.transport = transport.Options{
		Connector: p.name, BaseURL: p.BaseURL, AllowedOrigins: t.AllowedOrigins, AllowHTTP: t.AllowHTTP,
		Timeout: t.Timeout, AttemptTimeout: t.AttemptTimeout, Retry: t.Retry,
		Close: t.Connection == "close", UserAgent: cmp.Or(t.UserAgent, userAgent()), Logger: l.opts.logger,
		Proxy: transport.ProxyFromEnvironment,
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
	if p.transport.TLS, p.transport.RootCAs, err = t.TLS.Client(l.doc.Files); err != nil {
		l.doc.RefuseKeys(p.path.Below("transport", "tls_config"), err)
	}
	if !t.Proxy.IsZero() {
		u, err := proxyURL(t.Proxy)
		if err != nil {
			l.doc.Refuse(p.path.Below("transport", "proxy_url"), err)
		}
		secret := t.Proxy
		proxy := follow.New(time.Second, follow.Patience, func() (*url.URL, error) { return proxyURL(secret) }).Know(u)
		p.transport.Proxy = func(req *http.Request) (*url.URL, error) { return proxy.Get(req.Context()), nil }
		p.transport.NoProxy = cmp.Or(os.Getenv("NO_PROXY"), os.Getenv("no_proxy"))
	}
	if t.NoProxy != nil {
		p.transport.NoProxy = *t.NoProxy
		l.checkNoProxy(p.path.Below("transport", "no_proxy"), *t.NoProxy)
	}
}

func (l *loader) checkNoProxy(at yamldoc.Path, list string) {
	for host := range strings.SplitSeq(list, ",") {
		host = strings.TrimSpace(host)
		if _, err := netip.ParsePrefix(host); err != nil && strings.ContainsAny(host, "/@ \t\r\n") {
			l.doc.Refuse(at, errors.New("must list hosts with commas between them, such as example.com, .internal, 10.0.0.0/8"))
		}
	}
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
	return u, endpoint.Check(u)
}

// plainHTTP refuses URLs to which credentials would go unencrypted.
func (l *loader) plainHTTP(p *plan) {
	if l.doc.Reported(p.path.Below("transport", "allow_http")) {
		return
	}
	urls := append([]yamldoc.Setting{{Path: yamldoc.Path{"base_url"}, Value: p.BaseURL}}, slices.Collect(maps.Values(p.settings))...)
	for i, u := range p.Transport.AllowedOrigins {
		urls = append(urls, yamldoc.Setting{Path: yamldoc.Path{"transport", "allowed_origins"}.Index(i), Value: u})
	}
	for _, s := range urls {
		u, _ := s.Value.(*url.URL)
		if u != nil && u.Scheme == "http" && !p.Transport.AllowHTTP && !endpoint.Loopback(u.Hostname()) {
			l.doc.RefuseKeys(p.path.Below(s.Path...), &yamldoc.Advised{Fault: "plain http sends credentials in the clear",
				Advice: "use https, or set transport.allow_http: true", Cause: auth.ErrInsecure})
		}
	}
}

// userAgent is the User-Agent of requests that have none.
func userAgent() string { return "itsmauth/" + version() }

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
