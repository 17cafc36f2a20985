package transport

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/peek"
)

// setSigner finds out whether a signs requests. A session of a provider that does not sign says so.
func (t *roundTripper) setSigner(a auth.Authenticator) {
	if s, ok := a.(interface{ Signs() bool }); !ok || s.Signs() {
		t.signer, _ = a.(auth.Signer)
		t.challenged, _ = a.(auth.Challenged)
	}
}

// sign signs out, which has no body yet. Sign may not send it elsewhere, nor read the body that is sent.
func (a *attempt) sign(out *http.Request) error {
	c := a.call
	at := *c.req.URL
	out.URL, out.Header = &at, out.Header.Clone()
	if c.body != nil {
		out.Body = bodyOfSigner{}
	}
	err := c.t.signer.Sign(out, a.token)
	if a.Err() != nil {
		return context.Cause(a)
	}
	if err == nil && changed(out, c.req) {
		err = fmt.Errorf("%w: the signer has changed the request's method or origin", auth.ErrInsecure)
	}
	out.Body, out.GetBody, out.ContentLength = c.req.Body, c.req.GetBody, c.req.ContentLength
	if _, ok := errors.AsType[*auth.Error](err); err != nil && !ok {
		err = &auth.Error{Op: "sign", Err: err}
	}
	return err
}

// changed reports whether the signed request is another one than req, or would go elsewhere.
func changed(signed, req *http.Request) bool {
	return signed.URL == nil || signed.URL.Scheme != req.URL.Scheme || signed.URL.Host != req.URL.Host || signed.URL.Opaque != "" ||
		signed.Host != req.Host && signed.Host != req.URL.Host || signed.Method != req.Method
}

// bodyOfSigner stands for the body while the request is signed.
type bodyOfSigner struct{}

func (bodyOfSigner) Read([]byte) (int, error) {
	return 0, errors.New("a Signer reads the body by GetBody")
}

func (bodyOfSigner) Close() error { return nil }

// isChallenged shows resp to the provider. It reports whether to send the request again with the same token:
// once an attempt, if time and body allow it.
func (c *call) isChallenged(resp *http.Response) bool {
	if c.t.challenged == nil {
		return false
	}
	resp.Request = cmp.Or(resp.Request, c.req) // a Wrap's own response may have none
	return c.t.challenged.Challenged(resp, peek.Body(resp)) && resp.StatusCode >= 400 &&
		!c.resent && c.canSendAgain()
}

// canSendAgain reports whether the request can be sent again in time. Then it has taken the body from the
// latest sending.
func (c *call) canSendAgain() bool {
	return c.body.replayable() && c.fitsDeadline(0, time.Now()) && c.body.abandon()
}
