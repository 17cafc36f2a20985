package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/config"
)

// A finding is one line of the doctor's.
type finding struct {
	Check   string `json:"check"`
	Status  string `json:"status"` // ok, warning, failed or skipped
	Message string `json:"message"`
	Fix     string `json:"fix,omitempty"`
}

type diagnosis struct {
	Connector string    `json:"connector"`
	Provider  string    `json:"provider"`
	BaseURL   string    `json:"base_url"`
	Checks    []finding `json:"checks"`
}

// harmless are paths that change nothing and that any account may ask for, by provider.
var harmless = map[string]string{"beyondtrust": "/api/command?action=get_api_info"}

const (
	patience     = 15 * time.Second
	maxSkew      = 30 * time.Second
	soonCert     = 14 * 24 * time.Hour
	soonConsent  = 7 * 24 * time.Hour
	exchangeTime = 45 * time.Second // an exchange's own deadline, and a little
)

// A wire is a connector's innermost RoundTripper, with which the doctor sends what is not to be
// retried. Whatever else is sent is an exchange.
type wire struct {
	http.RoundTripper
	exchanges atomic.Int64
}

type counted struct {
	http.RoundTripper
	n *atomic.Int64
}

func (c counted) RoundTrip(req *http.Request) (*http.Response, error) {
	c.n.Add(1)
	return c.RoundTripper.RoundTrip(req)
}

// A patient is one connector while it is looked at.
type patient struct {
	*config.Connector
	*diagnosis
	app  *app
	wire *wire
	errs *[]error
}

// online looks at each connector: its network, its token, its API. The error says how many checks
// failed, and is what the worst of them were.
func (a *app) online(ctx context.Context) error {
	wires := map[string]*wire{}
	conns, err := a.load(config.WithWrap(func(connector string, next http.RoundTripper) http.RoundTripper {
		if wires[connector] == nil {
			wires[connector] = &wire{RoundTripper: next}
		}
		return counted{next, &wires[connector].exchanges}
	}))
	if err != nil {
		return err
	}
	var list []*diagnosis
	var errs []error
	total := 0
	for _, name := range conns.Names() {
		conn, err := conns.Get(name)
		if err != nil {
			return err
		}
		d := &diagnosis{name, conn.Provider, conn.BaseURL.String(), []finding{}}
		list = append(list, d)
		if isTerminal(a.stdout) && a.output != "json" {
			fmt.Fprintf(a.stdout, "%s %s %s\n", painter(a.stdout)(bold, name), d.Provider, d.BaseURL)
		}
		p := &patient{conn, d, a, wires[name], &errs}
		p.examine(ctx)
		total += len(d.Checks)
	}
	if err := conns.Close(); err != nil {
		errs = append(errs, err)
	}
	if a.output == "json" {
		err = a.json(list)
	}
	if len(errs) == 0 {
		return err
	}
	return illness{errors.Join(append(errs, err)...), fmt.Sprintf("%d of %d checks failed", len(errs), total)}
}

// illness is in short what was shown at length.
type illness struct {
	error
	short string
}

func (e illness) Error() string { return e.short }
func (e illness) Unwrap() error { return e.error }

// progress says what is being waited for, on a terminal and until there is a finding.
func (p *patient) progress(what string) {
	if isTerminal(p.app.stdout) && p.app.output != "json" {
		fmt.Fprintf(p.app.stdout, "\r\x1b[K  %s", painter(p.app.stdout)(dim, "… "+what))
	}
}

var signs = map[string]struct {
	symbol string
	style  style
}{"ok": {"✓", green}, "warning": {"!", yellow}, "failed": {"✗", red}, "skipped": {"-", dim}}

func (p *patient) found(check, status, message, fix string) {
	p.Checks = append(p.Checks, finding{check, status, message, fix})
	out := p.app.stdout
	if p.app.output == "json" {
		return
	}
	if !isTerminal(out) {
		fmt.Fprintf(out, "%s: %s: %s: %s\n", p.Name, check, status, strings.Join(strings.Fields(message+strings.Repeat("; "+fix, min(1, len(fix)))), " "))
		return
	}
	s, paint := signs[status], painter(out)
	lines := wrap(message, width-18)
	fmt.Fprintf(out, "\r\x1b[K  %s %-13s %s\n", paint(s.style, s.symbol), check, strings.Join(lines, "\n"+strings.Repeat(" ", 18)))
	if fix != "" {
		fmt.Fprintf(out, "%18s%s\n", "", paint(s.style, "→ "+strings.Join(wrap(fix, width-20), "\n"+strings.Repeat(" ", 20))))
	}
}

func (p *patient) ok(check, message string) { p.found(check, "ok", message, "") }

func (p *patient) failed(check, message, fix string, err error) {
	*p.errs = append(*p.errs, cmp.Or(err, errors.New(message)))
	p.found(check, "failed", message, fix)
}

func (p *patient) examine(ctx context.Context) {
	reached := true
	for _, u := range p.Endpoints() {
		reached = p.reach(ctx, u) && reached
	}
	if !reached {
		p.found("token", "skipped", "there is no way to the product yet", "")
		return
	}
	tok := p.token(ctx)
	if tok == nil {
		return
	}
	p.consent(ctx)
	path := cmp.Or(p.Probe, harmless[p.Connector.Provider])
	if path == "" {
		p.found("probe", "skipped", "no path to try", "set probe in the file to a harmless path of the API, such as /api/ping")
		return
	}
	p.probe(ctx, path, tok)
}

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

