package main

import (
	"bytes"
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
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/peererror"
)

// A route is how far one request came.
type route struct {
	target *url.URL
	proxy  *url.URL // nil if none
	via    *url.URL // the proxy, else the target

	resolved  string // the first address that DNS returned
	address   string // that the latest connection was made to
	connected bool
	tls       *tls.ConnectionState
	dnsErr    error
	tcpErr    error
	tlsErr    error
	status    int  // of the response, 0 if there was none
	forwarded bool // a proxy passed on the response
	body      []byte
}

// A tracer records a route. A second connection may still be in progress when the request has ended.
type tracer struct {
	mu    sync.Mutex
	route route
}

func (t *tracer) result() route {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.route
}

func (t *tracer) trace() *httptrace.ClientTrace {
	r := &t.route
	return &httptrace.ClientTrace{
		DNSDone: func(i httptrace.DNSDoneInfo) {
			t.mu.Lock()
			defer t.mu.Unlock()
			if r.dnsErr = i.Err; i.Err == nil && len(i.Addrs) > 0 {
				r.resolved = i.Addrs[0].String()
			}
		},
		ConnectDone: func(_, address string, err error) {
			t.mu.Lock()
			defer t.mu.Unlock()
			r.connected = r.connected || err == nil
			r.address, r.tcpErr = address, err
		},
		TLSHandshakeDone: func(s tls.ConnectionState, err error) {
			t.mu.Lock()
			defer t.mu.Unlock()
			r.tls, r.tlsErr = &s, err
		},
	}
}

// checkNetwork sends one request without a token to u, and reports each step on the way.
func (c *onlineCheck) checkNetwork(ctx context.Context, u *url.URL) bool {
	c.progress("connecting to " + u.Host)
	t := &tracer{route: route{target: u, via: u}}
	if proxy, _ := c.Proxy(u); proxy != nil {
		t.route.proxy, t.route.via = proxy, proxy
	}
	ctx, cancel := context.WithTimeout(httptrace.WithClientTrace(ctx, t.trace()), requestTimeout)
	defer cancel()
	start := time.Now()
	resp, err := c.transport.RoundTrip((&http.Request{Method: http.MethodGet, URL: u, Header: http.Header{"User-Agent": {checkUserAgent}}}).WithContext(ctx))
	r := t.result()
	if err == nil {
		r.status = resp.StatusCode
		r.forwarded = resp.Header.Get("Via") != "" // RFC 9110 section 7.6.3
		r.body, _ = readBody(resp, 4<<10)          // what is missing is not found in it
		resp.Body.Close()
	}
	if !c.checkDNS(r, err) || !c.checkTCP(r, err) || !c.checkProxy(r, err) || !c.checkTLS(r, err) {
		return false
	}
	if err != nil {
		fix := "check the port in " + c.setting(u) + ", and that the product is running"
		if u.Scheme == "http" {
			fix += "; if the port expects TLS, write https://"
		}
		c.failed("http", "no response from "+u.Host+": "+c.shortError(err), fix, err)
		return false
	}
	c.checkClock(resp, start)
	return true
}

func (c *onlineCheck) checkDNS(r route, err error) bool {
	host := r.via.Hostname()
	var notFound *net.DNSError
	switch {
	case r.dnsErr != nil || errors.As(err, &notFound):
		c.failed("dns", host+" has no address: "+c.shortError(cmp.Or(r.dnsErr, err)), "check the name in "+c.nearest(r)+", and this machine's DNS", err)
		return false
	case r.resolved != "":
		c.ok("dns", host+" is "+r.resolved)
	default:
		c.ok("dns", host+" needs no look-up")
	}
	return true
}

func (c *onlineCheck) checkTCP(r route, err error) bool {
	if r.connected {
		c.ok("tcp", "connected to "+r.address)
		return true
	}
	fix := "check host and port in " + c.nearest(r) + ", and the firewall"
	switch {
	case errors.Is(err, auth.ErrInsecure):
		fix = "correct that address in this machine's hosts file or DNS, or write https:// in " + c.setting(r.target)
	case r.proxy == nil:
		fix += "; if a proxy is needed, set transport.proxy_url"
	}
	c.failed("tcp", "no connection to "+cmp.Or(r.address, r.via.Host)+": "+c.shortError(cmp.Or(r.tcpErr, err)), fix, err)
	return false
}

