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

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/endpoint"
)

// ProxyFor returns the proxy that o gives req, or nil if there is none: Proxy's, unless NoProxy lists the
// host. Of req only the URL is needed.
func (o *Options) ProxyFor(req *http.Request) (*url.URL, error) {
	switch {
	case listed(o.NoProxy, req.URL):
		return nil, nil
	case o.Proxy == nil:
		return http.ProxyFromEnvironment(req)
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
	ip, _ := netip.ParseAddr(host)
	for entry := range strings.SplitSeq(strings.ToLower(list), ",") {
		entry = strings.TrimSpace(entry)
		if network, err := netip.ParsePrefix(entry); err == nil {
			if network.Contains(ip.Unmap()) {
				return true
			}
			continue
		}
		name, itsPort, err := net.SplitHostPort(entry)
		if err != nil {
			name, itsPort = strings.Trim(entry, "[]"), port
		}
		if name == "" || itsPort != port {
			continue
		}
		if addr, err := netip.ParseAddr(name); err == nil && addr.Unmap() == ip.Unmap() {
			return true
		}
		domain := strings.TrimPrefix(name, "*")
		if domain == "" || host == domain || strings.HasSuffix(host, "."+strings.TrimPrefix(domain, ".")) {
			return true
		}
	}
	return false
}

// noteProxy is ProxyFor for net/http. It notes the proxy in the attempt, and tells net/http that a proxy
// of https is one of http: net/http would use the product's TLS settings for it. dialProxy adds the TLS.
func (o *Options) noteProxy(req *http.Request) (*url.URL, error) {
	proxy, err := o.ProxyFor(req)
	a, ok := req.Context().Value(attemptKey{}).(*attempt)
	if err != nil || !ok {
		return proxy, err
	}
	a.proxy.Store(proxy)
	if proxy == nil || proxy.Scheme != "https" {
		return proxy, nil
	}
	plain := *proxy
	plain.Scheme, plain.Host = "http", net.JoinHostPort(proxy.Hostname(), cmp.Or(proxy.Port(), "443"))
	return &plain, nil
}

// dialProxy returns dial with TLS for a proxy of https. The proxy gets neither the product's server_name
// nor its client certificate.
func (o *Options) dialProxy(dial dialFunc) dialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		a, ok := ctx.Value(attemptKey{}).(*attempt)
		if err != nil || !ok {
			return conn, err
		}
		proxy := a.proxy.Load()
		if proxy == nil || proxy.Scheme != "https" {
			return conn, nil
		}
		config := o.TLS.Clone()
		if config == nil {
			config = new(tls.Config)
		}
		withoutIdentity(config)
		config.ServerName, config.NextProtos = proxy.Hostname(), nil
		secured := tls.Client(conn, config)
		ctx, cancel := context.WithTimeout(ctx, 2*o.AttemptTimeout)
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
func onConnect(ctx context.Context, proxy *url.URL, _ *http.Request, resp *http.Response) error {
	switch s := resp.StatusCode; s {
	case http.StatusOK:
		if a, ok := ctx.Value(attemptKey{}).(*attempt); ok {
			a.tunneled.Store(true)
		}
		return nil
	case http.StatusProxyAuthRequired, http.StatusUnauthorized: // tinyproxy sends 401
		return &auth.Error{Op: "request", Status: s, Err: fmt.Errorf(
			"%w: %s: the proxy refused the user and password of proxy_url, or proxy_url has none", auth.ErrProtocol, proxy.Host)}
	default:
		return fmt.Errorf("it answered CONNECT with %d %s", s, http.StatusText(s))
	}
}

// peer names what the attempt talks to: the proxy, as long as there is no tunnel to the product.
func (a *attempt) peer() string {
	proxy, tunnel := a.proxy.Load(), a.call.req.URL.Scheme == "https"
	if proxy == nil || strings.HasPrefix(proxy.Scheme, "socks") || tunnel && (a.conn.Load() == nil || a.tunneled.Load()) {
		return "the server"
	}
	return proxyName(proxy)
}

// proxyName has the scheme, which shows what kind of proxy is expected, and no user and password.
func proxyName(u *url.URL) string { return "the proxy " + u.Scheme + "://" + u.Host }

// nameProxy names the proxy in an error that comes from it.
func (a *attempt) nameProxy(err error) error {
	op, ok := errors.AsType[*net.OpError](err)
	proxy := a.proxy.Load()
	if proxy == nil || invalidRequest(err) || a.peer() != proxyName(proxy) && !(ok && (op.Op == "proxyconnect" || op.Op == "socks connect")) {
		return err
	}
	return fmt.Errorf("%s: %w", proxyName(proxy), err)
}
