package generic

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/itsmauth/itsmauth/internal/refusals"
)

// check refuses each setting at fault.
func (c *Config) check() error {
	var r refusals.List
	r.Word("method", c.Method, "POST", "PUT", "PATCH", "GET")
	r.Word("grant", c.Grant, grants...)
	encodings := []string{"form", "json"}
	r.Word("encoding", c.Encoding, encodings...)
	if slices.Contains(encodings, c.Encoding) {
		encodings = []string{c.Encoding} // credentials among the fields are in theirs
	}
	r.Word("credentials_in", c.CredentialsIn, slices.Concat([]string{"basic"}, encodings, []string{"headers"})...)
	r.Word("credentials_encoding", c.CredentialsEncoding, "raw", "rfc6749")
	r.Word("response.format", c.Response.Format, "json", "text")

	r.When(c.TokenURL == nil, "token_url", "required")
	r.Add("token_url", CheckURL(c.TokenURL))
	r.Add("auth_url", CheckURL(c.AuthURL))
	r.Add("revoke_url", CheckURL(c.RevokeURL))
	r.Add("redirect_uri", CheckRedirectURI(c.RedirectURI))
	r.When(c.RefreshLifetime < 0, "refresh_lifetime", "must not be negative")
	r.When(c.DefaultLifetime < 0, "default_lifetime", "must not be negative")
	c.checkGrant(&r)
	for k := range c.Params {
		r.When(c.sends(k), "params."+k, "has a setting of its own")
	}
	for k := range c.SecretParams {
		_, twice := c.Params[k]
		r.When(c.sends(k), "secret_params."+k, "has a setting of its own")
		r.When(twice, "secret_params."+k, "is in params too")
	}
	for i, f := range c.Refresh.Fields {
		_, plain := c.Params[f]
		_, secret := c.SecretParams[f]
		r.When(!plain && !secret && f != "scope" && f != "redirect_uri", fmt.Sprintf("refresh.fields.%d", i),
			"names none of params and secret_params, nor redirect_uri or scope")
	}
	for key, pointer := range map[string]string{
		"access_token": c.Response.AccessToken, "refresh_token": c.Response.RefreshToken, "expires_in": c.Response.ExpiresIn,
		"token_type": c.Response.TokenType, "error": c.Response.Error,
	} {
		r.Add("response."+key, checkPointer(pointer))
	}
	c.checkHeaders(&r)
	for key, list := range map[string][]Condition{"rejected_when": c.RejectedWhen, "not_rejected_when": c.NotRejectedWhen} {
		for i, cond := range list {
			cond.check(&r, fmt.Sprintf("%s.%d", key, i))
		}
	}
	slices.SortStableFunc(r, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return r.Err()
}

var grants = []string{"client_credentials", "password", "refresh_token", "authorization_code", "none"}

// checkGrant refuses a setting that the grant needs and lacks, or has and would not use.
func (c *Config) checkGrant(r *refusals.List) {
	known := slices.Contains(grants, c.Grant)
	code, password, none := c.Grant == "authorization_code", c.Grant == "password", c.Grant == "none"
	for _, s := range []struct {
		key               string
		given, needs, may bool
	}{
		{"client_id", c.ClientID != "", code || c.Grant == "client_credentials", true},
		{"auth_url", c.AuthURL != nil, code, false},
		{"redirect_uri", c.RedirectURI != "", code, true},
		{"pkce", c.PKCE, false, code},
		{"username", c.Username != "", password, none},
		{"password", !c.Password.IsZero(), password, none},
		{"refresh_token", !c.RefreshToken.IsZero(), c.Grant == "refresh_token", code},
	} {
		r.When(known && s.needs && !s.given, s.key, "required for grant "+c.Grant)
		r.When(known && s.given && !s.needs && !s.may, s.key, "not used by grant "+c.Grant)
	}
	fallback := "grant"
	if c.interactive() {
		fallback = "consent"
	}
	r.Word("refresh.fallback", cmp.Or(c.Refresh.Fallback, fallback), fallback)
	if c.Method == http.MethodGet {
		const inURL = "would be in the URL with method GET"
		r.When(!none && c.Grant != "client_credentials", "grant", inURL)
		r.When(!c.Password.IsZero(), "password", inURL)
		r.When(len(c.SecretParams) > 0, "secret_params", inURL)
		r.When(!c.ClientSecret.IsZero() && c.CredentialsIn == c.Encoding, "client_secret", inURL)
	}
}

// sends reports whether the engine itself sends a field of that name.
func (c *Config) sends(field string) bool {
	own := []string{"client_id", "client_secret", "username", "password", "code", "code_verifier", "scope", "redirect_uri", c.Refresh.Param}
	return slices.Contains(own, field) || field == "grant_type" && c.Grant != "none"
}

var (
	placeholder = regexp.MustCompile(`\{[^{}]*\}`)
	headerName  = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$") // RFC 9110 section 5.6.2
)

func (c *Config) checkHeaders(r *refusals.List) {
	inHeaders := c.CredentialsIn == "headers"
	r.When(inHeaders && len(c.CredentialHeaders) == 0, "credential_headers", "required for credentials_in headers")
	elsewhere := slices.Contains([]string{"basic", "form", "json"}, c.CredentialsIn)
	r.When(elsewhere && c.CredentialHeaders != nil, "credential_headers", "only used by credentials_in headers")
	r.When(c.CredentialsIn == "basic" && c.CredentialsEncoding == "raw" && strings.Contains(c.ClientID, ":"), "client_id",
		"holds a colon, at which a raw Basic header would be split")
	checkTemplates(r, "credential_headers", c.CredentialHeaders, "{client_id}", "{client_secret}")
	checkTemplates(r, "token_headers", c.TokenHeaders, "{access_token}", "{token_type}")
	holdsToken := func(h Header) bool { return strings.Contains(h.Template, "{access_token}") }
	r.When(!slices.ContainsFunc(c.TokenHeaders, holdsToken), "token_headers", "none holds {access_token}")
	c.checkStaticHeaders(r)
}

// checkStaticHeaders refuses what would be sent twice, or not at all.
func (c *Config) checkStaticHeaders(r *refusals.List) {
	basic := c.CredentialsIn == "basic" && !c.ClientSecret.IsZero()
	for name, s := range c.StaticHeaders {
		key := "static_headers." + name
		value, _ := s.Value()
		taken := func(h Header) bool { return strings.EqualFold(h.Name, name) }
		r.When(strings.ContainsAny(value, "\r\n\x00"), key, "must not hold a line break")
		r.When(!headerName.MatchString(name), key, "is no header name")
		r.When(slices.ContainsFunc(c.TokenHeaders, taken), key, "is in token_headers too")
		r.When(slices.ContainsFunc(c.CredentialHeaders, taken), key, "is in credential_headers too")
		r.When(basic && strings.EqualFold(name, "Authorization"), key, "carries the credentials with credentials_in basic")
		for other := range c.StaticHeaders {
			r.When(other < name && strings.EqualFold(other, name), key, "is there twice")
		}
		switch canonical := http.CanonicalHeaderKey(name); canonical {
		case "Host", "Content-Length", "Transfer-Encoding":
			r.When(true, key, "is not for a setting to say")
		case "User-Agent": // net/http adds its own to any other spelling
			r.When(name != canonical, key, "must be spelled "+canonical)
		}
	}
}

func checkTemplates(r *refusals.List, key string, headers []Header, known ...string) {
	for i, h := range headers {
		key := fmt.Sprintf("%s.%d.", key, i)
		taken := func(o Header) bool { return strings.EqualFold(o.Name, h.Name) }
		r.When(!headerName.MatchString(h.Name), key+"name", "is no header name")
		r.When(slices.ContainsFunc(headers[:i], taken), key+"name", "is there twice")
		r.When(strings.ContainsAny(h.Template, "\r\n\x00"), key+"template", "must not hold a line break")
		for _, p := range placeholder.FindAllString(h.Template, -1) {
			r.When(!slices.Contains(known, p), key+"template", "knows only "+strings.Join(known, ", "))
		}
	}
}

// CheckURL refuses what no endpoint can be: anything but an absolute http or https URL without user
// and fragment. nil passes.
func CheckURL(u *url.URL) error {
	switch {
	case u == nil:
		return nil
	case u.Scheme != "https" && u.Scheme != "http" || u.Host == "":
		return errors.New("must be an absolute http or https URL")
	case u.User != nil:
		return errors.New("must not hold a user or password")
	case u.Fragment != "":
		return errors.New("must not have a fragment")
	}
	return nil
}

// CheckRedirectURI refuses what cannot be a redirection endpoint (RFC 6749 section 3.1.2). The
// empty URI is none, and passes.
func CheckRedirectURI(uri string) error {
	if u, err := url.Parse(uri); uri != "" && (err != nil || !u.IsAbs() || u.Opaque != "" || strings.Contains(uri, "#")) {
		return errors.New("must be an absolute URI without a fragment")
	}
	return nil
}
