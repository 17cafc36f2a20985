package generic

import (
	"cmp"
	"net/http"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/itsmauth/itsmauth/auth"
)

// sayCookies answers with these Set-Cookie headers, by a clock that is far from ours.
func sayCookies(status int, body string, cookies ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", "Sat, 01 Jan 2000 00:00:00 GMT")
		for _, c := range cookies {
			w.Header().Add("Set-Cookie", c)
		}
		say(status, body)(w, r)
	}
}

func TestCookie(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		status  int
		body    string
		cookies []string
		token   string        // "": none
		life    time.Duration // 0: the default
	}{
		"without a body":        {cookies: []string{"sid=abc"}, token: "abc"},
		"204":                   {status: 204, cookies: []string{"sid=abc"}, token: "abc"},
		"JSON":                  {body: `{"success":true,"expires_in":60}`, cookies: []string{"sid=abc; Max-Age=600"}, token: "abc", life: time.Minute},
		"a JSON string":         {body: `"welcome"`, cookies: []string{"sid=abc"}, token: "abc"},
		"text":                  {body: `welcome`, cookies: []string{"sid=abc"}, token: "abc"},
		"among others":          {cookies: []string{"lb=1", "sid=abc; Path=/; HttpOnly", "SID=x", "lang=en"}, token: "abc"},
		"set twice":             {cookies: []string{"sid=old; Path=/", "sid=new; Path=/"}, token: "new"},
		"removed and set":       {cookies: []string{"sid=; expires=Thu, 01-Jan-1970 00:00:00 GMT; Path=/", "sid=abc; Path=/"}, token: "abc"},
		"an older path removed": {cookies: []string{"sid=abc; Path=/", "sid=; Max-Age=0; Path=/old"}, token: "abc"},
		"in quotes":             {cookies: []string{`sid="a b="`}, token: `"a b="`},
		"base64":                {cookies: []string{"sid=a+b/c=="}, token: "a+b/c=="},
		"Max-Age":               {cookies: []string{"sid=abc; Max-Age=600; Expires=Sat, 01 Jan 2000 00:30:00 GMT"}, token: "abc", life: 10 * time.Minute},
		"Expires":               {cookies: []string{"sid=abc; expires=Sat, 01-Jan-2000 00:30:00 GMT"}, token: "abc", life: 30 * time.Minute},
		"Max-Age, eleven years": {cookies: []string{"sid=abc; Max-Age=346896000"}, token: "abc"},
		"Expires, next century": {cookies: []string{"sid=abc; Expires=Fri, 01 Jan 2100 00:00:00 GMT"}, token: "abc"},
		"a JWT":                 {cookies: []string{"sid=e30.eyJpYXQiOjE3MDAwMDAwMDAsImV4cCI6MTcwMDAwMDYwMH0.c2ln; Max-Age=3600"}, token: "e30.eyJpYXQiOjE3MDAwMDAwMDAsImV4cCI6MTcwMDAwMDYwMH0.c2ln", life: 10 * time.Minute},
		"none":                  {body: good},
		"another case":          {cookies: []string{"SID=abc"}},
		"empty":                 {cookies: []string{"sid="}},
		"removed":               {cookies: []string{"sid=abc", "sid=abc; Max-Age=0"}},
		"expired by Date":       {cookies: []string{"sid=abc; Expires=Sat, 01 Jan 2000 00:00:00 GMT"}},
		"unreadable":            {cookies: []string{"sid=a\\b"}},
		"a login page":          {body: "<html>", cookies: []string{"sid=abc"}},
		"refused":               {status: 401, body: `{"error":"invalid_client"}`, cookies: []string{"sid=abc"}},
		"success is false":      {body: `{"Success":false,"Message":"wrong password"}`, cookies: []string{"sid=abc"}},
		"a redirect":            {status: 302, cookies: []string{"sid=abc"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base, _ := serve(t, sayCookies(cmp.Or(tc.status, 200), tc.body, tc.cookies...))
			p := must(t, Config{TokenURL: base, Grant: "none", Encoding: "json", Username: "u", Password: auth.SecretString("p"),
				Response: Response{Cookie: "sid"}, DefaultLifetime: 77 * time.Minute})
			before := time.Now()
			tok, err := p.Exchange(t.Context(), nil)
			if tc.token == "" {
				if err == nil {
					t.Errorf("%+v", tok)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			life := cmp.Or(tc.life, 77*time.Minute)
			if tok.AccessToken != tc.token || tok.Expiry.Before(before.Add(life)) || tok.Expiry.After(time.Now().Add(life)) {
				t.Errorf("%+v, want %s for %v", tok, tc.token, life)
			}
			if d := gocmp.Diff(http.Header{"Cookie": {"sid=" + tc.token}}, p.Header(tok)); d != "" {
				t.Error(d)
			}
		})
	}
	base, _ := serve(t, sayCookies(200, "{}", "another=abc"))
	_, err := must(t, Config{TokenURL: base, Grant: "none", Response: Response{Cookie: "sid"}}).Exchange(t.Context(), nil)
	checkError(t, err, "", 200, auth.ErrProtocol)
	if text := err.Error(); !strings.Contains(text, "response.cookie") || strings.Contains(text, "abc") {
		t.Error(text)
	}
	// What carries the token may be said, and the body may have a refresh token.
	base, _ = serve(t, sayCookies(200, `{"refresh_token":"RT","token_type":"x"}`, "sid=abc"))
	c := basic(base)
	c.Response.Cookie, c.TokenHeaders = "sid", []Header{{"X-Session", "{token_type} {access_token}"}}
	tok, err := must(t, c).Exchange(t.Context(), nil)
	if err != nil || tok.RefreshToken != "RT" || must(t, c).Header(tok).Get("X-Session") != "x abc" {
		t.Errorf("%+v, %v", tok, err)
	}
}
