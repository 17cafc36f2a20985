package auth

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"
)

// loginGrace is how long after its caller's time a login is saved: somebody has just given consent.
const loginGrace = 10 * time.Second

// Redeem exchanges an authorization code (RFC 6749 section 4.1.3) and saves what it gives, as the new
// beginning of the chain. If ctx ends after the code was sent, Redeem goes on for up to 10 s, since the
// product may have issued the tokens. If they are not saved by then, the login is lost, and the error,
// around [ErrStore], says so. Its error is an [*Error].
func (s *Session) Redeem(ctx context.Context, code, verifier string) error {
	flow := s.CodeFlow()
	if flow == nil {
		return s.named(&Error{Op: "login", Err: errors.New("this grant needs no login")})
	}
	late, cancel := outlasting(ctx, loginGrace)
	defer cancel()
	var redeemed atomic.Bool
	err := s.detached(late, "login", ctx, func(life context.Context, h *held) error {
		exchange, cancel := context.WithTimeout(life, exchangeTimeout)
		defer cancel()
		defer context.AfterFunc(late, cancel)()
		start := time.Now()
		tok, err := flow.Redeem(context.WithValue(exchange, oauth2.HTTPClient, s.opts.Client), code, verifier)
		if err == nil && (tok == nil || tok.AccessToken == "") {
			err = &Error{Op: "login", Err: fmt.Errorf("%w: no access token", ErrProtocol)}
		}
		if err != nil {
			return explain(exchange, err, true)
		}
		redeemed.Store(true)
		r := received(tok, tokenRecord{}, start)
		r.Generation = beginning(h.Generation)
		f := newFlight()
		f.login, f.giveUp = true, late.Done()
		return s.keep(life, f, h, tokenRecord{}, r)
	})
	if err != nil && redeemed.Load() && late.Err() != nil {
		why := s.store.unusable()
		if why == nil {
			why = ErrStore
		}
		return s.named(&Error{Op: "login", Err: fmt.Errorf("%w; %w", why, errLoginLost)})
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

// Revoke tells the product to forget the tokens (RFC 7009), if it can be told, and then forgets
// them here, also if the product could not be reached. Sessions of other processes that share the
// store give up theirs within 10 s if a person's consent is ended by that. Its error is an [*Error].
func (s *Session) Revoke(ctx context.Context) error {
	return s.detached(ctx, "revoke", context.Background(), func(ctx context.Context, h *held) error {
		var rerr error
		if r, ok := s.provider.(Revoker); ok && h.token() != nil {
			rctx, cancel := context.WithTimeout(ctx, exchangeTimeout)
			defer cancel()
			rerr = r.Revoke(context.WithValue(rctx, oauth2.HTTPClient, s.opts.Client), h.token())
			if rerr != nil {
				rerr = explain(rctx, rerr, false)
			}
		}
		last, err := s.forget(ctx, h)
		if err != nil {
			return &Error{Op: "store", Err: storeError(err)}
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.last, s.failure = last, failure{}
		s.current.Store(nil)
		return rerr
	})
}

// forget leaves of a person's consent that it was ended: where there is no record at all, those who
// still hold the refresh token would take it for lost and write it back.
func (s *Session) forget(ctx context.Context, h *held) (*snapshot, error) {
	if !s.atStake(&snapshot{record: h.tokenRecord}) {
		return nil, s.store.Delete(ctx, s.key, h.version)
	}
	now := time.Now().Round(0)
	left := tokenRecord{Generation: beginning(h.Generation), Seed: h.Seed}
	if s.needsPerson() {
		left.Refused = &refused{Since: now, LoggedOut: true}
	}
	rec := s.encode(left, h.version)
	if rec.Expires = s.consentExpiry(h.tokenRecord); rec.Expires.IsZero() && s.refresh.Lifetime > 0 {
		rec.Expires = now.Add(s.refresh.Lifetime)
	}
	return s.snapshot(left), s.store.Save(ctx, s.key, rec)
}

// detached runs f under the store's lock and to its end, for Close to wait for, and waits for it as
// long as ctx lasts. The lock is waited for as long as both ctx and lock last.
func (s *Session) detached(ctx context.Context, op string, lock context.Context, f func(context.Context, *held) error) error {
	s.mu.Lock()
	begun := s.begun()
	s.mu.Unlock()
	if !begun {
		return s.named(&Error{Op: op, Err: ErrClosed})
	}
	done := make(chan error, 1)
	go func() {
		defer s.over()
		done <- s.locked(lock, f)
	}()
	select {
	case err := <-done:
		return s.named(err)
	case <-ctx.Done():
		return s.named(&Error{Op: op, Err: contextError(ctx)})
	}
}

// locked runs f under the store's lock, which begins with what this process knows.
func (s *Session) locked(lock context.Context, f func(context.Context, *held) error) error {
	s.mu.Lock()
	last := s.last
	s.mu.Unlock()
	waiting, cancel := context.WithCancelCause(s.life)
	defer cancel(nil)
	defer context.AfterFunc(lock, func() { cancel(contextError(lock)) })()
	h, err := s.lock(waiting, last, held{}, func(tokenRecord) bool { return false })
	switch {
	case err != nil && s.closing.Err() != nil:
		return &Error{Op: "store", Err: ErrClosed}
	case err != nil && lock.Err() != nil:
		return &Error{Op: "store", Err: fmt.Errorf("%w: waiting for the lock: %w", ErrStore, contextError(lock))}
	case err != nil:
		return &Error{Op: "store", Err: err}
	}
	defer h.unlock()
	return f(s.life, h)
}
