package generic

import (
	"net/http"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
)

func TestThen(t *testing.T) {
	t.Parallel()
	base, got := serve(t, say(200, good), sayCookies(200, `{"UserId":7,"Name":"sync"}`, "ASP.NET_SessionId=s1; Path=/; HttpOnly", "lb=2", "gone=x; Max-Age=0"))
	c := basic(base)
	c.Then = &Then{URL: base.JoinPath("signin")}
	c.StaticHeaders = map[string]auth.Secret{"X-Gateway": auth.SecretString("g")}
	c.APIHeaders = map[string]auth.Secret{"Accept": auth.SecretString("application/vnd.x+json")}
	p := must(t, c)
	tok, err := p.Exchange(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := seen{Method: "POST", Path: "/signin", Header: http.Header{"Authorization": {"Bearer AT"}, "X-Gateway": {"g"}, "Accept": {"application/vnd.x+json"}}}
	if requests := got(); len(requests) != 2 || gocmp.Diff(want, requests[1]) != "" {
		t.Errorf("%+v", requests)
	}
	header := http.Header{"Authorization": {"Bearer AT"}, "X-Gateway": {"g"}, "Accept": {"application/vnd.x+json"}, "Cookie": {"ASP.NET_SessionId=s1; lb=2"}}
	if d := gocmp.Diff(header, p.Header(tok)); d != "" || tok.AccessToken != "AT" || tok.ExpiresIn != 3600 {
		t.Error(d, tok)
	}
	if _, written := c.Then.URL, c.Then.Method; written != "" {
		t.Error("the caller's settings were changed")
	}

	// Without cookies, with another method; and after a refresh.
	base, got = serve(t, say(200, `{"access_token":"AT","refresh_token":"RT2"}`), say(204, ""))
	c = basic(base)
	c.Then = &Then{URL: base.JoinPath("signin"), Method: "GET"}
	p = must(t, c)
	tok, err = p.Exchange(t.Context(), &oauth2.Token{RefreshToken: "RT"})
	requests := got()
	if err != nil || tok.RefreshToken != "RT2" || len(requests) != 2 || requests[1].Method != "GET" || !strings.Contains(requests[0].Body, "refresh_token=RT") {
		t.Errorf("%+v, %v, %+v", tok, err, requests)
	}
	if d := gocmp.Diff(http.Header{"Authorization": {"Bearer AT"}}, p.Header(tok)); d != "" {
		t.Error(d)
	}

	// The token is a cookie, which the sign-in replaces.
	base, got = serve(t, sayCookies(200, "", "sid=anonymous"), sayCookies(200, "", "sid=signed-in", "csrf=c"))
	p = must(t, Config{TokenURL: base, Grant: "none", Username: "u", Response: Response{Cookie: "sid"}, Then: &Then{URL: base.JoinPath("signin")}})
	tok, err = p.Exchange(t.Context(), nil)
	if err != nil || tok.AccessToken != "signed-in" || p.Header(tok).Get("Cookie") != "sid=signed-in; csrf=c" {
		t.Errorf("%+v, %v", tok, err)
	}
	if requests := got(); requests[1].Header.Get("Cookie") != "sid=anonymous" {
		t.Errorf("%+v", requests)
	}
}

// A failure of the request of then is the exchange's.
func TestThenFails(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		status int
		body   string
		code   string
		want   error
	}{
		"refused":        {401, `{"error":"invalid_token"}`, "invalid_token", auth.ErrCredentials},
		"refused, text":  {401, `Unauthorized`, "", auth.ErrCredentials},
		"mapped":         {409, `{"reason":"license"}`, "temporarily_unavailable", auth.ErrUnavailable},
		"2xx with error": {200, `{"error":"access_denied"}`, "access_denied", auth.ErrCredentials},
		"no verdict":     {403, ``, "", auth.ErrProtocol},
		"down":           {503, `{}`, "", auth.ErrUnavailable},
		"throttled":      {429, ``, "", auth.ErrRateLimited},
		"nowhere":        {404, ``, "", auth.ErrProtocol},
		"a page":         {200, `<html>`, "", auth.ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base, got := serve(t, say(200, good), say(tc.status, tc.body))
			c := basic(base)
			c.Then = &Then{URL: base.JoinPath("signin")}
			c.Response.Errors = []ResponseError{{Pointer: "/reason", Equals: "license", Means: "temporarily_unavailable"}}
			tok, err := must(t, c).Exchange(t.Context(), nil)
			if tok != nil {
				t.Errorf("%+v", tok)
			}
			checkError(t, err, tc.code, tc.status, tc.want)
			if text := err.Error(); !strings.Contains(text, "then.url: ") || strings.Contains(text, "credentials_in") || len(got()) != 2 {
				t.Error(text)
			}
		})
	}
	base, got := serve(t, say(200, good), say(200, ""))
	c := basic(base)
	c.Then, c.APIHeaders = &Then{URL: base}, map[string]auth.Secret{"X-Key": auth.SecretFile("/nonexistent/key")}
	_, err := must(t, c).Exchange(t.Context(), nil)
	checkError(t, err, "", 0, auth.ErrUnavailable)
	if text := err.Error(); !strings.Contains(text, "api_headers.X-Key") || len(got()) != 1 {
		t.Error(text)
	}
	base, _ = serve(t, say(200, good), say(302, ""))
	c = basic(base)
	c.Then = &Then{URL: base}
	_, err = must(t, c).Exchange(t.Context(), nil)
	checkError(t, err, "", 302, auth.ErrProtocol, auth.ErrInsecure)
	// A session's cookie is not shown.
	base, _ = serve(t, say(200, good), sayCookies(401, `{"error":"invalid_grant","error_description":"no user for session-canary"}`, "sid=session-canary"))
	c = basic(base)
	c.Then = &Then{URL: base}
	_, err = must(t, c).Exchange(t.Context(), nil)
	if checkError(t, err, "invalid_grant", 401, auth.ErrCredentials); strings.Contains(err.Error(), "canary") {
		t.Error(err)
	}
}
