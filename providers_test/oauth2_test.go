package providers_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/authtest"
	"github.com/itsmauth/itsmauth/config"
	"github.com/itsmauth/itsmauth/providers"
	bt "github.com/itsmauth/itsmauth/providers/beyondtrust"
	"github.com/itsmauth/itsmauth/providers/generic"
	rsso "github.com/itsmauth/itsmauth/providers/remedy"
	"github.com/itsmauth/itsmauth/providers/remedy/remedytest"
	wc "github.com/itsmauth/itsmauth/providers/webcommander"
	"github.com/itsmauth/itsmauth/providers/webcommander/webcommandertest"
)

// oauth2Keys are the keys of provider: oauth2 for each product. An empty one is removed.
var oauth2Keys = map[string]map[string]string{
	"beyondtrust": {
		"token_url":            "BASE/oauth2/token",
		"credentials_encoding": "raw",
		"rejected_when":        "[{status: 401, pointer: /error, equals: access_denied}]",
		"transport":            "{connection: close, rate_limits: [{requests: 20, per: 1s}, {requests: 15000, per: 1h}]}",
	},
	"remedy": {
		"sso_url":          "",
		"auth_url":         "SSO/oauth2/authorize",
		"token_url":        "SSO/oauth2/token",
		"revoke_url":       "SSO/oauth2/revoke",
		"grant":            "authorization_code",
		"credentials_in":   "form",
		"pkce":             "false",
		"refresh_lifetime": "1440h",
		"rejected_when":    "[{status: 401, pointer: /*/messageNumber, equals: '623'}]",
	},
	"remedy-ar_jwt": {
		"token_url":     "BASE/api/jwt/login",
		"revoke_url":    "BASE/api/jwt/logout",
		"grant":         "none",
		"response":      "{format: text, error: /0/messageNumber}",
		"token_headers": "[{name: Authorization, template: 'AR-JWT {access_token}'}]",
		"rejected_when": "[{status: 401, pointer: /*/messageNumber, equals: '623'}]",
	},
	"webcommander": {
		"username":          "",
		"password":          "",
		"token_url":         "BASE/api/v4/oauth2/token",
		"encoding":          "json",
		"credentials_in":    "json",
		"secret_params":     "{auth_string: AUTH_STRING}",
		"refresh":           "{fields: [redirect_uri]}",
		"token_headers":     "[{name: access_token, template: '{access_token}'}]",
		"not_rejected_when": "[{status: 401, pointer: /errors/*/field}]",
	},
}

// asOAuth2 changes the keys of p's own provider to those of provider: oauth2.
func (p *product) asOAuth2(keys map[string]string) {
	keys["provider"] = "oauth2"
	user := p.settings["username"] + ":" + p.settings["password"]
	fill := strings.NewReplacer("BASE", p.url, "SSO", p.settings["sso_url"], "AUTH_STRING", base64.StdEncoding.EncodeToString([]byte(user)))
	for k, v := range oauth2Keys[p.kind()] {
		if keys[k] = fill.Replace(v); v == "" {
			delete(keys, k)
		}
	}
}

