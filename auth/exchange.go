package auth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/internal/adopted"
	"github.com/itsmauth/itsmauth/internal/retryafter"
)

const (
	// saveEvery is the longest pause between two tries to save a rotated refresh token, and markWait, the
	// least wait for somebody else's mark, is longer: where it was the store that was away, the one whose
	// mark it is saves first.
	saveEvery = 2 * time.Second
	markWait  = saveEvery + time.Second
)

// held is a record under the store's lock.
type held struct {
	tokenRecord
	version uint64
	unlock  func()
}

// obtain is one exchange. While the store is silent and a refresh token is at stake, it keeps asking.
// It publishes what it gets; its error counts only if it published nothing.
func (c *core) obtain(ctx context.Context, f *flight) error {
	if f.kind == offering {
		return c.offer(ctx, f)
	}
	late := time.NewTimer(exchangeTimeout)
	defer late.Stop()
	for conflicts := 0; ; {
		err := c.protocol(ctx, f)
		if f.snap == nil && errors.Is(err, ErrConflict) && conflicts < 3 { // before anything was spent
			conflicts++
			continue
		}
		back := c.store.silence()
		if err == nil || f.snap != nil || !errors.Is(err, ErrStore) || back == nil || f.kind != foreground {
			return err
		}
		select {
		case <-back:
		case <-late.C:
			return &Error{Op: "store", Err: fmt.Errorf("%w; asked again for %s, and the refresh token was not spent", cmp.Or(c.store.gate(), ErrStore), exchangeTimeout)}
		case <-c.closing.Done():
			return &Error{Op: "token", Err: ErrClosed}
		}
	}
}

// protocol is one exchange: look, lock, adopt, mark, exchange, save, publish, unlock.
func (c *core) protocol(ctx context.Context, f *flight) error {
	// A look without the lock: after a restart, or when another process was first, that is all.
	r, version, err := c.look(ctx)
	f.seen = r.news()
	if f.kind == watching && (err != nil || !c.due(r)) {
		f.held = errNotDue
	}
	lost := err == nil && c.ahead(f.last, r)
	switch {
	case err == nil && c.loggedOut(f.last, r):
		return c.remember(r.refusal(), c.secrets())
	case err == nil && c.adopt(f, r):
		return nil
	case f.held != nil && !lost && !c.released(f, err):
		return f.held
	}

	h, err := c.lock(ctx, f.last, held{tokenRecord: r, version: version}, func(r tokenRecord) bool { return c.adopt(f, r) })
	switch {
	case err == nil && h == nil:
		return nil // adopted
	case err == nil:
	case c.closing.Err() != nil:
		return &Error{Op: "token", Err: ErrClosed}
	case c.atStake(f.last), f.kind != foreground: // nobody waits: by the expiry the store may be back
		return &Error{Op: "store", Err: err}
	default:
		if c.unsaved() {
			c.opts.Logger.Warn("token store failed; exchanging without it", "connector", c.opts.Connector, "error", err)
		}
		return c.exchange(ctx, f, nil)
	}
	defer h.unlock()
	defer func() { f.seen = h.news() }()
	if c.adopt(f, h.tokenRecord) {
		return nil
	}
	if lost && f.held != nil {
		return f.held
	}
	if err := c.awaitPending(ctx, h); err != nil {
		return err
	}
	if c.adopt(f, h.tokenRecord) {
		return nil
	}
	return c.exchange(ctx, f, h)
}

