package consent_test

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/consent"
	"github.com/itsmauth/itsmauth/providers/remedy"
	"github.com/itsmauth/itsmauth/providers/remedy/remedytest"
)

// newRemedy starts the emulator with redirectURI registered, and returns a connector to it.
func newRemedy(t testing.TB, redirectURI string, pkce bool) (*remedytest.Server, consent.Connector) {
	t.Helper()
	s := remedytest.NewServer(&remedytest.Options{RedirectURIs: []string{redirectURI}, RequirePKCE: pkce})
	t.Cleanup(s.Close)
	return s, connect(t, s, remedy.Config{RedirectURI: redirectURI, PKCE: pkce})
}

func connect(t testing.TB, s *remedytest.Server, c remedy.Config) consent.Connector {
	t.Helper()
	base, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	c.SSOURL = base.JoinPath("rsso")
	c.ClientID = remedytest.DefaultClientID
	c.ClientSecret = auth.SecretString(remedytest.DefaultClientSecret)
	c.Username = remedytest.DefaultUsername
	c.Password = auth.SecretString(remedytest.DefaultPassword)
	p, err := remedy.New(c, auth.Env{Name: "tickets", BaseURL: base})
	if err != nil {
		t.Fatal(err)
	}
	return newConnector(t, p)
}

func newConnector(t testing.TB, p auth.Provider) consent.Connector {
	session := auth.New(p, &auth.Options{Connector: "tickets", Provider: "remedy"})
	t.Cleanup(func() { session.Close(context.Background()) })
	return consent.Connector{Name: "tickets", Provider: "remedy", Session: session}
}

// A stub is a provider with the CodeFlow that a test gives it.
type stub struct {
	flow auth.CodeFlow
	err  error
}

func (s *stub) Exchange(context.Context, *oauth2.Token) (*oauth2.Token, error) { return nil, s.err }
func (s *stub) Header(*oauth2.Token) http.Header                               { return nil }
func (s *stub) Rejects(*http.Response, []byte) bool                            { return false }
func (s *stub) CodeFlow() *auth.CodeFlow {
	if s.flow.RedirectURI == "" {
		return nil
	}
	f := s.flow
	if f.URL == nil {
		f.URL = func(state, _ string) string { return "https://sso.example.com/authorize?state=" + state }
	}
	if f.Redeem == nil {
		f.Redeem = func(context.Context, string, string) (*oauth2.Token, error) {
			return &oauth2.Token{AccessToken: "a", RefreshToken: "r", ExpiresIn: 3600}, nil
		}
	}
	return &f
}

// freeURI returns a redirect URI with a free port. The port is below the ephemeral range, so that no
// outgoing connection takes it.
func freeURI(t testing.TB) string {
	t.Helper()
	var err error
	for range 10 {
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(20000))); err == nil {
			defer l.Close()
			return "http://" + l.Addr().String() + "/callback"
		}
	}
	t.Fatal(err)
	return ""
}

// get sends a request without cookies.
func get(t testing.TB, address string) (status int, body string) {
	t.Helper()
	return send(t, http.MethodGet, address, "")
}

func send(t testing.TB, method, address, host string) (status int, body string) {
	t.Helper()
	req, err := http.NewRequest(method, address, nil)
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	req.Host = cmp.Or(host, req.Host)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	for name, want := range map[string]string{
		"Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store",
	} {
		if got := resp.Header.Get(name); got != want {
			t.Errorf("%s of %s: %q", name, req.URL.Path, got)
		}
	}
	for _, want := range []string{"default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'", "style-src 'sha256-"} {
		if !strings.Contains(resp.Header.Get("Content-Security-Policy"), want) {
			t.Errorf("Content-Security-Policy of %s: %q", req.URL.Path, resp.Header.Get("Content-Security-Policy"))
		}
	}
	return resp.StatusCode, bare(string(b))
}

// bare returns a page without its stylesheet, for messages.
func bare(page string) string {
	before, rest, _ := strings.Cut(page, "<style>")
	_, after, _ := strings.Cut(rest, "</style>")
	return before + after
}

// query is address with one parameter changed, or removed if value is "".
func query(address, name, value string) string {
	u, _ := url.Parse(address)
	q := u.Query()
	if q.Set(name, value); value == "" {
		q.Del(name)
	}
	u.RawQuery = q.Encode()
	return u.String()
}
