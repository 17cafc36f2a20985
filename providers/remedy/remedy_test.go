package remedy_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/authtest"
	"github.com/itsmauth/itsmauth/providers/remedy"
	"github.com/itsmauth/itsmauth/providers/remedy/remedytest"
)

func parse(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func registered(t *testing.T, s *remedytest.Server) remedy.Config {
	return remedy.Config{
		SSOURL:       parse(t, s.SSOURL),
		ClientID:     remedytest.DefaultClientID,
		ClientSecret: auth.SecretString(remedytest.DefaultClientSecret),
		RedirectURI:  remedytest.DefaultRedirectURI,
	}
}

func connect(t *testing.T, base string, c remedy.Config) auth.Provider {
	t.Helper()
	p, err := remedy.New(c, auth.Env{BaseURL: parse(t, base)})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

var requestLine = regexp.MustCompile(`(?:GET|POST) (\S+) HTTP/1\.1\r\n`)

// call calls the API with tok. rejected reports whether p finds the token rejected.
func call(t *testing.T, s *remedytest.Server, p auth.Provider, tok *oauth2.Token) (status int, rejected bool) {
	t.Helper()
	req, _ := http.NewRequestWithContext(t.Context(), "GET", s.URL+"/api/arsys/v1/entry/HPD:IncidentInterface", nil)
	req.Header = p.Header(tok)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, p.Rejects(resp, body)
}

func TestAuthorizationCode(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		options remedytest.Options
		change  func(*remedy.Config)
		path    string
	}{
		"as it comes":   {path: "/rsso/oauth2/token"},
		"PKCE, scopes":  {remedytest.Options{RequirePKCE: true}, func(c *remedy.Config) { c.PKCE, c.Scopes = true, []string{"a", "b"} }, "/rsso/oauth2/token"},
		"v1.1":          {change: func(c *remedy.Config) { c.OAuthVersion = "v1.1" }, path: "/rsso/oauth2/v1.1/token"},
		"basic":         {remedytest.Options{Basic: true}, func(c *remedy.Config) { c.CredentialsIn = "basic" }, "/rsso/oauth2/token"},
		"as 18.08 says": {remedytest.Options{RefreshParam: "refreshToken"}, func(c *remedy.Config) { c.RefreshParam = "refreshToken" }, "/rsso/oauth2/token"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := remedytest.NewServer(&tc.options)
			defer s.Close()
			c := registered(t, s)
			if tc.change != nil {
				tc.change(&c)
			}
			p := connect(t, s.URL, c)

			_, err := p.Exchange(t.Context(), nil)
			if !errors.Is(err, auth.ErrConsentRequired) || len(s.Requests()) != 0 {
				t.Fatal(err, len(s.Requests()))
			}
			flow := p.(auth.Consenter).CodeFlow()
			verifier := oauth2.GenerateVerifier()
			back, err := s.Consent(flow.URL("the-state", verifier))
			if err != nil || back.Query().Get("state") != "the-state" {
				t.Fatal(back, err)
			}
			first, err := flow.Redeem(t.Context(), back.Query().Get("code"), verifier)
			if err != nil || first.RefreshToken == "" || first.ExpiresIn != 3600 {
				t.Fatal(first, err)
			}
			_, err = flow.Redeem(t.Context(), back.Query().Get("code"), verifier)
			if !errors.Is(err, auth.ErrConsentRequired) {
				t.Error("a code twice:", err)
			}

			// The emulator revoked the first tokens when the code came twice, so log in again.
			back, _ = s.Consent(flow.URL("the-state", verifier))
			if first, err = flow.Redeem(t.Context(), back.Query().Get("code"), verifier); err != nil {
				t.Fatal(err)
			}
			second, err := p.Exchange(t.Context(), first)
			if err != nil || second.RefreshToken == first.RefreshToken {
				t.Fatal(second, err)
			}
			if status, rejected := call(t, s, p, second); status != 200 || rejected {
				t.Error(status, rejected)
			}
			if err := p.(auth.Revoker).Revoke(t.Context(), second); err != nil {
				t.Error(err)
			}
			if status, rejected := call(t, s, p, second); status != 401 || !rejected {
				t.Error("a revoked token:", status, rejected)
			}
			_, err = p.Exchange(t.Context(), second)
			if !errors.Is(err, auth.ErrConsentRequired) {
				t.Error("a revoked refresh token:", err)
			}
			for _, r := range s.Requests() {
				if strings.HasPrefix(r.Path, "/rsso") && (r.Method != "POST" || r.Query != "" || r.Path != tc.path && r.Path != "/rsso/oauth2/revoke") {
					t.Errorf("%s %s?%s", r.Method, r.Path, r.Query)
				}
			}
			for _, line := range requestLine.FindAllSubmatch(s.Raw(), -1) {
				if bytes.ContainsAny(line[1], "?&=%") {
					t.Errorf("in the URL: %q", line[1])
				}
			}
		})
	}
}

