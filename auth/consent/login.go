package consent

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"html"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/endpoint"
	"github.com/itsmauth/itsmauth/internal/loopback"
)

// LoginOptions configures [Login]. The zero value of each field is its default.
type LoginOptions struct {
	// Timeout (5 min) limits the whole login, including the time that the person needs.
	Timeout time.Duration
	// Show is called with the address to open, for a person whose browser cannot be opened from here.
	// If Open is nil, that is an address on the redirect URI's host that works once, and Show is
	// called if no browser has begun the login after 5 s, or at once if none can be started. If Open
	// is not nil, it is the URL of the sign-in page, and Show is called before Open. Nil shows nothing.
	Show func(url string)
	// Open is called with the URL of the sign-in page, and returns without waiting for the person. Its
	// error is ignored. The URL is a secret: whoever has it can complete the login with an account of
	// their own, and every user of a machine can read the arguments of its programs. Nil opens a
	// browser and lets only that browser complete the login; it runs the program that the environment
	// variable BROWSER names, else xdg-open, open or rundll32, depending on the platform.
	Open func(url string) error
	// Opened is called when Login, because Open is nil, has started a browser, to tell the person to
	// look there. Nil tells nothing.
	Opened func()
	// Paste asks the person for the address that their browser ended at, for a browser that cannot
	// reach the redirect URI because it runs on another machine, and returns what the person pasted.
	// It is called again, with the problem, if that does not belong to this login, and no more after
	// an error. Its ctx ends with the login. Login does not wait for it. Nil asks for nothing.
	Paste func(ctx context.Context, problem error) (pasted string, err error)
}

// Login logs in the person at this machine, in their browser. Until the browser comes back, Login
// listens on the redirect URI, which must be http on a loopback address with a port, such as
// http://127.0.0.1:8400/callback (RFC 8252 section 7.3). If the redirect URI belongs to a service,
// use [NewHandler] there. PKCE (RFC 7636) is used if the provider uses it.
//
// Unless [LoginOptions.Open] is set, the browser is given a file that only this user can read, in the
// home or the temporary directory. It leads to a page of the listener that works once, sets a cookie and
// redirects to the product. Only a browser with this cookie completes the login. If the page is visited
// again, another user may have been first, so the login ends.
//
// Login opens the browser only if the token store can be written. It ends at Timeout or when ctx
// ends. If the authorization code has been sent to the product by then, Login takes up to 10 s more
// to save the tokens. The browser shows a page with the result.
//
// The error is an [*auth.Error] that wraps [auth.ErrConsentRequired] if the person refused,
// [auth.ErrNoRefreshToken] if the product gave no refresh token and an earlier login has one,
// [auth.ErrStore] if the tokens cannot be saved, [context.DeadlineExceeded] after Timeout, ctx's
// error, or the error of [auth.Session.Redeem].
func Login(ctx context.Context, c Connector, o *LoginOptions) error {
	return withName(c, login(ctx, c, o))
}

func withName(c Connector, err error) error {
	var e *auth.Error
	if err != nil && !errors.As(err, &e) {
		err = &auth.Error{Connector: c.Name, Provider: c.Provider, Op: "login", Err: err}
	}
	return err
}

func login(ctx context.Context, c Connector, o *LoginOptions) error {
	if o == nil {
		o = new(LoginOptions)
	}
	f, err := c.newFlow()
	if err != nil {
		return err
	}
	if err := checkRedirect(f.redirect); err != nil {
		return err
	}
	listeners, err := loopback.Listen(f.redirect.Host)
	if err != nil {
		return fmt.Errorf("%w; stop the program that uses this port, or register and set a redirect_uri with another port", err)
	}
	return f.run(ctx, listeners, o)
}

