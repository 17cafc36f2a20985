package generic

import (
	"cmp"
	"crypto"
	"net/http"
	"net/url"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/jsonbody"
)

// Config describes a token endpoint, its client, and the API that takes the token. The zero value of
// each field is its default.
type Config struct {
	// Provider is the provider's name in errors. The default is oauth2.
	Provider string `yaml:"-"`

	// TokenURL is the token endpoint (RFC 6749 section 3.2). Its redirects are not followed.
	TokenURL *url.URL `yaml:"token_url" required:"true"`
	// AuthURL is the page where a person logs in and allows access (RFC 6749 section 3.1). Put further
	// parameters of that page into its query.
	AuthURL *url.URL `yaml:"auth_url"`
	// RevokeURL is where tokens are revoked (RFC 7009). With the grant none it is a logout: an empty
	// POST that carries the token as an API call does.
	RevokeURL *url.URL `yaml:"revoke_url"`
	// Method is the method of token requests. GET sends secrets only in headers, and does not refresh.
	Method string `yaml:"method" enum:"POST,PUT,PATCH,GET" default:"POST"`
	// Grant is the grant type (RFC 6749 section 1.3). The grant jwt_bearer is a JWT made by Assertion (RFC
	// 7523 section 2.1). The grant none sends no grant_type, and sends username and password if they are set.
	Grant string `yaml:"grant" enum:"client_credentials,password,refresh_token,authorization_code,jwt_bearer,none" default:"client_credentials"`

	// ClientID and ClientSecret identify the client (RFC 6749 section 2.3). Without a secret, the id is
	// sent as a field.
	ClientID     string      `yaml:"client_id"`
	ClientSecret auth.Secret `yaml:"client_secret"`
	// Username and Password are the user's, for the grants password and none. For the grant jwt_bearer
	// Username is the assertion's subject.
	Username string      `yaml:"username"`
	Password auth.Secret `yaml:"password"`
	// RefreshToken is a refresh token obtained elsewhere. It is used until the store has one.
	RefreshToken auth.Secret `yaml:"refresh_token"`
	// RefreshLifetime is how long an unused refresh token is valid. The default is unknown.
	RefreshLifetime time.Duration `yaml:"refresh_lifetime"`
	// RedirectURI is where the authorization page returns to. It is sent exactly as written, with every
	// grant.
	RedirectURI string `yaml:"redirect_uri"`
	// Scopes are the scopes to request: on the authorization page if the grant has one, else in the
	// token request.
	Scopes []string `yaml:"scopes"`
	// ScopeSeparator is what separates the scopes. RFC 6749 section 3.3 has a space, Zoho a comma.
	ScopeSeparator string `yaml:"scope_separator" default:" "`
	// PKCE is Proof Key for Code Exchange, with S256 (RFC 7636). The default is true without a ClientSecret,
	// because then nothing else shows who requested the code. RFC 9700 section 2.1.1 recommends it for all.
	PKCE *bool `yaml:"pkce"`
	// Params are further fields of the token request: text, numbers, true or false, which a JSON request keeps apart
	// and a form does not. They are part of the credential's identity.
	Params map[string]any `yaml:"params"`
	// SecretParams are further fields of the token request that are secret.
	SecretParams map[string]auth.Secret `yaml:"secret_params"`
	// ParamNames are the product's own names of standard fields of the token request, such as clientId for
	// client_id. The authorization page gets the standard names.
	ParamNames map[string]string `yaml:"param_names"`
	// CodeFields are further fields to send when a code is redeemed, as for a refresh. Params, SecretParams and
	// RedirectURI are always sent then, so scope is the one to add.
	CodeFields []string `yaml:"code_fields"`

	// Encoding is the encoding of the token request's fields.
	Encoding string `yaml:"encoding" enum:"form,json" default:"form"`
	// CredentialsIn is where the client id and secret are sent: in a Basic header, in headers of their
	// own, or as fields (form or json, the same as Encoding). In place of a secret, private_key_jwt sends a
	// JWT made by Assertion, and client_assertion sends ClientAssertion (RFC 7523 section 2.2). The default
	// is basic, or json if the encoding is json.
	CredentialsIn string `yaml:"credentials_in" enum:"basic,form,json,headers,private_key_jwt,client_assertion"`
	// DefaultCredentialsIn says that CredentialsIn is a default, so that the error of refused credentials
	// names that key. It is set if CredentialsIn is "".
	DefaultCredentialsIn bool `yaml:"-"`
	// CredentialHeaders are the headers for credentials_in headers. A template may contain {client_id}
	// and {client_secret}.
	CredentialHeaders []Header `yaml:"credential_headers"`
	// CredentialsEncoding is how the Basic header encodes id and secret: URL-escaped (rfc6749, section
	// 2.3.1) or as they are (raw, RFC 7617).
	CredentialsEncoding string `yaml:"credentials_encoding" enum:"raw,rfc6749" default:"rfc6749"`

	// ClientAssertion is a JWT that was signed elsewhere and is renewed there, for credentials_in
	// client_assertion: a service account token of Kubernetes, a JWT-SVID of SPIFFE, or the file of Entra's
	// workload identity.
	ClientAssertion auth.Secret `yaml:"client_assertion"`
	// Assertion makes the JWTs for the grant jwt_bearer and for credentials_in private_key_jwt.
	Assertion Assertion `yaml:"assertion"`

	Response Response `yaml:"response"`
	// Then is one more request that the product wants before it accepts a new token, such as a sign-in. The grants
	// that need a person do not have it.
	Then *Then `yaml:"then"`
	// DefaultLifetime is the token's lifetime if the response has no expires_in and the token is not a
	// JWT.
	DefaultLifetime time.Duration `yaml:"default_lifetime" default:"1h"`
	Refresh         Refresh       `yaml:"refresh"`

	// DPoP binds tokens to a key, so that a stolen token is of no use without it (RFC 9449). Token requests and
	// API calls carry a proof, and the product has to issue tokens of the type DPoP. In YAML, true is an empty
	// DPoP: the key is made and kept with the tokens.
	DPoP *DPoP `yaml:"dpop" flag:"true"`

	// TokenHeaders carry the token in API calls. A template may contain {access_token} and {token_type}. With
	// Response.Cookie the default is that cookie, and with DPoP the default template is DPoP {access_token}.
	TokenHeaders []Header `yaml:"token_headers" default:"[{name: Authorization, template: \"Bearer {access_token}\"}]"`
	// StaticHeaders are sent with token requests and API calls, such as a gateway's key. Accept replaces that
	// of the token request.
	StaticHeaders map[string]auth.Secret `yaml:"static_headers" literal:"true"`
	// APIHeaders are sent with API calls alone. They replace the caller's headers of the same name.
	APIHeaders map[string]auth.Secret `yaml:"api_headers" literal:"true"`

	// RejectedWhen are the API responses that reject the token: those that match one of these
	// conditions, and none of NotRejectedWhen.
	RejectedWhen    []Condition `yaml:"rejected_when" default:"[{status: 401}]"`
	NotRejectedWhen []Condition `yaml:"not_rejected_when"`
}

