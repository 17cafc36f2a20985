// Package auth is the core of itsmauth. It turns a [Provider], which knows how one product issues
// tokens, into a [Session], which keeps a token fresh for any number of callers.
//
//	session := auth.New(provider, nil)
//	defer session.Close(context.Background())
//	tok, err := session.Token(ctx)
//
// The terms are OAuth's (RFC 6749). An exchange is one call to the token endpoint, a grant is what is
// exchanged, and consent is what a person gives once in the authorization-code flow.
package auth

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/oauth2"
)

// A Provider obtains tokens from one product and says how requests carry them. It is what you write
// to add a product. It keeps no state: a [Session] does. Its methods are called concurrently.
//
// A Provider may also be an [Identifier], a [Consenter], a [Revoker], a [Refresher], [Shaped], a [Signer],
// [Challenged] or [Static].
type Provider interface {
	// Exchange obtains a token. prev is the token to be replaced, or nil. A provider that can
	// refresh uses prev.RefreshToken. Exchange makes no retries and keeps nothing. The HTTP client
	// to use is in ctx under [oauth2.HTTPClient], as in x/oauth2.
	//
	// The token's lifetime is ExpiresIn, else Expiry. If the access token is a JWT and exp minus iat
	// is shorter, that is the lifetime. If the token has neither ExpiresIn nor Expiry, the lifetime is
	// exp minus iat, else exp minus now, else an hour. It is at least a second. The error should be an
	// [*Error], so that Session knows what to do next: [Send] and [ResponseError] return it.
	Exchange(ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error)

	// Header returns the request headers that carry tok. It is called once for each token, and again
	// when one of [Options.Secrets] has changed. Keys are sent as spelled, each once, and replace any
	// other spelling of the same name.
	Header(tok *oauth2.Token) http.Header

	// Rejects reports whether resp rejects the token, as opposed to the request. body holds the first
	// 64 KiB of resp.Body, which can still be read from its beginning. For a status below 400 body is
	// nil, because a successful response is streamed. A body with Content-Encoding gzip is
	// decompressed, any other is not.
	Rejects(resp *http.Response, body []byte) bool
}

// An Authenticator gives a service its tokens. It is safe for concurrent use. [Session] is the one to
// use; with the interface you can wrap or replace it. Requests are signed only if a wrapper also has Session's
// methods Sign and Challenged.
type Authenticator interface {
	// Token returns a valid token, read-only and without its refresh token. If there is one, Token
	// returns it at once, even if ctx has ended. Otherwise it waits until a token is obtained or ctx
	// ends.
	Token(ctx context.Context) (*oauth2.Token, error)

	// Header returns the request headers that carry tok, read-only. Keys are sent as spelled.
	Header(tok *oauth2.Token) http.Header

	// Rejected reports whether resp rejects tok and, if so, invalidates it. Newer tokens are
	// unaffected. resp.Body can still be read from its beginning.
	Rejected(resp *http.Response, tok *oauth2.Token) bool
}

// An Identifier is a [Provider] that can tell two credentials apart. Connectors with equal identities
// share one [Session], and the identity names the record in a [Store]. Without it the identity is the
// connector's name, so connectors share nothing.
type Identifier interface {
	// Identity lists what defines the credential: token URL, client id, grant, user, scopes and other
	// parameters, but no secret.
	Identity() []string
}

// A Consenter is a [Provider] with a grant that a person must authorize
// (RFC 6749 section 4.1).
type Consenter interface {
	// CodeFlow returns the authorization-code flow, or nil if this configuration needs no person.
	CodeFlow() *CodeFlow
}

// CodeFlow is the authorization-code flow of one configuration (RFC 6749 section 4.1, with PKCE,
// RFC 7636, if the product supports it).
type CodeFlow struct {
	// RedirectURI is where the product sends the browser back to.
	RedirectURI string
	// URL returns the page on which the person allows access. verifier is the PKCE code verifier.
	URL func(state, verifier string) string
	// Redeem exchanges the authorization code. Like Exchange it makes no retries.
	Redeem func(ctx context.Context, code, verifier string) (*oauth2.Token, error)
}

// A Revoker is a [Provider] whose product can revoke a token (RFC 7009). If that depends on its settings, it
// also has a method CanRevoke() bool, which [Session.CanRevoke] calls.
type Revoker interface {
	Revoke(ctx context.Context, tok *oauth2.Token) error
}

// A Refresher is implemented by providers with refresh-token metadata.
type Refresher interface {
	Refresh() Refresh
}

// Refresh is what a provider knows about its refresh tokens.
type Refresh struct {
	// Token is a refresh token from the settings. It is used if the store has none.
	Token Secret
	// Lifetime is how long an unused refresh token lives if it is no JWT with exp. Zero is unknown.
	Lifetime time.Duration
	// Expendable says that a lost refresh token costs nothing, because the provider can obtain tokens
	// without it. Exchange then always returns the refresh token to use next; if it returns none, the
	// old one is forgotten. By default a response without one leaves the old one in force (RFC 6749
	// section 6), and a lost refresh token is a lost login.
	Expendable bool
}

// Shaped is a [Provider] whose product has rate limits or connection rules of its own.
type Shaped interface {
	Traffic() Traffic
}

// Traffic is a product's rate limits and connection rule.
type Traffic struct {
	// Limits are rate limits, which all apply.
	Limits []Limit
	// Close says that each connection serves one request (RFC 9112 section 9.6).
	Close bool
}

// Limit allows so many requests in any window of the length Per.
type Limit struct {
	Requests int           `yaml:"requests" required:"true" min:"1"`
	Per      time.Duration `yaml:"per" required:"true"`
}

// Env is what a provider's constructor is given in addition to its settings.
type Env struct {
	// Name is the connector's name.
	Name string
	// BaseURL is the URL of the product's API, without a trailing slash.
	BaseURL *url.URL
	// Logger may be nil.
	Logger *slog.Logger
}

// A KeyError is why a constructor refuses one of its settings. Several are joined with [errors.Join].
// Package config shows each at its line of the YAML.
type KeyError struct {
	// Key is the setting's name in YAML, with dots between the levels.
	Key string
	Err error
}

func (e *KeyError) Error() string { return e.Key + ": " + e.Err.Error() }
func (e *KeyError) Unwrap() error { return e.Err }
