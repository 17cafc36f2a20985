package generic

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/authtest"
	"github.com/itsmauth/itsmauth/internal/jsonbody"
	"github.com/itsmauth/itsmauth/providers/remedy/remedytest"
)

var _ interface {
	auth.Provider
	auth.Identifier
	auth.Consenter
	auth.Revoker
	auth.Refresher
} = (*Provider)(nil)

const (
	clientID = "cl:i/e+n=t"
	secret   = "s+e/c=r&e%t√"
	password = "p+a/s=s&w%d"
)

// A seen request is a request as the server received it.
type seen struct {
	Method, Path, Query, Body string
	Header                    http.Header
}

// serve starts a server that gives the answers in order, the last one again and again. got returns the
// requests it received.
func serve(t *testing.T, answers ...http.HandlerFunc) (base *url.URL, got func() []seen) {
	t.Helper()
	requests := make(chan seen, 100)
	var i int
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		for _, noise := range []string{"User-Agent", "Accept-Encoding", "Content-Length"} {
			r.Header.Del(noise)
		}
		requests <- seen{r.Method, r.URL.Path, r.URL.RawQuery, string(b), r.Header}
		answers[min(i, len(answers)-1)](w, r) // requests are sequential
		i++
	}))
	s.Config.SetKeepAlivesEnabled(false) // the end of another test's server closes all idle connections
	t.Cleanup(s.Close)
	base, _ = url.Parse(s.URL)
	return base, func() (all []seen) {
		for {
			select {
			case r := <-requests:
				all = append(all, r)
			default:
				return all
			}
		}
	}
}

func say(status int, body string, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		io.WriteString(w, body)
	}
}

const good = `{"access_token":"AT","token_type":"bearer","expires_in":3600}`

