package auth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/internal/tokenextra"
)

// run runs one exchange and tells the callers who wait for it.
func (c *core) run(f *flight) {
	defer c.finishWork()
	p := c.obtain(f)

	warning, attrs := "", []any(nil)
	c.mu.Lock()
	c.flight = nil
	switch {
	case f.snap == nil:
		f.err = p.err
		warning, attrs = c.state.failed(time.Now(), p)
	case f.renew:
		c.startLocked(stale) // before the callers go: a command line ends then
	}
	c.showLocked()
	f.answer()
	close(f.done)
	c.lookForOffersLocked()
	if f.reason != offer {
		c.watchLocked()
	}
	c.mu.Unlock()
	if warning != "" { // after unlocking: the handler may call Token
		c.log(slog.LevelWarn, warning, attrs...)
	}
}

// obtain drives the protocol: again after a conflict in which nothing was spent, and again while a
// caller waits and the store, which is silent, is needed.
func (c *core) obtain(f *flight) *protocol {
	late := time.NewTimer(c.timeout)
	defer late.Stop()
	for conflicts := 0; ; {
		p := c.drive(f)
		if f.snap == nil && errors.Is(p.err, ErrConflict) && conflicts < 3 {
			conflicts++
			continue
		}
		back := c.store.silence()
		if f.snap != nil || !errors.Is(p.err, ErrStore) || back == nil || f.reason != needed {
			return p
		}
		select {
		case <-back:
		case <-late.C:
			p.fail("store", fmt.Errorf("%w; asked again for %s, and the refresh token was not spent", cmp.Or(c.store.gate(), ErrStore), c.timeout))
			return p
		case <-c.closing.Done():
			p.fail("token", ErrClosed)
			return p
		}
	}
}

// drive performs the protocol's steps until it is finished.
func (c *core) drive(f *flight) *protocol {
	defer func() {
		if f.unlock != nil {
			f.unlock()
			f.unlock = nil
		}
	}()
	c.mu.Lock()
	p := newProtocol(c.rules, *f.task)
	c.mu.Unlock()
	for {
		for _, r := range p.results {
			c.tell(f, r)
		}
		if p.results = nil; p.step == finished {
			break
		}
		e := c.perform(f, p)
		p.advance(time.Now(), e)
	}
	if errors.Is(p.err, ErrConsentRequired) && !p.nothing {
		p.secrets = cmp.Or(p.secrets, c.secrets())
	}
	return p
}

// perform performs p's step, and returns what that came to.
func (c *core) perform(f *flight, p *protocol) (e event) {
	switch p.step {
	case looking:
		e.record, e.version, e.err = c.load(c.life, c.store.Load)
		c.mu.Lock()
		c.state.storeRead(e.err == nil)
		c.mu.Unlock()
		e.changed = e.err == nil && p.suppress != nil && !errors.Is(p.suppress, errNotDue) && c.changed(e.record.recordVersion())
	case locking:
		e.record, e.version, e.err = c.lock(f, p)
		e.taken, e.closing = f.unlock != nil, e.err != nil && c.closing.Err() != nil
		e.current = c.current.Load() == f.replaces
		e.gaveUp = f.lockCtx != nil && f.lockCtx.Err() != nil
	case conflicted:
		e.record, e.version, e.err = c.load(c.life, c.store.loadNow)
	case restoring, marking, failing, saving, offering:
		e.err = c.save(p)
	case seeding:
		e.seed, e.err = c.refresh.Token.Value()
	case exchanging:
		exchange := f.redeem
		if exchange == nil {
			prev := p.previous.token()
			exchange = func(ctx context.Context) (*oauth2.Token, error) { return c.provider.Exchange(ctx, prev) }
		}
		return c.try(p, exchange)
	case waiting:
		select {
		case <-time.After(p.wait):
			e.record, e.version, e.err = c.load(c.life, c.store.Load)
		case <-c.closing.Done():
			e.closing = true
		}
	case pausing:
		select {
		case <-time.After(p.wait):
		case <-c.store.silence():
		case <-f.giveUp:
			e.gaveUp = true
		case <-c.closing.Done(): // a store that was silent may answer then
			e.closing = true
			select {
			case <-time.After(closeGrace / 2):
			case <-c.life.Done():
			}
		}
	case revoking:
		tokens := p.record
		if f.reason == login {
			tokens = p.made
		}
		e.told, e.err = c.revoke(tokens.token())
	case forgetting:
		e.err = c.forget(p)
	}
	return e
}

