package auth

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptrace"
	"time"

	"github.com/itsmauth/itsmauth/internal/guard"
)

// An Observer is told what happens to tokens, calls and the store, for metrics and alerts.
//
// Observe is called without a lock of this module held, from several goroutines at a time: for what happens to a
// call on the goroutine of that call, which it delays; for everything else in the background, where a slow Observe
// delays neither calls nor exchanges, but [Session.Close], which waits for it. A panic in Observe is recovered and
// logged.
//
// ctx has the values of the call that the event belongs to, such as its trace, and for an exchange those of the
// call that began it. It may have ended.
type Observer interface {
	Observe(ctx context.Context, e Event)
}

// EventKind says what happened.
type EventKind string

// The kinds of [Event]. A comment names the fields that are set beside Connector and Provider.
const (
	// EventTokenObtained: there is a new token. Op says from where: "exchange", "login" (a person logged in) or
	// "store" (another process obtained it). Expiry, ConsentExpiry; unless it comes from the store, Attempt and Took.
	EventTokenObtained EventKind = "token_obtained"
	// EventExchangeFailed: an exchange or a login gave no token, also because the store failed or a person has to
	// log in. Err, with its Op, Code and Status; Attempt and Took, if a token request was sent.
	EventExchangeFailed EventKind = "exchange_failed"
	// EventRefreshRefused: the product refused the refresh token; a person has to log in. It follows an
	// EventExchangeFailed and has the same fields.
	EventRefreshRefused EventKind = "refresh_refused"
	// EventTokenRejected: the product rejected the current token, which is not used again. Status. It is sent once
	// a token, however many calls had it.
	EventTokenRejected EventKind = "token_rejected"
	// EventCallRetried: a call is about to be sent again. Op is "retry", or "replay" after its token was rejected.
	// Attempt is the number of the attempt that failed, Status or Err how it failed, Wait the time to the next.
	EventCallRetried EventKind = "call_retried"
	// EventCallLimited: a call waited for its turn under the rate limits or max_concurrency. Wait is how long. If
	// the wait would have been too long, Err is [ErrRateLimited], and the call was not sent.
	EventCallLimited EventKind = "call_limited"
	// EventStoreAway: the token store fails. Err. It has no Connector and no Provider.
	EventStoreAway EventKind = "store_away"
	// EventStoreBack: the token store works again. Took is how long it was away. It has no Connector and no Provider.
	EventStoreBack EventKind = "store_back"
	// EventConsentEnding: a person's login ends at Expiry, and nothing has renewed it although at most a quarter of
	// its life is left, and at most a week. It is sent once a login.
	EventConsentEnding EventKind = "consent_ending"
)

// Event is something that an [Observer] is told. It holds no secret. Fields that say nothing about its Kind are
// zero.
type Event struct {
	Kind EventKind
	// Connector is the connector's name. Connectors with the same credentials share their exchanges, whose events
	// have the name of the first of them.
	Connector string
	// Provider is the adapter's name, such as "beyondtrust".
	Provider string
	// Op is what was done, see the Kind.
	Op string
	// Code is the product's own error code, such as "invalid_client", or "".
	Code string
	// Status is the HTTP status of the response, 0 if there was none.
	Status int
	// Attempt counts the attempts of the call, or the token requests of the exchange, from 1.
	Attempt int
	// Wait is how long something waited, or will.
	Wait time.Duration
	// Took is how long it lasted: an exchange, from its first token request to the last response.
	Took time.Duration
	// Expiry is when the access token expires.
	Expiry time.Time
	// ConsentExpiry is when the refresh token expires. Zero if there is none, or that is unknown.
	ConsentExpiry time.Time
	// Err is what went wrong, usually an [*Error], or nil.
	Err error
}

// observe tells the observer, if there is one.
func (c *core) observe(ctx context.Context, e Event) {
	if c.opts.Observer != nil {
		guard.Call(ctx, c.opts.Logger, "the observer", func() { c.opts.Observer.Observe(ctx, e) })
	}
}

// event returns an event of the session's connector. err gives the fields that an [*Error] has.
func (c *core) event(kind EventKind, err error) Event {
	e := Event{Kind: kind, Connector: c.opts.Connector, Provider: c.opts.Provider, Err: err}
	var as *Error
	if errors.As(err, &as) {
		e.Op, e.Code, e.Status = as.Op, as.Code, as.Status
	}
	return e
}

// obtainedEvent is of snap, which f has published.
func (c *core) obtainedEvent(f *flight, snap *snapshot, adopted bool) Event {
	e := c.event(EventTokenObtained, nil)
	e.Expiry, e.ConsentExpiry = snap.public.Expiry, c.refresh.consentExpiry(snap.record)
	switch e.Attempt, e.Took = f.attempts, f.took; {
	case adopted:
		e.Op, e.Attempt, e.Took = "store", 0, 0
	case f.reason == login:
		e.Op = "login"
	default:
		e.Op = "exchange"
	}
	return e
}

// report logs and tells the observer what came of f, whose protocol is p.
func (c *core) report(f *flight, p *protocol) {
	for _, e := range f.events {
		c.log(slog.LevelInfo, "token obtained", "from", e.Op, "expires", e.Expiry)
		c.observe(f.ctx, e)
	}
	if p.err != nil && !p.nothing && f.reason != logout && !errors.Is(p.err, ErrClosed) && c.life.Err() == nil {
		e := c.event(EventExchangeFailed, (&Session{c, c.opts.Connector}).named(p.err))
		e.Attempt, e.Took = f.attempts, f.took
		c.observe(f.ctx, e)
		var lost consentLost
		if p.spends && errors.As(p.err, &lost) && !lost.LoggedOut {
			e.Kind = EventRefreshRefused
			c.observe(f.ctx, e)
		}
	}
	c.mu.Lock()
	ends, news := c.consentEndingLocked(time.Now(), p.record)
	c.mu.Unlock()
	if news {
		c.log(slog.LevelWarn, "the login ends soon; a person has to log in again", "ends", ends)
		e := c.event(EventConsentEnding, nil)
		e.Expiry, e.ConsentExpiry = ends, ends
		c.observe(f.ctx, e)
	}
}

// consentEndingLocked returns when the login of r ends, and whether that is near and was not said before.
func (c *core) consentEndingLocked(now time.Time, r tokenRecord) (ends time.Time, news bool) {
	ends, life := c.refresh.consentExpiry(r), c.refresh.consentLife(r)
	if r.RefreshToken == "" && r.AccessToken != "" {
		ends, life = r.Obtained.Add(r.Lifetime), r.Lifetime
	}
	if !c.rules.person || c.refresh.Expendable || r.ConsentLost != nil || ends.IsZero() ||
		ends.Sub(now) > min(life/4, consentEndingAt) || ends.Equal(c.endSaid) {
		return ends, false
	}
	c.endSaid = ends
	return ends, true
}

// consentEndingAt is how long before a login ends its end is reported, at most.
const consentEndingAt = 7 * 24 * time.Hour

// values has the values of a call's context for an exchange that outlives the call. It does not end. It leaves out
// the call's [httptrace.ClientTrace], which would see the credentials in the headers of token requests.
type values struct{ context.Context }

func valuesOf(ctx context.Context) context.Context { return values{context.WithoutCancel(ctx)} }

func (v values) Value(key any) any {
	value := v.Context.Value(key)
	if _, is := value.(*httptrace.ClientTrace); is {
		return nil
	}
	return value
}

// contextOf returns the context of the call that resp belongs to.
func contextOf(resp *http.Response) context.Context {
	if resp.Request == nil {
		return context.Background()
	}
	return resp.Request.Context()
}
