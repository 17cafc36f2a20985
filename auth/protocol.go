package auth

import (
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/oauth2"
)

// A protocol is one exchange against the store: look, lock, adopt, mark, exchange, save, publish,
// unlock. advance decides what to do next from what the last action came to. The protocol does
// nothing itself: core.drive performs the actions.
type protocol struct {
	rules
	task task
	step step

	record    tokenRecord // as last read or saved
	version   uint64      // of record
	writing   tokenRecord // what is being saved
	storeLost bool        // the store's record was older than ours when it was looked at
	suppress  error       // the task's, or errNotDue
	awaited   time.Time   // the pending mark that has been waited for

	previous    tokenRecord // what the exchange starts from
	spends      bool        // the exchange spends a refresh token that cannot be replaced
	withoutLock bool        // the store failed, and no refresh token is at stake
	failed      *Error      // how the exchange failed, while its record is being put right
	made        tokenRecord // what the exchange gave
	rotated     bool        // made has a new refresh token, which is saved however long that takes
	published   bool        // callers have made's token
	resaved     bool        // the save has been tried again over another process's record
	closing     bool        // there will be no other try to save
	stuck       bool        // callers who want another token know that the save fails
	saveBegan   time.Time
	saveError   error
	pause       time.Duration // before the next try to save
}

// rules are what the protocol depends on and what does not change during an exchange.
type rules struct {
	refresh      Refresh
	person       bool // a lost refresh token means that a person has to log in again
	seeded       bool // the settings give a refresh token
	refusedSeed  string
	earlyRefresh time.Duration
	owner        string // tells our pending marks from others'
	host         string
}

type step int

const (
	looking step = iota
	comparing
	locking
	restoring
	waiting
	reloading
	seeding
	marking
	exchanging
	refusing
	unmarking
	saving
	conflicted
	pausing
	offering
	revoking
	forgetting
)

// An action is what to do next. Before it is performed, the session is told the results.
type action struct {
	results []result
	do      doing
	record  tokenRecord   // to save, to exchange or to revoke
	version uint64        // of the stored record, as far as is known
	final   bool          // also while the store is silent: there will be no other try
	wait    time.Duration // how long to sleep
	err     error         // of finish
	nothing bool          // of finish: err is why nothing was tried
}

type doing int

const (
	finish      doing = iota // and unlock
	readRecord               // without the lock
	compare                  // has the record, or a secret, changed since the failure?
	takeLock                 // or read a record that is enough
	reload                   // under the lock
	readSeed                 // the configured refresh token
	saveRecord               // over version
	exchange                 // record's refresh token, or the credentials, or the login's code
	sleep                    // until wait is over or the session closes
	sleepToSave              // the same, or until the store is back or the login is given up
	revoke                   // record's tokens at the product
	forget                   // save record, which a logout leaves; if it is empty, delete the stored one
)

// An event is what an action came to.
type event struct {
	record  tokenRecord // as read
	version uint64
	taken   bool // the lock is ours
	changed bool
	current bool // the token to be offered is still the current one
	seed    string
	token   *oauth2.Token // of the exchange, which began at start
	start   time.Time
	closing bool // the session closes
	gaveUp  bool // the login is given up
	err     error
}

// A result is what the session is told.
type result struct {
	is     news
	record tokenRecord
	err    error
}

type news int

const (
	tokenObtained   news = iota
	tokenAdopted         // another process obtained it
	tokenSaved           // or the store has a newer one
	tokenUnsaved         // err is why
	storeBypassed        // err is why
	recordRestored       // the store had lost it
	consentEnded         // by a logout in another process
	rotationUnsaved      // err is why; it is saved again
	rotationStuck        // it has been saved again for long
	rotationLost         // the session closes
	refusalUnsaved       // err is why
	seedRefused          // record has its digest
	offersExpected       // other processes may have newer tokens to offer
	recordForgotten      // record is what the logout left, or empty
)

const (
	// saveEvery is the longest pause between attempts to save a rotated refresh token, and saveFirst the
	// first. markWait must be longer, so that after a store outage the process that owns a pending mark saves
	// before another one spends the token.
	saveFirst = 50 * time.Millisecond
	saveEvery = 2 * time.Second
	markWait  = saveEvery + time.Second
)