func TestProvider(t *testing.T) {
	t.Parallel()
	s := remedytest.NewServer(nil)
	defer s.Close()
	get := func(form string) func() *http.Request {
		return func() *http.Request {
			r, _ := http.NewRequest("GET", s.URL+"/api/arsys/v1/entry/"+form, nil)
			return r
		}
	}
	product := authtest.Product{
		Good: get("HPD:IncidentInterface"), Refused: get("NoSuchForm"), Kill: s.Revoke,
		Login: func(t *testing.T, page string) string {
			back, err := s.Consent(page)
			if err != nil {
				t.Fatal(err)
			}
			return back.Query().Get("code")
		},
		Secrets: []string{remedytest.DefaultClientSecret, remedytest.DefaultPassword},
	}
	for name, c := range map[string]remedy.Config{
		"authorization_code": registered(t, s),
		"ar_jwt":             {Grant: "ar_jwt", Username: remedytest.DefaultUsername, Password: auth.SecretString(remedytest.DefaultPassword)},
	} {
		t.Run(name, func(t *testing.T) {
			authtest.TestProvider(t, func(t *testing.T) auth.Provider { return connect(t, s.URL, c) }, product)
		})
	}
}

func TestSeed(t *testing.T) {
	t.Parallel()
	s := remedytest.NewServer(nil)
	defer s.Close()
	c := registered(t, s)
	c.RefreshToken = auth.SecretString(s.MintRefresh())
	p := connect(t, s.URL, c)
	r := p.(auth.Refresher).Refresh()
	if r.Expendable || r.Token.IsZero() || r.Lifetime != 1440*time.Hour {
		t.Errorf("%+v", r)
	}
	tok, err := p.Exchange(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if tok, err = p.Exchange(t.Context(), tok); err != nil || tok.RefreshToken == "" {
		t.Fatal("with the later one:", err)
	}
	s.SetSecret("another")
	_, err = p.Exchange(t.Context(), tok)
	if !errors.Is(err, auth.ErrCredentials) || errors.Is(err, auth.ErrConsentRequired) {
		t.Error("a wrong secret is not a lost login:", err)
	}
}

func TestARJWT(t *testing.T) {
	t.Parallel()
	s := remedytest.NewServer(nil)
	defer s.Close()
	c := remedy.Config{Grant: "ar_jwt", Username: remedytest.DefaultUsername, Password: auth.SecretString(remedytest.DefaultPassword)}
	p := connect(t, s.URL, c)
	if p.(auth.Consenter).CodeFlow() != nil || !p.(auth.Refresher).Refresh().Expendable {
		t.Error("ar_jwt needs no person")
	}
	tok, err := p.Exchange(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(http.Header{"Authorization": {"AR-JWT " + tok.AccessToken}}, p.Header(tok)); d != "" || tok.ExpiresIn != 3600 {
		t.Error(d, tok.ExpiresIn)
	}
	if status, rejected := call(t, s, p, tok); status != 200 || rejected {
		t.Error(status, rejected)
	}
	s.Busy(1)
	if status, rejected := call(t, s, p, tok); status != 500 || rejected {
		t.Error("busy:", status, rejected)
	}
	if err := p.(auth.Revoker).Revoke(t.Context(), tok); err != nil {
		t.Error(err)
	}
	if status, rejected := call(t, s, p, tok); status != 401 || !rejected {
		t.Error("logged out:", status, rejected)
	}
	if err := p.(auth.Revoker).Revoke(t.Context(), tok); err != nil {
		t.Error("logged out twice:", err)
	}
	c.Password = auth.SecretString("wrong")
	_, err = connect(t, s.URL, c).Exchange(t.Context(), nil)
	var e *auth.Error
	if !errors.Is(err, auth.ErrCredentials) || !errors.As(err, &e) || e.Code != "623" {
		t.Error(err)
	}
	if d := cmp.Diff([]string{"token_url=" + s.URL + "/api/jwt/login", "client_id=", "grant=none", "username=" + c.Username, "scope="}, p.(auth.Identifier).Identity()); d != "" {
		t.Error(d)
	}
}

func TestNoJWT(t *testing.T) {
	t.Parallel()
	for _, body := range []string{"<html>login</html>", "", "OK", "Logged in", "a.b.c", `{"access_token":"e30.e30.c2ln"}`} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) }))
		_, err := connect(t, s.URL, remedy.Config{Grant: "ar_jwt", Username: "u", Password: auth.SecretString("p")}).Exchange(t.Context(), nil)
		s.Close()
		if !errors.Is(err, auth.ErrProtocol) {
			t.Errorf("%q: %v", body, err)
		}
	}
}