func (c *onlineCheck) checkProxy(r route, err error) bool {
	if r.proxy == nil {
		return true
	}
	if message, fix := c.refusalInHTTP(r); message != "" && r.proxyAnswered() {
		c.failed("proxy", message, fix, nil)
		return false
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "proxyconnect" { // net/http's word; the connection was made, so its TLS failed
		message, fix := c.tlsProblem(r.proxy, r, err)
		c.failed("proxy", message, fix, err)
		return false
	}
	if password := (*auth.Error)(nil); errors.As(err, &password) {
		r.status = password.Status
	}
	var refusal peererror.Refusal
	why, fix := "", "check user and password in transport.proxy_url, whether the proxy allows "+r.target.Host+", and whether it expects https://"
	switch {
	case r.status == http.StatusProxyAuthRequired, r.status != 0 && err != nil:
		why = statusText(r.status)
	case errors.As(err, &refusal) && refusal >= 500:
		fix = "check that " + r.target.Host + ", the host and port in " + c.setting(r.target) + ", can be reached from the proxy"
		why = c.shortError(err)
	case err != nil && r.tls == nil && !isTLS(err):
		why = c.shortError(err)
	}
	if why != "" {
		c.failed("proxy", "the proxy "+r.proxy.Host+" refuses: "+why, fix, err)
		return false
	}
	c.ok("proxy", "through "+r.proxy.Host)
	return true
}

func (c *onlineCheck) checkTLS(r route, err error) bool {
	if message, fix := c.refusalInHTTP(r); message != "" {
		c.failed("tls", message, fix, nil)
		return false
	}
	if r.target.Scheme != "https" {
		return true
	}
	if err = cmp.Or(r.tlsErr, err); err != nil && (isTLS(err) || r.tls == nil || !r.tls.HandshakeComplete) {
		message, fix := c.tlsProblem(r.target, r, err)
		c.failed("tls", message, fix, err)
		return false
	}
	if r.tls == nil || len(r.tls.PeerCertificates) == 0 {
		return true
	}
	left := time.Until(r.tls.PeerCertificates[0].NotAfter)
	message := fmt.Sprintf("%s, certificate for %s, %s left", tls.VersionName(r.tls.Version), r.target.Hostname(), about(left))
	switch {
	case r.tls.VerifiedChains == nil:
		c.found("tls", "warning", message+", not verified", "insecure_skip_verify protects nothing: set transport.tls_config.ca_file to the CA's file instead")
	case left < certWarning:
		c.found("tls", "warning", message, "have it renewed on the server")
	default:
		c.ok("tls", message)
	}
	return true
}

// nearest names the setting of the proxy or, if there is none, of the target.
func (c *onlineCheck) nearest(r route) string {
	if r.proxy != nil {
		return proxySetting(r)
	}
	return c.setting(r.target)
}

// proxySetting names the settings that a proxy comes from.
func proxySetting(r route) string {
	return "transport.proxy_url or $" + strings.ToUpper(r.target.Scheme) + "_PROXY"
}

// setting names the setting that has u.
func (c *onlineCheck) setting(u *url.URL) string {
	if u == c.Connector.BaseURL {
		return "base_url"
	}
	return "the URL " + u.Scheme + "://" + u.Host
}

// proxyAnswered reports whether the response is the proxy's own, as far as one can see: to plain HTTP, the
// proxy answers as the product would.
func (r route) proxyAnswered() bool {
	return r.proxy != nil && r.target.Scheme == "http" && !strings.HasPrefix(r.proxy.Scheme, "socks") && !r.forwarded
}

// refusalInHTTP says what the TLS layer of the server, or of a proxy that answered, refuses, if it says so in
// HTTP: a server that got no client certificate, or plain HTTP, may complete the handshake or do without it,
// and then answer 400.
func (c *onlineCheck) refusalInHTTP(r route) (message, fix string) {
	if r.status != http.StatusBadRequest {
		return "", ""
	}
	says := func(texts ...string) bool {
		return slices.ContainsFunc(texts, func(s string) bool { return bytes.Contains(r.body, []byte(s)) })
	}
	server, setting := r.target.Host, c.setting(r.target)
	if r.proxyAnswered() {
		server, setting = "the proxy "+r.proxy.Host, proxySetting(r)
	}
	switch {
	case says("No required SSL certificate was sent") && r.proxyAnswered():
		return server + " requires a client certificate", "it gets none: use another proxy, or set transport.no_proxy"
	case says("No required SSL certificate was sent"): // nginx
		return "the server requires a client certificate", "set transport.tls_config.cert_file and key_file"
	case says("The SSL certificate error"): // nginx
		return "the server does not accept the client certificate", "have transport.tls_config.cert_file issued by a CA that the server trusts"
	case says("The plain HTTP request was sent to HTTPS port", // nginx, AWS
		"speaking plain HTTP to an SSL-enabled server port", // Apache
		"This combination of host and port requires TLS",    // Tomcat
		"Client sent an HTTP request to an HTTPS server"):   // Go
		return server + " expects TLS, and the URL begins with http://", "write https:// in " + setting
	}
	return "", ""
}

func isTLS(err error) bool {
	var cert *tls.CertificateVerificationError
	return errors.As(err, &cert) || errors.As(err, new(tls.RecordHeaderError)) || isAlert(err)
}

// isAlert reports whether the server sent a TLS alert (RFC 8446 section 6.2). It may arrive after the
// handshake has ended on our side.
func isAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// tlsProblem says what is wrong with TLS to u, which is r's target or its proxy, and what to do.
func (c *onlineCheck) tlsProblem(u *url.URL, r route, err error) (message, fix string) {
	setting, through, check := c.setting(r.target), "", "check "
	switch {
	case u == r.proxy:
		setting = proxySetting(r)
	case r.proxy != nil: // which may be a web server that answers CONNECT with 200
		through, check = " through the proxy "+r.proxy.Host, "check that "+proxySetting(r)+" names a proxy, and "
	}
	var bad *tls.CertificateVerificationError
	var invalid x509.CertificateInvalidError
	var name x509.HostnameError
	var unknown x509.UnknownAuthorityError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &record) && u == r.proxy:
		return u.Host + " does not speak TLS", "write http:// in " + setting + ": https:// is for a proxy that is itself reached over TLS"
	case errors.As(err, &record):
		return u.Host + " does not speak TLS" + through, check + "the port in " + setting + ", or use http:// with transport.allow_http: true if there is no TLS"
	case isAlert(err) && u == r.proxy:
		return "the proxy refuses the handshake: " + c.shortError(err), "if it is old, set transport.tls_config.min_version; it gets no client certificate"
	case isAlert(err):
		return "the server refuses the handshake: " + c.shortError(err), "if it requires a client certificate, set transport.tls_config.cert_file and key_file; if it is old, min_version"
	case !errors.As(err, &bad) || len(bad.UnverifiedCertificates) == 0:
		return "the handshake" + through + " failed: " + c.shortError(err), check + "the port in " + setting + ", and any firewall or proxy in between"
	}
	leaf := bad.UnverifiedCertificates[0]
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && time.Now().Before(leaf.NotBefore):
		return "the certificate is not valid before " + leaf.NotBefore.Format(time.DateTime), "check this machine's clock"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Sprintf("the certificate expired %s ago, on %s", about(time.Since(leaf.NotAfter)), leaf.NotAfter.Format(time.DateOnly)), "have it renewed on the server; if that date is in the future, check this machine's clock"
	case errors.As(err, &name):
		serverName := ", or set transport.tls_config.server_name to one"
		if u == r.proxy {
			serverName = "" // it is for the target alone
		}
		return "the certificate is not for " + name.Host, "use a name that it is for in " + setting + serverName
	case errors.As(err, &unknown):
		return "the certificate is from an authority that this machine does not trust", "set transport.tls_config.ca_file to the PEM file of that authority"
	}
	return "the certificate is refused: " + c.shortError(bad.Err), "have it replaced on the server"
}

// checkClock compares this machine's clock with the Date of a response to a request sent at start.
func (c *onlineCheck) checkClock(resp *http.Response, start time.Time) {
	date, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		c.found("clock", "skipped", "the server sends no Date", "")
		return
	}
	now := start.Add(time.Since(start) / 2)
	skew := now.Sub(date.Add(time.Second / 2)) // Date has whole seconds
	if skew.Abs() <= maxSkew {
		c.ok("clock", "agrees with the server's")
		return
	}
	direction := "behind"
	if skew > 0 {
		direction = "ahead of"
	}
	c.failed("clock", fmt.Sprintf("this machine's clock is %s %s the server's", about(skew.Abs().Round(10*time.Second)), direction), "synchronize the clock that is wrong, with NTP; until then, tokens expire earlier or later than expected", nil)
}