// start returns the first action.
func (p *protocol) start() action {
	p.suppress = p.task.suppress
	if p.task.reason == login || p.task.reason == logout {
		return p.lock()
	}
	return action{do: readRecord}
}

// advance returns the next action. e is what the last one came to.
func (p *protocol) advance(now time.Time, e event) action {
	switch p.step {
	case looking:
		return p.looked(now, e)
	case comparing:
		if !e.changed {
			return p.nothing()
		}
		return p.lock()
	case locking:
		return p.tried(now, e)
	case restoring:
		if e.err != nil {
			return p.fail("store", e.err)
		}
		p.saved()
		return p.underLock(now, e).telling(result{is: recordRestored})
	case waiting:
		if e.closing {
			return p.fail("token", ErrClosed)
		}
		return p.then(reloading, action{do: reload})
	case reloading:
		return p.reloaded(now, e)
	case seeding:
		return p.seed(now, e)
	case marking:
		if e.err != nil {
			return p.fail("store", fmt.Errorf("%w; nothing was spent", e.err))
		}
		p.saved()
		return p.exchange()
	case exchanging:
		return p.exchanged(now, e)
	case refusing:
		if e.err != nil {
			return p.end(p.failed).telling(result{is: refusalUnsaved, err: e.err})
		}
		p.saved()
		return p.end(p.failed)
	case unmarking: // if that failed, others wait for the exchange for nothing
		return p.end(p.failed)
	case saving:
		if errors.Is(e.err, ErrConflict) {
			return p.then(conflicted, action{do: reload, final: true})
		}
		return p.saveEnded(now, e.err)
	case conflicted:
		return p.conflict(now, e)
	case pausing:
		if e.gaveUp {
			return p.fail("login", fmt.Errorf("%w; %w", p.saveError, errLoginLost))
		}
		p.closing = e.closing
		return p.save(saving, p.made)
	case offering: // whether it was saved shows when the record is looked at next
		return p.nothing().telling(result{is: offersExpected})
	case revoking:
		p.failed, _ = e.err.(*Error)
		p.writing = p.left(now)
		return p.then(forgetting, action{do: forget, record: p.writing, version: p.version})
	default: // forgetting
		if e.err != nil {
			return p.fail("store", storeError(e.err))
		}
		return p.end(p.failed).telling(result{is: recordForgotten, record: p.writing})
	}
}

func (p *protocol) then(next step, a action) action {
	p.step = next
	return a
}

func (p *protocol) lock() action {
	return p.then(locking, action{do: takeLock, version: p.version})
}

// save saves r over the record that was read or saved last.
func (p *protocol) save(next step, r tokenRecord) action {
	p.writing = r
	return p.then(next, action{do: saveRecord, record: r, version: p.version, final: p.closing})
}

// saved notes that the store has what was being saved.
func (p *protocol) saved() { p.record, p.version = p.writing, p.version+1 }

// end finishes with an error, or without one if err is nil.
func (p *protocol) end(err *Error) action {
	if err == nil {
		return action{do: finish}
	}
	return action{do: finish, err: err}
}

func (p *protocol) fail(op string, err error) action { return p.end(&Error{Op: op, Err: err}) }

// nothing finishes where nothing was tried.
func (p *protocol) nothing() action { return action{do: finish, err: p.suppress, nothing: true} }

// telling adds results, to be told first.
func (a action) telling(results ...result) action {
	a.results = append(results, a.results...)
	return a
}

// looked follows a look at the record without the lock. After a restart, or when another process was
// first, that is all.
func (p *protocol) looked(now time.Time, e event) action {
	p.record, p.version = e.record, e.version
	if p.task.reason == watch && (e.err != nil || !p.refresh.renewalDue(p.record, now)) {
		p.suppress = errNotDue
	}
	switch {
	case p.task.reason == offer:
		if e.err != nil {
			return p.nothing()
		}
		if results, ok := p.settled(now); ok {
			return p.nothing().telling(results...)
		}
		return p.lock()
	case e.err == nil && p.endedElsewhere():
		return p.end(p.record.refusal()).telling(result{is: consentEnded, record: p.record})
	case e.err == nil && p.adopts(now, p.record):
		return p.adopt()
	}
	p.storeLost = e.err == nil && p.ours(p.record)
	switch {
	case p.suppress == nil || p.storeLost:
		return p.lock()
	case errors.Is(p.suppress, errNotDue) || e.err != nil:
		return p.nothing()
	}
	return p.then(comparing, action{do: compare})
}

