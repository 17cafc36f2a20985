package generic

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

// Config is what can be said of a token endpoint without code. The zero value of each field is
// its default.
type Config struct {
	// Provider names the adapter in errors: "oauth2".
	Provider string `yaml:"-"`

	// TokenURL is the token endpoint (RFC 6749 section 3.2). No redirect of it is followed.
	TokenURL *url.URL `yaml:"token_url" required:"true"`
	// AuthURL is the page on which a person allows access (RFC 6749 section 3.1). Further
	// parameters of that page go into its query.
	AuthURL *url.URL `yaml:"auth_url"`
	// RevokeURL is told of each token to forget (RFC 7009). With the grant none it is a logout:
	// an empty POST that carries the token as an API call does.
	RevokeURL *url.URL `yaml:"revoke_url"`
	// Method is that of the exchange: POST, PUT, PATCH, or GET, which takes no secret but in
	// headers and does not refresh.
	Method string `yaml:"method" enum:"POST,PUT,PATCH,GET"`
	// Grant is client_credentials, password, refresh_token, authorization_code, or none, which
	// sends no grant_type and whatever else is set. The default is client_credentials.
	Grant string `yaml:"grant" enum:"client_credentials,password,refresh_token,authorization_code,none"`

	// ClientID and ClientSecret identify the client (RFC 6749 section 2.3). Without a secret the
	// id travels among the fields.
	ClientID     string      `yaml:"client_id"`
	ClientSecret auth.Secret `yaml:"client_secret"`
	// Username and Password are the user's, for the grants password and none.
	Username string      `yaml:"username"`
	Password auth.Secret `yaml:"password"`
	// RefreshToken starts the chain when none is stored: one obtained elsewhere.
	RefreshToken auth.Secret `yaml:"refresh_token"`
	// RefreshLifetime is how long a refresh token lives unused. The default is unknown.
	RefreshLifetime time.Duration `yaml:"refresh_lifetime"`
	// RedirectURI is where the authorization page returns to, sent exactly as written, with every
	// grant.
	RedirectURI string `yaml:"redirect_uri"`
	// Scopes are asked for where the grant asks: on the authorization page, else in the exchange.
	Scopes []string `yaml:"scopes"`
	// PKCE proves with S256 that who redeems a code is who asked for it (RFC 7636).
	PKCE bool `yaml:"pkce"`
	// Params are further fields of the exchange, and a part of the credential's identity.
	Params map[string]string `yaml:"params"`
	// SecretParams are further fields that are secret.
	SecretParams map[string]auth.Secret `yaml:"secret_params"`

	// Encoding of the fields is form or json. The default is form.
	Encoding string `yaml:"encoding" enum:"form,json"`
	// CredentialsIn is where the client id and secret go: basic, form or json (among the fields,
	// in their encoding), or headers. The default is basic, with the encoding json it is json.
	CredentialsIn string `yaml:"credentials_in" enum:"basic,form,json,headers"`
	// CredentialHeaders carry them with credentials_in headers. In a template {client_id} and
	// {client_secret} stand for what they say.
	CredentialHeaders []Header `yaml:"credential_headers"`
	// CredentialsEncoding in the Basic header is rfc6749, which URL-escapes both (section 2.3.1),
	// or raw, as in RFC 7617. The default is rfc6749.
	CredentialsEncoding string `yaml:"credentials_encoding" enum:"raw,rfc6749"`

	Response Response `yaml:"response"`
	// DefaultLifetime of a token is for an answer that does not say and a token that is no JWT.
	// The default is an hour.
	DefaultLifetime time.Duration `yaml:"default_lifetime"`
	Refresh         Refresh       `yaml:"refresh"`

	// TokenHeaders carry the token in API calls. In a template {access_token} and {token_type}
	// stand for what they say. The default is Authorization: Bearer {access_token}.
	TokenHeaders []Header `yaml:"token_headers"`
	// StaticHeaders go with exchanges and API calls alike, such as a gateway's key.
	StaticHeaders map[string]auth.Secret `yaml:"static_headers"`

	// RejectedWhen says which responses refuse the token: any of these, unless one of
	// NotRejectedWhen. The default is the status 401.
	RejectedWhen    []Condition `yaml:"rejected_when"`
	NotRejectedWhen []Condition `yaml:"not_rejected_when"`
}

// Response says where in the token endpoint's answer things are, as JSON Pointers (RFC 6901), in
// which * is any element of an array. The defaults are those of RFC 6749 section 5.
type Response struct {
	// Format is json, whatever the Content-Type says, or text: the body is the access token.
	Format       string `yaml:"format" enum:"json,text"`
	AccessToken  string `yaml:"access_token"`  // /access_token
	RefreshToken string `yaml:"refresh_token"` // /refresh_token
	ExpiresIn    string `yaml:"expires_in"`    // /expires_in, in seconds
	TokenType    string `yaml:"token_type"`    // /token_type
	Error        string `yaml:"error"`         // /error, the code of a failure
}