// look loads the record. While the store could not be read, each process was on its own and they may
// have ended each other's tokens; one exchange mends that, so the back-off of refused tokens ends.
func (c *core) look(ctx context.Context) (tokenRecord, uint64, error) {
	r, version, err := c.load(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil && c.unread {
		c.forced = forced{whole: c.forced.whole}
	}
	c.unread = err != nil
	return r, version, err
}

// released reports whether what is in the store, or a changed secret, ends the memory of a failure.
func (c *core) released(f *flight, err error) bool {
	if f.held == errNotDue || err != nil {
		return false
	}
	c.mu.Lock()
	known := c.failure.seen
	c.mu.Unlock()
	return f.seen != known || c.secretsChanged()
}

// atStake reports whether an exchange beside the store could cost somebody a login.
func (c *core) atStake(last *snapshot) bool {
	return !c.refresh.Expendable && (c.needsPerson() || last != nil && last.record.RefreshToken != "")
}

// ahead reports whether the store lost last: a refresh token, or that it was given up.
func (c *core) ahead(last *snapshot, r tokenRecord) bool {
	return last != nil && last.record.Generation > r.Generation && !c.refresh.Expendable &&
		(last.record.RefreshToken != "" || last.record.loggedOut())
}

// loggedOut gives up what is held of a consent that was ended elsewhere, and reports whether there
// was something.
func (c *core) loggedOut(last *snapshot, r tokenRecord) bool {
	if last == nil || !r.loggedOut() || r.Generation <= last.record.Generation {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = c.snapshot(r)
	c.current.Store(nil)
	return true
}

func (c *core) load(ctx context.Context) (tokenRecord, uint64, error) {
	rec, err := c.store.Load(ctx, c.key)
	if err != nil {
		return tokenRecord{}, 0, err
	}
	t, err := decodeRecord(rec)
	return t, rec.Version, err
}

// loadNow is load also where the store was silent.
func (c *core) loadNow(ctx context.Context) (tokenRecord, uint64, error) {
	rec, err := c.store.loadNow(ctx, c.key)
	if err != nil {
		return tokenRecord{}, 0, storeError(err)
	}
	t, err := decodeRecord(rec)
	return t, rec.Version, err
}

// save stores t over h's record.
func (c *core) save(ctx context.Context, h *held, t tokenRecord) error {
	if err := c.store.Save(ctx, c.key, c.encode(t, h.version)); err != nil {
		return err
	}
	h.tokenRecord, h.version = t, h.version+1
	return nil
}

func storeError(err error) error {
	if err == nil || errors.Is(err, ErrStore) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrStore, err)
}

// adopt publishes the stored token if it is usable and newer than the one to be replaced.
func (c *core) adopt(f *flight, r tokenRecord) bool {
	if r.AccessToken == "" || r.Refused != nil {
		return false
	}
	if l := f.last; l != nil && (r.Generation <= l.record.Generation || r.AccessToken == l.record.AccessToken) {
		return false
	}
	snap := c.snapshot(r)
	snap.public = adopted.Mark(snap.public)
	if !snap.valid() || f.kind != foreground && time.Now().UnixNano() >= snap.stale {
		return false
	}
	if f.kind == watching && c.due(r) {
		return false
	}
	f.adopted, f.forced = true, false // somebody else's exchange, not ours
	c.publish(f, snap)
	return true
}

// awaitPending gives whoever was about to spend the refresh token, and is gone, the time that its
// exchange may take.
func (c *core) awaitPending(ctx context.Context, h *held) (err error) {
	for h.Pending != nil && h.Pending.Owner != c.owner && !h.Pending.Since.Equal(h.Interrupted) {
		since := h.Pending.Since
		select {
		case <-time.After(min(max(time.Until(since.Add(exchangeTimeout)), markWait), exchangeTimeout)):
		case <-c.closing.Done():
			return &Error{Op: "token", Err: ErrClosed}
		}
		if h.tokenRecord, h.version, err = c.load(ctx); err != nil {
			return &Error{Op: "store", Err: err}
		}
		if h.Pending != nil && h.Pending.Since.Equal(since) {
			h.Interrupted = since
		}
	}
	return nil
}

// exchange obtains a token, saves it in h and publishes it. A nil h is a store that failed.
func (c *core) exchange(ctx context.Context, f *flight, h *held) error {
	prev, err := c.previous(h)
	if err != nil {
		return err
	}
	spends := prev.RefreshToken != "" && !c.refresh.Expendable
	if spends {
		marked := prev
		marked.Pending = &pending{Owner: c.owner, Since: time.Now().Round(0)}
		if err := c.save(ctx, h, marked); err != nil {
			return &Error{Op: "store", Err: fmt.Errorf("%w; nothing was spent", err)}
		}
	}
	tok, start, failed := c.try(ctx, prev.token(), spends)
	if failed != nil {
		switch {
		case spends && errors.Is(failed, ErrConsentRequired):
			return c.refuse(ctx, h, prev, failed)
		case spends && unspent(failed):
			// Nobody need wait for us. If this fails, they do.
			_ = c.save(ctx, h, prev)
		}
		return failed
	}
	if c.refresh.Expendable && tok.RefreshToken == "" {
		prev.RefreshToken = "" // refused: this answers the full grant
	}
	r := received(tok, prev, start)
	if r.Generation = prev.Generation + 1; !spends {
		if f.last != nil {
			prev.Generation = max(prev.Generation, f.last.record.Generation)
		}
		r.Generation = beginning(prev.Generation)
	}
	if h == nil {
		c.publish(f, c.snapshot(r))
		return nil
	}
	return c.keep(ctx, f, h, prev, r)
}

// unspent reports whether e shows that the refresh token was not accepted: it was never sent, or the
// request was refused.
func unspent(e *Error) bool {
	var op *net.OpError
	return e.Status >= 400 && e.Status < 500 || errors.Is(e, ErrCredentials) || errors.Is(e, ErrRateLimited) ||
		errors.Is(e, ErrInsecure) && e.Status == 0 ||
		errors.As(e, &op) && (op.Op == "dial" || op.Op == "proxyconnect")
}

// previous is what the next exchange starts from: the stored record, or the refresh token that the
// settings give.
func (c *core) previous(h *held) (tokenRecord, error) {
	if h == nil {
		return tokenRecord{}, nil
	}
	prev := h.tokenRecord
	prev.Pending = nil
	if !c.refresh.Token.IsZero() && (prev.RefreshToken == "" || prev.Refused != nil) {
		seed, err := c.refresh.Token.Value()
		if err != nil {
			return prev, &Error{Op: "exchange", Err: fmt.Errorf("reading refresh_token: %w", err)}
		}
		if print := digest(seed); seed != "" && print != prev.Seed && print != c.refused {
			return tokenRecord{Generation: beginning(prev.Generation), RefreshToken: seed, Seed: print, Refreshed: time.Now().Round(0)}, nil
		}
	}
	if prev.Refused != nil {
		return prev, c.remember(prev.refusal(), c.secrets())
	}
	return prev, nil
}

// token is what a provider is given to replace.
func (r tokenRecord) token() *oauth2.Token {
	if r.AccessToken == "" && r.RefreshToken == "" {
		return nil
	}
	return &oauth2.Token{AccessToken: r.AccessToken, TokenType: r.TokenType, RefreshToken: r.RefreshToken, Expiry: r.Obtained.Add(r.Lifetime)}
}

// try makes the exchange within its own deadline: again if nothing is spent by that and the product
// was only unavailable, and once more if a secret changed while it was refused.
func (c *core) try(ctx context.Context, prev *oauth2.Token, spends bool) (*oauth2.Token, time.Time, *Error) {
	const tries = 3
	ctx, cancel := context.WithTimeout(ctx, exchangeTimeout)
	defer cancel()
	ctx = context.WithValue(ctx, oauth2.HTTPClient, c.opts.Client)
	secrets, changed := c.secrets(), false
	for n := 1; ; n++ {
		start := time.Now()
		tok, err := c.provider.Exchange(ctx, prev)
		if err == nil && (tok == nil || tok.AccessToken == "") {
			err = fmt.Errorf("%w: no access token", ErrProtocol)
		}
		if err == nil {
			return tok, start, nil
		}
		e := explain(ctx, err, spends)
		switch {
		case errors.Is(e, ErrCredentials) && !changed:
			now := c.secrets()
			if changed = now != secrets; !changed {
				return nil, start, c.remember(e, secrets)
			}
			secrets = now
		case errors.Is(e, ErrUnavailable) && !spends && n < tries && !hopeless(e):
			wait := max(e.RetryAfter, less(250*time.Millisecond<<n))
			if end, _ := ctx.Deadline(); time.Until(end) <= wait {
				return nil, start, e
			}
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return nil, start, e
			case <-c.closing.Done():
				return nil, start, e
			}
		default:
			return nil, start, c.remember(e, secrets)
		}
	}
}

