package providers_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/oauth2"
	"gopkg.in/yaml.v3"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/providers"
	"github.com/itsmauth/itsmauth/providers/beyondtrust"
	"github.com/itsmauth/itsmauth/providers/generic"
	"github.com/itsmauth/itsmauth/providers/remedy"
	"github.com/itsmauth/itsmauth/providers/static"
	"github.com/itsmauth/itsmauth/providers/webcommander"
)

func TestAll(t *testing.T) {
	t.Parallel()
	var names []string
	for _, d := range providers.All() {
		if d.Preset() == nil {
			names = append(names, d.Name())
		}
	}
	if want := []string{"beyondtrust", "oauth2", "remedy", "static", "webcommander"}; !slices.Equal(names, want) {
		t.Errorf("%v, want %v", names, want)
	}
	sorted := slices.IsSortedFunc(providers.All(), func(a, b providers.Definition) int { return strings.Compare(a.Name(), b.Name()) })
	if !sorted || len(providers.All()) == len(names) {
		t.Errorf("not sorted, or no presets: %v", providers.All())
	}
	for _, d := range providers.All() {
		p, err := d.New(func(any) error { return nil }, auth.Env{})
		var key *auth.KeyError
		if p != nil || !errors.As(err, &key) {
			t.Errorf("%s without settings: %v, %v", d.Name(), p, err)
		}
	}
}