// Refresh says how an access token is refreshed (RFC 6749 section 6).
type Refresh struct {
	// Param is the field with the refresh token. The default is refresh_token.
	Param string `yaml:"param"`
	// Fields are sent beside it and the client's credentials: names of params or secret_params,
	// redirect_uri, or scope. The default is none.
	Fields []string `yaml:"fields"`
	// Fallback, once a refresh token is refused, is grant, the full grant in the same exchange,
	// or consent: a person logs in. The default is what the grant allows.
	Fallback string `yaml:"fallback" enum:"grant,consent"`
}

// Header is a header whose value is made of a template.
type Header struct {
	// Name is sent as spelled, on HTTP/1.1.
	Name     string `yaml:"name" required:"true"`
	Template string `yaml:"template" required:"true"`
}

// Condition describes a response. All that it says must hold.
type Condition struct {
	// Status is the response's. The default is any.
	Status int `yaml:"status"`
	// Pointer is a JSON Pointer into the body, in which * is any element of an array. What is
	// there must equal Equals; without Equals it must be there and neither null nor "".
	Pointer string `yaml:"pointer"`
	Equals  string `yaml:"equals"`
	// BodyContains is somewhere in the first 64 KiB of the body.
	BodyContains string `yaml:"body_contains"`
}

func fill[T comparable](field *T, value T) {
	if *field == *new(T) {
		*field = value
	}
}

func (c *Config) fill() {
	fill(&c.Provider, "oauth2")
	fill(&c.Method, "POST")
	fill(&c.Grant, "client_credentials")
	fill(&c.Encoding, "form")
	if c.Encoding == "json" {
		fill(&c.CredentialsIn, "json")
	}
	fill(&c.CredentialsIn, "basic")
	fill(&c.CredentialsEncoding, "rfc6749")
	fill(&c.Response.Format, "json")
	fill(&c.Response.AccessToken, "/access_token")
	fill(&c.Response.RefreshToken, "/refresh_token")
	fill(&c.Response.ExpiresIn, "/expires_in")
	fill(&c.Response.TokenType, "/token_type")
	fill(&c.Response.Error, "/error")
	fill(&c.DefaultLifetime, time.Hour)
	fill(&c.Refresh.Param, "refresh_token")
	if c.interactive() {
		fill(&c.Refresh.Fallback, "consent")
	}
	fill(&c.Refresh.Fallback, "grant")
	if c.TokenHeaders == nil {
		c.TokenHeaders = []Header{{"Authorization", "Bearer {access_token}"}}
	}
	if c.RejectedWhen == nil {
		c.RejectedWhen = []Condition{{Status: 401}}
	}
}

// interactive reports whether only a refresh token gives a token without a person.
func (c *Config) interactive() bool {
	return c.Grant == "authorization_code" || c.Grant == "refresh_token"
}

var grants = []string{"client_credentials", "password", "refresh_token", "authorization_code", "none"}

var errRequired = errors.New("required")

