package config

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/config/internal/yamldoc"
	"github.com/itsmauth/itsmauth/internal/testpki"
	"github.com/itsmauth/itsmauth/providers"
)

// decodeAcme decodes the settings of one connector.
func decodeAcme(t *testing.T, lines string) acme {
	t.Helper()
	var got acme
	def := providers.Define("acme", func(c acme, env auth.Env) (auth.Provider, error) {
		got = c
		return newAcme(c, env)
	})
	conns, err := parse1(t, lines, WithProvider(def))
	if err != nil {
		t.Fatal(err)
	}
	conns.Close()
	return got
}

func TestDecode(t *testing.T) {
	t.Parallel()
	c := decodeAcme(t, `
    sso_url: ${env:CFG_URL}
    scopes: [1.10, 0x1F, "${env:CFG_ID}", 2001-01-01]
    params: {a: 1, b: "$${x} $5 $", c: "${env:CFG_UNSET:-d:-e}${env:CFG_UNSET:-}"}
    values: {text: a, number: 1.50, large: 9007199254740993, flag: True, quoted: "true", date: 2020-01-01, empty: "", reference: "${env:CFG_SEVEN}"}
    conditions: [{status: 401}]
    lifetime: ${env:CFG_SECONDS}
    level: "${env:CFG_SEVEN}"
    port: ${env:CFG_UNSET:-80}
    ratio: 1.5e3
    debug: "${env:CFG_TRUE}"
    nested: {size: 2KiB}
    extra: |
      two
      lines
`)
	debug := true
	if c.SSOURL.String() != "https://acme.example/api/" {
		t.Errorf("%s", c.SSOURL)
	}
	if diff := cmp.Diff([]any{
		[]string{"1.10", "0x1F", "client-7", "2001-01-01"}, map[string]string{"a": "1", "b": "${x} $5 $", "c": "d:-e"},
		map[string]any{"text": "a", "number": json.Number("1.50"), "large": json.Number("9007199254740993"), "flag": true, "quoted": "true", "date": "2020-01-01", "empty": "", "reference": "7"},
		[]acmeCondition{{401}}, 45 * time.Second, 7, uint16(80), 1500.0, &debug, yamldoc.Size(2048), "two\nlines\n", true,
	}, []any{
		c.Scopes, c.Params, c.Values, c.Conditions, c.Lifetime, c.Level, c.Port, c.Ratio, c.Debug, c.Nested.Size, c.Extra, c.Password.IsZero(),
	}); diff != "" {
		t.Error(diff)
	}
}

// A secret is read at each use, through a symlink that moves, as in a Kubernetes volume.
func TestSecretRotates(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, value string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(value+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("one", secret)
	write("two", secret+"2")
	link := filepath.Join(dir, "current")
	if err := os.Symlink("one", link); err != nil {
		t.Fatal(err)
	}
	c := decodeAcme(t, "    password: a${file:"+link+"}b\n")
	check := func(want string) {
		t.Helper()
		if got, err := c.Password.Value(); got != want || err != nil {
			t.Errorf("want %q, got %q, %v", want, got, err)
		}
	}
	check("a" + secret + "b")
	if err := os.Symlink("two", link+"~"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(link+"~", link); err != nil {
		t.Fatal(err)
	}
	check("a" + secret + "2b")
	write("two", "overwritten")
	check("aoverwrittenb")
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Password.Value(); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestRelativeSecret(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "word"), []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	var got acme
	def := providers.Define("acme", func(c acme, _ auth.Env) (auth.Provider, error) { got = c; return acmeProvider{c}, nil })
	conns, err := Parse(filepath.Join(dir, "x.yaml"), []byte("version: 1\nconnectors: {a: {provider: acme, base_url: 'https://h', client_id: '${file:word}', client_secret: '${file:./word}'}}"), WithProvider(def))
	if err != nil {
		t.Fatal(err)
	}
	defer conns.Close()
	if v, err := got.Secret.Value(); v != secret || err != nil || got.ClientID != secret {
		t.Errorf("%q %q %v", v, got.ClientID, err)
	}
}

// Not parallel: it changes the working directory. Files are still read from where they were at first.
func TestChangedDirectory(t *testing.T) {
	dir := t.TempDir()
	cert, key := testpki.Files(t, testpki.New(t).Issue(t, "client", time.Now().Add(time.Hour)))
	for link, path := range map[string]string{"cert.pem": cert, "key.pem": key} {
		if err := os.Symlink(path, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "word"), []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	p := plansOf(t, `
version: 1
connectors:
  a:
    provider: acme
    base_url: https://h
    client_id: a
    client_secret: ${file:word}
    transport: {tls_config: {cert_file: cert.pem, key_file: ./key.pem}}
`)["a"]
	t.Chdir(t.TempDir())
	if v, err := p.settings["client_secret"].Value.(auth.Secret).Value(); v != secret || err != nil {
		t.Errorf("%q, %v", v, err)
	}
	if _, err := p.transport.TLS.GetClientCertificate(nil); err != nil {
		t.Error(err)
	}
}