// WholeAnswer is the JSON Pointer to the whole response (RFC 6901 section 6), for [Response.AccessToken].
const WholeAnswer = "#"

// Response is where things are in the token response, as JSON Pointers (RFC 6901), in which * is any
// element of an array. The defaults are those of RFC 6749 section 5.
type Response struct {
	// Format is json, whatever the Content-Type, or text if the body is the access token, with or
	// without JSON's quotes, or a form that has it.
	Format string `yaml:"format" enum:"json,text" default:"json"`
	// AccessToken is where the token is. [WholeAnswer], in YAML "", is the whole body, which is a JSON
	// string.
	AccessToken string `yaml:"access_token" default:"/access_token" empty:"#"`
	// Cookie is the name of the cookie whose value is the access token. The body may be anything but an HTML page
	// then. If nothing in it says how long the token lives, the cookie's Max-Age or Expires does.
	Cookie       string `yaml:"cookie"`
	RefreshToken string `yaml:"refresh_token" default:"/refresh_token"`
	// ExpiresIn is the lifetime. If the access token is a JWT that expires earlier, the JWT decides. A
	// lifetime over ten years counts as absent.
	ExpiresIn string `yaml:"expires_in" default:"/expires_in"`
	// ExpiresInUnit is the unit of ExpiresIn: s or ms.
	ExpiresInUnit string `yaml:"expires_in_unit" enum:"s,ms" default:"s"`
	// ExpiresAt is where the time of expiry is: RFC 3339, an HTTP date, or seconds or milliseconds since 1970 (from
	// 1e11, milliseconds). It is compared with the response's Date, else our clock. A time in the past, or more
	// than ten years ahead, counts as absent. Of ExpiresIn, ExpiresAt and a JWT's own the earliest counts.
	ExpiresAt string `yaml:"expires_at"`
	TokenType string `yaml:"token_type" default:"/token_type"`
	// Error is the error code, or an object with a code.
	Error string `yaml:"error" default:"/error"`
	// Errors say what misleading error responses mean. They decide before status and error code, in a
	// response of any status.
	Errors []ResponseError `yaml:"errors"`
}

