package main

import (
	"bufio"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// background starts itsmauth and returns its stdout. stop interrupts it and checks that it exits with 0.
func background(t *testing.T, args ...string) (stdout *bufio.Reader, stop func()) {
	t.Helper()
	cmd := exec.Command("itsmauth", args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return bufio.NewReader(out), func() {
		t.Helper()
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
}

func TestEmulate(t *testing.T) {
	t.Parallel()
	out, stop := background(t, "emulate")
	defer stop()
	var yaml strings.Builder
	for line := ""; !strings.Contains(line, "password:"); { // the last line
		var err error
		if line, err = out.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		yaml.WriteString(line)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "itsmauth.yaml"), []byte(yaml.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	file := withStore(t, dir)
	for _, tt := range []struct {
		args string
		code int
		says string
	}{
		{"check", 0, "ok: 3 connectors\n"},
		{"token support", 0, ""},
		{"call support /api/config/v1/jump-item", 0, "web-01"},
		{"token shop --header", 0, "access_token: "},
		{"call shop /api/v4/products", 0, "Espresso"},
		{"token remedy", 3, "itsmauth login remedy"},
		{"status", 0, "consent_required"},
	} {
		code, stdout, stderr := itsmauth(t.Context(), append([]string{"--config", file}, strings.Fields(tt.args)...)...)
		if code != tt.code || !strings.Contains(stdout+stderr, tt.says) {
			t.Errorf("%s: exit %d, %s%s", tt.args, code, stdout, stderr)
		}
	}
}

// The key of serve works once. The browser that used it may do everything, another one nothing.
func TestServe(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p, err := start(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	file := withStore(t, dir)
	out, stop := background(t, "--config", file, "serve")
	defer stop()
	line, err := out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	address := strings.TrimSpace(line)
	page, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	page.RawQuery = ""

	browser := func() *http.Client {
		jar, _ := cookiejar.New(nil) // never fails
		return &http.Client{Jar: jar}
	}
	mine, others := browser(), browser()
	get := func(c *http.Client, u string) (int, string) {
		t.Helper()
		resp, err := c.Get(u)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	for _, tt := range []struct {
		client *http.Client
		url    string
		status int
	}{
		{others, page.String(), 403},
		{others, page.String() + "?key=x", 403},
		{mine, address, 200},
		{others, address, 403}, // used already
		{mine, address, 200},   // the browser that used it may reload
		{mine, page.String(), 200},
	} {
		if status, body := get(tt.client, tt.url); status != tt.status {
			t.Errorf("%s: %d\n%s", tt.url, status, body)
		}
	}

	_, body := get(mine, page.String())
	if !strings.Contains(body, "Needs consent") || strings.Count(body, "<li ") != 3 {
		t.Errorf("list:\n%s", body)
	}
	csrf := regexp.MustCompile(`name="csrf" value="([^"]+)"`).FindStringSubmatch(body)
	resp, err := mine.PostForm(page.String(), url.Values{"csrf": {csrf[1]}, "connector": {"remedy"}})
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	_, authorize, _ := strings.Cut(resp.Header.Get("Refresh"), "url=")
	back, err := p["remedy"].consent(authorize)
	if err != nil {
		t.Fatal(err)
	}
	if status, _ := get(others, back.String()); status != 403 {
		t.Errorf("callback of another browser: %d", status)
	}
	if status, body := get(mine, back.String()); status != 200 || !strings.Contains(body, "remedy is connected") {
		t.Errorf("callback: %d\n%s", status, body)
	}
	if code, _, stderr := itsmauth(t.Context(), "--config", file, "token", "remedy"); code != 0 {
		t.Errorf("token: exit %d, %s", code, stderr)
	}
}

func TestCheckLoopback(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"127.0.0.1:8400": "", "localhost:0": "", "[::1]:80": "",
		"127.0.0.1": "is not HOST:PORT", "": "is not HOST:PORT",
		":8080": "is not a loopback address", "0.0.0.0:8400": "is not a loopback address", "itsm.example.com:80": "is not a loopback address",
	} {
		if err := checkLoopback(address); (err == nil) != (want == "") || err != nil && !strings.HasSuffix(strings.TrimSuffix(err.Error(), ", such as 127.0.0.1:8400"), want) {
			t.Errorf("%q: %v, want %q", address, err, want)
		}
	}
}
