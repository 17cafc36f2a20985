package auth

import (
	"cmp"
	"context"
	"net/http"
	"sync/atomic"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/internal/peek"
	"github.com/itsmauth/itsmauth/internal/tokenextra"
)

// A Signer is a [Provider] whose product wants each request signed: with an HMAC over method, path, date and
// body, for example, or with a proof of possession (RFC 9449). If that depends on its settings, it also has a
// method Signs() bool, which [Session.Signs] calls.
type Signer interface {
	// Sign adds a signature to req, which is about to be sent with tok and has all its headers. req is a
	// copy: Sign may set headers, as they are to be spelled, and the query, but not change the origin. It reads
	// the body by req.GetBody. If req has a Body and GetBody is nil, the body can be read only once, by the
	// server, and a Sign that needs it returns an error. The error ends the call, and nothing is sent. Sign
	// returns when req's context ends.
	//
	// Each retry, each replay with a new token, and each redirect within the connector's origins is signed
	// anew. What net/http resends by itself is the same request with the same signature; it does that only if
	// the server has not processed the request. A redirect to another origin is not signed, and carries no token.
	// Exchange and the other methods that send requests sign them themselves.
	Sign(req *http.Request, tok *oauth2.Token) error
}

// Challenged is a [Provider] whose product may answer that it wants the same request once more, with
// something that the response gives: a nonce for its signature, for example (RFC 9449 sections 8 and 9).
type Challenged interface {
	// Challenged is shown each response to a request with a token, and those to the requests of exchanges,
	// logins and logouts. resp.Request is that request. body is as [Provider.Rejects] has it. If again is true
	// and the status 400 or more, the request is signed and sent once more with the same token, if its body can
	// be sent again; for an exchange that failed, Exchange is called once more. Otherwise, and for the second
	// response in a row, Rejects decides.
	Challenged(resp *http.Response, body []byte) (again bool)
}

// WithSigningKey returns a copy of tok with the key that its requests are signed with, for a [Signer] whose
// keys come with its tokens. [Provider.Exchange] returns such a token; the key is kept with it in the [Store],
// and is in the prev of the next exchange. The copy has no extra fields of others, and is printed and
// marshalled without the key.
func WithSigningKey(tok *oauth2.Token, key string) *oauth2.Token {
	return tokenextra.WithSigningKey(tok, key)
}

// SigningKey returns the key of [WithSigningKey], or "". [Authenticator.Token] returns tokens that have it, so
// keep them as you keep their access token.
func SigningKey(tok *oauth2.Token) string { return tokenextra.SigningKey(tok) }

// Signs reports whether the provider signs requests, or is [Challenged]: whether [Session.Sign] and
// [Session.Challenged] do anything.
func (c *core) Signs() bool { return c.signer != nil || c.challenger != nil }

// setSigner finds out whether p signs requests.
func (c *core) setSigner(p Provider) {
	if s, limited := p.(interface{ Signs() bool }); !limited || s.Signs() {
		c.signer, _ = p.(Signer)
		c.challenger, _ = p.(Challenged)
	}
}

// Sign signs req, which is changed, if the provider is a [Signer]. Its error is an [*Error].
func (s *Session) Sign(req *http.Request, tok *oauth2.Token) error {
	if s.signer == nil {
		return nil
	}
	if err := s.signer.Sign(req, tok); err != nil {
		return s.named(asError("sign", err))
	}
	return nil
}

// Challenged reports whether the provider, if it is [Challenged], wants the request of resp sent once more.
func (s *Session) Challenged(resp *http.Response, body []byte) (again bool) {
	return s.challenged(resp, body)
}

func (c *core) challenged(resp *http.Response, body []byte) bool {
	return c.challenger != nil && c.challenger.Challenged(resp, body) && resp.StatusCode >= 400
}

// withClient returns a context with the client for an exchange, and a function that reports whether a response
// has challenged it since it was last asked.
func (c *core) withClient(ctx context.Context) (_ context.Context, challenged func() bool) {
	client := c.opts.Client
	challenged = func() bool { return false }
	if c.challenger != nil {
		t := &challengedTransport{core: c, next: cmp.Or(client.Transport, http.DefaultTransport)}
		with := *client
		with.Transport = t
		client, challenged = &with, func() bool { return t.again.Swap(false) }
	}
	return context.WithValue(ctx, oauth2.HTTPClient, client), challenged
}

// challengedTransport shows the responses of exchanges to the provider.
type challengedTransport struct {
	*core
	next  http.RoundTripper
	again atomic.Bool
}

func (t *challengedTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.next.RoundTrip(req)
	if err != nil {
		return resp, err
	}
	resp.Request = cmp.Or(resp.Request, req)
	if t.challenged(resp, peek.Body(resp)) {
		t.again.Store(true)
	}
	return resp, nil
}

// ProxyOf is a method of package transport's RoundTripper.
func (t *challengedTransport) ProxyOf(req *http.Request) string {
	if p, ok := t.next.(interface{ ProxyOf(*http.Request) string }); ok {
		return p.ProxyOf(req)
	}
	return ""
}