// TestDefaults checks that setting each field to the default in its tag makes no difference.
func TestDefaults(t *testing.T) {
	t.Parallel()
	u, _ := url.Parse("https://product.example.com")
	secret := auth.SecretString("x")
	var say func(v reflect.Value) int
	say = func(v reflect.Value) (n int) {
		for i := range v.NumField() {
			f, text := v.Field(i), v.Type().Field(i).Tag.Get("default")
			if text != "" {
				n++
				if err := yaml.Unmarshal([]byte(text), f.Addr().Interface()); err != nil {
					t.Error(err)
				}
			} else if f.Kind() == reflect.Struct && f.Type() != reflect.TypeFor[auth.Secret]() {
				n += say(f)
			}
		}
		return n
	}
	for _, d := range providers.All() {
		if d.Preset() != nil {
			continue // its settings are an engine's
		}
		made := func(decode func(into any) error) auth.Provider {
			p, err := d.New(decode, auth.Env{BaseURL: u})
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		decode := func(into any) error {
			switch c := into.(type) {
			case *beyondtrust.Config:
				c.ClientID, c.ClientSecret = "id", secret
			case *generic.Config:
				c.TokenURL, c.ClientID, c.ClientSecret = u, "id", secret
			case *remedy.Config:
				c.SSOURL, c.ClientID, c.ClientSecret, c.RedirectURI = u, "id", secret, "http://127.0.0.1/cb"
			case *static.Config:
				c.Password = secret
			case *webcommander.Config:
				c.ClientID, c.ClientSecret, c.RedirectURI, c.Username, c.Password = "id", secret, "https://x/cb", "u", secret
			}
			return nil
		}
		said := 0
		with := made(func(into any) error {
			decode(into)
			said = say(reflect.ValueOf(into).Elem())
			return nil
		})
		all := cmp.Exporter(func(reflect.Type) bool { return true })
		secrets := cmp.Comparer(func(a, b auth.Secret) bool { return a.IsZero() == b.IsZero() })
		if diff := cmp.Diff(made(decode), with, all, secrets); diff != "" {
			t.Errorf("%s -without +with\n%s", d.Name(), diff)
		}
		if want := map[string]int{"oauth2": 17, "remedy": 5, "static": 1, "webcommander": 1}[d.Name()]; said != want {
			t.Errorf("%s says %d defaults, want %d", d.Name(), said, want)
		}
	}
}

// Secrets that must never be shown. All but the one with + / = & % look like an error code.
const (
	secretCanary   = "canary-s3cret"
	passwordCanary = "canary-passw0rd"
	paramCanary    = "canary+p/a=r&a%m"
	refreshCanary  = "canary-r3fresh"
	tokenCanary    = "canary-acc3ss"
	codeCanary     = "canary-c0de"
	verifierCanary = "canary-verifi3r"
	queryCanary    = "canary-query"
)

type outcome func(*http.Request, string) (*http.Response, error)

// answered returns a response that contains everything that was sent.
func answered(status int, format string) outcome {
	return func(r *http.Request, sent string) (*http.Response, error) {
		body := strings.ReplaceAll(format, "SENT", sent)
		h := http.Header{"Location": {"https://elsewhere.example/?" + queryCanary}, "Www-Authenticate": {sent}, "Retry-After": {sent}}
		return &http.Response{StatusCode: status, Status: sent, Header: h, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
	}
}

// outcomes returns everything that can go wrong with a request. codes are the possible error codes.
func outcomes(codes ...string) map[string]outcome {
	all := map[string]outcome{
		"network": func(_ *http.Request, sent string) (*http.Response, error) { return nil, errors.New(sent) },
		"eof":     func(*http.Request, string) (*http.Response, error) { return nil, io.EOF },
		"body": func(r *http.Request, sent string) (*http.Response, error) {
			body := io.MultiReader(strings.NewReader(sent), errorReader{errors.New(sent)})
			return &http.Response{StatusCode: 200, Body: io.NopCloser(body), Request: r}, nil
		},
		"location": func(r *http.Request, sent string) (*http.Response, error) {
			h := http.Header{"Location": {"http://[" + sent}}
			return &http.Response{StatusCode: 302, Header: h, Body: http.NoBody, Request: r}, nil
		},
	}
	for _, status := range []int{200, 201, 204, 302, 307, 400, 401, 403, 404, 405, 408, 418, 429, 500, 503} {
		for i, format := range []string{"", "SENT", "<html>SENT</html>", `{"access_token":{"x":"SENT"}}`, `{"error":"SENT","error_description":"SENT"}`, `{"access_token":"\u0001SENT"}`} {
			all[fmt.Sprint(status, " ", i)] = answered(status, format)
		}
		if status/100 == 3 || status > 401 && status < 500 {
			continue // the code has no effect
		}
		for _, code := range codes {
			all[fmt.Sprint(status, " ", code)] = answered(status, `[{"messageNumber":"`+code+`"}]`)
			all[fmt.Sprint(status, " error ", code)] = answered(status, `{"error":"`+code+`","error_description":"SENT","errors":[{"field":"SENT"}]}`)
		}
	}
	return all
}

type errorReader struct{ err error }

func (e errorReader) Read([]byte) (int, error) { return 0, e.err }

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

type connection struct {
	auth.Provider
	secrets []string
}

func configured(t *testing.T) map[string]connection {
	t.Helper()
	all := make(map[string]connection)
	add := func(name string, p auth.Provider, err error, secrets ...string) {
		if err != nil {
			t.Fatal(name, err)
		}
		all[name] = connection{p, slices.Clip(secrets)}
	}
	base, _ := url.Parse("https://product.example.com")
	env, secret, password := auth.Env{BaseURL: base}, auth.SecretString(secretCanary), auth.SecretString(passwordCanary)
	p, err := beyondtrust.New(beyondtrust.Config{ClientID: "id", ClientSecret: secret}, env)
	add("beyondtrust", p, err, secretCanary)
	for _, in := range []string{"form", "basic"} {
		p, err = remedy.New(remedy.Config{SSOURL: base, ClientID: "id", ClientSecret: secret, RedirectURI: "http://127.0.0.1/cb", PKCE: true, CredentialsIn: in, RefreshToken: auth.SecretString(refreshCanary)}, env)
		add("remedy "+in, p, err, secretCanary, refreshCanary)
	}
	p, err = remedy.New(remedy.Config{Grant: "ar_jwt", Username: "u", Password: password}, env)
	add("ar_jwt", p, err, passwordCanary)
	p, err = webcommander.New(webcommander.Config{ClientID: "id", ClientSecret: secret, RedirectURI: "https://x/cb", Username: "u", Password: password}, env)
	add("webcommander", p, err, secretCanary, passwordCanary)
	p, err = webcommander.New(webcommander.Config{ClientID: "id", ClientSecret: secret, RedirectURI: "https://x/cb",
		AuthString: auth.SecretString(base64.StdEncoding.EncodeToString([]byte("u:" + passwordCanary)))}, env)
	add("webcommander auth_string", p, err, secretCanary, passwordCanary)
	token := *base
	token.RawQuery = "q=" + queryCanary
	for _, in := range []string{"form", "basic"} {
		p, err = generic.New(generic.Config{TokenURL: &token, RevokeURL: &token, ClientID: "id", ClientSecret: secret, Grant: "password", Username: "u", Password: password,
			CredentialsIn: in, SecretParams: map[string]auth.Secret{"k": auth.SecretString(paramCanary)}}, env)
		add("oauth2 "+in, p, err, secretCanary, passwordCanary, paramCanary)
	}
	return all
}

// TestCanaries fails every request of every provider in every way, with responses that contain everything
// that was sent, and checks the errors in every form.
func TestCanaries(t *testing.T) {
	t.Parallel()
	canaries := []string{"u:" + passwordCanary, "id:" + secretCanary}
	for _, c := range []string{secretCanary, passwordCanary, paramCanary, refreshCanary, tokenCanary, codeCanary, verifierCanary, queryCanary} {
		canaries = append(canaries, c, url.QueryEscape(c))
	}
	var hidden []string
	for _, c := range canaries {
		hidden = append(hidden, strings.ToLower(c), hex.EncodeToString([]byte(c)), strings.ToLower(base64.StdEncoding.EncodeToString([]byte(c))))
	}
	tok := &oauth2.Token{AccessToken: tokenCanary, RefreshToken: refreshCanary}
	for name, c := range configured(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			failures := 0
			codes := append(c.secrets, refreshCanary, tokenCanary, "x."+refreshCanary+".y", tokenCanary[:9], "invalid_client", "invalid_grant", "invalid_request")
			ops := map[string]func(context.Context) error{
				"exchange": func(ctx context.Context) error { _, err := c.Exchange(ctx, nil); return err },
				"refresh":  func(ctx context.Context) error { _, err := c.Exchange(ctx, tok); return err },
				"revoke":   func(ctx context.Context) error { return c.Provider.(auth.Revoker).Revoke(ctx, tok) },
			}
			if flow := c.Provider.(auth.Consenter).CodeFlow(); flow != nil {
				ops["login"] = func(ctx context.Context) error {
					_, err := flow.Redeem(ctx, codeCanary, verifierCanary)
					return err
				}
			}
			for op, do := range ops {
				codes := codes
				switch op { // an endpoint can only echo what it has received
				case "exchange":
					codes = append(c.secrets, "invalid_client", "invalid_grant")
				case "login":
					codes = append(c.secrets, codeCanary, verifierCanary, "invalid_grant")
				}
				for how, answer := range outcomes(codes...) {
					client := &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
						body, _ := io.ReadAll(r.Body)
						sent := fmt.Sprint(r.URL, r.Header, string(body), " ", strings.Join(canaries, " "))
						return answer(r, strings.NewReplacer(`"`, `'`, "\n", " ").Replace(sent))
					})}
					err := do(context.WithValue(t.Context(), oauth2.HTTPClient, client))
					if err == nil {
						continue // such as a revocation with status 200
					}
					failures++
					shown := strings.ToLower(show(err))
					for _, h := range hidden {
						if strings.Contains(shown, h) {
							t.Errorf("%s, %s: %q in %v", op, how, h, err)
						}
					}
				}
			}
			if failures < 200 {
				t.Errorf("only %d failures were looked at", failures)
			}
			shown := strings.ToLower(fmt.Sprintf("%v %+v %#v %s", c.Provider, c.Provider, c.Provider, c.Provider.(auth.Identifier).Identity()))
			for _, h := range hidden {
				if strings.Contains(shown, h) && h != queryCanary { // which is part of the identity
					t.Errorf("%q in %s", h, shown)
				}
			}
		})
	}
}

// show returns err, and the errors it wraps, in every format.
func show(err error) string {
	var b bytes.Buffer
	slog.New(slog.NewTextHandler(&b, nil)).Error("failed", "err", err)
	slog.New(slog.NewJSONHandler(&b, nil)).Error("failed", "err", err)
	func() {
		defer func() { fmt.Fprint(&b, recover()) }()
		panic(err)
	}()
	var walk func(error)
	walk = func(err error) {
		if err == nil {
			return
		}
		fmt.Fprintf(&b, "%v %+v %#v %d %s %q %x %X\n", err, err, err, err, err, err, err, err)
		if j, e := json.Marshal(err); e == nil {
			b.Write(j)
		}
		if y, e := yaml.Marshal(err); e == nil {
			b.Write(y)
		}
		switch err := err.(type) {
		case interface{ Unwrap() error }:
			walk(err.Unwrap())
		case interface{ Unwrap() []error }:
			for _, e := range err.Unwrap() {
				walk(e)
			}
		}
	}
	walk(err)
	return b.String()
}