func must(t *testing.T, c Config) *Provider {
	t.Helper()
	p, err := NewProvider(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// client credentials at base.
func basic(base *url.URL) Config {
	return Config{TokenURL: base.JoinPath("token"), ClientID: "id", ClientSecret: auth.SecretString(secret)}
}

func TestRequest(t *testing.T) {
	t.Parallel()
	formType := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}, "Accept": {"application/json"}}
	jsonType := http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json"}}
	with := func(h http.Header, key, value string) http.Header {
		h = h.Clone()
		h[key] = []string{value}
		return h
	}
	for name, tc := range map[string]struct {
		config Config
		prev   *oauth2.Token
		want   seen
	}{
		"basic as in RFC 6749": {
			Config{ClientID: clientID, ClientSecret: auth.SecretString(secret)}, nil,
			seen{Body: "grant_type=client_credentials", Header: with(formType, "Authorization", "Basic Y2wlM0FpJTJGZSUyQm4lM0R0OnMlMkJlJTJGYyUzRHIlMjZlJTI1dCVFMiU4OCU5QQ==")},
		},
		"raw basic, scopes and parameters": {
			Config{ClientID: "id", ClientSecret: auth.SecretString(secret), CredentialsEncoding: "raw", Scopes: []string{"b", "a"},
				Params: map[string]any{"audience": "x&y"}, SecretParams: map[string]auth.Secret{"key": auth.SecretString("k=1")}}, nil,
			seen{Body: "audience=x%26y&grant_type=client_credentials&key=k%3D1&scope=b+a", Header: with(formType, "Authorization", "Basic aWQ6cytlL2M9ciZlJXTiiJo=")},
		},
		"form": {
			Config{ClientID: clientID, ClientSecret: auth.SecretString("a+b&c"), CredentialsIn: "form"}, nil,
			seen{Body: "client_id=cl%3Ai%2Fe%2Bn%3Dt&client_secret=a%2Bb%26c&grant_type=client_credentials", Header: formType},
		},
		"public client": {
			Config{ClientID: "id"}, nil,
			seen{Body: "client_id=id&grant_type=client_credentials", Header: formType},
		},
		"json": {
			Config{ClientID: clientID, ClientSecret: auth.SecretString(secret), Encoding: "json"}, nil,
			seen{Body: `{"client_id":"cl:i/e+n=t","client_secret":"s+e/c=r&e%t√","grant_type":"client_credentials"}`, Header: jsonType},
		},
		"headers": {
			Config{ClientID: "id", ClientSecret: auth.SecretString("s+/"), CredentialsIn: "headers", CredentialHeaders: []Header{
				{"X-Id", "{client_id}"}, {"X-Key", "key {client_secret}"}},
				StaticHeaders: map[string]auth.Secret{"X-Gateway": auth.SecretString("g")}}, nil,
			seen{Body: "grant_type=client_credentials", Header: with(with(with(formType, "X-Id", "id"), "X-Key", "key s+/"), "X-Gateway", "g")},
		},
		"static headers": {
			Config{ClientID: "id", StaticHeaders: map[string]auth.Secret{"accept": auth.SecretString("application/vnd.x+json")}}, nil,
			seen{Body: "client_id=id&grant_type=client_credentials", Header: http.Header{"Accept": {"application/vnd.x+json"}, "Content-Type": {"application/x-www-form-urlencoded"}}},
		},
		"password": {
			Config{Grant: "password", Username: "u", Password: auth.SecretString(password), ClientID: "id"}, nil,
			seen{Body: "client_id=id&grant_type=password&password=p%2Ba%2Fs%3Ds%26w%25d&username=u", Header: formType},
		},
		"none": {
			Config{Grant: "none", Username: "u", Password: auth.SecretString("p"), Method: "PUT", Response: Response{Format: "text"}}, nil,
			seen{Method: "PUT", Body: "password=p&username=u", Header: http.Header{"Content-Type": formType["Content-Type"]}},
		},
		"GET": {
			Config{Grant: "none", Method: "GET", ClientID: "id", ClientSecret: auth.SecretString("s"), Params: map[string]any{"a": "b c"}},
			&oauth2.Token{RefreshToken: "RT"},
			seen{Method: "GET", Query: "q=1&a=b+c", Header: http.Header{"Accept": {"application/json"}, "Authorization": {"Basic aWQ6cw=="}}},
		},
		"refresh": {
			Config{ClientID: "id", CredentialsIn: "form", Scopes: []string{"a"}, Params: map[string]any{"p": "v", "q": "w"}},
			&oauth2.Token{RefreshToken: "R+T"},
			seen{Body: "client_id=id&grant_type=refresh_token&refresh_token=R%2BT", Header: formType},
		},
		"refresh with fields": {
			Config{ClientID: "id", Scopes: []string{"a"}, Params: map[string]any{"p": "v", "q": "w"}, RedirectURI: "http://x/y",
				SecretParams: map[string]auth.Secret{"s": auth.SecretString("t")},
				Refresh:      Refresh{Param: "refreshToken", Fields: []string{"p", "s", "scope", "redirect_uri"}}},
			&oauth2.Token{RefreshToken: "RT"},
			seen{Body: "client_id=id&grant_type=refresh_token&p=v&redirect_uri=http%3A%2F%2Fx%2Fy&refreshToken=RT&s=t&scope=a", Header: formType},
		},
		"names and a separator": {
			Config{Grant: "none", Encoding: "json", ClientID: "id", ClientSecret: auth.SecretString("s"), Username: "u", Scopes: []string{"a", "b"}, ScopeSeparator: ",",
				ParamNames: map[string]string{"client_id": "clientId", "client_secret": "clientSecret", "username": "client_id"}}, nil,
			seen{Body: `{"clientId":"id","clientSecret":"s","client_id":"u","scope":"a,b"}`, Header: jsonType},
		},
		"parameters in JSON": {
			Config{Encoding: "json", ClientID: "id", Params: map[string]any{"text": "1", "number": json.Number("1.50"), "large": int64(1) << 60, "half": 0.5, "flag": true, "off": false, "empty": ""}}, nil,
			seen{Body: `{"client_id":"id","empty":"","flag":true,"grant_type":"client_credentials","half":0.5,"large":1152921504606846976,"number":1.50,"off":false,"text":"1"}`, Header: jsonType},
		},
		"parameters in a form": {
			Config{ClientID: "id", Params: map[string]any{"number": json.Number("1.50"), "flag": true, "n": 7, "empty": ""}}, nil,
			seen{Body: "client_id=id&empty=&flag=true&grant_type=client_credentials&n=7&number=1.50", Header: formType},
		},
		"a number that a refresh leaves out": {
			Config{Grant: "none", Encoding: "json", Username: "u", Params: map[string]any{"grant_type": 7, "ttl": 60}, Refresh: Refresh{Fields: []string{"ttl"}}}, &oauth2.Token{RefreshToken: "RT"},
			seen{Body: `{"grant_type":"refresh_token","refresh_token":"RT","ttl":60}`, Header: jsonType},
		},
		"names in a form": {
			Config{ClientID: "id", Scopes: []string{"a", "b"}, ParamNames: map[string]string{"grant_type": "grantType", "scope": "scopes", "refresh_token": "refreshToken"},
				Refresh: Refresh{Fields: []string{"scope"}}}, &oauth2.Token{RefreshToken: "RT"},
			seen{Body: "client_id=id&grantType=refresh_token&refreshToken=RT&scopes=a+b", Header: formType},
		},
		"names in a query": {
			Config{Grant: "none", Method: "GET", ClientID: "id", ParamNames: map[string]string{"client_id": "user"}}, nil,
			seen{Method: "GET", Query: "q=1&user=id", Header: http.Header{"Accept": {"application/json"}}},
		},
		"headers of the API": {
			Config{ClientID: "id", APIHeaders: map[string]auth.Secret{"Accept": auth.SecretString("application/vnd.x+json"), "X-Tenant": auth.SecretString("t")}}, nil,
			seen{Body: "client_id=id&grant_type=client_credentials", Header: formType},
		},
		"seed": {
			Config{Grant: "refresh_token", ClientID: "id", RefreshToken: auth.SecretString("seed")}, &oauth2.Token{},
			seen{Body: "client_id=id&grant_type=refresh_token&refresh_token=seed", Header: formType},
		},
		"stored before seed": {
			Config{Grant: "refresh_token", ClientID: "id", RefreshToken: auth.SecretString("seed")}, &oauth2.Token{RefreshToken: "later"},
			seen{Body: "client_id=id&grant_type=refresh_token&refresh_token=later", Header: formType},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			body := good
			if tc.config.Response.Format == "text" {
				body = "AT\n"
			}
			base, got := serve(t, say(200, body))
			tc.config.TokenURL = base.JoinPath("token")
			if tc.config.Method == "GET" {
				tc.config.TokenURL.RawQuery = "q=1"
			}
			tok, err := must(t, tc.config).Exchange(t.Context(), tc.prev)
			if err != nil || tok.AccessToken != "AT" {
				t.Fatalf("%v, %v", tok, err)
			}
			if tc.want.Method == "" {
				tc.want.Method = "POST"
			}
			tc.want.Path = "/token"
			if d := gocmp.Diff([]seen{tc.want}, got()); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestProvider tests this package alone; the products have tests of their own.
func TestProvider(t *testing.T) {
	t.Parallel()
	s := remedytest.NewServer(&remedytest.Options{RequirePKCE: true, Basic: true})
	defer s.Close()
	sso, _ := url.Parse(s.SSOURL)
	authtest.TestProvider(t, func(t *testing.T) auth.Provider {
		return must(t, Config{
			Grant: "authorization_code", PKCE: new(true), Scopes: []string{"a", "b"}, RedirectURI: remedytest.DefaultRedirectURI,
			AuthURL: sso.JoinPath("oauth2/authorize"), TokenURL: sso.JoinPath("oauth2/v1.1/token"), RevokeURL: sso.JoinPath("oauth2/revoke"),
			ClientID: remedytest.DefaultClientID, ClientSecret: auth.SecretString(remedytest.DefaultClientSecret),
		})
	}, authtest.Product{
		Good: func() *http.Request {
			r, _ := http.NewRequest("GET", s.URL+"/api/arsys/v1/entry/HPD:IncidentInterface", nil)
			return r
		},
		Kill: s.Revoke,
		Login: func(t *testing.T, page string) string {
			back, err := s.Consent(page)
			if err != nil {
				t.Fatal(err)
			}
			return back.Query().Get("code")
		},
		Secrets: []string{remedytest.DefaultClientSecret},
	})
}

func TestToken(t *testing.T) {
	t.Parallel()
	jwt := "e30.eyJpYXQiOjE3MDAwMDAwMDAsImV4cCI6MTcwMDAwMDYwMH0.c2ln" // 600 s
	deep := Config{Response: Response{AccessToken: "/data/0/a~1b", RefreshToken: "/data/0/r~0", ExpiresIn: "/ttl", TokenType: "/t"}}
	text := Config{Response: Response{Format: "text"}}
	for name, tc := range map[string]struct {
		config          Config
		body            string
		access, refresh string
		life            time.Duration
		typ             string
		status          int
		contentType     string
	}{
		"created":          {body: good, status: 201, access: "AT", life: time.Hour, typ: "Bearer"},
		"text/plain":       {body: good, contentType: "text/plain", access: "AT", life: time.Hour, typ: "Bearer"},
		"no token type":    {body: `{"access_token":"AT","refresh_token":"RT","expires_in":60}`, access: "AT", refresh: "RT", life: time.Minute, typ: "Bearer"},
		"1 MiB":            {body: good + strings.Repeat(" ", 1<<20-len(good)), access: "AT", life: time.Hour, typ: "Bearer"},
		"a mark":           {body: "\xef\xbb\xbf" + good, access: "AT", life: time.Hour, typ: "Bearer"},
		"an empty error":   {body: `{"access_token":"AT","error":"","expires_in":5}`, access: "AT", life: 5 * time.Second, typ: "Bearer"},
		"an error flag":    {body: `{"access_token":"AT","error":false,"expires_in":5}`, access: "AT", life: 5 * time.Second, typ: "Bearer"},
		"an error count":   {body: `{"access_token":"AT","error":0,"expires_in":5}`, access: "AT", life: 5 * time.Second, typ: "Bearer"},
		"from the JWT":     {body: `{"access_token":"` + jwt + `"}`, access: jwt, life: 10 * time.Minute, typ: "Bearer"},
		"rather said":      {body: `{"access_token":"` + jwt + `","expires_in":7}`, access: jwt, life: 7 * time.Second, typ: "Bearer"},
		"JWT, born dead":   {body: `{"access_token":"e30.eyJpYXQiOjE2MDAsImV4cCI6MTYwMH0.c2ln","expires_in":3600}`, access: "e30.eyJpYXQiOjE2MDAsImV4cCI6MTYwMH0.c2ln", life: 1, typ: "Bearer"},
		"from the default": {config: Config{DefaultLifetime: time.Minute}, body: `{"access_token":"AT"}`, access: "AT", life: time.Minute, typ: "Bearer"},
		"pointers":         {config: deep, body: `{"data":[{"a/b":"AT","r~":"RT"}],"ttl":"90","t":"MAC"}`, access: "AT", refresh: "RT", life: 90 * time.Second, typ: "MAC"},
		"text and a mark":  {config: text, body: "\xef\xbb\xbf" + jwt, access: jwt, life: 10 * time.Minute, typ: "Bearer"},
		"text":             {config: text, body: " " + jwt + "\r\n", access: jwt, life: 10 * time.Minute, typ: "Bearer"},
		"text in quotes":   {config: text, body: "\xef\xbb\xbf\"" + jwt + "\"\n", contentType: "application/json", access: jwt, life: 10 * time.Minute, typ: "Bearer"},
		"text, escaped":    {config: text, body: `"a\/b\u003d"`, access: "a/b=", life: time.Hour, typ: "Bearer"},
		"text, digits":     {config: text, body: `0123456789`, access: "0123456789", life: time.Hour, typ: "Bearer"},
		"text, a number":   {config: text, body: `12345678901234567890`, access: "12345678901234567890", life: time.Hour, typ: "Bearer"},
		"text in base64":   {config: text, body: `YWJjZA==`, access: "YWJjZA==", life: time.Hour, typ: "Bearer"},
		"text, a form":     {config: text, body: "access_token=A%2FT&expires_in=60&refresh_token=RT&token_type=mac\n", access: "A/T", refresh: "RT", life: time.Minute, typ: "MAC"},
		"whole answer":     {config: Config{Response: Response{AccessToken: WholeAnswer}}, body: `"` + jwt + `"`, access: jwt, life: 10 * time.Minute, typ: "Bearer"},
		"numbers":          {body: `{"access_token":12345678901234567890,"refresh_token":1.50}`, access: "12345678901234567890", refresh: "1.50", life: time.Hour, typ: "Bearer"},
		"success":          {body: `{"success":true,"error":null,"access_token":"AT"}`, access: "AT", life: time.Hour, typ: "Bearer"},
		"token and flag":   {body: `{"success":false,"access_token":"AT"}`, access: "AT", life: time.Hour, typ: "Bearer"},
		"the JWT is first": {body: `{"access_token":"` + jwt + `","expires_in":3600}`, access: jwt, life: 10 * time.Minute, typ: "Bearer"},
		"ms":               {config: Config{Response: Response{ExpiresInUnit: "ms"}}, body: `{"access_token":"AT","expires_in":"90000"}`, access: "AT", life: 90 * time.Second, typ: "Bearer"},
		"implausible":      {body: `{"access_token":"` + jwt + `","expires_in":3600000000000}`, access: jwt, life: 10 * time.Minute, typ: "Bearer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base, _ := serve(t, say(max(tc.status, 200), tc.body, "Content-Type", tc.contentType))
			tc.config.TokenURL, tc.config.ClientID = base, "id"
			before := time.Now()
			tok, err := must(t, tc.config).Exchange(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if tok.AccessToken != tc.access || tok.RefreshToken != tc.refresh || tok.Type() != tc.typ ||
				tok.ExpiresIn != int64(tc.life/time.Second) || tok.Expiry.Before(before.Add(tc.life)) || tok.Expiry.After(time.Now().Add(tc.life)) {
				t.Errorf("%+v", tok)
			}
		})
	}
}

func TestLifetime(t *testing.T) {
	t.Parallel()
	for said, want := range map[string]time.Duration{
		`3600`: time.Hour, `"3600"`: time.Hour, `3600.0`: time.Hour, `3.6e3`: time.Hour, `"3.6e3"`: time.Hour, `" 3600 "`: time.Hour,
		`1.5`: 1500 * time.Millisecond, `315360000`: maxLifetime,
		`315360001`: 0, `1e999`: 0, `"1e999"`: 0, `null`: 0, `""`: 0, `0`: 0, `-1`: 0, `"-1"`: 0, `"abc"`: 0, `"0x10"`: 0, `"1_0"`: 0, `"Inf"`: 0, `"NaN"`: 0,
		`true`: 0, `"true"`: 0, `[3600]`: 0, `{"s":3600}`: 0, `"1h"`: 0, `"null"`: 0, `1e-30`: 0, `9223372036854775807`: 0,
	} {
		if got := lifetime(jsonbody.Find(jsonbody.Decode([]byte(`{"expires_in":`+said+`}`)), "/expires_in"), time.Second); got != want {
			t.Errorf("%s: %v, want %v", said, got, want)
		}
	}
	if got := lifetime(nil, time.Second); got != 0 {
		t.Errorf("absent: %v", got)
	}
}

// TestExpiresAt tests times of expiry. The client's time is 2000-01-01T00:00:00Z.
func TestExpiresAt(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		said, date, expiresIn string
		want                  time.Duration // 0: the default
	}{
		"RFC 3339":              {said: `"2000-01-01T00:10:00Z"`, want: 10 * time.Minute},
		"RFC 3339, zone":        {said: `"2000-01-01T02:10:00.5+02:00"`, want: 10*time.Minute + 500*time.Millisecond},
		"RFC 3339, small":       {said: `" 2000-01-01t00:10:00z "`, want: 10 * time.Minute},
		"RFC 3339, space":       {said: `"2000-01-01 00:10:00-00:00"`, want: 10 * time.Minute},
		"HTTP date":             {said: `"Sat, 01 Jan 2000 00:10:00 GMT"`, want: 10 * time.Minute},
		"HTTP date, RFC 850":    {said: `"Saturday, 01-Jan-00 00:10:00 GMT"`, want: 10 * time.Minute},
		"HTTP date, asctime":    {said: `"Sat Jan  1 00:10:00 2000"`, want: 10 * time.Minute},
		"seconds":               {said: `946685400`, want: 10 * time.Minute},
		"seconds as text":       {said: `"946685400"`, want: 10 * time.Minute},
		"part of a second":      {said: `946685400.25`, want: 10*time.Minute + 250*time.Millisecond},
		"milliseconds":          {said: `946685400000`, want: 10 * time.Minute},
		"milliseconds, e":       {said: `"9.466854e11"`, want: 10 * time.Minute},
		"by Date, ours late":    {said: `"2000-01-01T00:30:00Z"`, date: "Sat, 01 Jan 2000 00:20:00 GMT", want: 10 * time.Minute},
		"by Date, ours early":   {said: `946685400`, date: "Fri, 31 Dec 1999 23:50:00 GMT", want: 20 * time.Minute},
		"a wrong Date":          {said: `946685400`, date: "yesterday", want: 10 * time.Minute},
		"expires_in is shorter": {said: `946685400`, expiresIn: "60", want: time.Minute},
		"expires_in is longer":  {said: `946685400`, expiresIn: "3600", want: 10 * time.Minute},
		"a second":              {said: `946684801`, want: time.Second},
		"ten years":             {said: `"2009-12-29T00:00:00Z"`, want: maxLifetime},
		"over ten years":        {said: `"2009-12-29T00:00:01Z"`},
		"now":                   {said: `946684800`},
		"in the past":           {said: `"1999-12-31T23:59:59Z"`},
		"in the past of Date":   {said: `"2000-01-01T00:10:00Z"`, date: "Sat, 01 Jan 2000 00:20:00 GMT"},
		"past and expires_in":   {said: `946684700`, expiresIn: "60", want: time.Minute},
		"microseconds":          {said: `946685400000000`},
		"nanoseconds":           {said: `946685400000000000`},
		"no number of ours":     {said: `"0x386d4380"`},
		"enormous":              {said: `1e300`},
		"infinite":              {said: `1e999`},
		"zero":                  {said: `0`},
		"negative":              {said: `-946685400`},
		"the year 1":            {said: `"0001-01-01T00:00:00Z"`},
		"no offset":             {said: `"2000-01-01T00:10:00"`},
		"no time":               {said: `"2000-01-01"`},
		"words":                 {said: `"never"`},
		"null":                  {said: `null`},
		"empty":                 {said: `""`},
		"an object":             {said: `{"at":946685400}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				body := fmt.Sprintf(`{"access_token":"AT","expiry":{"at":%s},"expires_in":%q}`, tc.said, tc.expiresIn)
				client := &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
					return &http.Response{StatusCode: 200, Header: http.Header{"Date": {tc.date}}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
				})}
				c := basic(&url.URL{Scheme: "https", Host: "x"})
				c.Response.ExpiresAt, c.DefaultLifetime = "/expiry/at", 77*time.Minute
				tok, err := must(t, c).Exchange(context.WithValue(t.Context(), oauth2.HTTPClient, client), nil)
				if want := cmp.Or(tc.want, c.DefaultLifetime); err != nil || time.Until(tok.Expiry) != want {
					t.Errorf("%v, %v; want %v", time.Until(tok.Expiry), err, want)
				}
			})
		})
	}
}

// TestExpiryOfJWT tests JWTs that say when they end, but not when they were issued.
func TestExpiryOfJWT(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		date, expiresIn string
		exp             time.Duration // after the client's time
		want            time.Duration
	}{
		"by the response's Date":     {date: "Sat, 01 Jan 2000 00:20:00 GMT", exp: 30 * time.Minute, want: 10 * time.Minute},
		"Date before ours":           {date: "Fri, 31 Dec 1999 23:50:00 GMT", exp: 30 * time.Minute, want: 40 * time.Minute},
		"without Date":               {exp: 30 * time.Minute, want: 30 * time.Minute},
		"with a wrong Date":          {date: "yesterday", exp: 30 * time.Minute, want: 30 * time.Minute},
		"before expires_in":          {exp: 30 * time.Minute, expiresIn: "3600", want: 30 * time.Minute},
		"after expires_in":           {exp: 30 * time.Minute, expiresIn: "60", want: time.Minute},
		"before milliseconds":        {exp: 30 * time.Minute, expiresIn: "1800000", want: 30 * time.Minute},
		"in the past":                {exp: -time.Minute, want: 1},
		"now":                        {exp: 0, want: 1},
		"in the past and expires_in": {exp: -time.Minute, expiresIn: "60", want: 1},
		"in the past, but of Date":   {date: "Fri, 31 Dec 1999 23:50:00 GMT", exp: -time.Minute, want: 9 * time.Minute},
		"in the past of Date":        {date: "Sat, 01 Jan 2000 00:20:00 GMT", exp: 20 * time.Minute, want: 1},
		"in eleven years":            {exp: 11 * 365 * 24 * time.Hour, want: time.Hour},
		"a second":                   {exp: time.Second, want: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				payload := fmt.Sprintf(`{"exp":%d}`, time.Now().Add(tc.exp).Unix())
				body := fmt.Sprintf(`{"access_token":"e30.%s.c2ln","expires_in":%q}`, base64.RawURLEncoding.EncodeToString([]byte(payload)), tc.expiresIn)
				client := &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
					h := http.Header{"Date": {tc.date}}
					return &http.Response{StatusCode: 200, Header: h, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
				})}
				ctx := context.WithValue(t.Context(), oauth2.HTTPClient, client)
				tok, err := must(t, basic(&url.URL{Scheme: "https", Host: "x"})).Exchange(ctx, nil)
				if err != nil || time.Until(tok.Expiry) != tc.want {
					t.Errorf("%v, %v; want %v", time.Until(tok.Expiry), err, tc.want)
				}
			})
		})
	}
}

// TestDescription tests what of a product's description is shown.
func TestDescription(t *testing.T) {
	t.Parallel()
	const phrase, user = "correct-horse-battery-staple", "maria.lopez"
	each := func(format string) (text string) {
		for _, c := range phrase {
			text += fmt.Sprintf(format, c)
		}
		return text
	}
	const long = "Your account has been locked because there were too many failed attempts to log in. "
	described := func(text string) string {
		b, _ := json.Marshal(map[string]string{"error": "denied", "error_description": text})
		return string(b)
	}
	for name, tc := range map[string]struct {
		status     int
		body, want string
	}{
		"as in the RFC":       {400, described("The account is locked."), "The account is locked."},
		"lines":               {400, described("AADSTS7000215: expired.\r\nTrace ID: 5f\u00a0\t\n"), "AADSTS7000215: expired. Trace ID: 5f"},
		"200 characters":      {400, described(strings.Repeat("ü", 200)), strings.Repeat("ü", 200)},
		"201 characters":      {400, described(strings.Repeat("ü", 201)), strings.Repeat("ü", 199) + "…"},
		"long":                {400, described(long + long + long), (long + long + long)[:199] + "…"},
		"other languages":     {400, described("用户名或密码错误"), "用户名或密码错误"},
		"message":             {400, `{"message":"The account is locked."}`, "The account is locked."},
		"nested":              {400, `{"error":{"code":"x","message":"The account is locked."}}`, "The account is locked."},
		"prose for a code":    {400, `{"error":"The account is locked."}`, "The account is locked."},
		"a form":              {400, `error=denied&error_description=The+account+is+locked.`, "The account is locked."},
		"with 200":            {200, `{"success":false,"message":"The account is locked."}`, "The account is locked."},
		"Supabase":            {400, `{"code":400,"error_code":"refresh_token_not_found","msg":"Invalid Refresh Token: Refresh Token Not Found"}`, "Invalid Refresh Token: Refresh Token Not Found"},
		"RFC 9457":            {400, `{"type":"about:blank","title":"Bad Request","detail":"The account is locked."}`, "The account is locked."},
		"without a token":     {200, `{"isSuccess":false,"message":"There is no such route."}`, "There is no such route."},
		"unavailable":         {503, `{"message":"Down until noon."}`, "Down until noon."},
		"limited":             {429, `{"message":"10 a minute."}`, "10 a minute."},
		"another status":      {404, `{"message":"There is no such route."}`, "There is no such route."},
		"the secret":          {400, described("wrong: " + secret), ""},
		"the secret, escaped": {400, described("wrong: " + url.QueryEscape(secret)), ""},
		"the secret, HTML":    {400, described("wrong: " + html.EscapeString(secret)), ""},
		"the secret, base64":  {400, described("wrong: " + base64.StdEncoding.EncodeToString([]byte(secret))), ""},
		"the secret, hex":     {400, described("wrong: " + strings.ToUpper(hex.EncodeToString([]byte(secret)))), ""},
		"its beginning":       {400, described("wrong: " + secret[:8] + "..."), ""},
		"its words":           {400, described("The two passwords differ."), ""},
		"a part with a digit": {400, described("…HBGCI-5F1C is unknown"), ""},
		"but for its end":     {400, described("no " + phrase[:len(phrase)-1]), ""},
		"five characters":     {400, described("no …horse…"), ""},
		"five over a hyphen":  {400, described("no …t-hor…"), ""},
		"four characters":     {400, described("no …hors…"), "no …hors…"},
		"spaces":              {400, described("no " + each("%c ")), ""},
		"hyphens":             {400, described("no " + strings.ReplaceAll(phrase, "-", " ")), ""},
		"escaped":             {400, described("no " + each("%%%02X")), ""},
		"escaped in part":     {400, described("100 % no cor%72ect, two%20wo"), ""},
		"escaped twice":       {400, described("no " + url.QueryEscape(each("%%%02x"))), ""},
		"entities":            {400, described("no " + each("&#%d;")), ""},
		"entities, hex":       {400, described("no " + each("&#x%x;")), ""},
		"entities, escaped":   {400, described("no " + url.QueryEscape(each("&#%d;"))), ""},
		"as in JSON":          {400, described("no " + each(`\u%04X`)), ""},
		"as in JavaScript":    {400, described("no " + each(`\x%02x`)), ""},
		"base64url":           {400, described("no " + base64.RawURLEncoding.EncodeToString([]byte(phrase))), ""},
		"base64, a user":      {400, described("no " + base64.StdEncoding.EncodeToString([]byte("u:"+phrase))), ""},
		"base64, in JSON":     {400, described("no " + base64.RawURLEncoding.EncodeToString([]byte(`{"password":"`+phrase+`"}`))), ""},
		"base64, short":       {400, described("no " + base64.StdEncoding.EncodeToString([]byte("u:7x9!1"))), ""},
		"short":               {400, described("no 7X91."), ""},
		"a part of a short":   {400, described("no 7x9."), "no 7x9."},
		"its user":            {400, described("The user ROBOT is locked."), ""},
		"its password":        {400, described("no hunter2"), ""},
		"the user":            {400, described("Maria Lopez is locked."), ""},
		"the user, escaped":   {400, described("maria%2Elopez is locked."), ""},
		"a part of the user":  {400, described("Maria is locked."), "Maria is locked."},
		"the client":          {400, described("itsm-sync is locked."), ""},
		"a scope":             {400, described("itsm.read is unknown"), ""},
		"a param":             {400, described("https://api.example.com/ is unknown"), ""},
		"a short param":       {400, described("Version 2.1 is gone"), "Version 2.1 is gone"},
		"the grant":           {400, described("The grant_type password is gone"), "The grant_type password is gone"},
		"a part of a secret":  {400, described("two wo"), ""},
		"megabytes":           {400, described(strings.Repeat("x", 1<<19)), ""},
		"beside a megabyte":   {400, `{"error":"denied","message":"The account is locked.","access_token":"` + strings.Repeat("q", 1<<19) + `"}`, ""},
		"within 300":          {400, described(long + long + long + secret), ""},
		"over two lines":      {400, described("wrong: two\nwords"), ""},
		"the header":          {400, described("Basic " + base64.StdEncoding.EncodeToString([]byte("itsm-sync:"+url.QueryEscape(secret)))), ""},
		"the query":           {400, described("tenant=acme-corp is unknown"), ""},
		"the last token":      {400, described("EYJHBGCI-5F1C9 is still valid"), ""},
		"control characters":  {400, described("\x1b[2J"), ""},
		"direction marks":     {400, described("a\u202eb"), ""},
		"no text":             {400, `{"error":"denied","error_description":{"text":"x"},"message":7}`, ""},
		"HTML":                {400, "<html>no</html>", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base, _ := serve(t, say(tc.status, tc.body))
			c := basic(base)
			c.TokenURL.RawQuery = "tenant=acme-corp"
			c.ClientID, c.Grant, c.Username, c.Password = "itsm-sync", "password", user, auth.SecretString(phrase)
			c.Scopes, c.Params = []string{"itsm.read", "email"}, map[string]any{"audience": "https://api.example.com", "version": "2.1"}
			basic := base64.StdEncoding.EncodeToString([]byte("robot:hunter2"))
			c.SecretParams = map[string]auth.Secret{"k": auth.SecretString("two words"), "basic": auth.SecretString(basic), "pin": auth.SecretString("7x9!1")}
			_, err := must(t, c).Exchange(t.Context(), &oauth2.Token{AccessToken: "eyJhbGci-5f1c9"})
			want, says := fmt.Sprintf("; the product says %q", tc.want), strings.Contains(err.Error(), "the product says")
			if says != (tc.want != "") || says && !strings.Contains(err.Error(), want) {
				t.Error(err)
			}
		})
	}
}

// TestUpgraded tests that no client makes an exchange wait for a connection that the endpoint has taken over.
func TestUpgraded(t *testing.T) {
	t.Parallel()
	base, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		conn, _, _ := http.NewResponseController(w).Hijack()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
		context.AfterFunc(t.Context(), func() { conn.Close() })
	})
	if tok, err := must(t, basic(base)).Exchange(t.Context(), nil); !errors.Is(err, auth.ErrProtocol) {
		t.Error(tok, err)
	}
}

// TestCredentialsHint tests that the error of refused credentials names the keys that say how they are sent,
// if nobody chose them.
func TestCredentialsHint(t *testing.T) {
	t.Parallel()
	const in, encoding = "credentials_in: ", "credentials_encoding: "
	plain, special := auth.SecretString("a1.b2"), auth.SecretString("a+b/c")
	for name, tc := range map[string]struct {
		config Config
		code   string
		want   string
	}{
		"basic":                 {Config{ClientSecret: plain}, "invalid_client", in + "form"},
		"basic and escaped":     {Config{ClientSecret: special}, "invalid_client", in + "form or " + encoding + "raw"},
		"an id that is escaped": {Config{ClientID: "a/b", ClientSecret: plain}, "invalid_client", in + "form or " + encoding + "raw"},
		"another code":          {Config{ClientSecret: plain}, "denied", in + "form"},
		"json":                  {Config{ClientSecret: special, Encoding: "json"}, "invalid_client", in + "basic"},
		"raw":                   {Config{ClientSecret: special, CredentialsEncoding: "raw"}, "invalid_client", in + "form"},
		"chosen and escaped":    {Config{ClientSecret: special, CredentialsIn: "basic"}, "invalid_client", encoding + "raw"},
		"chosen, both":          {Config{ClientSecret: special, CredentialsIn: "basic", CredentialsEncoding: "raw"}, "invalid_client", ""},
		"chosen, form":          {Config{ClientSecret: special, CredentialsIn: "form"}, "invalid_client", ""},
		"a provider's, form":    {Config{ClientSecret: special, CredentialsIn: "form", DefaultCredentialsIn: true}, "invalid_client", in + "basic"},
		"no secret":             {Config{}, "invalid_client", ""},
		"the password":          {Config{ClientSecret: plain, Grant: "password", Username: "u", Password: plain}, "invalid_grant", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base, _ := serve(t, say(401, `{"error":"`+tc.code+`"}`))
			tc.config.TokenURL = base
			tc.config.ClientID = cmp.Or(tc.config.ClientID, "id")
			_, err := must(t, tc.config).Exchange(t.Context(), nil)
			checkError(t, err, tc.code, 401, auth.ErrCredentials)
			_, try, _ := strings.Cut(err.Error(), "; try ")
			if try, _, _ = strings.Cut(try, " ("); try != tc.want {
				t.Errorf("%v: %q, want %q", err, try, tc.want)
			}
		})
	}
}

// TestFractions tests that a lifetime with a fraction of a second is not rounded.
func TestFractions(t *testing.T) {
	t.Parallel()
	base, _ := serve(t, say(200, `{"access_token":"AT","expires_in":0.5}`))
	start := time.Now()
	tok, err := must(t, basic(base)).Exchange(t.Context(), nil)
	if err != nil || tok.ExpiresIn != 0 || tok.Expiry.Before(start.Add(time.Second/2)) || tok.Expiry.After(time.Now().Add(time.Second/2)) {
		t.Errorf("%+v, %v", tok, err)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	fail := func(code string) string { return `{"error":"` + code + `","error_description":"` + secret + `"}` }
	large := `{"access_token":"AT","x":"` + strings.Repeat("x", 1<<20) + `"}`
	text := Response{Format: "text"}
	for name, tc := range map[string]struct {
		status   int
		body     string
		header   []string
		response Response
		want     []error
		code     string
		wait     time.Duration
	}{
		"wrong secret":       {status: 401, body: fail("invalid_client"), want: []error{auth.ErrCredentials}, code: "invalid_client"},
		"vendor's code":      {status: 400, body: `{"status":"error","error":"validation_failed"}`, want: []error{auth.ErrCredentials}, code: "validation_failed"},
		"no code":            {status: 401, body: "no", want: []error{auth.ErrCredentials}},
		"a CDN":              {status: 403, body: "error code: 1020", want: []error{auth.ErrProtocol}},
		"flag for a code":    {status: 400, body: `{"error":true}`, want: []error{auth.ErrCredentials}, code: "true"},
		"number":             {status: 401, body: `[{"messageNumber":623}]`, response: Response{Error: "/0/messageNumber"}, want: []error{auth.ErrCredentials}, code: "623"},
		"request":            {status: 400, body: fail("invalid_request"), want: []error{auth.ErrProtocol}, code: "invalid_request"},
		"scope":              {status: 400, body: fail("invalid_scope"), want: []error{auth.ErrProtocol}, code: "invalid_scope"},
		"grant":              {status: 400, body: fail("unsupported_grant_type"), want: []error{auth.ErrProtocol}, code: "unsupported_grant_type"},
		"full grant":         {status: 400, body: fail("invalid_grant"), want: []error{auth.ErrCredentials}, code: "invalid_grant"},
		"no refresh":         {status: 401, body: fail("invalid_token"), want: []error{auth.ErrCredentials}, code: "invalid_token"},
		"busy code":          {status: 400, body: fail("temporarily_unavailable"), want: []error{auth.ErrCredentials}, code: "temporarily_unavailable"},
		"ServiceNow":         {status: 401, body: `{"error":"server_error","error_description":"access_denied"}`, want: []error{auth.ErrCredentials}, code: "server_error"},
		"busy and 200":       {status: 200, body: fail("temporarily_unavailable"), want: []error{auth.ErrCredentials}, code: "temporarily_unavailable"},
		"upper case":         {status: 400, body: fail("INVALID_REQUEST"), want: []error{auth.ErrProtocol}, code: "invalid_request"},
		"nested":             {status: 400, body: `{"error":{"code":"Invalid_Scope"}}`, want: []error{auth.ErrProtocol}, code: "invalid_scope"},
		"nested and 200":     {status: 200, body: `{"error":{"code":"invalid_client"}}`, want: []error{auth.ErrCredentials}, code: "invalid_client"},
		"nested number":      {status: 401, body: `{"error":{"code":16}}`, want: []error{auth.ErrCredentials}, code: "16"},
		"nested and no code": {status: 200, body: `{"error":{"message":"no"}}`, want: []error{auth.ErrCredentials}},
		"not this client":    {status: 400, body: fail("unauthorized_client"), want: []error{auth.ErrCredentials}, code: "unauthorized_client"},
		"empty JSON":         {status: 401, body: `{}`, want: []error{auth.ErrCredentials}},
		"form":               {status: 400, body: `error=invalid_scope&error_description=x`, want: []error{auth.ErrProtocol}, code: "invalid_scope"},
		"form and 200":       {status: 200, body: `error=bad_verification_code`, want: []error{auth.ErrCredentials}, code: "bad_verification_code"},
		"no success":         {status: 200, body: `{"success":false,"message":"wrong password"}`, want: []error{auth.ErrCredentials}},
		"No Success":         {status: 200, body: `{"Success":false,"Data":null}`, want: []error{auth.ErrCredentials}},
		"error is a number":  {status: 200, body: `{"error":401}`, want: []error{auth.ErrCredentials}},
		"Error is a number":  {status: 200, body: `{"Error":-1,"access_token":""}`, want: []error{auth.ErrCredentials}},
		"number elsewhere":   {status: 200, body: `[{"messageNumber":623}]`, response: Response{Error: "/0/messageNumber"}, want: []error{auth.ErrCredentials}},
		"no error":           {status: 200, body: `{"error":0}`, want: []error{auth.ErrProtocol}},
		"error is true":      {status: 200, body: `{"error":true}`, want: []error{auth.ErrCredentials}},
		"empty 400":          {status: 400, want: []error{auth.ErrProtocol}},
		"empty 401":          {status: 401, body: "\r\n", want: []error{auth.ErrProtocol}},
		"HTML 401":           {status: 401, body: "<html>", want: []error{auth.ErrProtocol}},
		"HTML 403":           {status: 403, body: "\xef\xbb\xbf\n<!DOCTYPE html>", want: []error{auth.ErrProtocol}},
		"XML":                {status: 400, body: "<?xml?><Fault/>", want: []error{auth.ErrProtocol}},
		"HTML 203":           {status: 203, body: "<html>Sign in", want: []error{auth.ErrProtocol}},
		"HTML 203, text":     {status: 203, body: "<html>Sign in", response: text, want: []error{auth.ErrProtocol}},
		"Go without TLS":     {status: 400, body: "Client sent an HTTP request to an HTTPS server.\n", want: []error{auth.ErrProtocol}},
		"Apache":             {status: 400, body: "<p>Reason: You're speaking plain HTTP to an SSL-enabled server port.", want: []error{auth.ErrProtocol}},
		"error with 200":     {status: 200, body: fail("invalid_client"), want: []error{auth.ErrCredentials}, code: "invalid_client"},
		"and a token":        {status: 200, body: `{"error":"invalid_scope","access_token":"AT"}`, want: []error{auth.ErrProtocol}, code: "invalid_scope"},
		"secret for a code":  {status: 400, body: fail("s3cr3t"), want: []error{auth.ErrCredentials}},
		"secret within":      {status: 400, body: fail("x_s3cr3t_y"), want: []error{auth.ErrCredentials}},
		"part of it":         {status: 400, body: fail("s3cr"), want: []error{auth.ErrCredentials}},
		"Basic for a code":   {status: 400, body: fail("aWQ6czNjcjN0"), want: []error{auth.ErrCredentials}},
		"secret with 200":    {status: 200, body: fail("s3cr3t"), want: []error{auth.ErrCredentials}},
		"token for a code":   {status: 200, body: `{"error":"AT.1","access_token":"AT.1"}`, want: []error{auth.ErrCredentials}},
		"encoded password":   {status: 400, body: fail("hunter2"), want: []error{auth.ErrCredentials}},
		"secret like code":   {status: 400, body: fail("invalid_client"), want: []error{auth.ErrCredentials}, code: "invalid_client"},
		"prose for a code":   {status: 400, body: fail("the secret is wrong"), want: []error{auth.ErrCredentials}},
		"long code":          {status: 400, body: fail(strings.Repeat("x", 65)), want: []error{auth.ErrCredentials}},
		"not found":          {status: 404, body: "<html>", want: []error{auth.ErrProtocol}},
		"trailing slash":     {status: 405, want: []error{auth.ErrProtocol}},
		"teapot":             {status: 418, want: []error{auth.ErrProtocol}},
		"server error":       {status: 500, body: fail("invalid_client"), want: []error{auth.ErrUnavailable}, code: "invalid_client"},
		"maintenance":        {status: 503, header: []string{"Retry-After", "7"}, want: []error{auth.ErrUnavailable}, wait: 7 * time.Second},
		"large 502":          {status: 502, body: large, want: []error{auth.ErrUnavailable}},
		"timeout":            {status: 408, want: []error{auth.ErrUnavailable}},
		"limit":              {status: 429, header: []string{"Retry-After", "30"}, want: []error{auth.ErrRateLimited}, wait: 30 * time.Second},
		"limit, no time":     {status: 429, want: []error{auth.ErrRateLimited}},
		"limit for ever":     {status: 429, header: []string{"Retry-After", "99999999999999999999"}, want: []error{auth.ErrRateLimited}, wait: 24 * time.Hour},
		"limit, a fraction":  {status: 429, header: []string{"Retry-After", "1.5"}, want: []error{auth.ErrRateLimited}, wait: 1500 * time.Millisecond},
		"limit, a date":      {status: 429, header: []string{"Retry-After", "Fri, 31 Dec 9999 23:59:59 GMT"}, want: []error{auth.ErrRateLimited}, wait: 24 * time.Hour},
		"limit that passed":  {status: 429, header: []string{"Retry-After", "Wed, 21 Oct 2015 07:28:00 GMT"}, want: []error{auth.ErrRateLimited}},
		"limit unreadable":   {status: 429, header: []string{"Retry-After", "soon"}, want: []error{auth.ErrRateLimited}},
		"limit, a refusal":   {status: 403, header: []string{"X-RateLimit-Remaining", "0"}, want: []error{auth.ErrRateLimited}},
		"limit, some code":   {status: 401, body: fail("quota"), header: []string{"X-RateLimit-Remaining", "0"}, want: []error{auth.ErrCredentials}, code: "quota"},
		"limit, but secret":  {status: 401, body: fail("invalid_client"), header: []string{"X-RateLimit-Remaining", "0"}, want: []error{auth.ErrCredentials}, code: "invalid_client"},
		"limit with room":    {status: 403, body: "{}", header: []string{"X-RateLimit-Remaining", "1"}, want: []error{auth.ErrCredentials}},
		"limit, no path":     {status: 404, header: []string{"X-RateLimit-Remaining", "0"}, want: []error{auth.ErrProtocol}},
		"not modified":       {status: 304, want: []error{auth.ErrProtocol, auth.ErrInsecure}},
		"HTML":               {status: 200, body: "\n<!DOCTYPE html><a>access_token</a>", want: []error{auth.ErrProtocol}},
		"HTML and a mark":    {status: 200, body: "\xef\xbb\xbf<html></html>", response: text, want: []error{auth.ErrProtocol}},
		"HTML for text":      {status: 200, body: "<html></html>", response: text, want: []error{auth.ErrProtocol}},
		"prose for text":     {status: 200, body: "Service started", response: text, want: []error{auth.ErrProtocol}},
		"JSON for text":      {status: 200, body: `{"ok":false}`, response: text, want: []error{auth.ErrProtocol}},
		"lines for text":     {status: 200, body: "a\nb", response: text, want: []error{auth.ErrProtocol}},
		"empty for text":     {status: 200, body: `""`, response: text, want: []error{auth.ErrProtocol}},
		"null for text":      {status: 200, body: `null`, response: text, want: []error{auth.ErrProtocol}},
		"flag for text":      {status: 200, body: `true`, response: text, want: []error{auth.ErrProtocol}},
		"spaces for text":    {status: 200, body: `"no such user"`, response: text, want: []error{auth.ErrProtocol}},
		"error for text":     {status: 200, body: `error=denied`, response: text, want: []error{auth.ErrCredentials}, code: "denied"},
		"no string":          {status: 200, body: `{"access_token":"A.T"}`, response: Response{AccessToken: WholeAnswer}, want: []error{auth.ErrProtocol}},
		"a flag":             {status: 200, body: `{"access_token":true}`, want: []error{auth.ErrProtocol}},
		"nothing for text":   {status: 200, body: " ", response: text, want: []error{auth.ErrProtocol}},
		"nothing":            {status: 204, want: []error{auth.ErrProtocol}},
		"no token":           {status: 200, body: `{"isSuccess":false}`, want: []error{auth.ErrProtocol}},
		"token of a kind":    {status: 200, body: `{"access_token":{"a":1}}`, want: []error{auth.ErrProtocol}},
		"a form":             {status: 200, body: `access_token=AT`, want: []error{auth.ErrProtocol}},
		"two values":         {status: 200, body: good + good, want: []error{auth.ErrProtocol}},
		"an array":           {status: 200, body: `[]`, want: []error{auth.ErrProtocol}},
		"header injection":   {status: 200, body: `{"access_token":"A\r\nX: y"}`, want: []error{auth.ErrProtocol}},
		"type, injection":    {status: 200, body: `{"access_token":"A","token_type":"Bearer A\r\nX: y"}`, want: []error{auth.ErrProtocol}},
		"type with a space":  {status: 200, body: `{"access_token":"A","token_type":"Bearer "}`, want: []error{auth.ErrProtocol}},
		"type in Cyrillic":   {status: 200, body: `{"access_token":"A","token_type":"Вearer"}`, want: []error{auth.ErrProtocol}},
		"type for text":      {status: 200, body: `access_token=A&token_type=%1b[2J`, response: text, want: []error{auth.ErrProtocol}},
		"too large":          {status: 200, body: large, want: []error{auth.ErrProtocol}},
		"a byte too large":   {status: 200, body: good + strings.Repeat(" ", 1<<20+1-len(good)), want: []error{auth.ErrProtocol}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base, got := serve(t, say(tc.status, tc.body, tc.header...))
			c := basic(base)
			c.ClientSecret = auth.SecretString("s3cr3t")
			c.CredentialsEncoding, c.Response = "raw", tc.response
			c.SecretParams = map[string]auth.Secret{"auth_string": auth.SecretString("dTpodW50ZXIy"), "long": auth.SecretString(secret)}
			c.StaticHeaders = map[string]auth.Secret{"Accept-Language": auth.SecretString("en")}
			tok, err := must(t, c).Exchange(t.Context(), nil)
			if err == nil {
				t.Fatalf("no error but %+v", tok)
			}
			checkError(t, err, tc.code, tc.status, tc.want...)
			var e *auth.Error
			if errors.As(err, &e); e.RetryAfter != tc.wait {
				t.Errorf("RetryAfter = %v, want %v", e.RetryAfter, tc.wait)
			}
			if s := fmt.Sprintf("%v %+v %#v", err, err, err); strings.Contains(s, "s3cr3t") || strings.Contains(s, secret) || strings.Contains(s, "AT") {
				t.Errorf("shows a secret: %s", s)
			}
			if n := len(got()); n != 1 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

var sentinels = []error{auth.ErrCredentials, auth.ErrConsentRequired, auth.ErrRateLimited, auth.ErrUnavailable, auth.ErrProtocol, auth.ErrInsecure}

// checkError checks that err is all of these sentinels and no other.
func checkError(t *testing.T, err error, code string, status int, want ...error) {
	t.Helper()
	var e *auth.Error
	if !errors.As(err, &e) {
		t.Fatalf("%v is no *auth.Error", err)
	}
	if e.Provider != "oauth2" || e.Code != code || e.Status != status {
		t.Errorf("%s: code %q, status %d; want %q, %d", err, e.Code, e.Status, code, status)
	}
	for _, s := range sentinels {
		wanted := false
		for _, w := range want {
			wanted = wanted || w == s
		}
		if errors.Is(err, s) != wanted {
			t.Errorf("%s: is %q: %v", err, s, !wanted)
		}
	}
}

func TestRefresh(t *testing.T) {
	t.Parallel()
	prev := &oauth2.Token{RefreshToken: "RT1"}
	refused := say(400, `{"error":"invalid_grant"}`)
	for name, tc := range map[string]struct {
		grant    string
		answers  []http.HandlerFunc
		requests int
		refresh  string
		code     string
		status   int
		want     []error
	}{
		"rotated":          {answers: []http.HandlerFunc{say(200, `{"access_token":"AT","refresh_token":"RT2"}`)}, requests: 1, refresh: "RT2"},
		"kept":             {answers: []http.HandlerFunc{say(200, good)}, requests: 1, refresh: "RT1"},
		"full grant":       {answers: []http.HandlerFunc{refused, say(200, good)}, requests: 2},
		"without a code":   {answers: []http.HandlerFunc{say(401, ""), say(200, good)}, requests: 2},
		"vendor's code":    {answers: []http.HandlerFunc{say(400, `{"error":"validation_failed"}`), say(200, good)}, requests: 2},
		"unsupported":      {answers: []http.HandlerFunc{say(400, `{"error":"unsupported_grant_type"}`), say(200, good)}, requests: 2},
		"gone":             {answers: []http.HandlerFunc{say(410, ""), say(200, good)}, requests: 2},
		"not found":        {answers: []http.HandlerFunc{say(404, `{"error":"no such token"}`), say(200, good)}, requests: 2},
		"unprocessable":    {answers: []http.HandlerFunc{say(422, `{"message":"expired","errors":[]}`), say(200, good)}, requests: 2},
		"prose with 200":   {answers: []http.HandlerFunc{say(200, `{"error":"The refresh token is invalid."}`), say(200, good)}, requests: 2},
		"both refused":     {answers: []http.HandlerFunc{refused, refused}, requests: 2, code: "invalid_grant", status: 400, want: []error{auth.ErrCredentials}},
		"wrong client":     {answers: []http.HandlerFunc{say(401, `{"error":"invalid_client"}`)}, requests: 1, code: "invalid_client", status: 401, want: []error{auth.ErrCredentials}},
		"down":             {answers: []http.HandlerFunc{say(500, "")}, requests: 1, status: 500, want: []error{auth.ErrUnavailable}},
		"a slow proxy":     {answers: []http.HandlerFunc{say(408, "")}, requests: 1, status: 408, want: []error{auth.ErrUnavailable}},
		"busy":             {answers: []http.HandlerFunc{say(400, `{"error":"temporarily_unavailable"}`), say(200, good)}, requests: 2},
		"ServiceNow":       {answers: []http.HandlerFunc{say(401, `{"error":"server_error","error_description":"access_denied"}`), say(200, good)}, requests: 2},
		"ServiceNow, both": {answers: []http.HandlerFunc{say(401, `{"error":"server_error","error_description":"access_denied"}`)}, requests: 2, code: "server_error", status: 401, want: []error{auth.ErrCredentials}},
		"moved":            {answers: []http.HandlerFunc{say(307, `{"error":"moved"}`)}, requests: 1, code: "moved", status: 307, want: []error{auth.ErrProtocol, auth.ErrInsecure}},
		"limited":          {answers: []http.HandlerFunc{say(429, "")}, requests: 1, status: 429, want: []error{auth.ErrRateLimited}},
		"number with 200":  {answers: []http.HandlerFunc{say(200, `{"error":401,"message":"expired"}`), say(200, good)}, requests: 2},
		"true with 200":    {answers: []http.HandlerFunc{say(200, `{"error":true}`), say(200, good)}, requests: 2},
		"no success":       {answers: []http.HandlerFunc{say(200, `{"isSuccess":false}`), say(200, good)}, requests: 2},
		"errors":           {answers: []http.HandlerFunc{say(200, `{"errors":[{"code":1}]}`), say(200, good)}, requests: 2},
		"nothing":          {answers: []http.HandlerFunc{say(204, ""), say(200, good)}, requests: 2},
		"empty":            {answers: []http.HandlerFunc{say(200, ""), say(200, good)}, requests: 2},
		"a page":           {answers: []http.HandlerFunc{say(200, "<html>"), say(200, good)}, requests: 2},
		"large":            {answers: []http.HandlerFunc{say(200, strings.Repeat(" ", 1<<20+1)), say(200, good)}, requests: 2},
		"wrong, and 200":   {answers: []http.HandlerFunc{say(200, `{"error":"invalid_client"}`)}, requests: 1, code: "invalid_client", status: 200, want: []error{auth.ErrCredentials}},
		"not this client":  {answers: []http.HandlerFunc{say(400, `{"error":"unauthorized_client"}`)}, requests: 1, code: "unauthorized_client", status: 400, want: []error{auth.ErrCredentials}},
		"down, a page":     {answers: []http.HandlerFunc{say(502, "<html>")}, requests: 1, status: 502, want: []error{auth.ErrUnavailable}},
		"HTML":             {answers: []http.HandlerFunc{say(200, "<html>")}, requests: 2, status: 200, want: []error{auth.ErrProtocol}},
		"consent":          {grant: "authorization_code", answers: []http.HandlerFunc{refused}, requests: 1, code: "invalid_grant", status: 400, want: []error{auth.ErrConsentRequired}},
		"consent, token":   {grant: "authorization_code", answers: []http.HandlerFunc{say(401, `{"error":"invalid_token"}`)}, requests: 1, code: "invalid_token", status: 401, want: []error{auth.ErrConsentRequired}},
		"consent, client":  {grant: "authorization_code", answers: []http.HandlerFunc{say(401, `{"error":"invalid_client"}`)}, requests: 1, code: "invalid_client", status: 401, want: []error{auth.ErrCredentials}},
		"consent, echo":    {grant: "authorization_code", answers: []http.HandlerFunc{say(400, `{"error":"RT1"}`)}, requests: 1, status: 400, want: []error{auth.ErrConsentRequired}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base, got := serve(t, tc.answers...)
			c := basic(base)
			if tc.grant != "" {
				c.Grant, c.AuthURL, c.RedirectURI = tc.grant, base, "http://127.0.0.1:1/cb"
			}
			tok, err := must(t, c).Exchange(t.Context(), prev)
			if n := len(got()); n != tc.requests {
				t.Errorf("%d requests, want %d", n, tc.requests)
			}
			if tc.want != nil {
				checkError(t, err, tc.code, tc.status, tc.want...)
			} else if err != nil || tok.RefreshToken != tc.refresh {
				t.Errorf("%+v, %v", tok, err)
			}
		})
	}
}

// TestRefusedRefresh tests what says that the refresh token of a person's consent is dead.
func TestRefusedRefresh(t *testing.T) {
	t.Parallel()
	consent, credentials, protocol := auth.ErrConsentRequired, auth.ErrCredentials, auth.ErrProtocol
	errorIs := func(code string) string { return `{"error":"` + code + `"}` }
	for name, tc := range map[string]struct {
		status int
		body   string
		want   error
		code   string
	}{
		"as in the RFC":         {400, errorIs("invalid_grant"), consent, "invalid_grant"},
		"upper case":            {400, errorIs("INVALID_GRANT"), consent, "invalid_grant"},
		"nested":                {400, `{"error":{"code":"invalid_grant","message":"expired"}}`, consent, "invalid_grant"},
		"nested and 200":        {200, `{"error":{"code":"Invalid_Grant"}}`, consent, "invalid_grant"},
		"GitHub":                {200, errorIs("bad_refresh_token"), consent, "bad_refresh_token"},
		"GitHub, a form":        {200, `error=bad_refresh_token&error_description=The+refresh+token+passed+is+incorrect+or+expired.`, consent, "bad_refresh_token"},
		"Zoho":                  {200, errorIs("invalid_code"), consent, "invalid_code"},
		"ServiceNow":            {401, `{"error":"server_error","error_description":"access_denied"}`, consent, "server_error"},
		"temporarily":           {400, errorIs("temporarily_unavailable"), consent, "temporarily_unavailable"},
		"403":                   {403, errorIs("access_denied"), consent, "access_denied"},
		"prose":                 {401, errorIs("The refresh token is invalid."), consent, ""},
		"only a message":        {400, `{"message":"Refresh token expired"}`, consent, ""},
		"Supabase":              {400, `{"code":400,"error_code":"refresh_token_not_found","msg":"Invalid Refresh Token"}`, consent, ""},
		"Fitbit":                {401, `{"errors":[{"errorType":"invalid_grant","message":"Refresh token invalid"}],"success":false}`, consent, ""},
		"Meta":                  {400, `{"error":{"message":"Session has expired","type":"OAuthException","code":190}}`, consent, "190"},
		"Atlassian":             {403, `{"error":"unauthorized_client","error_description":"refresh_token is invalid"}`, credentials, "unauthorized_client"}, // see TestResponseErrors
		"a number and 200":      {200, `{"error":401,"message":"expired"}`, consent, ""},
		"true and 200":          {200, `{"error":true}`, consent, ""},
		"zero and 200":          {200, `{"error":0}`, protocol, ""},
		"nothing in JSON":       {400, `{}`, consent, ""},
		"an array":              {401, `[{"messageNumber":623}]`, consent, ""},
		"no success":            {200, `{"success":false,"message":"expired"}`, consent, ""},
		"a form":                {400, `error=invalid_grant`, consent, "invalid_grant"},
		"invalid_token":         {401, errorIs("invalid_token"), consent, "invalid_token"},
		"the client":            {401, errorIs("invalid_client"), credentials, "invalid_client"},
		"the client and 200":    {200, errorIs("INVALID_CLIENT"), credentials, "invalid_client"},
		"the client's grant":    {400, errorIs("unauthorized_client"), credentials, "unauthorized_client"},
		"the grant":             {400, errorIs("unsupported_grant_type"), protocol, "unsupported_grant_type"},
		"the scope":             {400, errorIs("invalid_scope"), protocol, "invalid_scope"},
		"the request":           {400, errorIs("invalid_request"), protocol, "invalid_request"}, // the session knows whether it worked before
		"HTML":                  {400, "<html>", protocol, ""},
		"HTML and 203":          {203, "<html>", protocol, ""},
		"empty":                 {401, "", protocol, ""},
		"plain text":            {401, "Unauthorized", protocol, ""},
		"cut off":               {400, `{"error":"invalid_gr`, protocol, ""},
		"404":                   {404, errorIs("invalid_grant"), protocol, "invalid_grant"},
		"410":                   {410, errorIs("invalid_grant"), protocol, "invalid_grant"},
		"422":                   {422, errorIs("invalid_grant"), protocol, "invalid_grant"},
		"500":                   {500, errorIs("invalid_grant"), auth.ErrUnavailable, "invalid_grant"},
		"408":                   {408, errorIs("invalid_grant"), auth.ErrUnavailable, "invalid_grant"},
		"429":                   {429, errorIs("invalid_grant"), auth.ErrRateLimited, "invalid_grant"},
		"200 and no error":      {200, `{"ok":1}`, protocol, ""},
		"200 and an empty code": {200, `{"error":""}`, protocol, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base, got := serve(t, say(tc.status, tc.body))
			c := basic(base)
			c.Grant, c.AuthURL, c.RedirectURI = "authorization_code", base, "http://127.0.0.1:1/cb"
			_, err := must(t, c).Exchange(t.Context(), &oauth2.Token{RefreshToken: "RT-5f1c9"})
			checkError(t, err, tc.code, tc.status, tc.want)
			if n := len(got()); n != 1 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

// TestResponseErrors tests Response.Errors, which decide before everything else.
func TestResponseErrors(t *testing.T) {
	t.Parallel()
	errors := []ResponseError{
		{Status: 401, Pointer: "/error_description", Equals: "access_denied", Means: "invalid_grant"},
		{Pointer: "/errors/*/code", Equals: "7", Means: "invalid_client"},
		{Status: 503, Pointer: "/license", Means: "invalid_scope"},
		{Status: 403, Means: "temporarily_unavailable"},
		{Pointer: "/busy", Equals: "true", Means: "temporarily_unavailable"},
		{Pointer: "/error_description", Equals: "refresh_token is invalid", Means: "invalid_grant"},
	}
	for name, tc := range map[string]struct {
		status        int
		body          string
		full, refresh error
		code          string
	}{
		"refused":              {401, `{"error":"server_error","error_description":"access_denied"}`, auth.ErrCredentials, auth.ErrConsentRequired, "invalid_grant"},
		"refused, a form":      {401, `error=server_error&error_description=access_denied`, auth.ErrCredentials, auth.ErrConsentRequired, "invalid_grant"},
		"Atlassian":            {400, `{"error":"unauthorized_client","error_description":"refresh_token is invalid"}`, auth.ErrCredentials, auth.ErrConsentRequired, "invalid_grant"},
		"another status":       {400, `{"error":"server_error","error_description":"access_denied"}`, auth.ErrCredentials, auth.ErrConsentRequired, "server_error"},
		"the client and 200":   {200, `{"access_token":"AT","errors":[{"code":1},{"code":7}]}`, auth.ErrCredentials, auth.ErrCredentials, "invalid_client"},
		"the client and 500":   {500, `{"errors":[{"code":"7"}]}`, auth.ErrCredentials, auth.ErrCredentials, "invalid_client"},
		"the client and 429":   {429, `{"errors":[{"code":"7"}]}`, auth.ErrCredentials, auth.ErrCredentials, "invalid_client"},
		"the client and 302":   {302, `{"errors":[{"code":"7"}]}`, auth.ErrCredentials, auth.ErrCredentials, "invalid_client"},
		"the first counts":     {403, `{"errors":[{"code":7}]}`, auth.ErrCredentials, auth.ErrCredentials, "invalid_client"},
		"exists":               {503, `{"license":"expired"}`, auth.ErrProtocol, auth.ErrProtocol, "invalid_scope"},
		"exists not":           {503, `{"license":null}`, auth.ErrUnavailable, auth.ErrUnavailable, ""},
		"passes":               {403, `{"error":"invalid_grant"}`, auth.ErrUnavailable, auth.ErrUnavailable, "temporarily_unavailable"},
		"passes, HTML":         {403, `<html>`, auth.ErrUnavailable, auth.ErrUnavailable, "temporarily_unavailable"},
		"passes and no error":  {200, `{"busy":true}`, auth.ErrUnavailable, auth.ErrUnavailable, "temporarily_unavailable"},
		"none, as without one": {400, `{"error":"invalid_grant"}`, auth.ErrCredentials, auth.ErrConsentRequired, "invalid_grant"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base, _ := serve(t, say(tc.status, tc.body))
			c := basic(base)
			c.Response.Errors = errors
			_, err := must(t, c).Exchange(t.Context(), nil)
			checkError(t, err, tc.code, tc.status, tc.full)
			c.Grant, c.AuthURL, c.RedirectURI = "authorization_code", base, "http://127.0.0.1:1/cb"
			_, err = must(t, c).Exchange(t.Context(), &oauth2.Token{RefreshToken: "a refresh token"})
			checkError(t, err, tc.code, tc.status, tc.refresh)
		})
	}
	// A refresh token that passes for dead is replaced by the full grant.
	for _, status := range []int{500, 302, 407, 200} {
		base, got := serve(t, say(status, `{"x":1}`), say(200, good))
		c := basic(base)
		c.Response.Errors = []ResponseError{{Pointer: "/x", Means: "invalid_grant"}}
		if tok, err := must(t, c).Exchange(t.Context(), &oauth2.Token{RefreshToken: "RT"}); err != nil || tok.RefreshToken != "" || len(got()) != 2 {
			t.Errorf("%d: %+v, %v", status, tok, err)
		}
	}
}

func TestNoRefreshToken(t *testing.T) {
	t.Parallel()
	base, got := serve(t, say(200, good))
	c := basic(base)
	c.Grant, c.AuthURL, c.RedirectURI = "authorization_code", base, "http://127.0.0.1:1/cb"
	for _, prev := range []*oauth2.Token{nil, {}} {
		_, err := must(t, c).Exchange(t.Context(), prev)
		checkError(t, err, "", 0, auth.ErrConsentRequired)
	}
	if n := len(got()); n != 0 {
		t.Errorf("%d requests", n)
	}
}

func TestUnreadableSecret(t *testing.T) {
	t.Parallel()
	base, got := serve(t, say(200, good))
	c := basic(base)
	c.ClientSecret = auth.SecretFile("/nonexistent/secret")
	_, err := must(t, c).Exchange(t.Context(), nil)
	checkError(t, err, "", 0, auth.ErrUnavailable)
	if !strings.Contains(err.Error(), "client_secret") || len(got()) != 0 {
		t.Error(err)
	}
	c.SecretParams = map[string]auth.Secret{"api_key": auth.SecretFile("/nonexistent/key")}
	_, err = must(t, c).Exchange(t.Context(), nil)
	checkError(t, err, "", 0, auth.ErrUnavailable)
	if text := err.Error(); !strings.Contains(text, "client_secret") || !strings.Contains(text, "api_key") || strings.Contains(text, "\n") {
		t.Errorf("%q", text)
	}
}

func TestRedirects(t *testing.T) {
	t.Parallel()
	for _, status := range []int{301, 302, 303, 307, 308} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			other, got := serve(t, say(200, good)) // another port of the same host
			for _, to := range []string{other.String() + "/token?q=1", "/token2"} {
				base, gotHere := serve(t, say(status, "", "Location", to))
				for _, ctx := range []context.Context{t.Context(), context.WithValue(t.Context(), oauth2.HTTPClient, http.DefaultClient)} {
					_, err := must(t, basic(base)).Exchange(ctx, nil)
					checkError(t, err, "", status, auth.ErrProtocol, auth.ErrInsecure)
				}
				if n := len(gotHere()); n != 2 {
					t.Errorf("%d requests here, want 2", n)
				}
			}
			if n := len(got()); n != 0 {
				t.Errorf("the redirect was followed")
			}
		})
	}
	if http.DefaultClient.CheckRedirect != nil {
		t.Error("the caller's client was changed")
	}
}

func TestCodeFlow(t *testing.T) {
	t.Parallel()
	base, got := serve(t, say(200, `{"access_token":"AT","refresh_token":"RT"}`), say(400, `{"error":"invalid_grant"}`), say(400, `{"error":"the-verifier"}`))
	c := basic(base)
	c.Grant, c.PKCE, c.RedirectURI, c.Scopes = "authorization_code", new(true), "http://127.0.0.1:8400/cb?x=1", []string{"a", "b"}
	c.AuthURL = base.JoinPath("authorize")
	c.AuthURL.RawQuery = "prompt=login"
	c.CredentialsIn = "form"
	flow := must(t, c).CodeFlow()
	u, err := url.Parse(flow.URL("st&te", "the-verifier"))
	if err != nil {
		t.Fatal(err)
	}
	want := url.Values{
		"prompt": {"login"}, "response_type": {"code"}, "client_id": {"id"}, "redirect_uri": {c.RedirectURI}, "scope": {"a b"}, "state": {"st&te"},
		"code_challenge": {oauth2.S256ChallengeFromVerifier("the-verifier")}, "code_challenge_method": {"S256"},
	}
	if d := gocmp.Diff(want, u.Query()); d != "" || u.Path != "/authorize" || flow.RedirectURI != c.RedirectURI {
		t.Error(d, u)
	}
	tok, err := flow.Redeem(t.Context(), "the/code", "the-verifier")
	if err != nil || tok.RefreshToken != "RT" {
		t.Fatalf("%+v, %v", tok, err)
	}
	body, _ := url.ParseQuery(got()[0].Body)
	want = url.Values{
		"grant_type": {"authorization_code"}, "code": {"the/code"}, "code_verifier": {"the-verifier"}, "redirect_uri": {c.RedirectURI},
		"client_id": {"id"}, "client_secret": {secret},
	}
	if d := gocmp.Diff(want, body); d != "" {
		t.Error(d)
	}
	c.ScopeSeparator, c.CodeFields = ",", []string{"scope"}
	c.ParamNames = map[string]string{"client_id": "clientId", "code": "auth_code"}
	base, got = serve(t, say(200, `{"access_token":"AT","refresh_token":"RT"}`))
	c.TokenURL = base
	zoho := must(t, c).CodeFlow()
	if u, _ := url.Parse(zoho.URL("s", "v")); u.Query().Get("scope") != "a,b" || u.Query().Get("client_id") != "id" {
		t.Error(u)
	}
	if _, err := zoho.Redeem(t.Context(), "the/code", "the-verifier"); err != nil {
		t.Fatal(err)
	}
	body, _ = url.ParseQuery(got()[0].Body)
	want = url.Values{
		"grant_type": {"authorization_code"}, "auth_code": {"the/code"}, "code_verifier": {"the-verifier"}, "redirect_uri": {c.RedirectURI},
		"clientId": {"id"}, "client_secret": {secret}, "scope": {"a,b"},
	}
	if d := gocmp.Diff(want, body); d != "" {
		t.Error(d)
	}
	c.Scopes = []string{}
	if u := must(t, c).CodeFlow().URL("s", "v"); strings.Contains(u, "scope") {
		t.Error(u)
	}
	_, err = flow.Redeem(t.Context(), "the/code", "the-verifier")
	checkError(t, err, "invalid_grant", 400, auth.ErrConsentRequired)
	_, err = flow.Redeem(t.Context(), "the/code", "the-verifier")
	checkError(t, err, "", 400, auth.ErrCredentials)

	if must(t, basic(base)).CodeFlow() != nil {
		t.Error("client credentials with a code flow")
	}
}

// TestPKCE tests who proves that it requested the code: without a secret, a client has nothing else.
func TestPKCE(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		secret string
		pkce   *bool
		want   bool
	}{
		"public":           {"", nil, true},
		"confidential":     {secret, nil, false},
		"public, off":      {"", new(false), false},
		"confidential, on": {secret, new(true), true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base, got := serve(t, say(200, good))
			c := Config{TokenURL: base, AuthURL: base, Grant: "authorization_code", ClientID: "id", RedirectURI: "http://127.0.0.1/cb", PKCE: test.pkce}
			if test.secret != "" {
				c.ClientSecret = auth.SecretString(test.secret)
			}
			flow := must(t, c).CodeFlow()
			page, err := url.Parse(flow.URL("state", "the-verifier"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := flow.Redeem(t.Context(), "code", "the-verifier"); err != nil {
				t.Fatal(err)
			}
			sent := got()[0].Body
			body, _ := url.ParseQuery(sent)
			challenge, method, verifier := "", "", ""
			if test.want {
				challenge, method, verifier = oauth2.S256ChallengeFromVerifier("the-verifier"), "S256", "the-verifier"
			}
			if q := page.Query(); q.Get("code_challenge") != challenge || q.Get("code_challenge_method") != method || body.Get("code_verifier") != verifier {
				t.Errorf("%s, then %s", page.RawQuery, sent)
			}
		})
	}
}

func TestRevoke(t *testing.T) {
	t.Parallel()
	base, got := serve(t, say(200, ""), say(400, `{"error":"unsupported_token_type"}`), say(503, ""), say(200, ""))
	tok := &oauth2.Token{AccessToken: "AT", RefreshToken: "RT"}
	c := basic(base)
	if err := must(t, c).Revoke(t.Context(), tok); err != nil || len(got()) != 0 {
		t.Error("without revoke_url:", err)
	}
	c.RevokeURL, c.Method = base.JoinPath("revoke"), "GET" // for token requests only
	if err := must(t, c).Revoke(t.Context(), tok); err != nil {
		t.Error(err)
	}
	requests := got()
	if len(requests) != 2 || requests[0].Method+requests[0].Path+"?"+requests[0].Query != "POST/revoke?" ||
		requests[0].Body != "token=RT&token_type_hint=refresh_token" || requests[1].Body != "token=AT&token_type_hint=access_token" ||
		!strings.HasPrefix(requests[0].Header.Get("Authorization"), "Basic ") {
		t.Errorf("%+v", requests)
	}
	checkError(t, must(t, c).Revoke(t.Context(), tok), "", 503, auth.ErrUnavailable)
	if n := len(got()); n != 2 {
		t.Errorf("%d requests: a failure kept the other token alive", n)
	}

	base, _ = serve(t, say(400, `{"error":"invalid_token"}`), say(400, `{"error":"invalid_token"}`), say(401, `{"error":"invalid_client"}`), say(200, ""))
	c.RevokeURL = base
	if err := must(t, c).Revoke(t.Context(), tok); err != nil {
		t.Error("dead already:", err)
	}
	checkError(t, must(t, c).Revoke(t.Context(), tok), "invalid_client", 401, auth.ErrCredentials)

	base, got = serve(t, say(204, ""), say(401, ""), say(403, ""), say(503, ""))
	logout := must(t, Config{TokenURL: base, RevokeURL: base.JoinPath("logout"), Grant: "none", TokenHeaders: []Header{{"X-T", "{access_token}"}}})
	if err := logout.Revoke(t.Context(), tok); err != nil {
		t.Error(err)
	}
	if r := got(); len(r) != 1 || r[0].Method != "POST" || r[0].Body != "" || r[0].Header.Get("X-T") != "AT" {
		t.Errorf("%+v", r)
	}
	if err := logout.Revoke(t.Context(), tok); err != nil {
		t.Error("dead already:", err)
	}
	checkError(t, logout.Revoke(t.Context(), tok), "", 403, auth.ErrProtocol)
	checkError(t, logout.Revoke(t.Context(), tok), "", 503, auth.ErrUnavailable)
}

func TestHeader(t *testing.T) {
	t.Parallel()
	base, _ := url.Parse("https://x")
	tok := &oauth2.Token{AccessToken: "{token_type}", TokenType: "mac"}
	if d := gocmp.Diff(http.Header{"Authorization": {"Bearer {token_type}"}}, must(t, basic(base)).Header(tok)); d != "" {
		t.Error(d)
	}
	c := basic(base)
	c.TokenHeaders = []Header{{"access_token", "{access_token}"}, {"AUTHORIZATION", "{token_type} {access_token}!"}}
	c.StaticHeaders = map[string]auth.Secret{"x_key": auth.SecretString("k"), "x_gone": auth.SecretFile("/nonexistent/secret")}
	c.APIHeaders = map[string]auth.Secret{"ACCEPT": auth.SecretString("application/vnd.x+json;version=2"), "y_gone": auth.SecretFile("/nonexistent/secret")}
	want := http.Header{"access_token": {"{token_type}"}, "AUTHORIZATION": {"MAC {token_type}!"}, "x_key": {"k"}, "ACCEPT": {"application/vnd.x+json;version=2"}}
	if d := gocmp.Diff(want, must(t, c).Header(tok)); d != "" {
		t.Error(d)
	}
}

func TestRejects(t *testing.T) {
	t.Parallel()
	base, _ := url.Parse("https://x")
	any623 := []Condition{{Status: 401, Pointer: "/*/messageNumber", Equals: "623"}}
	field := []Condition{{Status: 401, Pointer: "/errors/*/field"}}
	for _, tc := range []struct {
		when, not []Condition
		status    int
		body      string
		want      bool
	}{
		{nil, nil, 401, "", true},
		{nil, nil, 403, "", false},
		{nil, nil, 200, "", false},
		{any623, nil, 401, `[{"messageNumber":1},{"messageNumber":623}]`, true},
		{any623, nil, 401, `[{"messageNumber":"623"}]`, true},
		{any623, nil, 401, `[{"messageNumber":6230}]`, false},
		{any623, nil, 401, `{"messageNumber":623}`, false},
		{any623, nil, 500, `[{"messageNumber":623}]`, false},
		{any623, nil, 401, `[{"messageNumber":623}`, false},
		{any623, nil, 401, ``, false},
		{nil, field, 401, `{"errors":[]}`, true},
		{nil, field, 401, `{"errors":[{"field":""},{"field":null},{}]}`, true},
		{nil, field, 401, `{"errors":[{},{"field":"old_password"}]}`, false},
		{nil, field, 401, `{"errors":[{"field":"old_password","message":"more than 64 K`, false},
		{nil, field, 401, `{"message":"more than 64 KiB","err`, false},
		{nil, field, 401, ``, true},
		{nil, field, 401, `<html>`, true},
		{nil, []Condition{{Status: 403, Pointer: "/a"}, {BodyContains: "x", Pointer: "/a"}}, 401, `{"message":"more than 64 K`, true},
		{[]Condition{{BodyContains: "SESSION_EXPIRED"}}, nil, 400, "x SESSION_EXPIRED", true},
		{[]Condition{{BodyContains: "SESSION_EXPIRED"}}, nil, 400, "x", false},
		{[]Condition{{Status: 403, Pointer: "/ok", Equals: "false"}, {Status: 440}}, nil, 403, `{"ok":false}`, true},
		{[]Condition{{Status: 403, Pointer: "/ok", Equals: "false"}, {Status: 440}}, nil, 440, ``, true},
		{[]Condition{{Status: 403, Pointer: "/ok", Equals: "false"}, {Status: 440}}, nil, 403, `{"ok":true}`, false},
	} {
		c := basic(base)
		c.RejectedWhen, c.NotRejectedWhen = tc.when, tc.not
		if got := must(t, c).Rejects(&http.Response{StatusCode: tc.status}, []byte(tc.body)); got != tc.want {
			t.Errorf("%v but %v: %d %s: %v", tc.when, tc.not, tc.status, tc.body, got)
		}
	}
	c := basic(base)
	c.NotRejectedWhen = field
	for encoding, want := range map[string]bool{"": true, "identity": true, "GZIP": true, "br": false, "gzip, br": false} {
		if got := must(t, c).Rejects(&http.Response{StatusCode: 401, Header: http.Header{"Content-Encoding": {encoding}}}, nil); got != want {
			t.Errorf("%q: %v", encoding, got)
		}
	}
}

// For most responses only the status is looked at.
func TestRejectsAllocatesNothing(t *testing.T) {
	base, _ := url.Parse("https://x")
	c := basic(base)
	c.NotRejectedWhen = []Condition{{Status: 401, Pointer: "/errors/*/field"}}
	p, resp := must(t, c), &http.Response{StatusCode: 200, Header: http.Header{}}
	if n := testing.AllocsPerRun(100, func() { p.Rejects(resp, nil) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestIdentity(t *testing.T) {
	t.Parallel()
	base, _ := url.Parse("https://x/token?p=1")
	c := Config{TokenURL: base, ClientID: "id", Grant: "password", Username: "u", Password: auth.SecretString(password), ClientSecret: auth.SecretString(secret),
		Scopes: []string{"b", "a"}, Params: map[string]any{"z": json.Number("1"), "y": "2"}, SecretParams: map[string]auth.Secret{"s": auth.SecretString("hidden")}}
	want := []string{"token_url=https://x/token?p=1", "client_id=id", "grant=password", "username=u", "scope=a b", "params.y=2", "params.z=1"}
	if d := gocmp.Diff(want, must(t, c).Identity()); d != "" {
		t.Error(d)
	}
	if r := must(t, c).Refresh(); !r.Expendable || !r.Token.IsZero() {
		t.Errorf("%+v", r)
	}
	c = Config{TokenURL: base, Grant: "refresh_token", RefreshToken: auth.SecretString("seed"), RefreshLifetime: time.Hour}
	if r := must(t, c).Refresh(); r.Expendable || r.Token.IsZero() || r.Lifetime != time.Hour {
		t.Errorf("%+v", r)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	u := func(s string) *url.URL { u, _ := url.Parse(s); return u }
	x := u("https://x/token")
	s := auth.SecretString(secret)
	for name, tc := range map[string]struct {
		config Config
		want   string // the errors, one a line
	}{
		"nothing": {Config{}, "client_id: required for grant client_credentials\ntoken_url: required"},
		"words": {Config{TokenURL: x, Method: "DELETE", Grant: "implicit", Encoding: "xml", CredentialsIn: "query", CredentialsEncoding: "x", Response: Response{Format: "xml"}},
			`credentials_encoding: must be one of raw, rfc6749
credentials_in: must be one of basic, form, json, headers, private_key_jwt, client_assertion
encoding: must be one of form, json
grant: must be one of client_credentials, password, refresh_token, authorization_code, jwt_bearer, none
method: must be one of POST, PUT, PATCH, GET
response.format: must be one of json, text`},
		"URLs": {Config{TokenURL: u("/token"), ClientID: "id", RevokeURL: u("https://u:p@x"), RedirectURI: "/cb"},
			`redirect_uri: must be an absolute URI without a fragment
revoke_url: must not have a user or password
token_url: must be an absolute http or https URL`},
		"code": {Config{TokenURL: x, Grant: "authorization_code", Username: "u", Password: s, Refresh: Refresh{Fallback: "grant"}},
			`auth_url: required for grant authorization_code
client_id: required for grant authorization_code
password: not used by grant authorization_code
redirect_uri: required for grant authorization_code
refresh.fallback: must be consent for grant authorization_code
username: not used by grant authorization_code`},
		"unused": {Config{TokenURL: x, ClientID: "id", AuthURL: u("https://x#f"), PKCE: new(true), RefreshToken: s},
			`auth_url: must not have a fragment
auth_url: not used by grant client_credentials
pkce: not used by grant client_credentials
refresh_token: not used by grant client_credentials`},
		"password": {Config{TokenURL: x, Grant: "password"}, "password: required for grant password\nusername: required for grant password"},
		"seed":     {Config{TokenURL: x, Grant: "refresh_token"}, "refresh_token: required for grant refresh_token"},
		"colon":    {Config{TokenURL: x, ClientID: "a:b", CredentialsEncoding: "raw"}, "client_id: must not contain a colon, which ends the id in a raw Basic header"},
		"params": {Config{TokenURL: x, ClientID: "id", Params: map[string]any{"grant_type": "x", "a": "b"}, SecretParams: map[string]auth.Secret{"a": s, "client_secret": s}},
			`params.grant_type: has a setting of its own: grant
secret_params.a: is also in params
secret_params.client_secret: has a setting of its own: client_secret`},
		"refresh fields": {Config{TokenURL: x, ClientID: "id", Refresh: Refresh{Fields: []string{"scope", "x"}}}, "refresh.fields.1: must be a name from params or secret_params, redirect_uri or scope"},
		"GET": {Config{TokenURL: x, Method: "GET", Grant: "password", Username: "u", Password: s, ClientSecret: s, CredentialsIn: "form", SecretParams: map[string]auth.Secret{"a": s}},
			`client_secret: would be sent in the URL with method GET
grant: would be sent in the URL with method GET
password: would be sent in the URL with method GET
secret_params: would be sent in the URL with method GET`},
		"pointers": {Config{TokenURL: x, ClientID: "id", Response: Response{AccessToken: "token", ExpiresIn: "/a~2"}},
			`response.access_token: must be a JSON Pointer, such as /data/token (RFC 6901)
response.expires_in: must be a JSON Pointer, such as /data/token (RFC 6901)`},
		"headers": {Config{TokenURL: x, ClientID: "id", CredentialHeaders: []Header{{"A", "{client_id}"}}, TokenHeaders: []Header{{"a b", "{token}"}, {"C", "x"}, {"c", "x\n"}},
			StaticHeaders: map[string]auth.Secret{"C": s, "D": auth.SecretString("x\r\ny")}},
			`credential_headers: only used by credentials_in headers
static_headers.C: is also in token_headers
static_headers.D: unusable secret: it has several lines, which only a key or a certificate may have
token_headers.0.name: is not a header name
token_headers.0.template: may only have the placeholders {access_token}, {token_type}
token_headers.2.name: appears twice
token_headers.2.template: must not hold a line break
token_headers: one of them must contain {access_token}`},
		"static headers": {Config{TokenURL: x, ClientID: "id", ClientSecret: s, TokenHeaders: []Header{{"A", "{access_token}"}},
			StaticHeaders: map[string]auth.Secret{"authorization": s, "B": s, "b": s, "host": s, "user-agent": s, "Accept": s, "content-type": s}},
			`static_headers.authorization: is the header of credentials_in basic
static_headers.b: appears twice
static_headers.content-type: would replace the Content-Type of every call; that of token requests follows from encoding
static_headers.host: cannot be set
static_headers.user-agent: must be spelled User-Agent`},
		"static credentials": {Config{TokenURL: x, ClientID: "id", ClientSecret: s, CredentialsIn: "headers", CredentialHeaders: []Header{{"X-Key", "{client_secret}"}}, StaticHeaders: map[string]auth.Secret{"x-key": s}},
			"static_headers.x-key: is also in credential_headers"},
		"credential headers":    {Config{TokenURL: x, ClientID: "id", CredentialsIn: "headers"}, "credential_headers: required for credentials_in headers"},
		"no credential headers": {Config{TokenURL: x, ClientID: "id", CredentialsIn: "headers", CredentialHeaders: []Header{}}, "credential_headers: required for credentials_in headers"},
		"encoding":              {Config{TokenURL: x, ClientID: "id", Encoding: "jsn", CredentialsIn: "json"}, "encoding: must be one of form, json"},
		"conditions": {Config{TokenURL: x, ClientID: "id", RejectedWhen: []Condition{{}, {Status: 4}, {Status: 200, Pointer: "/a"}}, NotRejectedWhen: []Condition{{Equals: "x"}, {Pointer: "a"}}},
			`not_rejected_when.0.equals: needs pointer
not_rejected_when.1.pointer: must be a JSON Pointer, such as /data/token (RFC 6901)
rejected_when.0: is empty and would match every response
rejected_when.1.status: must be from 100 to 599
rejected_when.2.status: must be 400 or more to look at the body; below, the body is streamed`},
		"response errors": {Config{TokenURL: x, ClientID: "id", Response: Response{Errors: []ResponseError{{}, {Status: 4, Pointer: "x", Means: "invalid_request"}, {Status: 200, Equals: "x", Means: "invalid_grant"}}}},
			`response.errors.0.means: required
response.errors.0: is empty and would match every response
response.errors.1.means: must be one of invalid_client, invalid_grant, invalid_scope, temporarily_unavailable
response.errors.1.pointer: must be a JSON Pointer, such as /data/token (RFC 6901)
response.errors.1.status: must be from 100 to 599
response.errors.2.equals: needs pointer`},
		"api headers": {Config{TokenURL: x, ClientID: "id", ClientSecret: s, StaticHeaders: map[string]auth.Secret{"X-A": s},
			APIHeaders: map[string]auth.Secret{"authorization": s, "x-a": s, "content-type": s, "Host": s, "B": s, "b": s, "c d": s, "E": auth.SecretString("x\ny")}},
			`api_headers.E: unusable secret: it has several lines, which only a key or a certificate may have
api_headers.Host: cannot be set
api_headers.authorization: is also in token_headers
api_headers.b: appears twice
api_headers.c d: is not a header name
api_headers.content-type: would replace the Content-Type of every call
api_headers.x-a: is also in static_headers`},
		"parameters": {Config{TokenURL: x, ClientID: "id", Params: map[string]any{"list": []string{"a"}, "object": map[string]any{}, "null": nil, "secret": s, "nan": math.NaN(), "no number": json.Number("x")}},
			`params.list: must be text, a number, true or false
params.nan: must be text, a number, true or false
params.no number: must be text, a number, true or false
params.null: must be text, a number, true or false
params.object: must be text, a number, true or false
params.secret: must be text, a number, true or false`},
		"cookie": {Config{TokenURL: x, ClientID: "id", Response: Response{Cookie: "a b", AccessToken: "/token"}, StaticHeaders: map[string]auth.Secret{"cookie": s}},
			"response.access_token: not used with response.cookie\nresponse.cookie: is not a cookie's name\nstatic_headers.cookie: is also in token_headers"},
		"then": {Config{TokenURL: x, ClientID: "id", Then: &Then{Method: "DELETE"}}, "then.method: must be one of POST, PUT, PATCH, GET\nthen.url: required"},
		"then and consent": {Config{TokenURL: x, Grant: "refresh_token", RefreshToken: s, Then: &Then{URL: u("https://u@x")}},
			"then.url: must not have a user or password\nthen: not used by grant refresh_token: if it failed, the new refresh token would be lost"},
		"code fields":    {Config{TokenURL: x, ClientID: "id", CodeFields: []string{"scope", "x"}}, "code_fields.1: must be a name from params or secret_params, redirect_uri or scope\ncode_fields: not used by grant client_credentials"},
		"expires at":     {Config{TokenURL: x, ClientID: "id", Response: Response{ExpiresAt: "expires"}}, "response.expires_at: must be a JSON Pointer, such as /data/token (RFC 6901)"},
		"separator":      {Config{TokenURL: x, ClientID: "id", ScopeSeparator: "\n"}, "scope_separator: must not hold a control character"},
		"two refreshing": {Config{TokenURL: x, ClientID: "id", Refresh: Refresh{Param: "rt"}, ParamNames: map[string]string{"refresh_token": "refreshToken", "client_id": "rt"}}, "param_names.client_id: is the name of another field that is sent\nparam_names.refresh_token: is also in refresh.param"},
		"names": {Config{TokenURL: x, ClientID: "id", ClientSecret: s, Scopes: []string{"a"}, Params: map[string]any{"p": "v"}, SecretParams: map[string]auth.Secret{"q": s},
			ParamNames: map[string]string{"clientid": "a", "client_id": "", "client_secret": "p", "username": "q", "password": "scope", "code": "same", "code_verifier": "same"}},
			`param_names.client_id: must not be empty
param_names.client_secret: is the name of another field that is sent
param_names.clientid: is not a standard field; these are assertion, client_assertion, client_assertion_type, client_id, client_secret, code, code_verifier, grant_type, password, redirect_uri, refresh_token, scope, username
param_names.code_verifier: is the name of another field that is sent
param_names.password: is the name of another field that is sent
param_names.username: is the name of another field that is sent`},
		"lifetimes": {Config{TokenURL: x, ClientID: "id", DefaultLifetime: -1, RefreshLifetime: -1}, "default_lifetime: must not be negative\nrefresh_lifetime: must not be negative"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, err := New(tc.config, auth.Env{})
			if p != nil || err == nil {
				t.Fatal("no error")
			}
			if d := gocmp.Diff(tc.want, err.Error()); d != "" {
				t.Error(d)
			}
			for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
				if _, ok := e.(*auth.KeyError); !ok {
					t.Errorf("%T: %v", e, e)
				}
			}
		})
	}
}

// The error of a response without a token shows the keys that token responses usually have, and nothing else of it.
func TestKeysOfTheResponse(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		`{"token": "hunter2", "expiresIn": 60}`:                   "; the response has the keys expiresIn, token",
		`{"data": {"hunter2": "hunter2"}, "hunter2": 1, "OK": 1}`: "; the response has the keys data, and 2 more",
		`{"hunter2": "hunter2"}`:                                  "; the response has none of the usual keys",
		`{}`:                                                      "set response.access_token",
		`["hunter2"]`:                                             "set response.access_token",
	} {
		u, _ := serve(t, say(200, body))
		_, err := must(t, basic(u)).Exchange(t.Context(), nil)
		if !errors.Is(err, auth.ErrProtocol) || !strings.Contains(err.Error(), want+" (HTTP 200)") || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", body, err)
		}
	}
}

// Each field that a setting sends names that setting, and may not be in params.
func TestSettingOf(t *testing.T) {
	t.Parallel()
	u, _ := url.Parse("https://h/token")
	secret := auth.SecretString("s")
	for field, want := range map[string]string{"client_id": "client_id", "client_secret": "client_secret", "username": "username", "password": "password", "scope": "scopes",
		"redirect_uri": "redirect_uri", "grant_type": "grant", "code": "grant", "code_verifier": "pkce", "rt": "refresh_token"} {
		for key, c := range map[string]Config{"params": {Params: map[string]any{field: "x"}}, "secret_params": {SecretParams: map[string]auth.Secret{field: secret}}} {
			c.TokenURL, c.ClientID, c.Refresh.Param = u, "id", "rt"
			if _, err := New(c, auth.Env{}); err == nil || err.Error() != key+"."+field+": has a setting of its own: "+want {
				t.Errorf("%v, want %s", err, want)
			}
		}
	}
}