// tried follows a try to take the lock.
func (p *protocol) tried(now time.Time, e event) action {
	reason := p.task.reason
	switch {
	case e.closing:
		return p.fail("token", ErrClosed)
	case e.err != nil && reason == offer:
		return p.nothing()
	case e.err != nil && (reason != needed || p.atStake()): // by the expiry of the token the store may be back
		return p.fail("store", e.err)
	case e.err != nil:
		p.withoutLock = true
		return p.exchange().telling(result{is: storeBypassed, err: e.err})
	}
	if p.record, p.version = e.record, e.version; !e.taken {
		if reason == offer {
			results, _ := p.settled(now)
			return p.nothing().telling(results...)
		}
		return p.adopt()
	}
	if p.ours(p.record) {
		return p.save(restoring, p.task.replaces.record)
	}
	return p.underLock(now, e)
}

// enough reports whether r, which another process has saved, makes the lock unnecessary.
func (p *protocol) enough(now time.Time, r tokenRecord) bool {
	switch p.task.reason {
	case login, logout:
		return false
	case offer:
		return r.Generation >= p.task.replaces.record.Generation
	}
	return p.adopts(now, r)
}

// underLock follows each time that the record is known under the lock.
func (p *protocol) underLock(now time.Time, e event) action {
	switch p.task.reason {
	case login:
		return p.exchange()
	case logout:
		return p.then(revoking, action{do: revoke, record: p.record})
	case offer:
		if results, ok := p.settled(now); ok || !e.current {
			return p.nothing().telling(results...)
		}
		return p.save(offering, p.task.replaces.record)
	}
	switch mark := p.record.Pending; {
	case p.adopts(now, p.record):
		return p.adopt()
	case p.storeLost && p.suppress != nil:
		return p.nothing()
	case mark != nil && mark.Owner != p.owner && !mark.Since.Equal(p.record.Interrupted):
		// Another process was about to spend the refresh token. Its exchange gets the time that it may take.
		p.awaited = mark.Since
		left := mark.Since.Add(exchangeTimeout).Sub(now)
		return p.then(waiting, action{do: sleep, wait: min(max(left, markWait), exchangeTimeout)})
	case p.seeded && (p.record.RefreshToken == "" || p.record.ConsentLost != nil):
		return p.then(seeding, action{do: readSeed})
	}
	return p.mark(now, p.record)
}

// reloaded follows the wait for another process's exchange. If its mark is still there, it has died.
func (p *protocol) reloaded(now time.Time, e event) action {
	if e.err != nil {
		return p.fail("store", e.err)
	}
	p.record, p.version = e.record, e.version
	if mark := p.record.Pending; mark != nil && mark.Since.Equal(p.awaited) {
		p.record.Interrupted = p.awaited
	}
	return p.underLock(now, e)
}

// seed starts a new chain with the configured refresh token, unless that is the one in force or was
// refused.
func (p *protocol) seed(now time.Time, e event) action {
	if e.err != nil {
		return p.fail("exchange", fmt.Errorf("reading refresh_token: %w", e.err))
	}
	digest := digest(e.seed)
	if e.seed == "" || digest == p.record.Seed || digest == p.refusedSeed {
		return p.mark(now, p.record)
	}
	return p.mark(now, tokenRecord{
		Generation: newGeneration(p.record.Generation, now), RefreshToken: e.seed, Seed: digest, Refreshed: now.Round(0),
	})
}

