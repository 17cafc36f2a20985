package main

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/itsmauth/itsmauth/providers/beyondtrust/beyondtrusttest"
	"github.com/itsmauth/itsmauth/providers/remedy/remedytest"
	"github.com/itsmauth/itsmauth/providers/webcommander/webcommandertest"
)

// An emulator is a product that this process plays, and the connector to it.
type emulator struct {
	provider, connector string
	settings            string // of the connector, in YAML, with its credentials
	path                string // of something to call

	close     func()
	revokeAll func()
	watch     func(func(http.ResponseWriter, *http.Request) bool) // true: answered
	exchanges func() int
	requests  func() []request
	consent   func(authURL string) (*url.URL, error) // nil if nobody is asked
	deny      func(authURL string) (*url.URL, error)
}

// A request is one as it came over the wire.
type request struct {
	method, path string
	header       http.Header
	body         []byte
	status       int
}

// emulators start the product's emulator on a listener. redirectURI is for the one that asks a person.
var emulators = []struct {
	provider string
	start    func(l net.Listener, redirectURI string) *emulator
}{
	{"beyondtrust", emulateBeyondTrust},
	{"remedy", emulateRemedy},
	{"webcommander", emulateWebCommander},
}

func emulateBeyondTrust(l net.Listener, _ string) *emulator {
	s := beyondtrusttest.NewServer(&beyondtrusttest.Options{Listener: l})
	return &emulator{
		provider: "beyondtrust", connector: "support", path: "/api/config/v1/jump-item",
		settings: settings(
			"base_url", s.URL,
			"client_id", beyondtrusttest.DefaultClientID,
			"client_secret", beyondtrusttest.DefaultClientSecret,
		),
		close: s.Close, revokeAll: s.RevokeAll, watch: s.Break,
		exchanges: func() int { return s.Stats().Exchanges },
		requests: func() (list []request) {
			for _, r := range s.Requests() {
				list = append(list, request{r.Method, r.Path, r.Header, r.Body, r.Status})
			}
			return list
		},
	}
}

func emulateRemedy(l net.Listener, redirectURI string) *emulator {
	s := remedytest.NewServer(&remedytest.Options{Listener: l, RedirectURIs: []string{redirectURI}})
	return &emulator{
		provider: "remedy", connector: "remedy", path: "/api/arsys/v1/entry/HPD:IncidentInterface?fields=values(Description)",
		settings: settings(
			"base_url", s.URL,
			"sso_url", s.SSOURL,
			"client_id", remedytest.DefaultClientID,
			"client_secret", remedytest.DefaultClientSecret,
			"redirect_uri", redirectURI,
		),
		close: s.Close, revokeAll: s.RevokeAll, watch: s.Break, consent: s.Consent, deny: s.Deny,
		exchanges: func() int { return s.Stats().Exchanges },
		requests: func() (list []request) {
			for _, r := range s.Requests() {
				list = append(list, request{r.Method, r.Path, r.Header, r.Body, r.Status})
			}
			return list
		},
	}
}

func emulateWebCommander(l net.Listener, _ string) *emulator {
	s := webcommandertest.NewServer(&webcommandertest.Options{Listener: l})
	return &emulator{
		provider: "webcommander", connector: "shop", path: "/api/v4/products",
		settings: settings(
			"base_url", s.URL,
			"client_id", webcommandertest.DefaultClientID,
			"client_secret", webcommandertest.DefaultClientSecret,
			"redirect_uri", webcommandertest.DefaultRedirectURI,
			"username", webcommandertest.DefaultUsername,
			"password", webcommandertest.DefaultPassword,
		),
		close: s.Close, revokeAll: s.RevokeAll, watch: s.Break,
		exchanges: func() int { return s.Stats().Exchanges },
		requests: func() (list []request) {
			for _, r := range s.Requests() {
				list = append(list, request{r.Method, r.Path, r.Header, r.Body, r.Status})
			}
			return list
		},
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
func yamlOf(list []*emulator) string {
	var b strings.Builder
	b.WriteString("version: 1\nconnectors:\n")
	for _, e := range list {
		fmt.Fprintf(&b, "  %s:\n    provider: %s\n%s", e.connector, e.provider, e.settings)
	}
	return b.String()
}
