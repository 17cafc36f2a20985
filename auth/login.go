package auth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"
)

// loginGrace is how long a login is saved after its caller's ctx ended: a person has just given consent.
const loginGrace = 10 * time.Second

// Redeem exchanges an authorization code (RFC 6749 section 4.1.3) and saves the tokens. If ctx ends after
// the code was sent, Redeem goes on for up to 10 s, because the product may have issued them. If they are
// not saved by then, the login is lost, and the error wraps [ErrStore] and says so.
//
// If the product returns no refresh token and an earlier login has one, the earlier login stays in force:
// Redeem revokes the new tokens, if the product can, and the error wraps [ErrNoRefreshToken]. Without an
// earlier login, the new access token is used until it expires, and Refreshable in [Status] is false. The
// error is an [*Error].
func (s *Session) Redeem(ctx context.Context, code, verifier string) error {
	flow := s.CodeFlow()
	if flow == nil {
		return s.named(&Error{Op: "login", Err: errors.New("this grant needs no login")})
	}
	late, cancel := outlasting(ctx, loginGrace)
	defer cancel()
	var redeemed atomic.Bool
	f := newFlight(&task{reason: login})
	f.lockCtx, f.giveUp = ctx, late.Done()
	f.redeem = func(ctx context.Context) (*oauth2.Token, error) {
		if late.Err() != nil { // while the product wanted us to wait
			return nil, contextError(late)
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(late, cancel)()
		tok, err := flow.Redeem(ctx, code, verifier)
		redeemed.Store(err == nil)
		return tok, err
	}
	err := s.detached(late, f)
	if err != nil && redeemed.Load() && late.Err() != nil {
		return s.named(&Error{Op: "login", Err: fmt.Errorf("%w; %w", cmp.Or(s.store.unusable(), ErrStore), errLoginLost)})
	}
	return err
}

var errLoginLost = errors.New("the login could not be saved and is lost: log in again")

// outlasting gives a context that ends d after ctx.
func outlasting(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	late, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-time.After(d):
			cancel(contextError(ctx))
		case <-late.Done():
		}
	})
	return late, func() { stop(); cancel(nil) }
}

// Revoke revokes the tokens at the product (RFC 7009), if [Session.CanRevoke], and then forgets them, even
// if the product could not be reached. If that ends a person's consent, sessions of other processes that
// share the store forget their tokens within 10 s. Its error is an [*Error]. If it wraps [ErrStore], the
// store still has the tokens, and the error says whether the product has revoked them.
func (s *Session) Revoke(ctx context.Context) error {
	if s.credentials != nil {
		return s.named(&Error{Op: "revoke", Err: errStatic})
	}
	return s.detached(ctx, newFlight(&task{reason: logout}))
}

// CanRevoke reports whether [Session.Revoke] revokes the tokens at the product. If not, they stay valid
// there until they expire.
func (c *core) CanRevoke() bool {
	_, ok := c.provider.(Revoker)
	r, limited := c.provider.(interface{ CanRevoke() bool })
	return ok && (!limited || r.CanRevoke())
}

// revoke revokes tok at the product, and reports whether the product has a way to revoke them.
func (c *core) revoke(tok *oauth2.Token) (told bool, err error) {
	if tok == nil || !c.CanRevoke() {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(c.life, c.timeout)
	defer cancel()
	ctx, challenged := c.withClient(ctx)
	err = c.provider.(Revoker).Revoke(ctx, tok)
	if err != nil && challenged() {
		err = c.provider.(Revoker).Revoke(ctx, tok)
	}
	if err != nil {
		err = c.classify(ctx, err, new(protocol))
	}
	return true, err
}

// forget saves what a logout leaves of the record, for as long as the refresh token may live.
func (c *core) forget(p *protocol) error {
	if p.writing.Generation == 0 {
		return c.store.Delete(c.life, c.key, p.version)
	}
	r := c.refresh.encode(p.writing, p.version)
	if r.Expires = c.refresh.consentExpiry(p.record); r.Expires.IsZero() && c.refresh.Lifetime > 0 {
		r.Expires = time.Now().Add(c.refresh.Lifetime)
	}
	return c.store.Save(c.life, c.key, r)
}

// detached drives a login or a logout to its end, which Close waits for, and waits for it as long as
// ctx lasts.
func (s *Session) detached(ctx context.Context, f *flight) error {
	op := "login"
	if f.reason == logout {
		op = "revoke"
	}
	s.mu.Lock()
	f.replaces = s.state.token
	open := s.startWorkLocked()
	s.mu.Unlock()
	if !open {
		return s.named(&Error{Op: op, Err: ErrClosed})
	}
	done := make(chan error, 1)
	go func() {
		defer s.finishWork()
		done <- s.drive(f).err
	}()
	select {
	case err := <-done:
		return s.named(err)
	case <-ctx.Done():
		return s.named(&Error{Op: op, Err: contextError(ctx)})
	}
}
