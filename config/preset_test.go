package config

import (
	"strings"
	"testing"
)

// A secret in the file is one warning, at the variable.
func TestPresetWarning(t *testing.T) {
	t.Parallel()
	const text = "version: 1\nconnectors:\n  a:\n    provider: pagerduty_token\n    token: s3cret\n"
	conns, err := Parse("t.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	defer conns.Close()
	if w := conns.Warnings(); len(w) != 1 || !strings.HasPrefix(w[0].Error(), "t.yaml:5:12: connectors.a.token: a secret is written in the file") {
		t.Error(w)
	}
}

// What a preset gives is a setting like any other: the identity, the endpoints and the probe have it.
func TestPresetSettings(t *testing.T) {
	t.Parallel()
	const text = "version: 1\nconnectors:\n  a: {provider: entra, tenant: a, client_id: a, client_secret: s3cret}\n" +
		"  same: {provider: entra, tenant: a, client_id: a, client_secret: s3cret, scopes: [\"https://graph.microsoft.com/.default\"]}\n" +
		"  b: {provider: entra, tenant: b, client_id: a, client_secret: s3cret, base_url: \"https://b.example/x/\", probe: /mine}\n"
	conns, err := Parse("t.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	defer conns.Close()
	keys := map[string]string{}
	for name, want := range map[string]string{
		"a":    "https://graph.microsoft.com/v1.0/$metadata graph.microsoft.com login.microsoftonline.com",
		"same": "https://graph.microsoft.com/v1.0/$metadata graph.microsoft.com login.microsoftonline.com",
		"b":    "https://b.example/x/mine b.example login.microsoftonline.com",
	} {
		conn, err := conns.Get(name)
		if err != nil {
			t.Fatal(err)
		}
		got := conn.BaseURL.String() + conn.Probe
		for _, u := range conn.Endpoints() {
			got += " " + u.Host
		}
		if got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
		keys[name] = conn.Session().Key()
	}
	if keys["a"] != keys["same"] || keys["a"] == keys["b"] {
		t.Error(keys)
	}
}