// token is the stored one, or that of the one exchange.
func (p *patient) token(ctx context.Context) *oauth2.Token {
	p.progress("waiting for a token")
	ctx, cancel := context.WithTimeout(ctx, exchangeTime)
	defer cancel()
	tok, err := p.Authenticator().Token(ctx)
	switch {
	case err != nil:
		message, fix, _ := strings.Cut(strings.TrimPrefix(err.Error(), p.Name+": exchange: "), "; ")
		p.failed("token", message, fix, err)
		return nil
	case p.wire.exchanges.Load() > 0:
		p.ok("token", "a new one, by one exchange; valid for "+about(time.Until(tok.Expiry)))
	default:
		p.ok("token", "the stored one, without an exchange; valid for "+about(time.Until(tok.Expiry)))
	}
	return tok
}

func (p *patient) consent(ctx context.Context) {
	st, err := session(p.Connector).Status(ctx)
	login := "run: itsmauth login " + p.Name
	switch left := time.Until(st.ConsentExpiry); {
	case err != nil:
		p.failed("consent", err.Error(), "", err)
	case st.ConsentExpiry.IsZero():
	case left < soonConsent:
		p.found("consent", "warning", days(left)+" left, unless it is used before", login)
	default:
		p.ok("consent", days(left)+" left")
	}
}

// send makes one attempt at a URL, with the token if there is one.
func (p *patient) send(ctx context.Context, url string, tok *oauth2.Token) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if tok != nil {
		req.Header = p.Authenticator().Header(tok).Clone()
	}
	req.Header.Set("User-Agent", "itsmauth-check")
	return p.wire.RoundTrip(req)
}

// ask is send for the first 64 KiB of the answer too.
func (p *patient) ask(ctx context.Context, path string, tok *oauth2.Token) (*http.Response, []byte, error) {
	req, err := p.NewRequest(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, nil, err
	}
	resp, err := p.send(ctx, req.URL.String(), tok)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, body, err
}

// probe calls the API, and does not call it refused before it has refused a new token.
func (p *patient) probe(ctx context.Context, path string, tok *oauth2.Token) {
	p.progress("calling " + path)
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	shown, _, _ := strings.Cut(path, "?")
	resp, body, err := p.ask(limited, path, tok)
	if err != nil {
		p.failed("probe", "GET "+shown+": "+plainError(err), "check probe and base_url", err)
		return
	}
	if rejected := p.Authenticator().Rejected(resp, tok); rejected && p.wire.exchanges.Load() == 0 {
		p.found("probe", "warning", "the product refuses the stored token, which somebody else made invalid", "")
		if tok = p.token(ctx); tok != nil {
			p.probe(ctx, path, tok)
		}
		return
	} else if rejected {
		bare, without, err := p.ask(limited, path, nil)
		name := slices.Collect(maps.Keys(p.Authenticator().Header(tok)))[0]
		if err == nil && bare.StatusCode == resp.StatusCode && bytes.Equal(without, body) {
			fix := "look what the proxies in front of it do with that header"
			if strings.Contains(name, "_") {
				fix = "nginx drops names with _ unless told underscores_in_headers on; or set token_header: authorization if the product takes it"
			}
			p.failed("probe", "the product answers a new token as it answers none: something in front of it drops the header "+name, fix, nil)
			return
		}
		p.failed("probe", "the product refuses a new token ("+resp.Status+")", "see whether the account may use the API, and whether others make its tokens invalid", nil)
		return
	}
	says, fix := "GET "+shown+" answered "+resp.Status, ""
	switch code := resp.StatusCode; {
	case code == http.StatusTooManyRequests:
		fix, err = "the account's rate limit is used up: send less, or wait "+cmp.Or(resp.Header.Get("Retry-After"), "a while"), auth.ErrRateLimited
	case code == http.StatusForbidden || code == http.StatusUnauthorized:
		fix = "the token is good: give the account the permission, or set probe to a path that it may read"
	case code >= 300 && code < 400:
		fix = "it redirects elsewhere: write the URL that it names in base_url"
	case code >= 400 && code < 500:
		fix = "check the path in base_url, or set probe to one that exists"
	case code >= 500:
		fix, err = "the product itself fails: look into its own log", auth.ErrUnavailable
	}
	if fix != "" {
		p.failed("probe", says, fix, err)
	} else {
		p.ok("probe", says)
	}
	p.room(resp.Header)
}

// room says what is left of the product's own limit, where it says so.
func (p *patient) room(h http.Header) {
	for _, prefix := range []string{"X-RateLimit-", "RateLimit-", "X-Rate-Limit-"} {
		left, err := strconv.Atoi(h.Get(prefix + "Remaining"))
		if err != nil {
			continue
		}
		says := fmt.Sprintf("%d requests left", left)
		limit, err := strconv.Atoi(h.Get(prefix + "Limit"))
		if err == nil {
			says = fmt.Sprintf("%d of %d requests left", left, limit)
		}
		if err == nil && left < limit/10 || left == 0 {
			p.found("rate limit", "warning", says, "find out who else uses the account; transport.rate_limits slows this one")
		} else {
			p.ok("rate limit", says)
		}
		return
	}
}

func days(d time.Duration) string {
	if d < 48*time.Hour {
		return about(d)
	}
	return fmt.Sprintf("%d days", int(d.Hours())/24)
}

// plainError leaves out the URL, which the line has, and its query.
func plainError(err error) string {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	var own *auth.Error
	if errors.As(err, &own) && own.Err != nil {
		err = own.Err
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		err = op.Err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Sprintf("no answer within %s", patience)
	}
	return err.Error()
}
