// Package auth is the core of itsmauth: it turns a [Provider], which knows how one product hands
// out tokens, into a [Session], which keeps one of them fresh for any number of callers.
//
//	session := auth.New(provider, nil)
//	defer session.Close(context.Background())
//	tok, err := session.Token(ctx)
//
// The words are OAuth's own (RFC 6749): an exchange is one call to the token endpoint, a grant is
// what is exchanged, consent is what a person gives once in the authorization-code flow.
package auth

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/oauth2"
)

// A Provider obtains tokens from one product and says how they travel. It is what you write to
// add a product; it keeps no state, since a [Session] does that. Its methods are called
// concurrently.
//
// A Provider may also be an [Identifier], a [Consenter], a [Revoker], a [Refresher] or [Shaped].
type Provider interface {
	// Exchange obtains a token. prev is the one to be replaced, or nil; a provider that can
	// refresh uses prev.RefreshToken. It makes no retries and keeps nothing. Its HTTP client is
	// in ctx under [oauth2.HTTPClient], as x/oauth2 has it.
	//
	// The lifetime is ExpiresIn, else Expiry, else what the access token says of itself if it is
	// a JWT, else an hour. Errors should be an [*Error], so that Session knows what to do next.
	Exchange(ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error)

	// Header gives the request headers that carry tok. Called once a token. Keys are sent as
	// spelled, each once, in place of any other casing of the same name.
	Header(tok *oauth2.Token) http.Header

	// Rejects reports whether resp refuses the token it was sent with, as opposed to the request.
	// body holds the first 64 KiB; the caller has made resp.Body whole again. For a status below
	// 400 body is nil, since a successful response streams. A Content-Encoding of gzip is undone in
	// body; any other, which only a caller gets who asks for it, is as it came.
	Rejects(resp *http.Response, body []byte) bool
}

// An Authenticator is what a service holds: a token whenever it asks. It is safe for concurrent
// use. [Session] is the one to use; the interface is there to wrap or to replace it.
type Authenticator interface {
	// Token returns a valid token, read-only and without its refresh token. One that is at hand
	// is returned at once, even if ctx has ended; otherwise Token waits until it is obtained or
	// ctx ends.
	Token(ctx context.Context) (*oauth2.Token, error)

	// Header gives the request headers that carry tok, read-only. Keys are sent as spelled.
	Header(tok *oauth2.Token) http.Header

	// Rejected looks whether resp refuses tok, with which its request was sent, and if so sees to
	// it that tok is not used again; a later token stays. It leaves resp.Body whole.
	Rejected(resp *http.Response, tok *oauth2.Token) bool
}

// An Identifier is a [Provider] that can tell two credentials apart. Connectors whose identities
// are equal share one [Session]; the identity also names the record in a [Store]. A provider
// without one shares nothing: its identity is the connector's name.
type Identifier interface {
	// Identity lists what makes the credential: token URL, client id, grant, user, scopes and
	// other parameters. No secret is in it.
	Identity() []string
}

// A Consenter is a [Provider] with a grant that a person must authorize
// (RFC 6749 section 4.1).
type Consenter interface {
	// CodeFlow returns the authorization-code flow, or nil if this configuration needs no person.
	CodeFlow() *CodeFlow
}

// CodeFlow is the authorization-code flow of one configuration (RFC 6749 section 4.1, with PKCE
// as in RFC 7636 where the product knows it).
type CodeFlow struct {
	// RedirectURI is where the product sends the browser back to.
	RedirectURI string
	// URL is the page on which the person allows access. verifier is the PKCE code verifier.
	URL func(state, verifier string) string
	// Redeem exchanges the code that came back. Like Exchange it makes no retries.
	Redeem func(ctx context.Context, code, verifier string) (*oauth2.Token, error)
}

// A Revoker is a [Provider] whose product can be told to forget a token (RFC 7009).
type Revoker interface {
	Revoke(ctx context.Context, tok *oauth2.Token) error
}

// A Refresher is a [Provider] that knows more of its refresh tokens than that they exist.
type Refresher interface {
	Refresh() Refresh
}

// Refresh is what a provider knows of its refresh tokens.
type Refresh struct {
	// Token starts the chain when the store holds none: a refresh token obtained elsewhere.
	Token Secret
	// Lifetime is how long a refresh token lives unused when it does not say so itself (as a JWT
	// with exp). Zero means unknown.
	Lifetime time.Duration
	// Expendable says that without its refresh token the provider obtains another by itself, so
	// none is worth guarding. Exchange then returns the one in force, also if it was not rotated;
	// with none the old one is forgotten. By default an answer without one leaves the old in force
	// (RFC 6749 section 6), and a lost refresh token is taken to be a lost login.
	Expendable bool
}

// Shaped is a [Provider] whose product has limits of its own.
type Shaped interface {
	Traffic() Traffic
}

// Traffic is how a product wants to be called.
type Traffic struct {
	// Limits are windows that hold all at once.
	Limits []Limit
	// Close says that each connection serves one request (RFC 9112 section 9.6).
	Close bool
}

// Limit allows so many requests in any window of that length.
type Limit struct {
	Requests int           `yaml:"requests" required:"true" min:"1"`
	Per      time.Duration `yaml:"per" required:"true"`
}

// Env is what a provider is given beside its own settings.
type Env struct {
	// Name is the connector's.
	Name string
	// BaseURL is the product's API, without a trailing slash.
	BaseURL *url.URL
	// Logger may be nil.
	Logger *slog.Logger
}

// A KeyError is a constructor's refusal of one of its settings. Several are joined with
// [errors.Join]; config shows each at its line.
type KeyError struct {
	// Key is the setting's name in YAML, with dots below it.
	Key string
	Err error
}

func (e *KeyError) Error() string { return e.Key + ": " + e.Err.Error() }
func (e *KeyError) Unwrap() error { return e.Err }