// mark saves that a refresh token is about to be spent, if one is.
func (p *protocol) mark(now time.Time, previous tokenRecord) action {
	if previous.ConsentLost != nil {
		return p.end(previous.refusal())
	}
	previous.Pending = nil
	p.previous = previous
	if p.spends = previous.RefreshToken != "" && !p.refresh.Expendable; !p.spends {
		return p.exchange()
	}
	previous.Pending = &pending{Owner: p.owner, Since: now.Round(0)}
	return p.save(marking, previous)
}

func (p *protocol) exchange() action {
	return p.then(exchanging, action{do: exchange, record: p.previous})
}

// exchanged follows the exchange.
func (p *protocol) exchanged(now time.Time, e event) action {
	if e.err != nil {
		errors.As(e.err, &p.failed)
		switch {
		case p.spends && errors.Is(e.err, ErrConsentRequired):
			return p.refuse(now)
		case p.spends && unspent(p.failed):
			return p.save(unmarking, p.previous)
		}
		return p.end(p.failed)
	}
	previous := p.previous
	if p.refresh.Expendable && e.token.RefreshToken == "" {
		previous.RefreshToken = "" // it was refused: this is the response to the full grant
	}
	p.made = received(e.token, previous, e.start, p.host)
	if p.made.Generation = previous.Generation + 1; !p.spends {
		newest := p.record.Generation
		if known := p.task.replaces; known != nil {
			newest = max(newest, known.record.Generation)
		}
		p.made.Generation = newGeneration(newest, now)
	}
	obtained := result{is: tokenObtained, record: p.made}
	if p.withoutLock {
		return p.end(nil).telling(obtained)
	}
	p.rotated = p.task.reason == login ||
		p.made.RefreshToken != "" && p.made.RefreshToken != previous.RefreshToken && !p.refresh.Expendable
	p.saveBegan, p.pause = now, saveFirst
	a := p.save(saving, p.made)
	if p.published = !p.rotated; p.published {
		return a.telling(obtained) // nothing is lost if it is not saved, so callers do not wait for the store
	}
	return a
}

// refuse keeps in the record that the refresh token was refused, for other processes and for the next
// start.
func (p *protocol) refuse(now time.Time) action {
	r := p.previous
	r.ConsentLost = &consentLost{Since: now.Round(0), Interrupted: r.Interrupted}
	why := r.refusal()
	p.failed.Op, p.failed.Err = why.Op, why.Err
	a := p.save(refusing, r)
	if digest(r.RefreshToken) == r.Seed {
		return a.telling(result{is: seedRefused, record: r})
	}
	return a
}

// unspent reports whether e shows that the refresh token was not accepted: it was never sent, or the
// request was refused.
func unspent(e *Error) bool {
	var op *net.OpError
	return e.Status >= 400 && e.Status < 500 || errors.Is(e, ErrCredentials) || errors.Is(e, ErrRateLimited) ||
		errors.Is(e, ErrInsecure) && e.Status == 0 ||
		errors.As(e, &op) && (op.Op == "dial" || op.Op == "proxyconnect")
}

// conflict follows a save that met the record of another process, or our own: a save may succeed
// although it reports an error.
func (p *protocol) conflict(now time.Time, e event) action {
	if e.err != nil {
		return p.saveEnded(now, e.err)
	}
	p.version = e.version
	newer := e.record.Generation >= p.made.Generation
	switch {
	case e.record.Generation == p.made.Generation && e.record.AccessToken == p.made.AccessToken:
		return p.saveEnded(now, nil)
	case newer && p.published && p.rotated:
		return p.end(nil) // it is adopted when it is looked at next
	case newer && e.record.loggedOut():
		return p.end(e.record.refusal()).telling(result{is: consentEnded, record: e.record})
	case (newer || !p.rotated) && p.adopts(now, e.record):
		p.record = e.record
		return p.adopt()
	case newer: // but of no use: callers get ours
		return p.end(nil).telling(p.publish(result{is: tokenSaved})...)
	case p.resaved:
		return p.saveEnded(now, ErrConflict)
	}
	p.resaved = true
	return p.save(saving, p.made)
}

// publish puts before results that the token was obtained, if the session does not know that.
func (p *protocol) publish(results ...result) []result {
	if !p.published {
		p.published = true
		return append([]result{{is: tokenObtained, record: p.made}}, results...)
	}
	return results
}

