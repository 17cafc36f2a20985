package providers_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/itsmauth/itsmauth/auth"
)

// Each claim of docs/security.md names a test, which must exist.
func TestSecurityClaims(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	definition := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	err = filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		code, err := os.ReadFile(path)
		for _, m := range definition.FindAllSubmatch(code, -1) {
			have[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllSubmatch(doc, -1)
	if len(named) < 20 {
		t.Errorf("only %d tests are named", len(named))
	}
	for _, m := range named {
		if !have[string(m[1])] {
			t.Errorf("there is no %s", m[1])
		}
	}
	// A claim is an item of a list. Items without a test say what is disclosed, or give advice.
	for _, item := range strings.Split(string(doc), "\n- ")[1:] {
		item, _, _ = strings.Cut(item, "\n\n")
		if !regexp.MustCompile("`(Test|Fuzz)").MatchString(item) && !strings.HasPrefix(item, "What it does get") && !strings.HasPrefix(item, "The key must") {
			t.Errorf("no test for: %s", item)
		}
	}
}

// Client secrets and passwords are never on the disk. Tokens are, unless they are encrypted.
func TestDisk(t *testing.T) {
	t.Parallel()
	for _, p := range products(t) {
		for _, encrypted := range []bool{false, true} {
			dir := t.TempDir()
			keys := ""
			if encrypted {
				keys = ", encryption_keys: [" + auth.NewKey() + "]"
			}
			conns := parse(t, p.yaml("test")+fmt.Sprintf("token_store: {type: file, path: '%s'%s}\n", dir, keys))
			tok, err := p.get(t, conns, "test").Authenticator().Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := conns.Close(); err != nil { // the token may be returned before it is saved
				t.Fatal(err)
			}
			var disk strings.Builder
			files, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range files {
				b, err := os.ReadFile(filepath.Join(dir, f.Name()))
				if err != nil {
					t.Fatal(err)
				}
				disk.WriteString(f.Name())
				disk.Write(b)
				var envelope struct{ Record struct{ Data []byte } }
				if json.Unmarshal(b, &envelope) == nil {
					disk.Write(envelope.Record.Data)
					disk.WriteString(base64.StdEncoding.EncodeToString(envelope.Record.Data))
				}
			}
			for _, secret := range p.secrets {
				for _, form := range forms(secret) {
					if strings.Contains(disk.String(), form) {
						t.Errorf("%s: a secret is on the disk", p.id())
					}
				}
			}
			if got := strings.Contains(disk.String(), tok.AccessToken); got == encrypted {
				t.Errorf("%s, encrypted %v: the token is readable: %v", p.id(), encrypted, got)
			}
		}
	}
}

// A token with control characters is not sent and not shown.
func TestHostileToken(t *testing.T) {
	t.Parallel()
	for _, token := range []string{"evil\r\nX-Admin: 1", "evil\nX", "evil\x00", "evil\r\n\r\nGET /admin HTTP/1.1\r\n\r\n"} {
		var calls int
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/token" {
				json.NewEncoder(w).Encode(map[string]any{"access_token": token, "token_type": "bearer", "expires_in": 3600})
				return
			}
			calls++
		}))
		defer srv.Close()
		conns := parse(t, fmt.Sprintf("  test: {provider: oauth2, base_url: '%s', token_url: '%s/token', client_id: id, client_secret: secret, transport: {retry: {min_backoff: 1ms, max_backoff: 1ms}}}\n", srv.URL, srv.URL))
		c, err := conns.Get("test")
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err = call(t.Context(), c, "GET", "/api", ""); err == nil || strings.Contains(err.Error(), "evil") || calls != 0 {
			t.Errorf("%q: %v, %d calls", token, err, calls)
		}
	}
}
