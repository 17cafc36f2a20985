package generic

import (
	"cmp"
	"net/url"
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
	Method string `yaml:"method" enum:"POST,PUT,PATCH,GET" default:"POST"`
	// Grant is client_credentials, password, refresh_token, authorization_code, or none, which
	// sends no grant_type and whatever else is set. The default is client_credentials.
	Grant string `yaml:"grant" enum:"client_credentials,password,refresh_token,authorization_code,none" default:"client_credentials"`

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
	Encoding string `yaml:"encoding" enum:"form,json" default:"form"`
	// CredentialsIn is where the client id and secret go: basic, form or json (among the fields,
	// in their encoding), or headers. The default is basic, with the encoding json it is json.
	CredentialsIn string `yaml:"credentials_in" enum:"basic,form,json,headers"`
	// CredentialHeaders carry them with credentials_in headers. In a template {client_id} and
	// {client_secret} stand for what they say.
	CredentialHeaders []Header `yaml:"credential_headers"`
	// CredentialsEncoding in the Basic header is rfc6749, which URL-escapes both (section 2.3.1),
	// or raw, as in RFC 7617. The default is rfc6749.
	CredentialsEncoding string `yaml:"credentials_encoding" enum:"raw,rfc6749" default:"rfc6749"`

	Response Response `yaml:"response"`
	// DefaultLifetime of a token is for an answer that does not say and a token that is no JWT.
	// The default is an hour.
	DefaultLifetime time.Duration `yaml:"default_lifetime" default:"1h"`
	Refresh         Refresh       `yaml:"refresh"`

	// TokenHeaders carry the token in API calls. In a template {access_token} and {token_type}
	// stand for what they say. The default is Authorization: Bearer {access_token}.
	TokenHeaders []Header `yaml:"token_headers"`
	// StaticHeaders go with exchanges and API calls alike, such as a gateway's key. Accept and
	// Content-Type replace the exchange's own.
	StaticHeaders map[string]auth.Secret `yaml:"static_headers"`

	// RejectedWhen says which responses refuse the token: any of these, unless one of
	// NotRejectedWhen. The default is the status 401.
	RejectedWhen    []Condition `yaml:"rejected_when" default:"[{status: 401}]"`
	NotRejectedWhen []Condition `yaml:"not_rejected_when"`
}

// Response says where in the token endpoint's answer things are, as JSON Pointers (RFC 6901), in
// which * is any element of an array. The defaults are those of RFC 6749 section 5.
type Response struct {
	// Format is json, whatever the Content-Type says, or text: the body is the access token.
	Format       string `yaml:"format" enum:"json,text" default:"json"`
	AccessToken  string `yaml:"access_token" default:"/access_token"`
	RefreshToken string `yaml:"refresh_token" default:"/refresh_token"`
	ExpiresIn    string `yaml:"expires_in" default:"/expires_in"` // in seconds
	TokenType    string `yaml:"token_type" default:"/token_type"`
	Error        string `yaml:"error" default:"/error"` // the code of a failure
}

// Refresh says how an access token is refreshed (RFC 6749 section 6).
type Refresh struct {
	// Param is the field with the refresh token. The default is refresh_token.
	Param string `yaml:"param" default:"refresh_token"`
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

// fill sets the defaults.
func (c *Config) fill() {
	credentialsIn := "basic"
	if c.Encoding == "json" {
		credentialsIn = "json"
	}
	c.Provider = cmp.Or(c.Provider, "oauth2")
	c.Method = cmp.Or(c.Method, "POST")
	c.Grant = cmp.Or(c.Grant, "client_credentials")
	c.Encoding = cmp.Or(c.Encoding, "form")
	c.CredentialsIn = cmp.Or(c.CredentialsIn, credentialsIn)
	c.CredentialsEncoding = cmp.Or(c.CredentialsEncoding, "rfc6749")
	c.Response.Format = cmp.Or(c.Response.Format, "json")
	c.Response.AccessToken = cmp.Or(c.Response.AccessToken, "/access_token")
	c.Response.RefreshToken = cmp.Or(c.Response.RefreshToken, "/refresh_token")
	c.Response.ExpiresIn = cmp.Or(c.Response.ExpiresIn, "/expires_in")
	c.Response.TokenType = cmp.Or(c.Response.TokenType, "/token_type")
	c.Response.Error = cmp.Or(c.Response.Error, "/error")
	c.DefaultLifetime = cmp.Or(c.DefaultLifetime, time.Hour)
	c.Refresh.Param = cmp.Or(c.Refresh.Param, "refresh_token")
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
