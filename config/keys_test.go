package config

import (
	"cmp"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
)

// What the comments do not say, by type and field or by key.
var (
	docs = map[string]string{
		"auth.Limit.Requests":     "How many requests each window allows.",
		"auth.Limit.Per":          "The length of the window.",
		"generic.Config.PKCE":     "Proof Key for Code Exchange, with S256 (RFC 7636). RFC 9700 recommends it for every client.",
		"generic.Config.Response": "Where the values are in the token response: JSON Pointers (RFC 6901), in which * is any element of an array.",
		"generic.Config.Refresh":  "How an access token is refreshed (RFC 6749 section 6).",

		"generic.Config.TokenHeaders": "token_headers carry the token in API calls. A template may contain {access_token} and {token_type}. With response.cookie the default is that cookie, and with dpop the default template is DPoP {access_token}.",
		"generic.Config.Then":         "One more request that the product wants before it accepts a new token, such as a sign-in: without a body, with the headers of API calls. If it fails, there is no token. API calls send the cookies that it sets. The grants that need a person do not have it.",

		"generic.Response.AccessToken":  "Where the access token is; \"\" if the whole response is a JSON string with the token.",
		"generic.Response.RefreshToken": "Where the refresh token is.",
		"generic.Response.ExpiresIn":    "Where the lifetime is. If the access token is a JWT that expires earlier, the JWT decides. A lifetime over ten years counts as absent.",
		"generic.Response.TokenType":    "Where the token's type is.",
		"generic.Response.Error":        "Where the error code is, or an object with a code.",

		"generic.Config.NotRejectedWhen": "API responses that do not reject the token, even if they match rejected_when.",
		"generic.Config.RejectedWhen":    "API responses that reject the token: those that match one of these conditions, and none of not_rejected_when.",

		"generic.Response.ExpiresInUnit": "The unit of expires_in: seconds or milliseconds.",
		"generic.Response.Format":        "format is json, whatever the Content-Type, or text if the body is the access token, with or without JSON's quotes, or a form with an access_token.",
		"generic.Response.Errors":        "What misleading error responses mean. The first entry that matches decides, before status and error code, with any status.",
		"generic.ResponseError.Pointer":  "A JSON Pointer into the body, in which * is any element of an array. Its value must be the text in equals; without equals it must be present, not null and not \"\".",
		"generic.ResponseError.Equals":   "The text that the value at pointer must be.",

		"jsonbody.Condition.Pointer": "A JSON Pointer into the body, in which * is any element of an array. Its value must be the text in equals; without equals it must be present, not null and not \"\".",
		"jsonbody.Condition.Equals":  "The text that the value at pointer must be.",

		"generic.Config.Assertion":      "How the JWTs are made for grant jwt_bearer and credentials_in private_key_jwt (RFC 7523). Each token request gets a new one, signed with the key as it is then. With both, issuer, subject and claims are of the grant's JWT; the client's has the client id for both.",
		"generic.Assertion.Claims":      "Further claims: text, numbers, true or false. They are part of the credential's identity.",
		"generic.Assertion.Certificate": "The key's certificate in PEM, also with its chain. Its SHA-256 thumbprint is the JWT's x5t#S256 (RFC 7515 section 4.1.8), by which Entra finds the key. It is read again, as the key is.",
		"generic.Assertion.Subject":     "The claim sub. The default is the client_id, but for grant jwt_bearer the username, if there is one.",
		"generic.Assertion.Algorithm":   "The algorithm of the signature (RFC 7518 section 3.1, RFC 8037 section 3.1). The default is the alg of a JSON Web Key, else RS256 for RSA, ES256, ES384 or ES512 for EC, and EdDSA for Ed25519.",

		"generic.Config.DPoP":     "Binds tokens to a key, so that a stolen token is of no use without it (RFC 9449). Token requests and API calls carry a proof, and the product has to issue tokens of the type DPoP. true makes an ES256 key and keeps it with the tokens in the token store.",
		"generic.DPoP.PrivateKey": "The key that signs the proofs: PEM (PKCS#1, PKCS#8 or SEC 1) or a JSON Web Key, not encrypted. The algorithm is the alg of a JSON Web Key, else RS256 for RSA, ES256, ES384 or ES512 for EC, and EdDSA for Ed25519. After a change, tokens of the old key are replaced when the product rejects them; a refresh token of a client without a secret is lost.",

		"generic.Header.Template":    "The header's value, with placeholders in braces.",
		"remedy.Config.ClientID":     "The OAuth client's id, as registered in Remedy SSO.",
		"remedy.Config.ClientSecret": "The OAuth client's secret.",
		"remedy.Config.Scopes":       "The scopes to request on the authorization page.",

		"beyondtrust.Config.ClientID":     "The API account's client id (Management > API Configuration).",
		"beyondtrust.Config.ClientSecret": "The API account's client secret. It is sent as it is, not URL-escaped.",

		"webcommander.Config.ClientID":     "The application's client id.",
		"webcommander.Config.ClientSecret": "The application's client secret.",
		"webcommander.Config.Username":     "The user's name; needs password.",
		"webcommander.Config.Password":     "The user's password.",

		"static.Config.Username":     "The username in a Basic header (RFC 7617), or a key that is sent as one. It may be empty, or missing.",
		"static.Config.Password":     "The password in a Basic header (RFC 7617). It may be empty, or missing.",
		"static.Config.Headers":      "The headers of each API call, with names spelled as here on HTTP/1.1.",
		"static.Config.RejectedWhen": "API responses that refuse the credentials. If a secret has changed since the request was made, the call is sent once more.",

		"tlsfile.Config.CAFile":             "A PEM file with the certificate authorities to trust instead of the system's.",
		"tlsfile.Config.CertFile":           "A PEM file with the client's certificate, read again at each handshake; needs key_file.",
		"tlsfile.Config.KeyFile":            "A PEM file with the key of cert_file.",
		"tlsfile.Config.ServerName":         "The name that the server's certificate must be for.",
		"tlsfile.Config.MinVersion":         "The oldest TLS version to accept.",
		"tlsfile.Config.InsecureSkipVerify": "Accept any certificate. The connection is then not secure; for tests only.",

		"transport.Retry.MaxAttempts":   "How many attempts a call may make, the first included.",
		"transport.Retry.MinBackoff":    "The first wait is random, up to this long. The limit doubles for each further wait.",
		"transport.Retry.MaxBackoff":    "The longest random wait.",
		"transport.Retry.MaxRetryAfter": "The longest Retry-After to wait for. If it is longer, the response is returned immediately.",
	}
	defaultValues = map[string]string{
		"config.transportConfig.Timeout":        "60s",
		"config.transportConfig.AttemptTimeout": "30s",
		"config.transportConfig.MaxReplayBody":  "1MiB",
		"config.transportConfig.MaxConcurrency": "0",
		"config.transportConfig.AllowHTTP":      "false",
		"config.transportConfig.UserAgent":      "itsmauth/VERSION",
		"config.transportConfig.RateLimits":     "the product's own",
		"config.transportConfig.Connection":     "the product's own",
		"config.transportConfig.Proxy":          "the environment's",
		"config.transportConfig.NoProxy":        "the environment's",
		"config.storeConfig.Encryption":         "aes-256-gcm with encryption_keys",
		"tlsfile.Config.CAFile":                 "the system's",
		"tlsfile.Config.ServerName":             "the URL's host",
		"tlsfile.Config.InsecureSkipVerify":     "false",
		"redisstore.Config.KeyPrefix":           `"itsmauth:"`,
		"transport.Retry.MaxAttempts":           "4",
		"transport.Retry.MinBackoff":            "500ms",
		"transport.Retry.MaxBackoff":            "30s",
		"transport.Retry.MaxRetryAfter":         "30s",
		"generic.Config.CredentialsIn":          "basic",
		"generic.Config.PKCE":                   "true without a client_secret, else false",
		"generic.Config.TokenHeaders":           `[{name: Authorization, template: "Bearer {access_token}"}]`,
		"generic.Config.NotRejectedWhen":        "none",
		"generic.Response.Errors":               "none",
		"generic.Config.DPoP":                   "false",
		"generic.DPoP.PrivateKey":               "made, and kept with the tokens",
		"generic.Assertion.KeyID":               "the kid of a JSON Web Key",
		"generic.Assertion.Algorithm":           "what the key is for",
		"generic.Assertion.Issuer":              "the client_id",
		"generic.Assertion.Subject":             "the username or the client_id",
		"generic.Assertion.Audience":            "the token_url",
		"generic.Config.ScopeSeparator":         `" "`,
		"remedy.Config.PKCE":                    "false",
	}
	exampleValues = map[string]string{
		"version": "1", "provider": "remedy", "base_url": "https://itsm.example.com:8443/api", "account": "team-a", "probe": "/api/ping",
		"early_refresh": "2m", "timeout": "90s", "attempt_timeout": "20s", "max_attempts": "6", "min_backoff": "250ms", "max_backoff": "1m",
		"max_retry_after": "1m", "max_replay_body": "512KiB", "rate_limits": "[{requests: 20, per: 1s}, {requests: 15000, per: 1h}]",
		"requests": "15000", "per": "1h", "max_concurrency": "8", "connection": "close", "ca_file": "/etc/itsmauth/ca.pem",
		"cert_file": "/etc/itsmauth/client.pem", "key_file": "/etc/itsmauth/client.key", "server_name": "itsm.internal", "min_version": "TLS13",
		"insecure_skip_verify": "true", "proxy_url": "http://proxy.example.com:3128", "no_proxy": "example.com, 10.0.0.0/8", "allowed_origins": "[https://files.example.com]",
		"allow_http": "true", "user_agent": "sync/2.1", "type": "file", "path": "/var/lib/itsmauth", "allow_writable_parents": "true", "encryption": "none",
		"encryption_keys": `["${env:ITSMAUTH_KEY}"]`, "url": "rediss://sync:${env:REDIS_PASSWORD}@redis.example.com:6379/0", "key_prefix": `"prod:"`,
		"client_id": "itsm-sync", "client_secret": "${file:/run/secrets/client_secret}", "username": "sync", "password": "${env:ITSM_PASSWORD}",
		"auth_string": "${env:WC_AUTH_STRING}", "redirect_uri": "http://127.0.0.1:8400/callback", "token_header": "authorization",
		"grant": "password", "sso_url": "https://sso.example.com/rsso", "scopes": "[read, write]", "refresh_token": "${file:/run/secrets/refresh_token}",
		"refresh_lifetime": "720h", "pkce": "true", "oauth_version": "v1.1", "credentials_in": "basic", "refresh_param": "refreshToken",
		"token_url": "https://login.example.com/oauth2/token", "auth_url": "https://login.example.com/oauth2/authorize?prompt=login",
		"revoke_url": "https://login.example.com/oauth2/revoke", "method": "PUT", "params": "{audience: https://api.example.com}",
		"secret_params": "{api_key: \"${env:API_KEY}\"}", "encoding": "json", "credentials_encoding": "raw", "default_lifetime": "30m",
		"credential_headers": `[{name: X-Client, template: "{client_id}:{client_secret}"}]`, "token_headers": `[{name: X-Token, template: "{access_token}"}]`,
		"static_headers": "{X-Gateway-Key: \"${env:GATEWAY_KEY}\"}", "rejected_when": "[{status: 403, pointer: /error, equals: expired}]",
		"not_rejected_when": "[{body_contains: quota}]", "format": "text", "access_token": "/data/token", "expires_in": "/data/ttl",
		"token_type": "/data/type", "error": "/fault/code", "param": "refreshToken", "fields": "[redirect_uri]", "fallback": "consent",
		"assertion": `{private_key: "${file:key.pem}", key_id: k1}`, "private_key": "${file:/run/secrets/key.pem}", "certificate": "${file:/etc/itsmauth/cert.pem}", "key_id": "k1",
		"algorithm": "PS256", "issuer": "itsm-sync", "subject": "sync@example.com", "audience": "https://login.example.com", "lifetime": "1m", "claims": "{tenant: acme}",
		"dpop":             "true",
		"client_assertion": "${file:/var/run/secrets/tokens/aad}",
		"name":             "X-Token", "template": `"Bearer {access_token}"`, "status": "401", "pointer": "/errors/*/code", "equals": "token_expired",
		"body_contains": "session expired", "expires_in_unit": "ms", "means": "invalid_grant",
		"errors":     "[{status: 401, pointer: /error_description, equals: access_denied, means: invalid_grant}]",
		"expires_at": "/data/expiry", "scope_separator": `","`, "param_names": "{client_id: clientId}", "code_fields": "[scope]",
		"api_headers": "{Accept: application/vnd.x+json}", "cookie": "ASP.NET_SessionId", "then": "{url: https://itsm.example.com/api/signin}",
		"headers": "{DD-API-KEY: \"${env:DD_API_KEY}\", DD-APPLICATION-KEY: \"${env:DD_APP_KEY}\"}",
	}
	exampleOf = map[string]string{
		"generic.Then.URL":              "https://itsm.example.com/api/signin",
		"generic.Response.RefreshToken": "/data/refresh", "generic.Config.CredentialsIn": "form", "remedy.Config.Grant": "ar_jwt",
		"static.Config.Username": "${env:DESK_KEY}",
	}
)