// saveEnded follows a save of what the exchange gave. A rotated refresh token that could not be saved
// is saved again until that succeeds or the session closes, with the lock held.
func (p *protocol) saveEnded(now time.Time, err error) action {
	news := p.published
	first := p.publish()
	if p.saveError = err; err == nil {
		p.saved()
		return p.end(nil).telling(append(first, result{is: tokenSaved})...)
	}
	switch {
	case !p.rotated:
		return p.end(nil).telling(append(first, result{is: tokenUnsaved, err: err})...)
	case p.closing && p.task.reason == login:
		return p.fail("login", fmt.Errorf("%w; %w", err, errLoginLost)).telling(first...)
	case p.closing:
		return p.end(nil).telling(append(first, result{is: rotationLost, err: err})...)
	case !news:
		first = append(first, result{is: rotationUnsaved, err: err})
	case !p.stuck && now.Sub(p.saveBegan) > exchangeTimeout:
		p.stuck = true
		first = append(first, result{is: rotationStuck, err: err})
	}
	p.resaved = false
	wait := p.pause
	p.pause = min(2*wait, saveEvery)
	return p.then(pausing, action{do: sleepToSave, wait: wait}).telling(first...)
}

// left is what a logout leaves of a person's consent. If there were no record at all, processes that
// still hold the refresh token would take it for lost and write it back.
func (p *protocol) left(now time.Time) tokenRecord {
	if p.refresh.Expendable || !p.person && p.record.RefreshToken == "" {
		return tokenRecord{}
	}
	r := tokenRecord{Generation: newGeneration(p.record.Generation, now), Seed: p.record.Seed}
	if p.person {
		r.ConsentLost = &consentLost{Since: now.Round(0), LoggedOut: true}
	}
	return r
}

// adopts reports whether r is usable, and newer than the token to be replaced.
func (p *protocol) adopts(now time.Time, r tokenRecord) bool {
	if r.AccessToken == "" || r.ConsentLost != nil {
		return false
	}
	if known := p.task.replaces; known != nil && (r.Generation <= known.record.Generation || r.AccessToken == known.record.AccessToken) {
		return false
	}
	expires := r.Obtained.Add(r.Lifetime)
	if p.task.reason != needed && p.task.reason != login {
		expires = expires.Add(-min(p.earlyRefresh, r.Lifetime/5)) // it would have to be replaced at once
	}
	return now.Before(expires) && !(p.task.reason == watch && p.refresh.renewalDue(r, now))
}

// adopt finishes with the record's token.
func (p *protocol) adopt() action {
	return p.end(nil).telling(result{is: tokenAdopted, record: p.record})
}

// settled reports whether a token that the store does not have need not be offered, and tells why: the
// store has a newer one, which is adopted, or it has ours.
func (p *protocol) settled(now time.Time) (results []result, ok bool) {
	switch {
	case p.record.Generation < p.task.replaces.record.Generation:
		return nil, false // it never had ours, or a failover lost it
	case p.adopts(now, p.record):
		return []result{{is: tokenAdopted, record: p.record}, {is: offersExpected}}, true
	}
	return []result{{is: tokenSaved}}, true
}

// ours reports whether r, the store's record, is older than ours, and ours has a refresh token or a
// logout that must be written back.
func (p *protocol) ours(r tokenRecord) bool {
	known := p.task.replaces
	return known != nil && known.record.Generation > r.Generation && !p.refresh.Expendable &&
		(known.record.RefreshToken != "" || known.record.loggedOut())
}

// endedElsewhere reports whether another process has ended the consent that we know of.
func (p *protocol) endedElsewhere() bool {
	known := p.task.replaces
	return known != nil && p.record.loggedOut() && p.record.Generation > known.record.Generation
}

// atStake reports whether an exchange without the store could cost somebody a login.
func (p *protocol) atStake() bool { return p.rules.atStake(p.task.replaces) }

func (r *rules) atStake(known *snapshot) bool {
	return !r.refresh.Expendable && (r.person || known != nil && known.record.RefreshToken != "")
}
