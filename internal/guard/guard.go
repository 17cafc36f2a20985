// Package guard calls code of the user that must not end the process.
package guard

import (
	"context"
	"fmt"
	"log/slog"
)

// Call calls f. If f panics, Call logs that name did, with the type of the panic's value, which may itself hold a secret.
func Call(ctx context.Context, l *slog.Logger, name string, f func()) {
	defer func() {
		if v := recover(); v != nil {
			l.ErrorContext(ctx, name+" panicked", "panic", fmt.Sprintf("%T", v))
		}
	}()
	f()
}