// Then is a request without a body that follows each token response. It has the headers of API calls. If it
// fails, the exchange has failed, and its error response is read like that of the token endpoint. The cookies
// that it sets belong to the token: API calls send them.
type Then struct {
	// URL is where the request goes, with the token.
	URL *url.URL `yaml:"url" required:"true"`
	// Method is the request's method.
	Method string `yaml:"method" enum:"POST,PUT,PATCH,GET" default:"POST"`
}

// ResponseError says what an error response means.
type ResponseError struct {
	// Status is the status code. The default is any.
	Status int `yaml:"status"`
	// Pointer is a JSON Pointer into the body, in which * is any element of an array. The value there
	// must equal Equals; without Equals it must exist and be neither null nor "".
	Pointer string `yaml:"pointer"`
	Equals  string `yaml:"equals"`
	// Means is the error code that the product should have sent (RFC 6749 section 5.2).
	// temporarily_unavailable stands for any failure that passes.
	Means string `yaml:"means" required:"true" enum:"invalid_client,invalid_grant,invalid_scope,temporarily_unavailable"`
}

// Refresh is how an access token is refreshed (RFC 6749 section 6).
type Refresh struct {
	// Param is the name of the field for the refresh token.
	Param string `yaml:"param" default:"refresh_token"`
	// Fields are further fields to send with a refresh: names from params or secret_params,
	// redirect_uri, or scope. The default is none.
	Fields []string `yaml:"fields"`
	// Fallback is what follows if a refresh token is refused: the full grant in the same exchange, or
	// consent (a person logs in). The default is consent for the grants authorization_code and
	// refresh_token, else grant.
	Fallback string `yaml:"fallback" enum:"grant,consent"`
}

// Header is a header whose value is made from a template.
type Header struct {
	// Name is sent as spelled here on HTTP/1.1.
	Name     string `yaml:"name" required:"true"`
	Template string `yaml:"template" required:"true"`
}

// Condition matches a response that meets all of its fields: Status (the default is any), Pointer (a JSON
// Pointer into the body), Equals (the value there) and BodyContains (a text in the body).
type Condition = jsonbody.Condition

func (c *Config) fillDefaults() {
	c.Provider = cmp.Or(c.Provider, "oauth2")
	c.DefaultCredentialsIn = c.DefaultCredentialsIn || c.CredentialsIn == ""
	if c.Encoding == "json" {
		c.CredentialsIn = cmp.Or(c.CredentialsIn, "json")
	}
	c.CredentialsIn = cmp.Or(c.CredentialsIn, "basic")
	if c.TokenHeaders == nil && c.Response.Cookie != "" {
		c.TokenHeaders = []Header{{Name: "Cookie", Template: c.Response.Cookie + "={access_token}"}}
	}
	if c.TokenHeaders == nil {
		scheme := "Bearer"
		if c.DPoP != nil {
			scheme = "DPoP"
		}
		c.TokenHeaders = []Header{{Name: "Authorization", Template: scheme + " {access_token}"}}
	}
	if c.RejectedWhen == nil {
		c.RejectedWhen = []Condition{{Status: http.StatusUnauthorized}}
	}
	if signer := c.Assertion.Signer; signer != nil {
		c.Assertion.Signer, c.Assertion.hidden = nil, func() crypto.Signer { return signer }
	}
}

// usesPKCE reports whether a login has a code verifier.
func (c *Config) usesPKCE() bool {
	if c.PKCE == nil {
		return c.ClientSecret.IsZero()
	}
	return *c.PKCE
}

// interactive reports whether a person must log in if there is no usable refresh token.
func (c *Config) interactive() bool {
	return c.Grant == "authorization_code" || c.Grant == "refresh_token"
}