// merged returns the YAML map a with the keys of b.
func merged(a, b string) string {
	var m map[string]any
	for _, text := range []string{a, b} {
		if err := yaml.Unmarshal([]byte(text), &m); err != nil {
			panic(err)
		}
	}
	text, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// provider makes p's provider, by YAML.
func (p *product) provider(t *testing.T) (made auth.Provider) {
	t.Helper()
	parse(t, p.yaml("test"), noted("beyondtrust", bt.New, &made), noted("remedy", rsso.New, &made),
		noted("webcommander", wc.New, &made), noted("oauth2", generic.New, &made))
	return made
}

// noted notes the provider that New makes.
func noted[C any](name string, New func(C, auth.Env) (auth.Provider, error), made *auth.Provider) config.Option {
	return config.WithProvider(providers.Define(name, func(c C, env auth.Env) (p auth.Provider, err error) {
		p, err = New(c, env)
		*made = p
		return p, err
	}))
}

// TestConformance tests each provider against its product, and provider: oauth2 with settings for the product.
// The keys of a variant are for both, unless oauth2 has others.
func TestConformance(t *testing.T) {
	t.Parallel()
	sso := func(o remedytest.Options) func(*testing.T) *product {
		return func(t *testing.T) *product { return remedyWith(t, o) }
	}
	for name, v := range map[string]struct {
		start     func(*testing.T) *product
		own, both map[string]string
		oauth2    map[string]string
	}{
		"beyondtrust":       {start: beyondtrust},
		"remedy":            {start: remedy},
		"remedy with PKCE":  {start: sso(remedytest.Options{RequirePKCE: true}), both: map[string]string{"pkce": "true", "scopes": "[a, b]"}},
		"remedy v1.1":       {start: remedy, own: map[string]string{"oauth_version": "v1.1"}, oauth2: map[string]string{"token_url": "SSO/oauth2/v1.1/token"}},
		"remedy with Basic": {start: sso(remedytest.Options{Basic: true}), both: map[string]string{"credentials_in": "basic"}, oauth2: map[string]string{"credentials_encoding": "raw"}},
		"remedy 18.08": {start: sso(remedytest.Options{RefreshParam: "refreshToken"}),
			own: map[string]string{"refresh_param": "refreshToken"}, oauth2: map[string]string{"refresh": "{param: refreshToken}"}},
		"remedy ar_jwt": {start: arJWT},
		"webcommander":  {start: webcommander},
		"webcommander with Bearer": {start: func(t *testing.T) *product { return webcommanderWith(t, webcommandertest.Options{BearerToo: true}) },
			own: map[string]string{"token_header": "authorization"}, oauth2: map[string]string{"token_headers": "[{name: Authorization, template: 'Bearer {access_token}'}]"}},
	} {
		for _, p := range bothWays(t, v.start) {
			t.Run(name+p.way(), func(t *testing.T) {
				t.Parallel()
				p.more = map[string]string{}
				maps.Copy(p.more, v.both)
				special := v.own
				if p.oauth2 {
					special = v.oauth2
				}
				for k, text := range special {
					p.more[k] = strings.ReplaceAll(text, "SSO", p.settings["sso_url"])
				}
				if r := p.provider(t).(auth.Refresher).Refresh(); r.Expendable == (p.kind() == "remedy") || (r.Lifetime == 1440*time.Hour) != (p.kind() == "remedy") {
					t.Errorf("%+v", r)
				}
				authtest.TestProvider(t, p.provider, authtest.Product{
					Good: request("GET", p.url+p.path, ""), Refused: p.refused, Kill: p.kill, Secrets: p.secrets,
					Login: func(t *testing.T, page string) string {
						back, err := p.handler.(*remedytest.Server).Consent(page)
						if err != nil {
							t.Fatal(err)
						}
						return back.Query().Get("code")
					},
				})
			})
		}
	}
}

// What settings of oauth2 cannot say.
func TestNeedsCode(t *testing.T) {
	t.Parallel()
	// The AR System server's token is a JWT. Any other text that it sends with 200 is not a token.
	for _, p := range bothWays(t, arJWT) {
		p.breakAuth(func(w http.ResponseWriter, _ *http.Request) bool { io.WriteString(w, "OK"); return true })
		_, err := p.connect(t).Authenticator().Token(t.Context())
		if taken := err == nil; taken != p.oauth2 || !taken && !errors.Is(err, auth.ErrProtocol) {
			t.Errorf("%s: %v", p.id(), err)
		}
	}
	// WebCommander's user is in a secret, auth_string, and tells two credentials apart.
	for _, p := range bothWays(t, webcommander) {
		one := p.yaml("one")
		p.settings["username"], p.settings["password"] = "another", "another"
		_, err := config.Parse("itsmauth.yaml", []byte("version: 1\nconnectors:\n"+one+p.yaml("two")))
		if apart := err == nil; apart == p.oauth2 || err != nil && !strings.Contains(err.Error(), "account") {
			t.Errorf("%s: %v", p.id(), err)
		}
	}
}