// hopeless reports whether e would be the same a moment later.
func hopeless(e *Error) bool {
	var dns *net.DNSError
	return errors.Is(e, ErrInsecure) || errors.As(e, &dns) && dns.IsNotFound
}

// explain makes an [*Error] of whatever a provider returned, without the URL and the body that
// other packages put into theirs.
func explain(ctx context.Context, err error, spends bool) *Error {
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
	if errors.Is(context.Cause(ctx), context.DeadlineExceeded) && !errors.Is(e.Err, ErrUnavailable) {
		e.Err = fmt.Errorf("%w: no answer within %s: %w", ErrUnavailable, exchangeTimeout, context.DeadlineExceeded)
	}
	return e
}

// refuse keeps in the record that the refresh token was refused, for other processes and for the
// next start.
func (c *core) refuse(ctx context.Context, h *held, prev tokenRecord, failed *Error) error {
	prev.Refused = &refused{Since: time.Now().Round(0), Interrupted: prev.Interrupted}
	if digest(prev.RefreshToken) == prev.Seed {
		c.refused = prev.Seed
	}
	if err := c.save(ctx, h, prev); err != nil {
		c.opts.Logger.Warn("could not save that consent is required", "connector", c.opts.Connector, "error", err)
	}
	why := prev.refusal()
	failed.Op, failed.Err = why.Op, why.Err
	return failed
}