func TestRejects(t *testing.T) {
	t.Parallel()
	p := connect(t, "https://x", remedy.Config{Grant: "ar_jwt", Username: "u", Password: auth.SecretString("p")})
	for _, tc := range []struct {
		status int
		body   string
		want   bool
	}{
		{401, `[{"messageType":"ERROR","messageText":"Authentication failed","messageNumber":623}]`, true},
		{401, `[{"messageType":"ERROR","messageNumber":9388}]`, false},
		{401, `{"messageNumber":623}`, false},
		{401, ``, false},
		{403, `[{"messageNumber":623}]`, false},
		{500, `[{"messageNumber":9093}]`, false},
	} {
		if got := p.Rejects(&http.Response{StatusCode: tc.status}, []byte(tc.body)); got != tc.want {
			t.Errorf("%d %s: %v", tc.status, tc.body, got)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	sso, bad := parse(t, "https://sso/rsso"), parse(t, "/rsso")
	secret := auth.SecretString("s+e/c=r&e%t")
	for name, tc := range map[string]struct {
		config remedy.Config
		want   string
	}{
		"nothing": {remedy.Config{}, `sso_url: required for grant authorization_code
client_id: required for grant authorization_code
client_secret: required for grant authorization_code
redirect_uri: required for grant authorization_code`},
		"ar_jwt": {remedy.Config{Grant: "ar_jwt"}, "username: required for grant ar_jwt\npassword: required for grant ar_jwt"},
		"grant":  {remedy.Config{Grant: "client_credentials"}, "grant: must be one of authorization_code, ar_jwt"},
		"words": {remedy.Config{SSOURL: bad, ClientID: "id", ClientSecret: secret, RedirectURI: "x", OAuthVersion: "v2", CredentialsIn: "json", RefreshLifetime: -1},
			`refresh_lifetime: must not be negative
oauth_version: must be one of v1, v1.1
credentials_in: must be one of form, basic
sso_url: must be an absolute http or https URL
redirect_uri: must be an absolute URI without a fragment`},
		"colon": {remedy.Config{SSOURL: sso, ClientID: "a:b", ClientSecret: secret, RedirectURI: "http://x", CredentialsIn: "basic"},
			"client_id: must not contain a colon, which ends the id in a raw Basic header"},
	} {
		p, err := remedy.New(tc.config, auth.Env{BaseURL: sso})
		if p != nil || err == nil {
			t.Errorf("%s: %v, %v", name, p, err)
		} else if d := cmp.Diff(tc.want, err.Error()); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	if _, err := remedy.New(remedy.Config{Grant: "ar_jwt", Username: "u", Password: secret}, auth.Env{}); err == nil || err.Error() != "base_url: required" {
		t.Error(err)
	}
}

func ExampleNew() {
	s := remedytest.NewServer(nil)
	defer s.Close()
	base, _ := url.Parse(s.URL)

	p, err := remedy.New(remedy.Config{
		Grant:    "ar_jwt",
		Username: remedytest.DefaultUsername,
		Password: auth.SecretString(remedytest.DefaultPassword),
	}, auth.Env{Name: "remedy", BaseURL: base})
	fmt.Println(p != nil, err)
	// Output: true <nil>
}