// check returns an [auth.KeyError] for each setting at fault.
func (c *Config) check() (errs []error) {
	refuse := func(key string, err error) {
		if err != nil {
			errs = append(errs, &auth.KeyError{Key: key, Err: err})
		}
	}
	word := func(key, value string, words ...string) {
		if !slices.Contains(words, value) {
			refuse(key, fmt.Errorf("must be %s", strings.Join(words, ", ")))
		}
	}
	// uses refuses a setting that the grant needs and lacks, or has and would not use.
	uses := func(key string, isSet bool, needs, may bool) {
		switch {
		case !slices.Contains(grants, c.Grant):
		case needs && !isSet:
			refuse(key, fmt.Errorf("required for grant %s", c.Grant))
		case isSet && !needs && !may:
			refuse(key, fmt.Errorf("not used by grant %s", c.Grant))
		}
	}
	not := func(isSo bool, text string) error {
		if isSo {
			return errors.New(text)
		}
		return nil
	}

	word("method", c.Method, "POST", "PUT", "PATCH", "GET")
	word("grant", c.Grant, grants...)
	word("encoding", c.Encoding, "form", "json")
	word("credentials_in", c.CredentialsIn, "basic", c.Encoding, "headers")
	word("credentials_encoding", c.CredentialsEncoding, "raw", "rfc6749")
	word("response.format", c.Response.Format, "json", "text")

	if c.TokenURL == nil {
		refuse("token_url", errRequired)
	}
	for key, u := range map[string]*url.URL{"token_url": c.TokenURL, "auth_url": c.AuthURL, "revoke_url": c.RevokeURL} {
		refuse(key, CheckURL(u))
	}
	refuse("redirect_uri", CheckRedirectURI(c.RedirectURI))
	refuse("refresh_lifetime", not(c.RefreshLifetime < 0, "must not be negative"))
	refuse("default_lifetime", not(c.DefaultLifetime < 0, "must not be negative"))

	code, password := c.Grant == "authorization_code", c.Grant == "password"
	other := c.Grant == "none"
	uses("client_id", c.ClientID != "", code || c.Grant == "client_credentials", true)
	uses("auth_url", c.AuthURL != nil, code, false)
	uses("redirect_uri", c.RedirectURI != "", code, true)
	uses("pkce", c.PKCE, false, code)
	uses("username", c.Username != "", password, other)
	uses("password", !c.Password.IsZero(), password, other)
	uses("refresh_token", !c.RefreshToken.IsZero(), c.Grant == "refresh_token", code)
	refuse("client_id", not(strings.Contains(c.ClientID, ":") && c.CredentialsIn == "basic" && c.CredentialsEncoding == "raw",
		"holds a colon, at which a raw Basic header would be split"))

	if c.interactive() {
		word("refresh.fallback", c.Refresh.Fallback, "consent")
	} else {
		word("refresh.fallback", c.Refresh.Fallback, "grant")
	}
	for i, f := range c.Refresh.Fields {
		_, plain := c.Params[f]
		_, secret := c.SecretParams[f]
		known := plain || secret || f == "scope" || f == "redirect_uri"
		refuse(fmt.Sprintf("refresh.fields.%d", i), not(!known, "names none of params and secret_params, nor redirect_uri or scope"))
	}
	for k := range c.Params {
		refuse("params."+k, c.checkParam(k))
	}
	for k := range c.SecretParams {
		_, twice := c.Params[k]
		refuse("secret_params."+k, errors.Join(c.checkParam(k), not(twice, "is in params too")))
	}
	if c.Method == "GET" {
		const inURL = "would be in the URL with method GET"
		refuse("grant", not(!other && c.Grant != "client_credentials", inURL))
		refuse("password", not(!c.Password.IsZero(), inURL))
		refuse("secret_params", not(len(c.SecretParams) > 0, inURL))
		refuse("client_secret", not(!c.ClientSecret.IsZero() && c.CredentialsIn == c.Encoding, inURL))
	}

	for key, pointer := range map[string]string{
		"access_token": c.Response.AccessToken, "refresh_token": c.Response.RefreshToken, "expires_in": c.Response.ExpiresIn,
		"token_type": c.Response.TokenType, "error": c.Response.Error,
	} {
		refuse("response."+key, checkPointer(pointer))
	}
	refuse("credential_headers", not(c.CredentialsIn == "headers" && c.CredentialHeaders == nil, "required for credentials_in headers"))
	refuse("credential_headers", not(c.CredentialsIn != "headers" && c.CredentialHeaders != nil, "only used by credentials_in headers"))
	errs = append(errs, checkHeaders("credential_headers", c.CredentialHeaders, "{client_id}", "{client_secret}")...)
	errs = append(errs, checkHeaders("token_headers", c.TokenHeaders, "{access_token}", "{token_type}")...)
	refuse("token_headers", not(!slices.ContainsFunc(c.TokenHeaders, func(h Header) bool {
		return strings.Contains(h.Template, "{access_token}")
	}), "none holds {access_token}"))
	for name := range c.StaticHeaders {
		taken := slices.ContainsFunc(c.TokenHeaders, func(h Header) bool { return strings.EqualFold(h.Name, name) })
		refuse("static_headers."+name, errors.Join(checkHeaderName(name), not(taken, "is in token_headers too")))
	}
	for key, list := range map[string][]Condition{"rejected_when": c.RejectedWhen, "not_rejected_when": c.NotRejectedWhen} {
		for i, cond := range list {
			refuse(fmt.Sprintf("%s.%d", key, i), cond.check())
		}
	}
	slices.SortStableFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errs
}

// checkParam refuses a parameter under a name that the engine sends itself.
func (c *Config) checkParam(name string) error {
	own := []string{"client_id", "client_secret", "username", "password", "code", "code_verifier", "scope", "redirect_uri", c.Refresh.Param}
	if c.Grant != "none" {
		own = append(own, "grant_type")
	}
	if slices.Contains(own, name) {
		return errors.New("has a setting of its own")
	}
	return nil
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

func checkHeaders(key string, headers []Header, known ...string) (errs []error) {
	for i, h := range headers {
		refuse := func(field string, err error) {
			if err != nil {
				errs = append(errs, &auth.KeyError{Key: fmt.Sprintf("%s.%d.%s", key, i, field), Err: err})
			}
		}
		refuse("name", checkHeaderName(h.Name))
		if slices.ContainsFunc(headers[:i], func(o Header) bool { return strings.EqualFold(o.Name, h.Name) }) {
			refuse("name", errors.New("is there twice"))
		}
		for _, p := range placeholder.FindAllString(h.Template, -1) {
			if !slices.Contains(known, p) {
				refuse("template", fmt.Errorf("knows only %s", strings.Join(known, ", ")))
			}
		}
	}
	return errs
}
