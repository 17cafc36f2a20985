package generic

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/jsonbody"
)

func FuzzTokenResponse(f *testing.F) {
	for _, s := range []string{good, `{"error":"invalid_grant"}`, `{"error":"s3cr3t-value"}`, `[{"messageNumber":623}]`, "<html>", `{"access_token":"a","expires_in":"1e3"}`, "a.b.c"} {
		for _, status := range []int{200, 302, 400, 401, 429, 503} {
			f.Add(status, s, "30")
		}
	}
	f.Fuzz(func(t *testing.T, status int, body, retryAfter string) {
		if status < 200 || status > 999 {
			return
		}
		client := &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: status, Header: http.Header{"Retry-After": {retryAfter}}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
		})}
		ctx := context.WithValue(context.Background(), oauth2.HTTPClient, client)
		for _, response := range []Response{{}, {Format: "text"}, {AccessToken: "/*/a", Error: "/0/messageNumber"}} {
			p, err := New(Config{TokenURL: &url.URL{Scheme: "https", Host: "x"}, ClientID: "id", ClientSecret: auth.SecretString("s3cr3t-value"), Response: response}, auth.Env{})
			if err != nil {
				t.Fatal(err)
			}
			tok, err := p.Exchange(ctx, nil)
			if err == nil {
				life := tok.ExpiresIn
				if status/100 != 2 || tok.AccessToken == "" || !printable(tok.AccessToken) || tok.Expiry.IsZero() || life < 0 || life > int64(maxLifetime.Seconds()) {
					t.Errorf("%d %q: %+v", status, body, tok)
				}
				continue
			}
			var e *auth.Error
			if !errors.As(err, &e) || e.RetryAfter < 0 || e.RetryAfter > 24*time.Hour || e.Code != "" && !errorCode.MatchString(e.Code) {
				t.Errorf("%d %q: %#v", status, body, err)
			}
			if strings.Contains(err.Error(), "s3cr3t-value") {
				t.Errorf("%d %q: %v", status, body, err)
			}
		}
	})
}

func FuzzRejects(f *testing.F) {
	p, err := New(Config{TokenURL: &url.URL{Scheme: "https", Host: "x"}, ClientID: "id",
		RejectedWhen:    []Condition{{Status: 401, Pointer: "/*/messageNumber", Equals: "623"}, {Pointer: "/a~1b/0"}, {BodyContains: "x"}},
		NotRejectedWhen: []Condition{{Pointer: "/errors/*/field"}},
	}, auth.Env{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(401, []byte(`[{"messageNumber":623}]`))
	f.Add(401, []byte(`{"a/b":[1],"errors":[{"field":"x"}]}`))
	f.Add(500, []byte(`{"errors":{"*":{"field":{}}}}`))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		rejects := p.Rejects(&http.Response{StatusCode: status}, body)
		if rejects && len(body) == 0 {
			t.Errorf("%d without a body", status)
		}
	})
}

func FuzzPointer(f *testing.F) {
	f.Add(`{"a":[{"b":1}]}`, "/a/0/b")
	f.Add(`{"~/":1}`, "/~0~1")
	f.Fuzz(func(t *testing.T, doc, pointer string) {
		if found := jsonbody.Find(jsonbody.Decode([]byte(doc)), pointer); len(found) > 1 && !strings.Contains(pointer, "*") {
			t.Errorf("%s in %s: %v", pointer, doc, found)
		}
	})
}

func FuzzExpiresAt(f *testing.F) {
	for _, s := range []string{"2030-01-01T00:10:00Z", "2030-01-01 00:10:00.5+02:00", "Tue, 01 Jan 2030 00:10:00 GMT", "1893456600", "1893456600000", "1e300", "-1", "NaN"} {
		f.Add(s)
	}
	date := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, s string) {
		left := timeLeft([]any{s}, date)
		if left < 0 || left > maxLifetime {
			t.Errorf("%q: %v", s, left)
		}
		// With another Date, of which it is as long before, the same is left.
		if later := date.Add(left).Format(time.RFC3339Nano); left > 0 && timeLeft([]any{later}, date) != left {
			t.Errorf("%q: %v, but %v of %s", s, left, timeLeft([]any{later}, date), later)
		}
	})
}

func FuzzSetCookie(f *testing.F) {
	for _, s := range []string{"sid=abc; Path=/; HttpOnly", "sid=; Max-Age=0", `sid="a b"; Max-Age=60`, "sid=a; Expires=Thu, 01-Jan-2099 00:00:00 GMT; Domain=x", "=x", "sid=a,b;c"} {
		f.Add(s, "sid=old")
	}
	date := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, last, before string) {
		set := setCookies(http.Header{"Set-Cookie": {before, last}}, date)
		header := cookieHeader(set)
		if !printable(header) {
			t.Errorf("%q, %q: cannot be sent: %q", before, last, header)
		}
		for _, c := range set {
			if life := cookieLifetime(c, date); life < 0 || life > maxLifetime {
				t.Errorf("%q: %v", last, life)
			}
		}
		// What we send is what a server reads.
		read := (&http.Request{Header: http.Header{"Cookie": {header}}}).Cookies()
		if len(read) != len(set) {
			t.Fatalf("%q, %q: sent %q, read %v", before, last, header, read)
		}
		for i, c := range set {
			if read[i].Name != c.Name || cookieValue(read[i]) != cookieValue(c) {
				t.Errorf("%q, %q: sent %q, read %v", before, last, header, read)
			}
		}
	})
}