// checkRedirect returns an error if Login cannot listen on the redirect URI.
func checkRedirect(redirect *url.URL) error {
	const elsewhere = "log in on the connections page of the service at that address, or "
	var problem string
	switch {
	case !endpoint.Loopback(redirect.Hostname()):
		problem = "is not on this machine: " + elsewhere
	case redirect.Scheme != "http":
		problem = "is not http, and this machine has no certificate for it: " + elsewhere
	case redirect.Port() == "" || redirect.Port() == "0":
		problem = "has no port to listen on: "
	default:
		return nil
	}
	return fmt.Errorf("redirect_uri %s %sregister and set one such as http://127.0.0.1:8400/callback", redirect, problem)
}

// showAfter is how long the browser has to visit the one-time page until its address is shown. Browsers in
// a sandbox (snap, flatpak) or outside (WSL) cannot read the file.
const showAfter = 5 * time.Second

// run serves the redirect URI until the browser comes back or ctx or the timeout ends.
func (f *flow) run(ctx context.Context, listeners []net.Listener, o *LoginOptions) error {
	ctx, cancel := withTimeout(ctx, cmp.Or(o.Timeout, 5*time.Minute))
	defer cancel()
	l := &loginHandler{flow: f, ctx: ctx, done: make(chan error, 1)}
	if o.Open == nil {
		l.page, f.cookie = newOneTimePage(f.redirect), newLoginCookie(f.redirect)
	}
	failed, stop := loopback.Serve(listeners, l)
	defer stop()
	err := f.connector.Session.CheckStore(ctx)
	if err != nil {
		return err
	}

	show := func(address string) {
		if o.Show != nil {
			o.Show(address)
		}
	}
	var late <-chan time.Time
	if l.page == nil {
		show(f.authURL)
		_ = o.Open(f.authURL) // Show is for the person whose browser does not open
	} else if remove, err := openFile(l.page.address); err != nil {
		show(l.page.address)
	} else {
		defer remove()
		if o.Opened != nil {
			o.Opened()
		}
		late = time.After(showAfter)
	}
	if o.Paste != nil {
		go l.readPasted(o.Paste)
	}

wait:
	for {
		select {
		case <-late:
			if !l.page.visited.Load() {
				show(l.page.address)
			}
		case err = <-l.done:
			return err
		case err = <-failed:
			break wait
		case <-ctx.Done():
			err = describeTimeout(ctx, context.Cause(ctx), "the browser sign-in")
			break wait
		}
	}
	if f.used.Swap(true) { // the browser has come back, and Redeem ends soon after ctx
		return <-l.done
	}
	return err
}

