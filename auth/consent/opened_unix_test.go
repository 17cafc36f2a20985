//go:build unix

package consent_test

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/consent"
)

// fakeBrowser sets BROWSER to a program that shows nothing and runs until the test ends, and HOME to a
// directory of its own. opened waits for the program and returns its process id and its argument.
func fakeBrowser(t *testing.T) (home string, opened func() (pid, argument string)) {
	t.Helper()
	home = t.TempDir()
	program := filepath.Join(t.TempDir(), "browser")
	script := `#!/bin/sh
printf '%s\n%s' $$ "$1" >"$0.new" && mv "$0.new" "$0.opened"
while [ -e "$0" ]; do sleep 0.05; done
`
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("BROWSER", program)
	t.Setenv("HOME", home)
	t.Setenv("TMPDIR", t.TempDir())
	return home, func() (pid, argument string) {
		for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
			b, err := os.ReadFile(program + ".opened")
			if err == nil {
				pid, argument, _ = strings.Cut(string(b), "\n")
				return pid, argument
			}
			if time.Now().After(end) {
				t.Fatal(err)
			}
		}
	}
}

// asNobody runs a shell command as another user of this machine.
func asNobody(command string, args ...string) string {
	cmd := exec.Command("sh", append([]string{"-c", command, "sh"}, args...)...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, _ := cmd.CombinedOutput()
	return string(out)
}

// An opened login is one whose page was opened in a browser.
type opened struct {
	t    *testing.T
	file string // what the browser was told to open
	page string // the one-time page
	done chan error
}

// openLogin runs Login until the browser is started.
func openLogin(t *testing.T, c consent.Connector, started func() (pid, argument string)) *opened {
	t.Helper()
	l := &opened{t: t, done: make(chan error, 1)}
	go func() { l.done <- consent.Login(t.Context(), c, nil) }()
	_, l.file = started()
	b, err := os.ReadFile(l.file)
	if err != nil {
		t.Fatal(err)
	}
	l.page = regexp.MustCompile(`url=([^"]+)"`).FindStringSubmatch(string(b))[1]
	return l
}

// visit opens the one-time page and returns where it leads to, and its cookie.
func (l *opened) visit() (authURL string, cookie *http.Cookie) {
	l.t.Helper()
	resp, body := newBrowser(l.t).get(l.page)
	if resp.StatusCode != http.StatusSeeOther || len(resp.Cookies()) != 1 {
		l.t.Fatalf("%d %v %s", resp.StatusCode, resp.Header, body)
	}
	return resp.Header.Get("Location"), resp.Cookies()[0]
}

// back opens the callback with cookies.
func (l *opened) back(address string, cookies ...*http.Cookie) (status int, body string) {
	l.t.Helper()
	req, err := http.NewRequest("GET", address, nil)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, c := range cookies {
		req.AddCookie(&http.Cookie{Name: c.Name, Value: c.Value})
	}
	resp, body := newBrowser(l.t).do(req)
	return resp.StatusCode, body
}

// Another user of the machine reads the arguments, the environment and the file of the browser, and tries to
// complete the login with an account of their own.
func TestOtherUserCompletesNoLogin(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can be another user")
	}
	_, opened := fakeBrowser(t)
	uri := freeURI(t)
	s, c := newRemedy(t, uri, true)
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- consent.Login(ctx, c, nil) }()
	pid, argument := opened()
	read := asNobody(`tr '\0' '\n' <"/proc/$1/cmdline"; cat "/proc/$1/environ"; cat "$2"; ls "$(dirname "$2")"`, pid, argument)
	if !strings.Contains(read, argument) {
		t.Skip("this system hides arguments")
	}
	for _, address := range regexp.MustCompile(`https?://[^\s"'<>]+`).FindAllString(read, -1) {
		if back, err := s.Consent(address); err == nil {
			get(t, back.String())
		}
	}
	if n := s.Stats().TokenRequests; n != 0 {
		t.Errorf("another user has completed the login: %v", <-done)
	}
	cancel()
	<-done
}

