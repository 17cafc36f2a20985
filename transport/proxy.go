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
	"syscall"
	"time"

	"golang.org/x/net/idna"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/endpoint"
	"github.com/itsmauth/itsmauth/internal/peererror"
)

// ProxyFor returns the proxy that o gives req, or nil if there is none: Proxy's, unless NoProxy lists the
// host, or the request is plain http to loopback and AllowHTTP is not set. Of req only the URL is needed.
func (o *Options) ProxyFor(req *http.Request) (*url.URL, error) {
	switch {
	case o.local(req.URL), listed(o.NoProxy, req.URL):
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

// local reports whether requests to u stay on this machine: plain http is permitted because u says loopback. They
// use no proxy, and only loopback addresses are dialed, whatever DNS says.
func (o *Options) local(u *url.URL) bool {
	return strings.EqualFold(u.Scheme, "http") && !o.AllowHTTP && endpoint.Loopback(u.Hostname())
}

// routes dials servers and proxies as o says.
type routes struct {
	o         *Options
	byAddress sync.Map // routes of requests that a Wrap makes itself, without an attempt
}

// A route is what a connection is for.
type route struct {
	proxy *url.URL // nil: none
	local bool     // only loopback may be dialed
}

// note is ProxyFor for net/http. It notes the proxy in the attempt, and tells net/http that a proxy of
// https is one of http: net/http would use the product's TLS settings for it. dialTo adds the TLS.
func (p *routes) note(req *http.Request) (*url.URL, error) {
	proxy, err := p.o.ProxyFor(req)
	if _, ours := errors.AsType[*auth.Error](err); err != nil && !ours {
		err = &auth.Error{Op: "request", Err: err} // of Options.Proxy, so its text is no peer's
	}
	if err != nil {
		return nil, err
	}
	local := p.o.local(req.URL)
	a, ok := req.Context().Value(attemptKey{}).(*attempt)
	if ok {
		a.proxy.Store(proxy)
		a.local.Store(local)
	} else if local {
		p.byAddress.Store(net.JoinHostPort(req.URL.Hostname(), cmp.Or(req.URL.Port(), "80")), route{local: true})
	}
	if proxy == nil || proxy.Scheme != "https" {
		return proxy, nil
	}
	plain := *proxy
	plain.Scheme, plain.Host = "http", net.JoinHostPort(proxy.Hostname(), cmp.Or(proxy.Port(), "443"))
	if !ok {
		p.byAddress.Store(plain.Host, route{proxy: proxy})
	}
	return &plain, nil
}

// of returns what the connection to addr is for.
func (p *routes) of(ctx context.Context, addr string) route {
	if a, ok := ctx.Value(attemptKey{}).(*attempt); ok {
		return route{a.proxy.Load(), a.local.Load()}
	}
	r, _ := p.byAddress.Load(addr)
	known, _ := r.(route)
	return known
}

// dial connects to addr, within the route's rules.
func (p *routes) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: p.o.AttemptTimeout, KeepAlive: 30 * time.Second}
	if p.of(ctx, addr).local {
		d.Control = onlyLoopback
	}
	return d.DialContext(ctx, network, addr)
}

// onlyLoopback refuses to connect to any other address. A [net.Dialer] calls it for each address of a name.
func onlyLoopback(_, address string, _ syscall.RawConn) error {
	addr, err := netip.ParseAddrPort(address)
	if err == nil && addr.Addr().IsLoopback() {
		return nil
	}
	return &auth.Error{Op: "request", Err: fmt.Errorf("%w over plain http to %s: localhost and names below it must have a loopback address",
		auth.ErrInsecure, addr)}
}

// dialTo returns dial with TLS for a proxy of https. The proxy gets neither the product's server_name nor
// its client certificate.
func (p *routes) dialTo(dial dialFunc) dialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		proxy := p.of(ctx, addr).proxy
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

// withoutIdentity removes what is the product's alone. A cached session may stand for the client certificate.
func withoutIdentity(c *tls.Config) {
	c.Certificates, c.GetClientCertificate, c.ServerName, c.ClientSessionCache = nil, nil, "", nil
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
