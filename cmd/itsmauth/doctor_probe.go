package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
)

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
	case p.exchanges.Load() > p.before:
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

// ask is send for the first 64 KiB of the answer too, wherever redirects within the origin lead.
func (p *patient) ask(ctx context.Context, path string, tok *oauth2.Token) (*http.Response, []byte, error) {
	req, err := p.NewRequest(ctx, http.MethodGet, path, nil)
	for hops := 0; err == nil; hops++ {
		var resp *http.Response
		if resp, err = p.send(ctx, req.URL.String(), tok); err != nil {
			break
		}
		if next := p.redirected(req, resp); next != nil && hops < 10 {
			resp.Body.Close()
			req = next
			continue
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		resp.Body = io.NopCloser(bytes.NewReader(body))
		return resp, body, err
	}
	return nil, nil, err
}

// redirected is what resp sends req on to, or nil if that is nowhere or another origin's.
func (p *patient) redirected(req *http.Request, resp *http.Response) *http.Request {
	location := resp.Header.Get("Location")
	to, err := req.URL.Parse(location)
	if resp.StatusCode/100 != 3 || location == "" || err != nil {
		return nil
	}
	next, _ := p.NewRequest(req.Context(), http.MethodGet, to.String(), nil)
	return next
}

// probe calls the API, and does not call it refused before it has refused a new token.
func (p *patient) probe(ctx context.Context, path string, tok *oauth2.Token) {
	shown, _, _ := strings.Cut(path, "?")
	p.progress("calling " + shown)
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	resp, body, err := p.ask(limited, path, tok)
	if err != nil {
		p.failed("probe", "GET "+shown+": "+plainError(err), "check probe and base_url", err)
		return
	}
	answer := resp.Status + string(body)
	// A second refusal in a row is none to the session, which gives it to its caller.
	if rejected := p.Authenticator().Rejected(resp, tok) || answer == p.refusal; rejected && p.refusal == "" && p.exchanges.Load() == p.before {
		p.refusal = answer
		p.found("probe", "warning", "the product refuses the stored token", "")
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
		fix = "it redirects elsewhere or in circles: write the URL that it names in base_url"
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
