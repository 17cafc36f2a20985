package consent

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

var (
	//go:embed pages.html
	pagesHTML string
	pages     = template.Must(template.New("pages").Parse(pagesHTML))

	//go:embed style.css
	style     template.CSS
	styleHash = sha256.Sum256([]byte(style))

	// policy allows only our stylesheet and our form. Browsers also apply form-action to redirects
	// after the form, so the form leads to a page with a Refresh header instead.
	policy = fmt.Sprintf("default-src 'none'; style-src 'sha256-%s'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
		base64.StdEncoding.EncodeToString(styleHash[:]))
)

// A page says what happened and what to do.
type page struct {
	Status         int
	Tone           string // good, warning, bad, neutral or onward: selects the symbol and the colour
	Title          string
	What, Do       string
	Detail         string // the error, for an administrator
	Link, LinkText string // the next page
	Terminal       bool   // instead of a link: go back to the terminal

	// Only on the list:
	Notice, CSRF string
	Rows         []row
}

// Style returns the stylesheet. The policy allows exactly these bytes.
func (page) Style() template.CSS { return style }

func (p page) write(w http.ResponseWriter) {
	var b bytes.Buffer
	if err := pages.Execute(&b, p); err != nil {
		http.Error(w, "This page could not be rendered.", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(b.Len()))
	h.Set("Content-Security-Policy", policy)
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(p.Status)
	w.Write(b.Bytes())
}

// connectedPage shows that a login is saved. st is the session's status.
func connectedPage(name string, st auth.Status, now time.Time) page {
	p := page{Status: http.StatusOK, Tone: "good", Title: name + " is connected",
		What: "Access was granted and saved.",
		Do:   "You are done. The connection renews itself from now on."}
	if !st.Refreshable {
		p.Tone, p.Do = "warning", "It ends "+in(st.Expiry.Sub(now))+". "+noRefreshToken
	}
	return p
}

const noRefreshToken = "The product gave no refresh token, so a person must then sign in again. Usually the scope offline_access is missing."

// failedPage shows why a login failed.
func failedPage(name string, err error) page {
	switch {
	case errors.Is(err, auth.ErrNoRefreshToken):
		return page{Status: http.StatusOK, Tone: "warning", Title: name + " keeps its earlier login",
			What: "This sign-in gave no refresh token, so it was not used. The earlier login stays in force.",
			Do:   "Usually the scope offline_access is missing. To replace the earlier login, run “itsmauth logout " + name + "” first. Then connect again."}
	case errors.Is(err, errDenied):
		return page{Status: http.StatusOK, Tone: "warning", Title: name + " was not connected",
			What: "Access was denied on the sign-in page. Nothing was changed.",
			Do:   "To allow access, connect again and choose Allow."}
	}
	what, do := meaning(err)
	return page{Status: http.StatusBadGateway, Tone: "bad", Title: name + " could not be connected",
		What: what, Do: do + " Then connect again.", Detail: cause(err)}
}

// cause returns err's message without the connector's name and the advice. The page has its own words
// for both.
func cause(err error) string {
	var e *auth.Error
	if !errors.As(err, &e) {
		return err.Error()
	}
	unnamed := &auth.Error{Code: e.Code, Status: e.Status, Err: e.Err}
	return strings.TrimSuffix(unnamed.Error(), "; "+unnamed.Advice())
}

// meaning says what a login's error means and what to do.
func meaning(err error) (what, do string) {
	for _, e := range []struct {
		is       error
		what, do string
	}{
		{auth.ErrConsentRequired, "The product did not accept the authorization code.",
			"If this happens again, compare redirect_uri with the one registered in the product."},
		{auth.ErrCredentials, "The product refused this client’s credentials.",
			"Compare client_id and client_secret with the client’s registration in the product."},
		{auth.ErrStore, "The token store failed.",
			"Check token_store: its path or URL, its permissions, its free space."},
		{auth.ErrRateLimited, "The product is receiving too many requests.",
			"Wait a minute."},
		{auth.ErrUnavailable, "The product could not be reached, or did not respond properly.",
			"Wait a few minutes. If it lasts, check the URL, the network and the product."},
		{auth.ErrInsecure, "The credentials were not sent, because the connection is not secure.",
			"Check the product’s URL, allow_http and tls_config."},
		{auth.ErrProtocol, "The product sent an unexpected response.",
			"Check the product’s URL, and whether the settings fit its version."},
		{context.DeadlineExceeded, "The product did not issue the tokens in time.",
			"Wait a few minutes. If it lasts, check the URL, the network and the product."},
	} {
		if errors.Is(err, e.is) {
			return e.what, e.do
		}
	}
	return "The login was interrupted.", "Wait a moment."
}

func usedPage(name string) page {
	return page{Status: http.StatusGone, Tone: "warning", Title: "This sign-in is over",
		What: "This sign-in link has already been used. Nothing was changed this time.",
		Do:   "If " + name + " is connected, you are done. Otherwise connect again."}
}

// endedPage is for a browser that comes back while Login is returning.
func endedPage(name string) page {
	return page{Status: http.StatusGone, Tone: "warning", Title: "This sign-in has ended",
		What: "The command was interrupted, or it timed out waiting for you. " + name + " was not connected.",
		Do:   "Run the command again."}
}

func twicePage(name string) page {
	return page{Status: http.StatusGone, Tone: "bad", Title: "This sign-in has ended",
		What: "Its first page was opened twice, and one of the visitors may be another user of this machine. " + name + " was not connected.",
		Do:   "Run the command again."}
}

func expiredPage(name string) page {
	return page{Status: http.StatusGone, Tone: "warning", Title: "This sign-in took too long",
		What: fmt.Sprintf("It was started more than %d minutes ago. %s was not connected.", int(flowLifetime.Minutes()), name),
		Do:   "Connect again."}
}

func otherBrowserPage(name string) page {
	p := foreignPage
	p.What = "It was started in another browser, or under another address of this page. Nothing was changed."
	p.Do = "If you did not start it, close this page. Otherwise open the connections page in this browser, under the address in redirect_uri, and connect " + name + " there."
	return p
}

func continuePage(name, to string) page {
	host := "the product"
	if u, err := url.Parse(to); err == nil && u.Host != "" {
		host = u.Host
	}
	return page{Status: http.StatusOK, Tone: "onward", Title: "On to " + host,
		What: "Sign in there and allow access for " + name + ". The product then sends you back here.",
		Link: to, LinkText: "Continue to " + host}
}

var (
	foreignPage = page{Status: http.StatusForbidden, Tone: "bad", Title: "This sign-in was not started here",
		What: "It does not belong to a sign-in that is waiting. Nothing was changed.",
		Do:   "If you did not start a sign-in, close this page. Otherwise start again, and use the newest tab."}
	unopenedPage = page{Status: http.StatusForbidden, Tone: "bad", Title: foreignPage.Title,
		What: "It was started in another browser. Nothing was changed.",
		Do:   "If you did not start it, close this page. Otherwise sign in with the browser that the command has opened."}
	prefetchPage = page{Status: http.StatusServiceUnavailable, Tone: "neutral", Title: "This page is not loaded ahead",
		What: "It works once, for a person.", Do: "Open its address."}
	unknownPage = page{Status: http.StatusNotFound, Tone: "neutral", Title: "There is no such page",
		What: "This address has no page.",
		Do:   "Check the address, or go back to the page you came from."}
	wrongHostPage = page{Status: http.StatusMisdirectedRequest, Tone: "bad", Title: "This address is not served here",
		What: "The page does not accept the host name in this address.",
		Do:   "Use the host name in redirect_uri, or add this host name to the allowed hosts."}
)

func writeWrongMethod(w http.ResponseWriter, allowed string) {
	w.Header().Set("Allow", allowed)
	p := unknownPage
	p.Status = http.StatusMethodNotAllowed
	p.Title, p.What = "That cannot be done here", "This address does not accept the request’s method."
	p.write(w)
}

// A row is a connector in the list.
type row struct {
	Connector
	Tone, State  string
	Until        time.Time
	What, Detail string
	NeedsLogin   bool // has a button
	Button       string
}

// newRow describes the state of c.
func newRow(c Connector, st auth.Status, err error, now time.Time) row {
	r := row{Connector: c, NeedsLogin: c.Session.CodeFlow() != nil, Button: "Reconnect"}
	if err = cmp.Or(err, st.Failure); err != nil {
		r.Detail = cause(err)
	}
	switch {
	case st.State == auth.StateConsentRequired, errors.Is(st.Failure, auth.ErrConsentRequired):
		r.Tone, r.State, r.Button = "warning", "Needs consent", "Connect"
		r.What = "A person must sign in to the product before it can be used."
		if end := st.ConsentExpiry; !end.IsZero() && now.After(end) {
			r.What = "The consent has expired. " + r.What
		}
	case err != nil:
		r.Tone, r.State = "bad", "Failing"
		what, do := meaning(err)
		r.What = what + " " + do
		if c.Session.StaticCredentials() != nil {
			r.What = "The product refuses the credentials, or they cannot be read."
			if e, ok := errors.AsType[*auth.Error](err); ok && e.Advice() != "" {
				r.What += " To repair it, " + e.Advice() + "."
			}
		} else if st.State == auth.StateFresh || st.State == auth.StateStale {
			r.What += " The current token is still valid."
		} else if now.Before(st.NextTry) {
			r.What += " Next try " + in(st.NextTry.Sub(now)) + "."
		}
	case !r.NeedsLogin:
		r.Tone, r.State = "neutral", "No consent needed"
		r.What = "It signs in by itself."
		if c.Session.StaticCredentials() != nil {
			r.What = "It sends credentials of the configuration."
		}
	case st.State == auth.StateNone:
		r.Tone, r.State = "neutral", "Ready"
		r.What = "The first request uses the configured refresh token."
	default:
		r.Tone, r.State, r.Until = "good", "Connected", st.ConsentExpiry.UTC()
		if !st.Refreshable {
			r.Tone, r.Until, r.What = "warning", st.Expiry.UTC(), noRefreshToken
		} else if !r.Until.IsZero() {
			r.What = "It expires " + in(r.Until.Sub(now)) + ", and renews itself while the service runs."
		}
	}
	return r
}

// in returns a duration such as "in 3 days".
func in(d time.Duration) string {
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{24 * time.Hour, "days"}, {time.Hour, "hours"}, {time.Minute, "minutes"}, {time.Second, "seconds"}} {
		if n := d.Round(u.unit) / u.unit; n > 1 {
			return fmt.Sprintf("in %d %s", n, u.name)
		}
	}
	return "in a moment"
}
