package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/itsmauth/itsmauth/config"
)

func TestInit(t *testing.T) {
	t.Parallel()
	all := []string{"--base-url", "https://itsm.example.com", "--client-id", "a &b #1"}
	for provider, flags := range map[string][]string{
		"beyondtrust":  nil,
		"oauth2":       {"--token-url", "https://login.example.com/token"},
		"remedy":       {"--sso-url", "https://sso.example.com/rsso"},
		"webcommander": {"--username", "sync+eu/1=&%40@shop.example.com", "--name", "1 shop/é"},
	} {
		t.Run(provider, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "itsmauth.yaml")
			initialize := func(more ...string) (code int, stdout, stderr string) {
				var out, errs bytes.Buffer
				args := append([]string{"--config", file, "init", "--provider", provider}, append(append(all, flags...), more...)...)
				code = run(t.Context(), args, strings.NewReader(""), &out, &errs)
				return code, out.String(), errs.String()
			}
			code, stdout, stderr := initialize()
			if code != 0 || !strings.Contains(stdout, "export ITSM_") || !strings.Contains(stdout, "itsmauth --config "+file+" ") {
				t.Fatal(code, stdout, stderr)
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			// As check sees it once the variables are set.
			set := regexp.MustCompile(`\$\{env:(ITSM_[A-Z0-9_]+)\}`).ReplaceAll(text, []byte("${env:$1:-c2VjcmV0}"))
			if bytes.Equal(set, text) || bytes.Count(text, []byte("    # ")) < 5 {
				t.Errorf("no references, or no comments:\n%s", text)
			}
			conns, err := config.Parse(file, set)
			if err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			conns.Close()

			if code, _, stderr := initialize(); code != 2 || !strings.Contains(stderr, "--force replaces it") {
				t.Errorf("it is there already: exit %d, %s", code, stderr)
			}
			if code, _, stderr := initialize("--force", "--base-url", "ftp://hunter2"); code != 2 || !strings.Contains(stderr, "--base-url must be an absolute http or https URL") || strings.Contains(stderr, "hunter2") {
				t.Errorf("a bad URL: exit %d, %s", code, stderr)
			}
			if again, err := os.ReadFile(file); err != nil || !bytes.Equal(again, text) {
				t.Error("the file was changed all the same")
			}
			if code, _, stderr := initialize("--force", "--account", "x"); code != 2 {
				t.Errorf("an unknown flag: exit %d, %s", code, stderr)
			}
		})
	}
}

func TestInitAsks(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "itsmauth.yaml")
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), []string{"--config", file, "init"}, strings.NewReader(""), &stdout, &stderr)
	if code != 2 || !strings.Contains(stderr.String(), "--provider is missing") {
		t.Errorf("exit %d, %s", code, stderr.String())
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("there is a file")
	}
}