// keep saves r and publishes it. A rotated refresh token is saved however long that takes, with the
// lock held, until Close.
func (c *core) keep(ctx context.Context, f *flight, h *held, prev, r tokenRecord) error {
	rotated := f.login || r.RefreshToken != "" && r.RefreshToken != prev.RefreshToken && !c.refresh.Expendable
	if !rotated {
		c.publish(f, c.snapshot(r)) // nothing is lost if it is not saved, so nobody waits for the store
	}
	published, closing, again, began := !rotated, false, true, time.Now()
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, saveEvery) {
		var err error
		if closing {
			err = storeError(c.store.saveNow(ctx, c.key, c.encode(r, h.version)))
		} else {
			err = c.save(ctx, h, r)
		}
		if errors.Is(err, ErrConflict) {
			var stored tokenRecord
			if stored, h.version, err = c.loadNow(ctx); err == nil {
				newer := stored.Generation >= r.Generation
				switch {
				case stored.Generation == r.Generation && stored.AccessToken == r.AccessToken:
					// Ours, which only seemed to fail.
				case newer && published && rotated:
					return nil // it is adopted when it is looked at next
				case newer && stored.loggedOut():
					c.loggedOut(f.last, stored)
					return stored.refusal()
				case (newer || !rotated) && c.adopt(f, stored):
					return nil
				case newer: // and of no use here: ours is, to those who wait
				case again:
					again = false
					continue
				default:
					err = ErrConflict
				}
			}
		}
		if !published {
			c.publish(f, c.snapshot(r)) // also if it is not saved: callers need not wait for the store
		}
		switch {
		case err == nil:
			c.saved()
			return nil
		case !rotated:
			if c.unsaved() {
				c.opts.Logger.Warn("token not saved; other processes obtain their own until it is", "connector", c.opts.Connector, "error", err)
			}
			return nil
		case closing && f.login:
			return &Error{Op: "login", Err: fmt.Errorf("%w; %w", err, errLoginLost)}
		case closing:
			c.mu.Lock()
			defer c.mu.Unlock()
			c.lost = &Error{Op: "store", Err: fmt.Errorf("%w: the rotated refresh token is lost with this process", err)}
			return nil
		case !published:
			c.opts.Logger.Error("rotated refresh token not saved yet; trying on", "connector", c.opts.Connector, "error", err)
		case f.saving == nil && time.Since(began) > exchangeTimeout: // then those who wait for another token leave
			f.saving = &Error{Op: "store", Err: fmt.Errorf("%w; the rotated refresh token is not saved yet", err)}
			close(f.stuck)
		}
		published, again = true, true
		select {
		case <-time.After(wait):
		case <-c.store.silence():
		case <-f.giveUp:
			return &Error{Op: "login", Err: fmt.Errorf("%w; %w", err, errLoginLost)}
		case <-c.closing.Done(): // once more, when a store that was silent may be asked again
			closing = true
			select {
			case <-time.After(closeGrace / 2):
			case <-ctx.Done():
			}
		}
	}
}