// The login begins with a file that leads to a page that works once. Its cookie is required.
func TestLoginIsBoundToItsBrowser(t *testing.T) {
	for _, tt := range []struct{ host, path, cookiePath string }{
		{"127.0.0.1", "/callback", "/callback"},
		{"localhost", "/call%2Fback", "/call%2Fback"},
		{"[::1]", "", "/"},
		{"127.0.0.1", "/a/b;c", "/a/"},
	} {
		t.Run(tt.host+tt.path, func(t *testing.T) {
			home, started := fakeBrowser(t)
			_, port, _ := net.SplitHostPort(strings.TrimSuffix(strings.TrimPrefix(freeURI(t), "http://"), "/callback"))
			if l, err := net.Listen("tcp", "[::1]:"+port); err == nil {
				l.Close()
			} else if tt.host != "127.0.0.1" {
				t.Skip(err) // this machine has no IPv6 loopback address
			}
			uri := "http://" + tt.host + ":" + port + tt.path
			s, c := newRemedy(t, uri, true)
			l := openLogin(t, c, started)

			info, err := os.Stat(l.file)
			if err != nil || info.Mode() != 0o600 || filepath.Dir(l.file) != home || strings.HasPrefix(info.Name(), ".") {
				t.Errorf("%v %v %v", l.file, info, err)
			}
			if !strings.HasPrefix(l.page, "http://"+tt.host+":"+port+"/") {
				t.Errorf("the page is %s", l.page)
			}
			for _, r := range []struct {
				method, address, host, purpose string
				status                         int
			}{
				{"HEAD", l.page, "", "", 405}, {"POST", l.page, "", "", 405}, {"GET", l.page, "", "prefetch;prerender", 503},
				{"GET", l.page, "evil.example.com", "", 421}, {"GET", l.page, "127.0.0.1:1", "", 421},
				{"GET", l.page + "/", "", "", 404}, {"GET", strings.TrimSuffix(uri, tt.path) + "/favicon.ico", "", "", 404},
			} {
				req, _ := http.NewRequest(r.method, r.address, nil)
				req.Host = cmp.Or(r.host, req.Host)
				req.Header.Set("Sec-Purpose", r.purpose)
				if resp, _ := newBrowser(t).do(req); resp.StatusCode != r.status || len(resp.Cookies()) > 0 {
					t.Errorf("%+v: %d", r, resp.StatusCode)
				}
			}

			authURL, cookie := l.visit()
			right, err := s.Consent(authURL)
			if err != nil {
				t.Fatal(err)
			}
			shape := *cookie
			shape.Name, shape.Value = "c", ""
			if got, want := shape.String(), "c=; Path="+tt.cookiePath+"; HttpOnly; SameSite=Lax"; got != want || len(cookie.Value) < 26 {
				t.Errorf("%s, want %s", got, want)
			}
			forged := *cookie
			forged.Value = "x"
			for name, cookies := range map[string][]*http.Cookie{"no cookie": nil, "a wrong cookie": {&forged}} {
				if status, body := l.back(right.String(), cookies...); status != 403 || !strings.Contains(body, "started in another browser") {
					t.Errorf("%s: %d %s", name, status, body)
				}
			}

			// A form of the product comes without the cookie, and is sent back with it.
			form := right.Query()
			at := *right
			at.RawQuery = ""
			req, _ := http.NewRequest("POST", at.String(), strings.NewReader(form.Encode()))
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			resp, _ := newBrowser(t).do(req)
			again, err := resp.Location()
			if err != nil || resp.StatusCode != 303 || again.EscapedPath() != right.EscapedPath() {
				t.Fatalf("%d %v %v", resp.StatusCode, again, err)
			}
			if status, body := l.back(again.String()); status != 403 {
				t.Errorf("by form, in another browser: %d %s", status, body)
			}
			if n := s.Stats().TokenRequests; n != 0 {
				t.Errorf("%d token requests", n)
			}
			if status, body := l.back(again.String(), cookie); status != 200 || !strings.Contains(body, "tickets is connected") {
				t.Errorf("%d %s", status, body)
			}
			if err := <-l.done; err != nil {
				t.Error(err)
			}
			if left, _ := filepath.Glob(filepath.Join(home, "*")); len(left) > 0 {
				t.Errorf("%s is left", left)
			}
		})
	}
}