// tell puts a result of the protocol into the state and the log.
func (c *core) tell(f *flight, r result) {
	switch r.is {
	case tokenObtained, tokenAdopted:
		c.publish(f, r)
	case storeBypassed, tokenUnsaved:
		if !c.noteUnsaved(true) {
			return // it was said before
		}
		message := "token not saved; other processes obtain their own until it is"
		if r.is == storeBypassed {
			message = "token store failed; exchanging without it"
		}
		c.log(slog.LevelWarn, message, "error", r.err)
	case tokenSaved:
		c.noteUnsaved(false)
	case recordRestored:
		c.log(slog.LevelWarn, "the token store had lost the newest record; it is written back")
	case rotationUnsaved:
		c.log(slog.LevelError, "rotated refresh token not saved yet; trying on", "error", r.err)
	case rotationStuck: // callers who want another token leave
		f.saving = &Error{Op: "store", Err: fmt.Errorf("%w; the rotated refresh token is not saved yet", r.err)}
		close(f.stuck)
	case refusalUnsaved:
		c.log(slog.LevelWarn, "could not save that consent is required", "error", r.err)
	default:
		var left *snapshot
		if r.is == consentEnded || r.is == recordForgotten && r.record.Generation != 0 {
			left = c.snapshot(r.record) // before locking: it reads secrets
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		switch r.is {
		case rotationLost:
			c.lost = &Error{Op: "store", Err: fmt.Errorf("%w: the rotated refresh token is lost with this process", r.err)}
		case seedRefused:
			c.refusedSeed = r.record.Seed
		case answerLost:
			var e *Error
			c.unanswered, c.givenUp = r.record.Pending.Since, errors.As(r.err, &e) && e.Timeout()
		case offersExpected:
			c.expectOffersLocked()
		case consentEnded:
			c.state.ended(left)
		case recordForgotten:
			c.state.failure = failure{}
			c.state.ended(left)
		}
		c.showLocked()
	}
}

func (c *core) log(level slog.Level, message string, attrs ...any) {
	c.opts.Logger.Log(context.Background(), level, message, append([]any{"connector", c.opts.Connector}, attrs...)...)
}

// publish makes the record's token the current one, and lets the callers go who wait for f, unless the
// token is stale already.
func (c *core) publish(f *flight, r result) {
	snap := c.snapshot(r.record)
	if r.is == tokenAdopted {
		snap.public = tokenextra.Adopt(snap.public)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	f.renew = c.state.obtained(time.Now(), f.task, snap, r.is == tokenAdopted)
	c.showLocked()
	if f.snap = snap; !f.renew {
		f.answer()
	}
}

// noteUnsaved notes whether the store lacks the current token, and reports whether that is new.
func (c *core) noteUnsaved(unsaved bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	is := c.state.unsaved != unsaved
	c.state.unsaved = unsaved
	return is
}

// changed reports whether the record, or a secret, has changed since the failure that is remembered.
func (c *core) changed(record recordVersion) bool {
	c.mu.Lock()
	failed := c.state.failure.record
	refused := c.state.compareSecrets(time.Now())
	c.mu.Unlock()
	return record != failed || refused != "" && c.freshSecrets() != refused
}

// load reads the record with the store's Load or loadNow.
func (c *core) load(ctx context.Context, load func(context.Context, string) (Record, error)) (t tokenRecord, version uint64, err error) {
	rec, err := load(ctx, c.key)
	if err == nil {
		t, err = decodeRecord(rec, time.Now())
	}
	if err != nil {
		return tokenRecord{}, 0, err // without its version, so that it is not overwritten
	}
	return t, rec.Version, nil
}

// save saves what p is writing: the last time also while the store is silent.
func (c *core) save(p *protocol) error {
	save := c.store.Save
	if p.closing {
		save = c.store.saveNow
	}
	return save(c.life, c.key, c.refresh.encode(p.writing, p.version))
}

// token is what a provider is given to replace.
func (r tokenRecord) token() *oauth2.Token {
	if r.AccessToken == "" && r.RefreshToken == "" {
		return nil
	}
	return r.withExtra(&oauth2.Token{AccessToken: r.AccessToken, TokenType: r.TokenType, RefreshToken: r.RefreshToken, Expiry: r.Obtained.Add(r.Lifetime)})
}

// withExtra returns tok with r's signing key and cookies, if it has any.
func (r tokenRecord) withExtra(tok *oauth2.Token) *oauth2.Token {
	if r.SigningKey != "" {
		tok = tokenextra.WithSigningKey(tok, r.SigningKey)
	}
	if r.Cookies != "" {
		tok = tokenextra.WithCookies(tok, r.Cookies)
	}
	return tok
}

// try makes p's exchange within p's time. It tries again after a Retry-After, after ErrUnavailable if nothing
// was spent, once if a response challenged it, and once if the credentials were refused and a secret has
// changed meanwhile. The event's error is an [*Error].
func (c *core) try(p *protocol, exchange func(context.Context) (*oauth2.Token, error)) event {
	ctx, cancel := context.WithDeadline(c.life, p.until)
	defer cancel()
	ctx, challenged := c.withClient(ctx)
	secrets, changed, again := c.secrets(), false, false
	for n := 1; ; n++ {
		start := time.Now()
		traced, unsent := traceSending(ctx)
		tok, err := exchange(traced)
		if err == nil && tok != nil && tok.AccessToken != "" {
			return event{token: tok, start: start}
		}
		if challenged() && !again {
			again = true
			continue
		}
		e := c.classify(ctx, cmp.Or(err, fmt.Errorf("%w: no access token", ErrProtocol)), p)
		failed := event{err: e, secrets: secrets, unsent: unsent()}
		if errors.Is(e, ErrCredentials) && !changed && p.task.reason != login {
			secrets = c.freshSecrets()
			if changed = secrets != failed.secrets; changed {
				continue
			}
		}
		wait := c.waitAfter(e, p, n)
		if wait == 0 || time.Until(p.until) <= wait {
			return failed
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return failed
		case <-c.closing.Done():
			return failed
		}
	}
}

// traceSending returns a context for an exchange, and a function that reports whether net/http was given the
// exchange's request but got no connection for it.
func traceSending(ctx context.Context) (traced context.Context, unsent func() bool) {
	var asked, connected atomic.Bool
	trace := &httptrace.ClientTrace{
		GetConn: func(string) { asked.Store(true) },
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
	}
	return httptrace.WithClientTrace(ctx, trace), func() bool { return asked.Load() && !connected.Load() }
}

// waitAfter returns how long to wait after the nth failure of p's exchange before the next try, or 0 if there
// is none.
func (c *core) waitAfter(e *Error, p *protocol, n int) time.Duration {
	const tries = 3
	unavailable := errors.Is(e, ErrUnavailable)
	switch {
	case errors.Is(e, ErrRateLimited), unavailable && e.Status == http.StatusServiceUnavailable && e.RetryAfter > 0:
		after := cmp.Or(e.RetryAfter, backoff(n, time.Second, 8*time.Second))
		if after <= c.opts.MaxRetryAfter {
			// Up to a quarter more, if there is time, so that waiting processes do not try at once.
			return max(after, min(jitter(after*5/4), (after+time.Until(p.until))/2))
		}
	case unavailable && !p.spends && p.task.reason != login && n < tries && !permanent(e):
		return max(e.RetryAfter, jitter(250*time.Millisecond<<n))
	}
	return 0
}
