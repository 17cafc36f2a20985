package transport

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"

	"golang.org/x/net/idna"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/endpoint"
	"github.com/itsmauth/itsmauth/internal/peererror"
)

// ProxyFor returns the proxy that o gives req, or nil if there is none: Proxy's, unless NoProxy lists the
// host. Of req only the URL is needed.
func (o *Options) ProxyFor(req *http.Request) (*url.URL, error) {
	switch {
	case listed(o.NoProxy, req.URL):
		return nil, nil
	case o.Proxy == nil:
		return ProxyFromEnvironment(req)
	}
	return o.Proxy(req)
}

// listed reports whether a list in the syntax of NO_PROXY has u's host: entries are separated by commas,
// and each is a domain name, which stands for its subdomains too, a name that begins with a dot or *.,
// which stands for the subdomains alone, an IP address, a CIDR range, or * for all hosts. A port may
// follow a name or an address.
func listed(list string, u *url.URL) bool {
	if list == "" {
		return false
	}
	_, hostPort, _ := strings.Cut(endpoint.Origin(u), "://")
	host, port, _ := net.SplitHostPort(hostPort)
	addr, _ := netip.ParseAddr(host)
	host, ip := toASCII(host), net.IP(addr.AsSlice())
	for entry := range strings.SplitSeq(strings.ToLower(list), ",") {
		entry = strings.TrimSpace(entry)
		if entry == "*" {
			return true
		}
		if _, network, err := net.ParseCIDR(entry); err == nil {
			if network.Contains(ip) {
				return true
			}
			continue
		}
		name, itsPort, err := net.SplitHostPort(entry)
		if err != nil {
			name = strings.Trim(entry, "[]")
		}
		domain, subdomains := strings.CutPrefix(name, "*.")
		if !subdomains {
			domain, subdomains = strings.CutPrefix(name, ".")
		}
		domain = toASCII(domain)
		switch itsIP := net.ParseIP(name); {
		case name == "", itsPort != "" && itsPort != port:
		case ip != nil || itsIP != nil:
			if ip.Equal(itsIP) {
				return true
			}
		case host == domain && !subdomains, strings.HasSuffix(host, "."+domain):
			return true
		}
	}
	return false
}

// toASCII returns an internationalized name as it is sent (RFC 5891), and others unchanged.
func toASCII(name string) string {
	if ascii, err := idna.Lookup.ToASCII(name); err == nil {
		return ascii
	}
	return name
}

// proxies dials the proxies of o.
type proxies struct {
	o     *Options
	https sync.Map // by address, for a request that a Wrap makes itself, without an attempt
}

// note is ProxyFor for net/http. It notes the proxy in the attempt, and tells net/http that a proxy of
// https is one of http: net/http would use the product's TLS settings for it. dialTo adds the TLS.
func (p *proxies) note(req *http.Request) (*url.URL, error) {
	proxy, err := p.o.ProxyFor(req)
	if _, ours := errors.AsType[*auth.Error](err); err != nil && !ours {
		err = &auth.Error{Op: "request", Err: err} // of Options.Proxy, so its text is no peer's
	}
	if err != nil {
		return nil, err
	}
	a, ok := req.Context().Value(attemptKey{}).(*attempt)
	if ok {
		a.proxy.Store(proxy)
	}
	if proxy == nil || proxy.Scheme != "https" {
		return proxy, nil
	}
	plain := *proxy
	plain.Scheme, plain.Host = "http", net.JoinHostPort(proxy.Hostname(), cmp.Or(proxy.Port(), "443"))
	if !ok {
		p.https.Store(plain.Host, proxy)
	}
	return &plain, nil
}

// at returns the proxy that a connection to addr is for, or nil.
func (p *proxies) at(ctx context.Context, addr string) *url.URL {
	if a, ok := ctx.Value(attemptKey{}).(*attempt); ok {
		return a.proxy.Load()
	}
	proxy, _ := p.https.Load(addr)
	u, _ := proxy.(*url.URL)
	return u
}

// dialTo returns dial with TLS for a proxy of https. The proxy gets neither the product's server_name nor
// its client certificate.
func (p *proxies) dialTo(dial dialFunc) dialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		proxy := p.at(ctx, addr)
		if err != nil || proxy == nil || proxy.Scheme != "https" {
			return conn, err
		}
		config := p.o.TLS.Clone()
		if config == nil {
			config = new(tls.Config)
		}
		if p.o.RootCAs != nil {
			config.RootCAs = cmp.Or(p.o.RootCAs(ctx), config.RootCAs)
		}
		withoutIdentity(config)
		config.ServerName, config.NextProtos = proxy.Hostname(), nil
		secured := tls.Client(conn, config)
		ctx, cancel := context.WithTimeout(ctx, 2*p.o.AttemptTimeout)
		defer cancel()
		if err := secured.HandshakeContext(ctx); err != nil {
			conn.Close()
			return nil, err
		}
		return secured, nil
	}
}

// withoutIdentity removes what is the product's alone.
func withoutIdentity(c *tls.Config) {
	c.Certificates, c.GetClientCertificate, c.ServerName = nil, nil, ""
}

// onConnect judges the proxy's response to CONNECT. A refused password is an ErrProtocol, so that Session
// does not retry it: proxies lock accounts.
func onConnect(_ context.Context, proxy *url.URL, _ *http.Request, resp *http.Response) error {
	switch s := resp.StatusCode; s {
	case http.StatusOK:
		return nil
	case http.StatusProxyAuthRequired, http.StatusUnauthorized: // tinyproxy sends 401
		return &auth.Error{Op: "request", Status: s, Err: fmt.Errorf(
			"%w: %s: the proxy refused the user and password of proxy_url, or proxy_url has none", auth.ErrProtocol, proxy.Host)}
	default:
		return peererror.Refusal(s)
	}
}

// peer names what the attempt talks to: the proxy, as long as there is no tunnel to the product.
func (a *attempt) peer() string {
	proxy := a.proxy.Load()
	if proxy == nil {
		return "the server"
	}
	tunnel := a.call.req.URL.Scheme == "https" || strings.HasPrefix(proxy.Scheme, "socks")
	if tunnel && (a.conn.Load() == nil || a.tunneled.Load()) {
		return "the server"
	}
	return proxyName(proxy)
}

// proxyName has the scheme, which shows what kind of proxy is expected, and no user and password.
func proxyName(u *url.URL) string { return "the proxy " + u.Scheme + "://" + u.Host }

// ProxyOf names the proxy that req is sent to in plain, so that a response may be the proxy's, or returns
// "". Package generic names it in the errors of token requests.
func (t *roundTripper) ProxyOf(req *http.Request) string {
	proxy, _ := t.o.ProxyFor(req)
	if proxy == nil || strings.HasPrefix(proxy.Scheme, "socks") || req.URL.Scheme == "https" {
		return ""
	}
	return proxyName(proxy)
}

// nameProxy names the proxy in an error that comes from it.
func (a *attempt) nameProxy(err error) error {
	op, ok := errors.AsType[*net.OpError](err)
	proxy := a.proxy.Load()
	if proxy == nil || invalidRequest(err) || a.peer() != proxyName(proxy) && !(ok && (op.Op == "proxyconnect" || op.Op == "socks connect")) {
		return err
	}
	return &peererror.Proxy{Name: proxyName(proxy), Err: err}
}