// openFile opens a file that leads to address in a browser. The address is in no argument of a program,
// because all users can read these. remove removes the file.
func openFile(address string) (remove func(), err error) {
	home, err := os.UserHomeDir()
	if err != nil {
		home = os.TempDir()
	}
	var file *os.File
	for _, dir := range []string{home, os.TempDir()} {
		if othersMayReplace(dir) {
			err = fmt.Errorf("other users can replace files in %s", dir)
			continue
		}
		// It has mode 0600. Snaps read no file whose name begins with a dot. Chromium shows a file without
		// .html as text.
		if file, err = os.CreateTemp(dir, "itsmauth-login-*.html"); err == nil {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	remove = func() { os.Remove(file.Name()) }
	_, err = fmt.Fprintf(file, `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="referrer" content="no-referrer">
<meta http-equiv="refresh" content="0; url=%[1]s">
<title>Sign in · itsmauth</title>
<p><a href="%[1]s">Continue to the sign-in</a></p>
`, html.EscapeString(address))
	if err = errors.Join(err, file.Close()); err == nil {
		err = openBrowser(file.Name())
	}
	if err != nil {
		remove()
	}
	return remove, err
}

// othersMayReplace reports whether other users may rename and remove files in dir. In a sticky directory only a
// file's owner can.
func othersMayReplace(dir string) bool {
	info, err := os.Stat(dir)
	return runtime.GOOS != "windows" && err == nil && info.Mode()&0o022 != 0 && info.Mode()&os.ModeSticky == 0
}

// openBrowser starts the browser and does not wait for it.
func openBrowser(file string) error {
	cmd := exec.Command("xdg-open", file)
	switch runtime.GOOS {
	case "darwin":
		cmd = exec.Command("open", file)
	case "windows":
		cmd = exec.Command("rundll32", "url.dll,FileProtocolHandler", file)
	}
	// A list, or a command with arguments, is left to xdg-open.
	if browser, err := exec.LookPath(os.Getenv("BROWSER")); err == nil {
		cmd = exec.Command(browser, file)
	}
	return cmd.Start()
}

// A oneTimePage is where a login begins. The first browser that visits it is the only one that may complete
// the login.
type oneTimePage struct {
	path, address string
	visited       atomic.Bool
}

func newOneTimePage(redirect *url.URL) *oneTimePage {
	path := "/" + rand.Text()
	return &oneTimePage{path: path, address: (&url.URL{Scheme: redirect.Scheme, Host: redirect.Host, Path: path}).String()}
}

// loginHandler serves the redirect URI of one login.
type loginHandler struct {
	*flow
	ctx  context.Context // Login's, not the request's: the login goes on if the browser disconnects
	page *oneTimePage    // nil if any browser that has the state may complete the login
	done chan error
}

func (l *loginHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	switch {
	case !strings.EqualFold(r.Host, l.redirect.Host):
		wrongHostPage.write(w)
	case l.page != nil && equal(r.URL.Path, l.page.path):
		l.begin(w, r)
	case r.URL.Path != l.redirect.Path:
		unknownPage.write(w)
	case l.hasState(form(w, r)):
		redirectForm(w, r.PostForm)
	case r.Method != http.MethodGet:
		writeWrongMethod(w, "GET")
	case !l.hasState(q):
		foreignPage.write(w)
	case !l.fromItsBrowser(r):
		unopenedPage.write(w)
	case !l.used.Swap(true):
		l.end(w, l.finish(l.ctx, w, q))
	case l.ctx.Err() != nil:
		l.show(w, endedPage(l.connector.Name))
	default:
		l.show(w, usedPage(l.connector.Name))
	}
}

// begin sends the first browser to the product. Another visit ends the login: the first visitor may have
// been another user.
func (l *loginHandler) begin(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method != http.MethodGet:
		writeWrongMethod(w, "GET")
	case strings.Contains(r.Header.Get("Sec-Purpose")+r.Header.Get("Purpose"), "prefetch"):
		prefetchPage.write(w)
	case !l.page.visited.Swap(true):
		http.SetCookie(w, l.cookie)
		w.Header().Set("Referrer-Policy", "no-referrer")
		w.Header().Set("Cache-Control", "no-store")
		http.Redirect(w, r, l.authURL, http.StatusSeeOther)
	case !l.used.Swap(true):
		l.show(w, twicePage(l.connector.Name))
		l.end(w, errVisitedTwice)
	default:
		l.show(w, usedPage(l.connector.Name))
	}
}

var errVisitedTwice = errors.New("the page that begins the sign-in was opened twice, and one of the visitors may be another user of this machine; nothing was changed: log in again")

// end ends the login after its last page.
func (l *loginHandler) end(w http.ResponseWriter, err error) {
	_ = http.NewResponseController(w).Flush() // before Login returns and the process may exit
	l.done <- err
}

// readPasted ends the login with an address that the person pastes.
func (l *loginHandler) readPasted(paste func(ctx context.Context, problem error) (string, error)) {
	var problem error
	for l.ctx.Err() == nil {
		text, err := paste(l.ctx, problem)
		if err != nil {
			return
		}
		q, err := l.pasted(text)
		if problem = err; err != nil {
			continue
		}
		if !l.used.Swap(true) {
			l.done <- l.redeem(l.ctx, q)
		}
		return
	}
}

// pasted returns the query of the address in text.
func (f *flow) pasted(text string) (url.Values, error) {
	u, err := url.Parse(strings.TrimSpace(text))
	if err != nil || !u.Query().Has("code") && !u.Query().Has("error") {
		return nil, fmt.Errorf("this is not the address that the browser ended at, which begins with %s?", f.redirect)
	}
	if !f.hasState(u.Query()) {
		return nil, errors.New("this address belongs to another sign-in: its state is not the one of this sign-in")
	}
	return u.Query(), nil
}
