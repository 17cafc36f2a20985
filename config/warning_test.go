package config

import (
	"bytes"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/itsmauth/itsmauth/auth"
)

const (
	literal = "a secret is written in the file; use ${env:NAME} or ${file:PATH}"
	memory  = "the login is lost when the process ends, because the token store is memory; set token_store.type: file"
	noPKCE  = "the login does not use PKCE, which RFC 9700 recommends for every client; set pkce: true"
)

func TestWarnings(t *testing.T) {
	t.Parallel()
	head := "version: 1\nconnectors:\n"
	acme := "  a: {provider: acme, base_url: 'https://h', client_id: a, client_secret: '${env:CFG_SECRET}'"
	oauth2 := "  a: {provider: oauth2, base_url: 'https://h', token_url: 'https://h/t', client_id: a"
	code := oauth2 + ", auth_url: 'https://h/a', redirect_uri: 'http://127.0.0.1/', grant: authorization_code"
	static := "  a: {provider: static, base_url: 'https://h'"
	file := fmt.Sprintf("token_store: {type: file, path: %q, ", filepath.Join(t.TempDir(), "tokens"))
	inFile := "version: 1\n" + file + "}\nconnectors:\n"
	const key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
	for name, tc := range map[string]struct{ data, want string }{ // ^ is before the value of which is warned
		"none":             {head + acme + "}\n", ""},
		"client_secret":    {head + strings.Replace(acme, "'${env:CFG_SECRET}'", "^s3cr", 1) + "}\n", "connectors.a.client_secret: " + literal},
		"part of a secret": {head + acme + ", password: 'x${env:CFG_SECRET}'}\n", ""},
		"password":         {head + acme + ", password: ^hunter2}\n", "connectors.a.password: " + literal},
		"password X":       {head + acme + ", password: X}\n", ""},
		"refresh_token":    {head + oauth2 + ", grant: refresh_token, refresh_token: ^R}\n", "connectors.a.refresh_token: " + literal},
		"secret_params":    {head + oauth2 + ", secret_params: {a: ^s3cr}}\n", "connectors.a.secret_params.a: " + literal},
		"a gateway's key":  {head + oauth2 + ", static_headers: {Accept: text/x, X-Api-Key: ^s3cr}}\n", "connectors.a.static_headers.X-Api-Key: " + literal},
		"a static header":  {head + static + ", headers: {Accept: text/x, accept-language: en, User-Agent: x, X-Other: ^s3cr, X-Key: '${env:CFG_SECRET}'}}\n", "connectors.a.headers.X-Other: " + literal},
		"static password":  {head + static + ", username: me, password: ^s3cr}\n", "connectors.a.password: " + literal},
		"static empty":     {head + static + ", username: '${env:CFG_SECRET}', password: ''}\n", ""},
		"a username":       {head + static + ", username: me@example.com/token, password: '${env:CFG_SECRET}'}\n", ""},
		"a key, X":         {head + static + ", username: ^s3cr, password: X}\n", "connectors.a.username: " + literal},
		"a key, empty":     {head + static + ", username: ^s3cr, password: ''}\n", "connectors.a.username: " + literal},
		"a key alone":      {head + static + ", username: ^s3cr}\n", "connectors.a.username: " + literal},
		"a key's variable": {head + static + ", username: '${env:CFG_SECRET}', password: X}\n", ""},
		"proxy":            {head + acme + ", transport: {proxy_url: 'http://proxy:3128'}}\n", ""},
		"proxy's password": {head + acme + ", transport: {proxy_url: ^'http://u:s3cr@${env:CFG_ID}:1'}}\n", "connectors.a.transport.proxy_url: " + literal},
		"proxy's variable": {head + acme + ", transport: {proxy_url: 'http://${env:CFG_ID}:${env:CFG_ID}@proxy:1'}}\n", ""},
		"allow_http": {"version: 1\ndefaults: {transport: {allow_http: ^true}}\nconnectors:\n" + acme + "}\n" + strings.Replace(acme, "  a:", "  b:", 1) + ", account: b}\n",
			"defaults.transport.allow_http: credentials and tokens may be sent unencrypted; use https"},
		"allow_http false": {head + acme + ", transport: {allow_http: false}}\n", ""},
		"insecure_skip_verify": {head + acme + ", transport: {tls_config: {insecure_skip_verify: ^true}}}\n",
			"connectors.a.transport.tls_config.insecure_skip_verify: any server can pose as this one and get the credentials; set ca_file"},
		"encryption": {"version: 1\n" + file + "encryption: ^none}\nconnectors:\n" + acme + "}\n",
			"token_store.encryption: stored tokens are not encrypted; itsmauth keygen makes a key for encryption_keys"},
		"encryption_keys": {"version: 1\ntoken_store: {type: memory, encryption_keys: [^" + key + "]}\nconnectors:\n" + acme + "}\n",
			"token_store.encryption_keys[0]: " + literal},
		"a login in memory": {head + strings.Replace(code, "a:", "^a:", 1) + "}\n", "connectors.a: " + memory},
		"a login in a file": {inFile + code + "}\n", ""},
		"pkce false":        {inFile + code + ", pkce: ^false}\n", "connectors.a.pkce: " + noPKCE},
		"no pkce": {inFile + strings.Replace(code, "authorization_code", "^authorization_code", 1) + ", client_secret: '${env:CFG_SECRET}'}\n",
			"connectors.a.grant: " + noPKCE},
		"pkce true": {inFile + code + ", client_secret: '${env:CFG_SECRET}', pkce: true}\n", ""},
		"an anchor": {"version: 1\nx-all: &all {client_secret: ^s3cr, provider: acme, base_url: 'https://h'}\nconnectors:\n  a: {<<: *all, client_id: a}\n  b: {<<: *all, client_id: b}\n",
			"connectors.a.client_secret: " + literal},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var log bytes.Buffer
			before, after, _ := strings.Cut(tc.data, "^")
			if tc.want != "" {
				tc.want = fmt.Sprintf("t.yaml:%d:%d: %s", strings.Count(before, "\n")+1, len(before)-strings.LastIndex(before, "\n"), tc.want)
			}
			conns, err := Parse("t.yaml", []byte(before+after), append(testOptions(), WithLogger(slog.New(slog.NewTextHandler(&log, nil))))...)
			if err != nil {
				t.Fatal(err)
			}
			defer conns.Close()
			var lines []string
			for _, w := range conns.Warnings() {
				lines = append(lines, w.Error())
			}
			if diff := cmp.Diff(tc.want, strings.Join(lines, "\n")); diff != "" {
				t.Error(diff)
			}
			if n := strings.Count(log.String(), "level=WARN"); n != len(conns.Warnings()) || strings.Contains(log.String(), "s3cr") {
				t.Errorf("%d lines: %s", n, &log)
			}
		})
	}
}

