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
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/internal/retryafter"
)

// permanent reports whether another try would meet err again.
func permanent(err error) bool {
	var dns *net.DNSError
	return errors.Is(err, ErrInsecure) || errors.As(err, &dns) && dns.IsNotFound
}

// classify makes an [*Error] of a provider's error, without the URL and the body that x/oauth2 and
// net/http put into theirs.
func (c *core) classify(ctx context.Context, err error, spends bool) *Error {
	e := &Error{Op: "exchange", Err: err}
	var ours *Error
	var ue *url.Error
	var re *oauth2.RetrieveError
	switch {
	case errors.As(err, &ours):
		*e = *ours
		e.Op = cmp.Or(e.Op, "exchange")
	case errors.As(err, &re):
		e.Err = ErrProtocol
		if re.Response != nil {
			e.RetryAfter, _ = retryafter.Parse(re.Response.Header, time.Now())
			switch e.Status = re.Response.StatusCode; {
			case e.Status == 429:
				e.Err = ErrRateLimited
			case e.Status >= 500, e.Status == 408, re.ErrorCode == "temporarily_unavailable", re.ErrorCode == "server_error":
				e.Err = ErrUnavailable
			case re.ErrorCode == "invalid_grant" && spends:
				e.Err = ErrConsentRequired
			case e.Status == 400, e.Status == 401, e.Status == 403:
				e.Err = ErrCredentials
			}
		}
	case errors.As(err, &ue):
		e.Err = fmt.Errorf("%w: %w", ErrUnavailable, ue.Err)
	}
	if errors.Is(context.Cause(ctx), context.DeadlineExceeded) && (e.Status == 0 || !errors.Is(e.Err, ErrUnavailable)) {
		e.Err = fmt.Errorf("%w: no answer within %s: %w", ErrUnavailable, c.timeout, context.DeadlineExceeded)
	}
	return e
}

// storeError makes err, if there is one, an ErrStore, unless it is an ErrConflict.
func storeError(err error) error {
	if err == nil || errors.Is(err, ErrStore) || errors.Is(err, ErrConflict) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrStore, err)
}

// secrets is a digest of the settings' secrets as they are now.
func (c *core) secrets() string {
	var b strings.Builder
	for _, s := range append([]Secret{c.refresh.Token}, c.opts.Secrets...) {
		v, err := s.Value()
		if err != nil {
			v = "unreadable"
		}
		b.WriteString(digest(v))
	}
	return digest(b.String())
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:8])
}
