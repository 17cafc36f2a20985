package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"time"
)

// reach looks at the way to a URL's origin with one request, without the token.
func (p *patient) reach(ctx context.Context, u *url.URL) bool {
	p.progress("connecting to " + u.Host)
	var mu sync.Mutex
	var dns, tcp, handshake error
	var address, resolved string
	var state *tls.ConnectionState
	connected := false
	trace := &httptrace.ClientTrace{
		DNSDone: func(i httptrace.DNSDoneInfo) {
			mu.Lock()
			defer mu.Unlock()
			if dns = i.Err; dns == nil && len(i.Addrs) > 0 {
				resolved = i.Addrs[0].String()
			}
		},
		ConnectDone: func(_, addr string, err error) {
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				connected = true
			}
			address, tcp = addr, err
		},
		TLSHandshakeDone: func(s tls.ConnectionState, err error) {
			mu.Lock()
			defer mu.Unlock()
			state, handshake = &s, err
		},
	}
	ctx, cancel := context.WithTimeout(httptrace.WithClientTrace(ctx, trace), patience)
	defer cancel()
	proxy, _ := p.Proxy(u)
	via := u
	if proxy != nil {
		via = proxy
	}
	begin := time.Now()
	resp, err := p.send(ctx, u.String(), nil)
	mu.Lock()
	defer mu.Unlock()
	host := via.Hostname()
	var notFound *net.DNSError
	switch {
	case dns != nil || errors.As(err, &notFound):
		p.failed("dns", host+" has no address: "+plainError(cmp.Or(dns, err)), "check the name in "+p.where(via, proxy)+", and this machine's DNS", err)
		return false
	case resolved != "":
		p.ok("dns", host+" is "+resolved)
	default:
		p.ok("dns", host+" needs no look-up")
	}
	if !connected {
		fix := "check host and port in " + p.where(via, proxy) + ", and the firewall"
		if proxy == nil {
			fix += "; if a proxy is needed, set transport.proxy_url"
		}
		p.failed("tcp", "no connection to "+cmp.Or(address, via.Host)+": "+plainError(cmp.Or(tcp, err)), fix, err)
		return false
	}
	p.ok("tcp", "connected to "+address)
	if proxy != nil && err != nil && (state == nil || handshake == nil && state.ServerName != u.Hostname()) && !isTLS(err) {
		p.failed("proxy", "the proxy "+proxy.Host+" refuses: "+plainError(err), "check user and password in transport.proxy_url, and whether the proxy allows "+u.Host, err)
		return false
	} else if proxy != nil {
		p.ok("proxy", "through "+proxy.Host)
	}
	if u.Scheme == "https" {
		message, fix := p.certificate(u, state, cmp.Or(handshake, err))
		switch {
		case message != "":
			p.failed("tls", message, fix, cmp.Or(handshake, err))
			return false
		case state != nil && len(state.PeerCertificates) > 0:
			left := time.Until(state.PeerCertificates[0].NotAfter)
			says := fmt.Sprintf("%s, certificate for %s, %s left", tls.VersionName(state.Version), u.Hostname(), days(left))
			switch {
			case state.VerifiedChains == nil:
				p.found("tls", "warning", says+", not verified", "insecure_skip_verify protects nothing: give the CA in transport.tls_config.ca_file instead")
			case left < soonCert:
				p.found("tls", "warning", says, "have it renewed on the server")
			default:
				p.ok("tls", says)
			}
		}
	}
	if err != nil {
		p.failed("http", "no answer from "+u.Host+": "+plainError(err), "check base_url's port, and that the product is up", err)
		return false
	}
	resp.Body.Close()
	return p.clock(resp, begin)
}

// where names the setting that a host comes from.
func (p *patient) where(u, proxy *url.URL) string {
	switch u {
	case proxy:
		return "transport.proxy_url or $HTTPS_PROXY"
	case p.Connector.BaseURL:
		return "base_url"
	}
	return "the URL " + u.Scheme + "://" + u.Host
}

func isTLS(err error) bool {
	var cert *tls.CertificateVerificationError
	return errors.As(err, &cert) || errors.As(err, new(tls.RecordHeaderError)) || isAlert(err)
}

// isAlert reports whether the other side ended the handshake (RFC 8446 section 6.2), perhaps after
// its end on this side.
func isAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// certificate says what is wrong with TLS, if anything is.
func (p *patient) certificate(u *url.URL, state *tls.ConnectionState, err error) (message, fix string) {
	var bad *tls.CertificateVerificationError
	var invalid x509.CertificateInvalidError
	var name x509.HostnameError
	var unknown x509.UnknownAuthorityError
	var record tls.RecordHeaderError
	switch {
	case err == nil || !isTLS(err) && state != nil && state.HandshakeComplete:
		return "", ""
	case errors.As(err, &record):
		return u.Host + " does not speak TLS", "check the port in base_url, or write http:// with transport.allow_http: true if it must be"
	case isAlert(err):
		return "the server refuses the handshake: " + plainError(err), "if it wants a client certificate, give transport.tls_config.cert_file and key_file; if it is old, min_version"
	case !errors.As(err, &bad) || len(bad.UnverifiedCertificates) == 0:
		return "the handshake failed: " + plainError(err), "check the port in base_url, and what is between here and the server"
	}
	leaf := bad.UnverifiedCertificates[0]
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && time.Now().Before(leaf.NotBefore):
		return "the certificate is not valid before " + leaf.NotBefore.Format(time.DateTime), "check this machine's clock"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Sprintf("the certificate expired %s ago, on %s", days(time.Since(leaf.NotAfter)), leaf.NotAfter.Format(time.DateOnly)), "have it renewed on the server; if that date is ahead, check this machine's clock"
	case errors.As(err, &name):
		names := append(leaf.DNSNames, strings.Fields(strings.Trim(fmt.Sprint(leaf.IPAddresses), "[]"))...)
		return "the certificate is for " + strings.Join(names, ", ") + ", not for " + name.Host, "write that name in base_url, or in transport.tls_config.server_name"
	case errors.As(err, &unknown):
		return "the certificate is from " + leaf.Issuer.String() + ", which is not trusted here", "give that authority's PEM file in transport.tls_config.ca_file"
	}
	return "the certificate is refused: " + plainError(bad.Err), "have it replaced on the server"
}

// clock compares ours with the server's, whose Date has whole seconds.
func (p *patient) clock(resp *http.Response, begin time.Time) bool {
	date, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		p.found("clock", "skipped", "the server sends no Date", "")
		return true
	}
	now := begin.Add(time.Since(begin) / 2)
	skew := now.Sub(date.Add(time.Second / 2))
	if skew.Abs() <= maxSkew {
		p.ok("clock", "agrees with the server's")
		return true
	}
	way := map[bool]string{true: "ahead of", false: "behind"}[skew > 0]
	p.failed("clock", fmt.Sprintf("this machine's clock is %s %s the server's", about(skew.Abs().Round(10*time.Second)), way), "set the clock that is wrong, with NTP; until then tokens expire at other times than expected", nil)
	return true
}