// TestKeys checks that keys.json has what the comments of the sources say.
func TestKeys(t *testing.T) {
	t.Parallel()
	found := map[string]annotations{}
	for _, dir := range []string{"auth", "auth/filestore", "auth/redisstore", "config", "internal/jsonbody", "internal/tlsfile", "transport",
		"providers/generic", "providers/beyondtrust", "providers/remedy", "providers/static", "providers/webcommander"} {
		sources, err := filepath.Glob(filepath.Join("..", filepath.FromSlash(dir), "*.go"))
		if err != nil || len(sources) == 0 {
			t.Fatal(dir, err)
		}
		for _, name := range sources {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				if spec, ok := n.(*ast.TypeSpec); ok {
					if st, ok := spec.Type.(*ast.StructType); ok {
						comments(found, dir, spec.Name.Name, st)
					}
				}
				return true
			})
		}
	}
	for _, table := range []map[string]string{docs, defaultValues, exampleOf} {
		for key := range table {
			if !slices.ContainsFunc(slices.Collect(maps.Keys(found)), func(k string) bool { return strings.HasSuffix(k, "/"+key) || k == key }) {
				t.Errorf("there is no %s any more", key)
			}
		}
	}
	got, err := json.MarshalIndent(found, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	if *update {
		if err := os.WriteFile("keys.json", got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := gocmp.Diff(string(keysJSON), string(got)); diff != "" {
		t.Errorf("run go generate ./config\n-have +want\n%s", diff)
	}
}

var (
	links      = regexp.MustCompile(`\[\*?([\w./]+)\]`)
	theDefault = regexp.MustCompile(`The default is ([^.,]+)[.,]`)
)

// annotations are what is known about a key besides its type.
type annotations struct {
	Description string   `json:"description,omitempty"`
	Default     string   `json:"default,omitempty"`  // as it would be written, or in words
	Examples    []string `json:"examples,omitempty"` // as it is written in YAML
}

// comments collects the comments of a struct's keys. A comment that names the next field is also for that one.
func comments(into map[string]annotations, dir, typ string, st *ast.StructType) {
	key := map[string]string{}
	for _, f := range st.Fields.List {
		if tag := tagOf(f); tag.Get("yaml") != "-" {
			name, _, _ := strings.Cut(tag.Get("yaml"), ",")
			for _, n := range f.Names {
				if name != "" {
					key[n.Name] = name
				}
			}
		}
	}
	word := regexp.MustCompile(`\b[A-Z]\w+\b`)
	above := ""
	for _, f := range st.Fields.List {
		text := f.Doc.Text() + f.Comment.Text()
		for _, n := range f.Names {
			name := key[n.Name]
			if name == "" {
				continue
			}
			if text == "" && regexp.MustCompile(`\b`+n.Name+`\b`).MatchString(above) {
				text = above
			}
			at := dir + "." + typ + "." + n.Name
			table := dir[strings.LastIndex(dir, "/")+1:] + "." + typ + "." + n.Name
			doc := strings.Join(strings.Fields(links.ReplaceAllString(text, "$1")), " ")
			doc = word.ReplaceAllStringFunc(doc, func(w string) string {
				if k, ok := key[w]; ok && w != "TLS" {
					return k
				}
				return w
			})

			if said, ok := docs[table]; ok {
				doc = said
			}
			d := annotations{Description: doc, Default: cmp.Or(defaultValues[table], tagOf(f).Get("default"))}
			if m := theDefault.FindStringSubmatch(doc); m != nil && d.Default == "" {
				d.Default = m[1]
			}
			if e := cmp.Or(exampleOf[table], exampleValues[name]); e != "" {
				d.Examples = []string{e}
			}
			into[at] = d
		}
		above = text
	}
}

func tagOf(f *ast.Field) reflect.StructTag {
	if f.Tag == nil {
		return ""
	}
	s, _ := strconv.Unquote(f.Tag.Value)
	return reflect.StructTag(s)
}
