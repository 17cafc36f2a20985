package webcommander_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/authtest"
	"github.com/itsmauth/itsmauth/providers/webcommander"
	"github.com/itsmauth/itsmauth/providers/webcommander/webcommandertest"
)

var registered = webcommander.Config{
	ClientID:     webcommandertest.DefaultClientID,
	ClientSecret: auth.SecretString(webcommandertest.DefaultClientSecret),
	RedirectURI:  webcommandertest.DefaultRedirectURI,
	Username:     webcommandertest.DefaultUsername,
	Password:     auth.SecretString(webcommandertest.DefaultPassword),
}

func connect(t *testing.T, base string, c webcommander.Config) auth.Provider {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	p, err := webcommander.New(c, auth.Env{BaseURL: u})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func call(t *testing.T, p auth.Provider, tok *oauth2.Token, method, url, body string) (status int, rejected bool) {
	t.Helper()
	req, _ := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	req.Header = p.Header(tok)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, p.Rejects(resp, answer)
}

func TestAgainstTheEmulator(t *testing.T) {
	t.Parallel()
	encoded := registered
	encoded.Username, encoded.Password = "", auth.Secret{}
	encoded.AuthString = auth.SecretString(base64.StdEncoding.EncodeToString([]byte(webcommandertest.DefaultUsername + ":" + webcommandertest.DefaultPassword)))
	bearer := registered
	bearer.TokenHeader = "authorization"
	for name, c := range map[string]webcommander.Config{"username and password": registered, "auth_string": encoded, "authorization": bearer} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := webcommandertest.NewServer(&webcommandertest.Options{BearerToo: name == "authorization"})
			defer s.Close()
			p := connect(t, s.URL, c)
			first, err := p.Exchange(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if first.ExpiresIn != 3600 || first.RefreshToken == "" {
				t.Errorf("%+v", first)
			}
			if status, rejected := call(t, p, first, "GET", s.URL+"/api/v4/products", ""); status != 200 || rejected {
				t.Error(status, rejected)
			}
			wrong := `{"old_password":"x","new_password":"y"}`
			if status, rejected := call(t, p, first, "POST", s.URL+"/api/v4/customers/change-password", wrong); status != 401 || rejected {
				t.Error("a wrong old_password:", status, rejected)
			}
			s.RevokeAll()
			if status, rejected := call(t, p, first, "GET", s.URL+"/api/v4/products", ""); status != 401 || !rejected {
				t.Error("a revoked token:", status, rejected)
			}

			second, err := p.Exchange(t.Context(), first)
			if err != nil || second.RefreshToken == first.RefreshToken || s.Stats().Refreshes != 1 {
				t.Errorf("%+v, %v", second, err)
			}
			third, err := p.Exchange(t.Context(), first) // its refresh token is spent
			if err != nil || third.AccessToken == "" {
				t.Errorf("%+v, %v", third, err)
			}
			if n := s.Stats(); n.TokenRequests != 4 || n.RefusedRefreshes != 1 || n.BadHeaders != 0 {
				t.Errorf("%+v", n)
			}
			// The fields that were sent. A refresh sends fewer.
			var full, refresh map[string]string
			var bodies [][]byte
			for _, r := range s.Requests() {
				if strings.HasSuffix(r.Path, "/token") {
					bodies = append(bodies, r.Body)
				}
			}
			if err := errors.Join(json.Unmarshal(bodies[0], &full), json.Unmarshal(bodies[1], &refresh)); err != nil {
				t.Fatal(err)
			}
			want := map[string]string{
				"client_id": c.ClientID, "client_secret": webcommandertest.DefaultClientSecret, "redirect_uri": c.RedirectURI, "grant_type": "client_credentials",
				"auth_string": base64.StdEncoding.EncodeToString([]byte(webcommandertest.DefaultUsername + ":" + webcommandertest.DefaultPassword)),
			}
			if d := cmp.Diff(want, full); d != "" {
				t.Error(d)
			}
			want["grant_type"], want["refresh_token"] = "refresh_token", first.RefreshToken
			delete(want, "auth_string")
			if d := cmp.Diff(want, refresh); d != "" {
				t.Error(d)
			}

			s.SetSecret("another")
			if _, err = p.Exchange(t.Context(), second); !errors.Is(err, auth.ErrCredentials) {
				t.Error(err)
			}
		})
	}
}

func TestProvider(t *testing.T) {
	t.Parallel()
	s := webcommandertest.NewServer(nil)
	defer s.Close()
	authtest.TestProvider(t, func(t *testing.T) auth.Provider { return connect(t, s.URL, registered) }, authtest.Product{
		Good: func() *http.Request {
			r, _ := http.NewRequest("GET", s.URL+"/api/v4/products", nil)
			return r
		},
		Refused: func() *http.Request {
			r, _ := http.NewRequest("POST", s.URL+"/api/v4/customers/change-password", strings.NewReader(`{"old_password":"x","new_password":"y"}`))
			r.Header.Set("Content-Type", "application/json")
			return r
		},
		Kill:    s.Revoke,
		Secrets: []string{webcommandertest.DefaultClientSecret, webcommandertest.DefaultPassword},
	})
}

