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
			// Parse it with the variables set.
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
			if code, _, stderr := initialize("--force", "--client-id", "a\nb: c"); code != 2 || stderr != "itsmauth: --client-id must be text on one line\n" {
				t.Errorf("two lines: exit %d, %s", code, stderr)
			}
			if code, _, stderr := initialize("--force", "--name", " "); code != 2 || stderr != "itsmauth: --name a connector needs a name on one line\n" {
				t.Errorf("no name: exit %d, %s", code, stderr)
			}
			for _, flag := range []string{"token-url", "sso-url", "redirect-uri", "username"} {
				if hasKey(starters[provider].settings, strings.ReplaceAll(flag, "-", "_")) {
					continue
				}
				if code, _, stderr := initialize("--force", "--"+flag, "https://x.example"); code != 2 || stderr != "itsmauth: --"+flag+" is not for provider "+provider+"\n" {
					t.Errorf("a flag of another: exit %d, %s", code, stderr)
				}
			}
			if code, _, stderr := initialize("--force", "--account", "x"); code != 2 {
				t.Errorf("an unknown flag: exit %d, %s", code, stderr)
			}
		})
	}
}

// init writes a connector of each preset, with a comment for each key.
func TestInitPresets(t *testing.T) {
	t.Parallel()
	for _, p := range config.Presets() {
		file := filepath.Join(t.TempDir(), "itsmauth.yaml")
		code, stdout, stderr := itsmauth(t.Context(), "--config", file, "init", "--provider", p.Name)
		text, err := os.ReadFile(file)
		if err != nil || code != 0 || stderr != "" {
			t.Errorf("%s: exit %d, %s %v", p.Name, code, stderr, err)
			continue
		}
		_, connector, _ := strings.Cut(string(text), "\nconnectors:\n")
		if err := parseExample(connector); err != nil {
			t.Errorf("%v\n%s", err, text)
		}
		if strings.Contains(connector, "    # \n") || strings.Contains(connector, "probe") {
			t.Errorf("an empty comment, or a probe:\n%s", connector)
		}
		needsLogin := strings.Contains(p.Settings+p.Usual().Settings, "grant: authorization_code")
		if strings.Contains(stdout, "login "+p.Name) != needsLogin {
			t.Errorf("%s: %s", p.Name, stdout)
		}
		if strings.Contains(string(text), "\ntoken_store: {type: file, path: ") != needsLogin || strings.Contains(string(text), "ITSM_") {
			t.Errorf("another token store, or other variables than on the page:\n%s", text)
		}
	}
}

// Without a terminal there are placeholders, which are valid. Only the variables are not set.
func TestInitWritesExamples(t *testing.T) {
	t.Parallel()
	for flags, says := range map[string]string{
		"":                       "edit provider, base_url, client_id, which are examples; next:\n  export ITSM_SUPPORT_CLIENT_SECRET=...\n",
		"--provider beyondtrust": "edit base_url, client_id, which are examples; next:\n",
		"--provider oauth2":      "edit base_url, token_url, client_id, which are examples; next:\n",
		"--provider remedy":      "edit base_url, sso_url, client_id, which are examples; next:\n",
		"--provider webcommander --base-url https://shop.example": "edit client_id, username, which are examples; next:\n",
	} {
		file := filepath.Join(t.TempDir(), "itsmauth.yaml")
		code, stdout, stderr := itsmauth(t.Context(), append([]string{"--config", file, "init"}, strings.Fields(flags)...)...)
		if code != 0 || !strings.HasPrefix(stdout, "wrote "+file+"; "+says) || stderr != "" {
			t.Errorf("%s: exit %d, %s%s", flags, code, stdout, stderr)
		}
		_, _, stderr = itsmauth(t.Context(), "--config", file, "check")
		for line := range strings.Lines(stderr) {
			if !regexp.MustCompile(`environment variable [A-Z_]+ is not set\n$`).MatchString(line) {
				t.Errorf("%s: %s", flags, line)
			}
		}
	}
}