// Of a kind, the first 20 are listed, and then how many there are.
func TestManyWarnings(t *testing.T) {
	t.Parallel()
	data := "version: 1\nconnectors:\n"
	for i := range 25 {
		data += fmt.Sprintf("  c%d: {provider: acme, base_url: 'https://h', client_id: a%d, client_secret: s3cr, password: hunter2}\n", i, i)
	}
	data += "  last: {provider: acme, base_url: 'https://h', client_id: a, client_secret: '${env:CFG_SECRET}', transport: {allow_http: true}}\n"
	conns, err := Parse("t.yaml", []byte(data), testOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	defer conns.Close()
	list := conns.Warnings()
	if len(list) != 22 || list[20].Line != 13 || list[20].Message != "30 more like this: "+literal || list[21].Path != "connectors.last.transport.allow_http" {
		t.Errorf("%d: %v", len(list), Problems(list))
	}
	list[0] = Problem{}
	if conns.Warnings()[0].Line != 3 {
		t.Error("a caller changes the warnings")
	}
}

// What WithOnly leaves out is not checked, so there is no warning of it.
func TestWarningsOfSome(t *testing.T) {
	t.Parallel()
	conns, err := parse1(t, "  b: {provider: acme, base_url: 'https://h', client_id: b, client_secret: s3cr}\n",
		WithOnly("b"), WithDefaultStore("memory", func() (auth.Store, error) { return new(auth.Memory), nil }))
	if err != nil {
		t.Fatal(err)
	}
	defer conns.Close()
	if list := conns.Warnings(); len(list) != 1 || list[0].Line != 8 {
		t.Error(list)
	}
}