func TestHeader(t *testing.T) {
	t.Parallel()
	tok := &oauth2.Token{AccessToken: "AT"}
	if d := cmp.Diff(http.Header{"access_token": {"AT"}}, connect(t, "https://x", registered).Header(tok)); d != "" {
		t.Error(d)
	}
	c := registered
	c.TokenHeader = "authorization"
	if d := cmp.Diff(http.Header{"Authorization": {"Bearer AT"}}, connect(t, "https://x", c).Header(tok)); d != "" {
		t.Error(d)
	}
}

func TestRejects(t *testing.T) {
	t.Parallel()
	p := connect(t, "https://x", registered)
	for _, tc := range []struct {
		status int
		body   string
		want   bool
	}{
		{401, `{"status":"error","error":"unauthorized","errors":[]}`, true},
		{401, `{"errors":[{"field":null,"code":"x"},{"field":""}]}`, true},
		{401, `{"errors":[{"code":"x"},{"field":"old_password"}]}`, false},
		{401, (`{"errors":[{"field":"old_password","message":"` + strings.Repeat("x", 64<<10))[:64<<10], false},
		{401, ``, true},
		{401, `<html>`, true},
		{403, ``, false},
		{400, `{"errors":[]}`, false},
	} {
		if got := p.Rejects(&http.Response{StatusCode: tc.status}, []byte(tc.body)); got != tc.want {
			t.Errorf("%d %.99s: %v", tc.status, tc.body, got)
		}
	}
}

func TestIdentity(t *testing.T) {
	t.Parallel()
	c := registered
	c.Username, c.Password = "", auth.Secret{}
	c.AuthString = auth.SecretString(base64.StdEncoding.EncodeToString([]byte("ann:hunter2")))
	id := fmt.Sprint(connect(t, "https://x", c).(auth.Identifier).Identity())
	if !strings.Contains(id, "username=ann]") || strings.Contains(id, "hunter2") {
		t.Error(id)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	base := &url.URL{Scheme: "https", Host: "x"}
	only := func(change func(*webcommander.Config)) webcommander.Config {
		c := registered
		change(&c)
		return c
	}
	for name, tc := range map[string]struct {
		config webcommander.Config
		want   string
	}{
		"nothing": {webcommander.Config{}, `client_id: required
client_secret: required
redirect_uri: required
username: required, or auth_string
password: required, or auth_string`},
		"both":         {only(func(c *webcommander.Config) { c.AuthString = auth.SecretString("dTpw") }), "auth_string: give username and password, or auth_string, not both"},
		"colon":        {only(func(c *webcommander.Config) { c.Username = "a:b" }), "username: must not contain a colon, which ends the name in auth_string"},
		"header":       {only(func(c *webcommander.Config) { c.TokenHeader = "x-token" }), "token_header: must be one of access_token, authorization"},
		"redirect URI": {only(func(c *webcommander.Config) { c.RedirectURI = "https://x/#a" }), "redirect_uri: must be an absolute URI without a fragment"},
		"no base64": {only(func(c *webcommander.Config) {
			c.Username, c.Password, c.AuthString = "", auth.Secret{}, auth.SecretString("ann:hunter2")
		}), "auth_string: must be base64 of username:password"},
		"no colon": {only(func(c *webcommander.Config) {
			c.Username, c.Password, c.AuthString = "", auth.Secret{}, auth.SecretString("aHVudGVyMg==")
		}), "auth_string: must be base64 of username:password"},
		"unreadable": {only(func(c *webcommander.Config) {
			c.Username, c.Password, c.AuthString = "", auth.Secret{}, auth.SecretFile("/nonexistent/x")
		}), "auth_string: cannot be read"},
	} {
		p, err := webcommander.New(tc.config, auth.Env{BaseURL: base})
		if p != nil || err == nil {
			t.Errorf("%s: %v, %v", name, p, err)
		} else if d := cmp.Diff(tc.want, err.Error()); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	if _, err := webcommander.New(registered, auth.Env{}); err == nil || err.Error() != "base_url: required" {
		t.Error(err)
	}
}

func ExampleNew() {
	store := webcommandertest.NewServer(nil)
	defer store.Close()
	base, _ := url.Parse(store.URL)

	p, err := webcommander.New(webcommander.Config{
		ClientID:     webcommandertest.DefaultClientID,
		ClientSecret: auth.SecretString(webcommandertest.DefaultClientSecret),
		RedirectURI:  webcommandertest.DefaultRedirectURI,
		Username:     webcommandertest.DefaultUsername,
		Password:     auth.SecretString(webcommandertest.DefaultPassword),
	}, auth.Env{Name: "shop", BaseURL: base})
	fmt.Println(p != nil, err)
	// Output: true <nil>
}
