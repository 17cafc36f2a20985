package auth_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/itsmauth/itsmauth/auth"
)

// The message ends with the advice, so that a program can show the two apart.
func TestAdvice(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		err  auth.Error
		want string
	}{
		{auth.Error{Connector: "remedy", Err: auth.ErrConsentRequired}, "run: itsmauth login remedy"},
		{auth.Error{Err: auth.ErrConsentRequired}, "a person must log in"},
		{auth.Error{Connector: "shop", Err: fmt.Errorf("%w: it is late", auth.ErrRateLimited), RetryAfter: 5e9}, "send less, or try again later"},
		{auth.Error{Err: fmt.Errorf("%w: disk full", auth.ErrStore)}, "check token_store"},
		{auth.Error{Err: fmt.Errorf("%w: disk full; set token_store.path", auth.ErrStore)}, ""},
		{auth.Error{Err: context.Canceled}, ""},
		{auth.Error{Err: errors.New("odd; very odd")}, ""},
		{auth.Error{}, ""},
	} {
		advice, message := tc.err.Advice(), tc.err.Error()
		if advice != tc.want || !strings.HasSuffix(message, advice) || advice != "" && !strings.HasSuffix(message, "; "+advice) {
			t.Errorf("%q of %q, want %q", advice, message, tc.want)
		}
	}
}
