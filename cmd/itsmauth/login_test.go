package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// With --no-browser, a person pastes the address that a browser on another machine ended at.
func TestLoginByPaste(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]string{"a line": "\n", "the end of input": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, withLogin)
			s.answers(200, `{"access_token": "a1", "expires_in": 3600, "refresh_token": "r1"}`)
			out, stdout := io.Pipe()
			stdin, keyboard := io.Pipe()
			var stderr bytes.Buffer
			done := make(chan int, 1)
			go func() {
				done <- run(context.WithoutCancel(t.Context()), []string{"--config", s.yaml, "login", "api", "--no-browser"}, stdin, stdout, &stderr)
				stdout.Close()
			}()
			lines := bufio.NewReader(out)
			line, err := lines.ReadString('\n')
			if err != nil {
				t.Fatal(err, &stderr)
			}
			u, err := url.Parse(strings.TrimSpace(line))
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(keyboard, "\nwhat?\n"+line+s.redirectURI()+"?code=hunter2&state=x\n")
			io.WriteString(keyboard, s.redirectURI()+"?code=c&state="+u.Query().Get("state")+end)
			keyboard.Close()
			rest, _ := io.ReadAll(lines)
			code := <-done
			const none, foreign = "this is not the address that the browser ended at", "this address belongs to another sign-in"
			if code != 0 || string(rest) != "api is logged in\n" ||
				strings.Count(stderr.String(), none) != 3 || strings.Count(stderr.String(), foreign) != 1 || strings.Contains(stderr.String(), "hunter2") {
				t.Errorf("exit %d, %s%s", code, rest, &stderr)
			}
			if got := s.seen(); got != "POST /token grant_type=authorization_code" {
				t.Error(got)
			}
		})
	}
}

// login opens a file that leads the browser to a page of its own; what it prints is of no use to others.
func TestLoginOpensBrowser(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "browser")
	script := "#!/bin/sh\nprintf %s \"$1\" >\"$0.new\" && mv \"$0.new\" \"$0.opened\"\n"
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("BROWSER", program)
	t.Setenv("HOME", dir)
	s := newServer(t, withLogin)
	s.answers(200, `{"access_token": "a1", "expires_in": 3600, "refresh_token": "r1"}`)
	var stdout, stderr bytes.Buffer
	done := make(chan int, 1)
	go func() {
		done <- run(context.WithoutCancel(t.Context()), []string{"--config", s.yaml, "login", "api"}, nil, &stdout, &stderr)
	}()
	var file []byte
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		name, err := os.ReadFile(program + ".opened")
		if err == nil {
			file, err = os.ReadFile(string(name))
		}
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	person := newVisitor(t)
	person.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	page := regexp.MustCompile(`url=([^"]+)"`).FindStringSubmatch(string(file))[1]
	resp, _ := person.get(page)
	to, err := resp.Location()
	if err != nil {
		t.Fatal(err)
	}
	back := s.redirectURI() + "?code=c&state=" + to.Query().Get("state")
	if resp, body := newVisitor(t).get(back); resp.StatusCode != 403 {
		t.Errorf("another browser: %d %s", resp.StatusCode, body)
	}
	if resp, body := person.get(back); resp.StatusCode != 200 {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if code := <-done; code != 0 || stdout.String() != "api is logged in\n" || stderr.String() != "Allow access in your browser.\nwaiting up to 5m for the browser sign-in\n" {
		t.Errorf("exit %d, %s%s", code, &stdout, &stderr)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "itsmauth*")); len(left) > 0 {
		t.Errorf("%s is left", left)
	}
}
