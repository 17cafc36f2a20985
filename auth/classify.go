package auth

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/internal/peererror"
	"github.com/itsmauth/itsmauth/internal/retryafter"
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
			e.RetryAfter, _ = retryafter.Parse(re.Response.Header, time.Now())
			e.Status = re.Response.StatusCode
			if code := strings.ToLower(re.ErrorCode); slices.Contains(errorCodes, code) {
				e.Code = code
			}
			e.Err = e.sentinel(re, p)
		}
	case errors.As(err, &ue):
		e.Err = fmt.Errorf("%w: %w", ErrUnavailable, peererror.Clean(ue))
	}
	if errors.Is(context.Cause(ctx), context.DeadlineExceeded) && e.Status == 0 {
		e.Err = fmt.Errorf("%w: no answer within %s: %w", ErrUnavailable, c.timeout, context.DeadlineExceeded)
	}
	return e
}

// errorCodes are the error codes of RFC 6749 section 5.2. No other code is shown: it may quote the request.
var errorCodes = []string{"invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type", "invalid_scope"}

// sentinel returns what an error response means. The status decides before the error code. A body that does
// not come from a token endpoint refuses nothing.
func (e *Error) sentinel(re *oauth2.RetrieveError, p *protocol) error {
	body := bytes.TrimSpace(re.Body)
	isForm := strings.HasPrefix(re.Response.Header.Get("Content-Type"), "application/x-www-form-urlencoded")
	isJSON := len(body) > 0 && (body[0] == '{' || body[0] == '[') && json.Valid(body)
	understood := re.ErrorCode != "" || isForm || isJSON
	switch {
	case e.Status == 429:
		return ErrRateLimited
	case e.Status >= 500, e.Status == 408:
		return ErrUnavailable
	case !e.refuses(), len(body) == 0 && !understood, bytes.HasPrefix(body, []byte("<")),
		!understood && (p.spends || e.Status != 401),
		e.is("invalid_request"), e.is("invalid_scope"), e.is("unsupported_grant_type"):
		return ErrProtocol
	case p.spends && !e.is("invalid_client") && !e.is("unauthorized_client"), p.task.reason == login && e.is("invalid_grant"):
		return ErrConsentRequired
	}
	return ErrCredentials
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
	digest, _ := c.readSecrets()
	return digest
}

// readSecrets is secrets, with the reason why a secret cannot be read.
func (c *core) readSecrets() (_ string, err error) {
	var b strings.Builder
	for _, s := range append([]Secret{c.refresh.Token}, c.opts.Secrets...) {
		v, unreadable := s.Value()
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
