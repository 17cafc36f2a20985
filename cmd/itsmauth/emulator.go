package main

import (
	"fmt"
	"net"
	"net/url"
	"strings"

	"github.com/itsmauth/itsmauth/internal/emulator"
	"github.com/itsmauth/itsmauth/providers/beyondtrust/beyondtrusttest"
	"github.com/itsmauth/itsmauth/providers/remedy/remedytest"
	"github.com/itsmauth/itsmauth/providers/webcommander/webcommandertest"
)

// A product is one that this process plays, and the connector to it.
type product struct {
	*emulator.Front
	provider, connector string
	settings            string // of the connector, in YAML, with its credentials
	path                string // of something to call

	revokeAll func()
	consent   func(authURL string) (*url.URL, error) // nil if nobody is asked
	deny      func(authURL string) (*url.URL, error)
}

// emulators start the product's emulator on a listener. redirectURI is for the one that asks a person.
var emulators = []struct {
	provider string
	start    func(l net.Listener, redirectURI string) *product
}{
	{"beyondtrust", emulateBeyondTrust},
	{"remedy", emulateRemedy},
	{"webcommander", emulateWebCommander},
}

func emulateBeyondTrust(l net.Listener, _ string) *product {
	s := beyondtrusttest.NewServer(&beyondtrusttest.Options{Listener: l})
	return &product{
		Front: s.Front, revokeAll: s.RevokeAll,
		provider: "beyondtrust", connector: "support", path: "/api/config/v1/jump-item",
		settings: settings(
			"base_url", s.URL,
			"client_id", beyondtrusttest.DefaultClientID,
			"client_secret", beyondtrusttest.DefaultClientSecret,
		),
	}
}

func emulateRemedy(l net.Listener, redirectURI string) *product {
	s := remedytest.NewServer(&remedytest.Options{Listener: l, RedirectURIs: []string{redirectURI}})
	return &product{
		Front: s.Front, revokeAll: s.RevokeAll,
		provider: "remedy", connector: "remedy", path: "/api/arsys/v1/entry/HPD:IncidentInterface?fields=values(Description)",
		settings: settings(
			"base_url", s.URL,
			"sso_url", s.SSOURL,
			"client_id", remedytest.DefaultClientID,
			"client_secret", remedytest.DefaultClientSecret,
			"redirect_uri", redirectURI,
		),
		consent: s.Consent, deny: s.Deny,
	}
}

func emulateWebCommander(l net.Listener, _ string) *product {
	s := webcommandertest.NewServer(&webcommandertest.Options{Listener: l})
	return &product{
		Front: s.Front, revokeAll: s.RevokeAll,
		provider: "webcommander", connector: "shop", path: "/api/v4/products",
		settings: settings(
			"base_url", s.URL,
			"client_id", webcommandertest.DefaultClientID,
			"client_secret", webcommandertest.DefaultClientSecret,
			"redirect_uri", webcommandertest.DefaultRedirectURI,
			"username", webcommandertest.DefaultUsername,
			"password", webcommandertest.DefaultPassword,
		),
	}
}

// settings are lines of YAML. Strings of Go are strings of YAML as long as they are ASCII.
func settings(pairs ...string) string {
	var b strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		fmt.Fprintf(&b, "    %s: %q\n", pairs[i], pairs[i+1])
	}
	return b.String()
}

// yamlOf is a configuration that connects to them.
func yamlOf(list []*product) string {
	var b strings.Builder
	b.WriteString("version: 1\nconnectors:\n")
	for _, p := range list {
		fmt.Fprintf(&b, "  %s:\n    provider: %s\n%s", p.connector, p.provider, p.settings)
	}
	return b.String()
}