// If the page that works once is visited twice, the first visitor may have been another user.
func TestLoginIsOpenedTwice(t *testing.T) {
	_, started := fakeBrowser(t)
	s, c := newRemedy(t, freeURI(t), true)
	l := openLogin(t, c, started)
	authURL, cookie := l.visit()
	right, err := s.Consent(authURL)
	if err != nil {
		t.Fatal(err)
	}
	if status, body := l.back(l.page, cookie); status != 410 || !strings.Contains(body, "was opened twice") {
		t.Errorf("%d %s", status, body)
	}
	var e *auth.Error
	if err := <-l.done; !errors.As(err, &e) || !strings.Contains(err.Error(), "was opened twice") {
		t.Error(err)
	}
	if _, err := http.Get(right.String()); err == nil {
		t.Error("the listener is still open")
	}
	if n := s.Stats().TokenRequests; n != 0 {
		t.Errorf("%d token requests", n)
	}
}

// Once the browser has come back, another visit of the page changes nothing.
func TestLoginIsOpenedAgain(t *testing.T) {
	_, started := fakeBrowser(t)
	s, c := newRemedy(t, freeURI(t), true)
	l := openLogin(t, c, started)
	authURL, cookie := l.visit()
	right, err := s.Consent(authURL)
	if err != nil {
		t.Fatal(err)
	}
	s.BreakToken(func(http.ResponseWriter, *http.Request) bool {
		if status, body := l.back(l.page); status != 410 || !strings.Contains(body, "This sign-in is over") {
			t.Errorf("%d %s", status, body)
		}
		return false
	})
	if status, body := l.back(right.String(), cookie); status != 200 {
		t.Errorf("%d %s", status, body)
	}
	if err := <-l.done; err != nil {
		t.Error(err)
	}
}

// One browser makes two logins at the same time.
func TestTwoLoginsInOneBrowser(t *testing.T) {
	_, started := fakeBrowser(t)
	var logins []*opened
	var rights []string
	var cookies []*http.Cookie
	for range 2 {
		s, c := newRemedy(t, freeURI(t), true)
		l := openLogin(t, c, started)
		os.Remove(os.Getenv("BROWSER") + ".opened")
		authURL, cookie := l.visit()
		right, err := s.Consent(authURL)
		if err != nil {
			t.Fatal(err)
		}
		logins, rights, cookies = append(logins, l), append(rights, right.String()), append(cookies, cookie)
	}
	for i, l := range logins {
		if status, body := l.back(rights[i], cookies[1-i]); status != 403 {
			t.Errorf("with the cookie of the other login: %d %s", status, body)
		}
		if status, body := l.back(rights[i], cookies...); status != 200 {
			t.Errorf("%d %s", status, body)
		}
		if err := <-l.done; err != nil {
			t.Error(err)
		}
	}
}

// Without a home directory, or with one in which other users could replace the file, it is in the temporary
// directory.
func TestLoginWithoutHome(t *testing.T) {
	public := t.TempDir()
	if err := os.Chmod(public, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, home := range []string{"", "/nonexistent", public} {
		_, started := fakeBrowser(t)
		t.Setenv("HOME", home)
		_, c := newRemedy(t, freeURI(t), true)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- consent.Login(ctx, c, nil) }()
		_, file := started()
		if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 || filepath.Dir(file) != os.Getenv("TMPDIR") {
			t.Errorf("HOME=%s: %s %v", home, file, err)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if _, err := os.Stat(file); !os.IsNotExist(err) {
			t.Errorf("%s is left", file)
		}
	}
}
