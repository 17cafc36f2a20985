package auth

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/internal/peererror"
)

// permanent reports whether another try would fail in the same way.
func permanent(err error) bool {
	var dns *net.DNSError
	return errors.Is(err, ErrInsecure) || errors.As(err, &dns) && dns.IsNotFound
}

// classify returns err, a provider's error in the exchange p, as an [*Error]. It drops the URL and the body
// that x/oauth2 and net/http put into their errors.
func (c *core) classify(ctx context.Context, err error, p *protocol) *Error {
	e := &Error{Op: "exchange", Err: err}
	var ours *Error
	var ue *url.Error
	var re *oauth2.RetrieveError
	switch {
	case errors.As(err, &ours):
		*e = *ours
		e.Op, e.Err = cmp.Or(e.Op, "exchange"), cmp.Or(e.Err, ErrProtocol)
	case errors.As(err, &re):
		e.Err = ErrProtocol
		if re.Response != nil {
			refused := ErrCredentials
			if p.spends || p.task.reason == login && strings.EqualFold(re.ErrorCode, "invalid_grant") {
				refused = ErrConsentRequired
			}
			*e = *ResponseError(re.Response, re.Body, re.ErrorCode, refused)
		}
	case errors.As(err, &ue):
		e.Err = fmt.Errorf("%w: %w", ErrUnavailable, peererror.Clean(ue))
	}
	if errors.Is(context.Cause(ctx), context.DeadlineExceeded) && e.Status == 0 {
		e.Err = fmt.Errorf("%w: no answer within %s: %w", ErrUnavailable, c.timeout, context.DeadlineExceeded)
	}
	return e
}

// storeError wraps err in ErrStore, unless it is nil or an ErrConflict.
func storeError(err error) error {
	if err == nil || errors.Is(err, ErrStore) || errors.Is(err, ErrConflict) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrStore, err)
}

// secrets returns a digest of the settings' secrets as they are now.
func (c *core) secrets() string {
	digest, _ := c.readSecrets(Secret.Value)
	return digest
}

// freshSecrets is secrets after the product has refused the credentials.
func (c *core) freshSecrets() string {
	digest, _ := c.readSecrets(Secret.freshValue)
	return digest
}

// readSecrets is secrets, with the reason why a secret cannot be read.
func (c *core) readSecrets(read func(Secret) (string, error)) (_ string, err error) {
	var b strings.Builder
	for _, s := range append([]Secret{c.refresh.Token}, c.opts.Secrets...) {
		v, unreadable := read(s)
		if unreadable != nil {
			v, err = "unreadable", unreadable
		}
		b.WriteString(digest(v))
	}
	return digest(b.String()), err
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:8])
}
