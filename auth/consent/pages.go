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

	// policy allows the one stylesheet and our own form, and nothing from outside. Browsers apply
	// form-action to where the form's answer redirects, too, so that answer is a page.
	policy = fmt.Sprintf("default-src 'none'; style-src 'sha256-%s'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
		base64.StdEncoding.EncodeToString(styleHash[:]))
)

// A page says what happened and what to do.
type page struct {
	Status         int
	Tone           string // good, warning, bad, neutral or onward: a symbol, never a colour alone
	Title          string
	What, Do       string
	Detail         string // the cause, for whoever has to mend it
	Link, LinkText string // where to go on
	Terminal       bool   // or that it is there
	Notice, CSRF   string // of the list, which has nothing else but a title
	Rows           []row
}

// Style is what the policy allows, byte for byte.
func (page) Style() template.CSS { return style }

func (p page) write(w http.ResponseWriter) {
	var b bytes.Buffer
	if err := pages.Execute(&b, p); err != nil {
		http.Error(w, "This page could not be made.", http.StatusInternalServerError)
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

// outcome says how a flow went.
func outcome(name string, err error) page {
	switch {
	case err == nil:
		return page{Status: http.StatusOK, Tone: "good", Title: name + " is connected",
			What: "Access was granted and saved.",
			Do:   "Nothing more to do: the connection renews itself from now on."}
	case errors.Is(err, errRefused):
		return page{Status: http.StatusOK, Tone: "warning", Title: name + " was not connected",
			What: "Access was refused on the sign-in page. Nothing was changed.",
			Do:   "If that was not meant, connect again and choose Allow."}
	}
	what, do := explain(err)
	return page{Status: http.StatusBadGateway, Tone: "bad", Title: name + " could not be connected",
		What: what, Do: do + " Then connect again.", Detail: cause(err)}
}

// cause is err without the connector's name and without the advice for a terminal, both of which
// a page has in its own words.
func cause(err error) string {
	var e *auth.Error
	if errors.As(err, &e) {
		err = &auth.Error{Code: e.Code, Status: e.Status, Err: errors.New(e.Err.Error())}
	}
	return err.Error()
}

// explain says what an error of the flow means to a person, and what to do.
func explain(err error) (what, do string) {
	for _, e := range []struct {
		is       error
		what, do string
	}{
		{auth.ErrConsentRequired, "The product did not accept the authorization code.",
			"If this is not the first time, compare redirect_uri with the one that is registered in the product."},
		{auth.ErrCredentials, "The product refused this client’s credentials.",
			"Compare client_id and client_secret with the client’s registration in the product."},
		{auth.ErrStore, "The token store failed.",
			"Check token_store: its place, its permissions, its space."},
		{auth.ErrRateLimited, "The product receives too many requests at the moment.",
			"Wait a minute."},
		{auth.ErrUnavailable, "The product could not be reached, or could not answer.",
			"Wait a few minutes. If it lasts, check the URL, the network and the product."},
		{auth.ErrInsecure, "The credentials were not sent, because that would not have been safe.",
			"Check the product’s URL, allow_http and tls_config."},
		{auth.ErrProtocol, "The product’s answer was not one that was expected.",
			"Check the product’s URL and the settings against its version."},
		{context.DeadlineExceeded, "The product did not issue the tokens in time.",
			"Wait a few minutes. If it lasts, check the URL, the network and the product."},
	} {
		if errors.Is(err, e.is) {
			return e.what, e.do
		}
	}
	return "It was interrupted before it was done.", "Wait a moment."
}

func used(name string) page {
	return page{Status: http.StatusGone, Tone: "warning", Title: "This sign-in is over",
		What: "The address with which the browser came back works once, and was used before. Nothing was changed this time.",
		Do:   "If " + name + " is connected, all is well. Otherwise connect again."}
}

// ended is for a browser that comes back while the command that waited for it is ending.
func ended(name string) page {
	return page{Status: http.StatusGone, Tone: "warning", Title: "This sign-in has ended",
		What: "The command that waited for it was interrupted, or its time is up. " + name + " was not connected.",
		Do:   "Run the command again."}
}

func expired(name string) page {
	return page{Status: http.StatusGone, Tone: "warning", Title: "This sign-in took too long",
		What: fmt.Sprintf("It was begun more than %d minutes ago, so %s was not connected.", int(flowLifetime.Minutes()), name),
		Do:   "Connect again."}
}

func otherBrowser(name string) page {
	p := foreign
	p.What = "It was begun in another browser, or under another address of this page. Nothing was changed."
	p.Do = "If you did not begin it, close this page. Otherwise open the connections page in this browser, under the address in redirect_uri, and connect " + name + " there."
	return p
}

func leaving(name, to string) page {
	host := "the product"
	if u, err := url.Parse(to); err == nil && u.Host != "" {
		host = u.Host
	}
	return page{Status: http.StatusOK, Tone: "onward", Title: "On to " + host,
		What: "You sign in there, and come back here once you have allowed access for " + name + ".",
		Link: to, LinkText: "Continue to " + host}
}

var (
	foreign = page{Status: http.StatusForbidden, Tone: "bad", Title: "This sign-in was not begun here",
		What: "It does not belong to a sign-in that is waiting. Nothing was changed.",
		Do:   "If you did not begin one, close this page. Otherwise begin again where you began, and use the newest tab."}
	unknown = page{Status: http.StatusNotFound, Tone: "neutral", Title: "There is no such page",
		What: "Nothing is kept at this address.",
		Do:   "Check the address, or begin again where you came from."}
	wrongHost = page{Status: http.StatusMisdirectedRequest, Tone: "bad", Title: "This address is not served here",
		What: "The page was asked for under a host name that it does not answer to.",
		Do:   "Use the host name in redirect_uri, or have this one added to the allowed hosts."}
)

func wrongMethod(w http.ResponseWriter, allowed string) {
	w.Header().Set("Allow", allowed)
	p := unknown
	p.Status = http.StatusMethodNotAllowed
	p.Title, p.What = "That cannot be done here", "This address does not take such a request."
	p.write(w)
}

// A row is a connector in the list.
type row struct {
	Connector
	Tone, State  string
	Until        time.Time
	What, Detail string
	Person       bool // who may press the button
	Button       string
}

// newRow tells the state of c as it is now.
func newRow(c Connector, st auth.Status, err error, now time.Time) row {
	r := row{Connector: c, Person: c.Session.CodeFlow() != nil, Button: "Reconnect"}
	if err = cmp.Or(err, st.Failure); err != nil {
		r.Detail = cause(err)
	}
	switch {
	case st.State == auth.StateConsentRequired, errors.Is(st.Failure, auth.ErrConsentRequired):
		r.Tone, r.State, r.Button = "warning", "Needs consent", "Connect"
		r.What = "A person has to sign in to the product before it can be used."
		if end := st.ConsentExpiry; !end.IsZero() && now.After(end) {
			r.What = "The consent ended. " + r.What
		}
	case err != nil:
		r.Tone, r.State = "bad", "Failing"
		what, do := explain(err)
		r.What = what + " " + do
		if st.State == auth.StateFresh || st.State == auth.StateStale {
			r.What += " The token at hand is still good."
		} else if now.Before(st.NextTry) {
			r.What += " Next try " + in(st.NextTry.Sub(now)) + "."
		}
	case !r.Person:
		r.Tone, r.State = "neutral", "No consent needed"
		r.What = "It signs in by itself."
	case st.State == auth.StateNone:
		r.Tone, r.State = "neutral", "Ready"
		r.What = "It begins with the configured refresh token when it is first used."
	default:
		r.Tone, r.State, r.Until = "good", "Connected", st.ConsentExpiry.UTC()
		if !r.Until.IsZero() {
			r.What = "That is " + in(r.Until.Sub(now)) + ". It renews itself while the service runs."
		}
	}
	return r
}

// in tells a time to come as people do.
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
