package auth

import (
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/oauth2"
)

// A protocol is one exchange against the store: look, lock, adopt, mark, exchange, save, publish,
// unlock. It does nothing itself. Its step is what core.perform is to do; advance decides on the next
// step from what that came to.
type protocol struct {
	rules
	task task
	step step

	record    tokenRecord // as last read or saved
	version   uint64      // of record
	writing   tokenRecord // what is being saved
	storeLost bool        // the store's record was older than ours when it was looked at
	suppress  error       // the task's, or errNotDue
	awaited   time.Time   // the pending mark that is waited for
	wait      time.Duration

	previous    tokenRecord // what the exchange starts from
	until       time.Time   // when the exchange must be over
	spends      bool        // the exchange spends a refresh token that cannot be replaced
	withoutLock bool        // the store failed, and no refresh token is at stake
	made        tokenRecord // what the exchange gave
	rotated     bool        // made has a new refresh token, which is saved however long that takes
	published   bool        // callers have made's token
	resaved     bool        // the save has been tried again over another process's record
	closing     bool        // there will be no other try to save
	stuck       bool        // callers who want another token know that the save fails
	told        bool        // the product was asked to revoke the tokens of a logout; err is how that failed
	secrets     string      // digest of those with which the exchange failed, or ""
	saveBegan   time.Time

	results []result // to be told to the session before the step
	err     error    // how the exchange failed, or nil; final once finished
	nothing bool     // nothing was tried, and err is why
}

// rules are what the protocol depends on and what does not change during an exchange.
type rules struct {
	refresh      Refresh
	person       bool   // a lost refresh token means that a person has to log in again
	seeded       bool   // the settings give a refresh token
	refusedSeed  string // digest of the configured refresh token, once it was refused
	earlyRefresh time.Duration
	timeout      time.Duration // of an exchange
	owner        string        // tells our pending marks from others'
	host         string

	unanswered time.Time // the time in our mark of an exchange that got no answer
	givenUp    bool      // because of a time limit: that exchange may still be under way
}

type step int

const (
	looking    step = iota // read the record without the lock, and compare it and the secrets with the failure's
	locking                // take the lock, or read a record that is enough
	restoring              // save writing: the store had lost it
	waiting                // for another process's exchange, and then read the record
	seeding                // read the configured refresh token
	marking                // save writing: a refresh token is about to be spent
	exchanging             // previous, or the code of a login
	failing                // save writing: the refresh token was refused, or it was not spent
	saving                 // save made
	conflicted             // read the record that saving met
	pausing                // before made is saved again
	offering               // save writing: a token that the store does not have
	revoking               // revoke record's tokens, or those of a login that is not used
	forgetting             // save writing, which a logout leaves; if it is empty, delete the record
	finished               // unlock
)

// An event is what a step came to.
type event struct {
	record  tokenRecord // as read
	version uint64
	taken   bool // the lock is ours
	changed bool // the record, or a secret, since the failure
	current bool // the token to be offered is still the current one
	seed    string
	token   *oauth2.Token // of the exchange, which began at start
	start   time.Time
	secrets string // digest of those with which the exchange failed, or ""
	unsent  bool   // there was no connection for it
	told    bool   // the product was asked to revoke, though it may have failed
	closing bool   // the session closes
	gaveUp  bool   // the login is given up, or nobody waits for the lock of a login or a logout
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
	answerLost           // record has the mark of the exchange, and err is why
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

	// refusedAgainAfter is when a refused refresh token is sent once more. After invalid_grant it is not:
	// only other error codes may mean something else.
	refusedAgainAfter = 5 * time.Minute
	// refreshTriedFor is how long an expendable refresh token is tried while the product is unavailable: some
	// products respond to a dead refresh token with a server error.
	refreshTriedFor = time.Minute
)

func newProtocol(r rules, t task) *protocol {
	p := &protocol{rules: r, task: t, suppress: t.suppress}
	if t.reason == login {
		p.step = locking
	}
	return p
}

// advance decides on the next step. e is what the last one came to.
func (p *protocol) advance(now time.Time, e event) {
	switch p.step {
	case looking:
		p.looked(now, e)
	case locking:
		p.triedLock(now, e)
	case restoring:
		if e.err != nil {
			p.fail("store", e.err)
			return
		}
		p.saved()
		p.tell(recordRestored, tokenRecord{}, nil)
		p.underLock(now, e)
	case waiting:
		p.waited(now, e)
	case seeding:
		p.seed(now, e)
	case marking:
		if e.err != nil {
			p.fail("store", fmt.Errorf("%w; nothing was spent", e.err))
			return
		}
		p.saved()
		p.step = exchanging
	case exchanging:
		p.exchanged(now, e)
	case failing: // if that fails, the mark stays, and others wait for the exchange for nothing
		if p.step = finished; e.err == nil {
			p.saved()
		} else if p.writing.ConsentLost != nil {
			p.tell(refusalUnsaved, tokenRecord{}, e.err)
		}
	case saving:
		if errors.Is(e.err, ErrConflict) {
			p.step = conflicted
			return
		}
		p.saveEnded(now, e.err)
	case conflicted:
		p.conflict(now, e)
	case pausing:
		p.closing = e.closing
		if p.save(saving, p.made); e.gaveUp {
			p.fail("login", fmt.Errorf("%w; %w", p.err, errLoginLost))
		}
	case offering: // whether it was saved shows when the record is looked at next
		p.tell(offersExpected, tokenRecord{}, nil)
		p.endWithNothing()
	case revoking:
		if p.task.reason == login {
			p.fail("login", ErrNoRefreshToken)
			return
		}
		p.err, p.told = e.err, e.told
		p.save(forgetting, p.left(now))
	case forgetting:
		if e.err != nil {
			p.fail("store", p.notForgotten(e.err))
			return
		}
		p.tell(recordForgotten, p.writing, nil)
		p.step = finished
	}
}

// save saves r over the record that was read or saved last.
func (p *protocol) save(next step, r tokenRecord) { p.step, p.writing = next, r }

// saved notes that the store has what was being saved.
func (p *protocol) saved() { p.record, p.version = p.writing, p.version+1 }

func (p *protocol) tell(is news, r tokenRecord, err error) {
	p.results = append(p.results, result{is, r, err})
}

func (p *protocol) end(err error) { p.step, p.err = finished, err }

func (p *protocol) fail(op string, err error) { p.end(&Error{Op: op, Err: err}) }

// endWithNothing ends where nothing was tried.
func (p *protocol) endWithNothing() {
	p.end(p.suppress)
	p.nothing = true
}

// looked follows a look at the record without the lock. After a restart, or when another process was
// first, that is all.
func (p *protocol) looked(now time.Time, e event) {
	p.record, p.version = e.record, e.version
	if p.task.reason == watch && (e.err != nil || !p.refresh.renewalDue(p.record, now) && !p.record.sendsAgain(now)) {
		p.suppress = errNotDue
	}
	p.storeLost = e.err == nil && p.restores(p.record)
	switch p.step = locking; {
	case p.task.reason == logout:
	case e.err == nil && p.task.reason == offer:
		p.settle(now)
	case e.err == nil && p.endedElsewhere():
		p.tell(consentEnded, p.record, nil)
		p.end(p.record.refusal())
	case e.err == nil && p.adopts(now, p.record):
		p.adopt(p.record)
	case p.suppress == nil || p.storeLost:
	case !e.changed:
		p.endWithNothing()
	}
}

// triedLock follows a try to take the lock.
func (p *protocol) triedLock(now time.Time, e event) {
	switch reason := p.task.reason; {
	case e.err != nil && reason == offer:
		p.endWithNothing()
		return
	case e.closing:
		p.fail("token", ErrClosed)
		return
	case e.err != nil && reason == logout && p.version != 0 && !e.gaveUp: // the store may be read-only: the product can be told
		p.step = revoking
		return
	case e.err != nil && (reason != needed || p.atStake(p.task.replaces)): // by the token's expiry the store may be back
		p.fail("store", e.err)
		return
	case e.err != nil:
		p.tell(storeBypassed, tokenRecord{}, e.err)
		p.withoutLock, p.step, p.until = true, exchanging, now.Add(p.timeout)
		return
	}
	switch p.record, p.version = e.record, e.version; {
	case !e.taken && p.task.reason == offer:
		p.settle(now)
	case !e.taken:
		p.adopt(p.record)
	case p.task.reason != offer && p.restores(p.record):
		p.save(restoring, p.task.replaces.record)
	default:
		p.underLock(now, e)
	}
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

// underLock follows each time that the record is read or restored under the lock.
func (p *protocol) underLock(now time.Time, e event) {
	mark := p.record.Pending
	switch reason := p.task.reason; {
	case reason == login:
		p.step, p.until = exchanging, now.Add(p.timeout)
	case reason == logout:
		p.step = revoking
	case reason == offer:
		if p.save(offering, p.task.replaces.record); !e.current {
			p.endWithNothing()
		}
		p.settle(now)
	case p.adopts(now, p.record):
		p.adopt(p.record)
	case p.storeLost && p.suppress != nil:
		p.endWithNothing()
	case mark != nil && !mark.Since.Equal(p.record.Interrupted) && (mark.Owner != p.owner || p.givenUp && mark.Since.Equal(p.unanswered)):
		// An exchange was about to spend the refresh token. It gets the time that it may take, by either clock.
		p.awaited, p.step = mark.Since, waiting
		p.wait = max(min(mark.Since.Add(mark.lasts()).Sub(now), mark.lasts()), markWait)
	case p.seeded && (p.record.RefreshToken == "" || p.record.ConsentLost != nil):
		p.step = seeding
	default:
		p.mark(now, p.record)
	}
}

// waited follows the wait for another process's exchange. If its mark is still there, the process has died.
func (p *protocol) waited(now time.Time, e event) {
	switch {
	case e.closing:
		p.fail("token", ErrClosed)
		return
	case e.err != nil:
		p.fail("store", e.err)
		return
	}
	p.record, p.version = e.record, e.version
	if mark := p.record.Pending; mark != nil && mark.Since.Equal(p.awaited) {
		p.record.Interrupted = p.awaited
	}
	p.underLock(now, e)
}

// seed starts a new chain with the configured refresh token, unless that is the one in force or was
// refused.
func (p *protocol) seed(now time.Time, e event) {
	digest := digest(e.seed)
	switch {
	case e.err != nil:
		p.fail("exchange", fmt.Errorf("reading refresh_token: %w", e.err))
	case e.seed == "" || digest == p.record.Seed || digest == p.refusedSeed:
		p.mark(now, p.record)
	default:
		p.mark(now, tokenRecord{
			Generation: newGeneration(p.record.Generation, now), RefreshToken: e.seed, Seed: digest, Refreshed: now.Round(0),
		})
	}
}

// mark saves that a refresh token is about to be spent, if one is.
func (p *protocol) mark(now time.Time, previous tokenRecord) {
	if previous.ConsentLost != nil && !previous.sendsAgain(now) {
		p.end(previous.refusal())
		return
	}
	if mark := previous.Pending; mark != nil && mark.Since.Equal(p.unanswered) {
		previous.Interrupted = mark.Since
	}
	if !previous.Unavailable.IsZero() && now.Sub(previous.Unavailable) >= refreshTriedFor {
		previous.RefreshToken = "" // the full grant
	}
	previous.Pending = nil
	p.previous, p.step, p.until = previous, exchanging, now.Add(p.timeout)
	if p.spends = previous.RefreshToken != "" && !p.refresh.Expendable; p.spends {
		previous.Pending = &pending{Owner: p.owner, Since: now.Round(0), Until: p.until.Round(0)}
		p.save(marking, previous)
	}
}

// exchanged follows the exchange.
func (p *protocol) exchanged(now time.Time, e event) {
	if p.secrets = e.secrets; e.err != nil {
		p.exchangeFailed(now, e)
		return
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
	switch {
	case p.withoutLock:
		p.publish()
		p.step = finished
		return
	case p.task.reason == login && p.made.RefreshToken == "" && p.refresh.inForce(p.record, now):
		p.step = revoking
		if p.made.AccessToken == p.record.AccessToken { // some products return it again while it is valid
			p.fail("login", ErrNoRefreshToken)
		}
		return
	}
	p.rotated = p.task.reason == login ||
		p.made.RefreshToken != "" && p.made.RefreshToken != previous.RefreshToken && !p.refresh.Expendable
	if !p.rotated {
		p.publish() // nothing is lost if it is not saved, so callers do not wait for the store
	}
	p.saveBegan, p.wait = now, saveFirst/2
	p.save(saving, p.made)
}

// exchangeFailed ends with the error. Before, it saves that the refresh token was refused, for other processes
// and the next start, or removes the mark of an exchange that is over.
func (p *protocol) exchangeFailed(now time.Time, failed event) {
	p.end(failed.err)
	var e *Error
	if !errors.As(failed.err, &e) {
		return
	}
	r := p.previous
	unavailable := errors.Is(e, ErrUnavailable)
	switch {
	case p.refresh.Expendable && r.RefreshToken != "" && unavailable == r.Unavailable.IsZero():
		if r.Unavailable = (time.Time{}); unavailable {
			r.Unavailable = now.Round(0)
		}
		p.save(failing, r)
	case !p.spends:
	case errors.Is(e, ErrConsentRequired), e.is("invalid_request") && e.refuses() && r.Refreshes:
		lost := &consentLost{Since: now.Round(0), Interrupted: r.Interrupted}
		if r.ConsentLost == nil && !e.is("invalid_grant") {
			lost.Again = now.Add(refusedAgainAfter).Round(0)
		}
		r.ConsentLost = lost
		if p.task.forced && r.AccessToken == p.task.replaces.record.AccessToken {
			r.AccessToken = "" // the product has rejected it
		}
		if digest(r.RefreshToken) == r.Seed {
			p.tell(seedRefused, r, nil)
		}
		why := r.refusal()
		e.Op = why.Op
		e.Err = why.Err
		p.save(failing, r)
	case failed.unsent || e.over():
		p.save(failing, r)
	case unavailable:
		e.Err = fmt.Errorf("%w; if there was an answer, it was lost, and with it the next refresh token", e.Err)
		p.tell(answerLost, p.record, e)
	}
}

// over reports whether e shows that the exchange is over: it was answered, or never sent.
func (e *Error) over() bool {
	var op *net.OpError
	var secret *secretError
	return e.Status >= 300 || e.Code != "" ||
		errors.Is(e, ErrProtocol) || errors.Is(e, ErrCredentials) || errors.Is(e, ErrRateLimited) || errors.Is(e, ErrInsecure) ||
		errors.As(e, &secret) || errors.Is(e, ErrSecret) || errors.As(e, &op) && (op.Op == "dial" || op.Op == "proxyconnect")
}

// conflict follows a save that met another record: of another process, or our own, since a save may
// succeed although it reports an error.
func (p *protocol) conflict(now time.Time, e event) {
	if e.err != nil {
		p.saveEnded(now, e.err)
		return
	}
	p.version = e.version
	newer := e.record.Generation >= p.made.Generation
	switch {
	case e.record.Generation == p.made.Generation && e.record.AccessToken == p.made.AccessToken:
		p.saveEnded(now, nil)
	case newer && p.published && p.rotated:
		p.end(nil) // it is adopted when it is looked at next
	case newer && e.record.loggedOut():
		p.tell(consentEnded, e.record, nil)
		p.end(e.record.refusal())
	case (newer || !p.rotated) && p.adopts(now, e.record):
		p.adopt(e.record)
	case newer: // but of no use: callers get ours
		p.saveEnded(now, nil)
	case p.resaved:
		p.saveEnded(now, ErrConflict)
	default:
		p.resaved = true
		p.save(saving, p.made)
	}
}

// publish tells that the token was obtained, once.
func (p *protocol) publish() {
	if !p.published {
		p.published = true
		p.tell(tokenObtained, p.made, nil)
	}
}

// saveEnded follows a save of what the exchange gave. A rotated refresh token that could not be saved
// is saved again until that succeeds or the session closes, with the lock held.
func (p *protocol) saveEnded(now time.Time, err error) {
	again := p.published
	p.publish()
	switch p.end(nil); {
	case err == nil:
		p.saved()
		p.tell(tokenSaved, tokenRecord{}, nil)
		return
	case !p.rotated:
		p.tell(tokenUnsaved, tokenRecord{}, err)
		return
	case p.closing && p.task.reason == login:
		p.fail("login", fmt.Errorf("%w; %w", err, errLoginLost))
		return
	case p.closing:
		p.tell(rotationLost, tokenRecord{}, err)
		return
	case !again:
		p.tell(rotationUnsaved, tokenRecord{}, err)
	case !p.stuck && now.Sub(p.saveBegan) > exchangeTimeout:
		p.stuck = true
		p.tell(rotationStuck, tokenRecord{}, err)
	}
	p.step, p.err, p.resaved = pausing, err, false
	p.wait = min(2*p.wait, saveEvery)
}

// notForgotten returns the error of a logout whose tokens the store still has.
func (p *protocol) notForgotten(err error) error {
	if !errors.Is(err, ErrStore) {
		err = fmt.Errorf("%w: %w", ErrStore, err)
	}
	var e *Error
	switch {
	case errors.As(p.err, &e):
		return fmt.Errorf("%w; the store still has the tokens, and the product has not revoked them: %v", err, e.Err) // whose advice is not the store's
	case p.told:
		return fmt.Errorf("%w; the product has revoked the tokens, but the store still has them", err)
	}
	return fmt.Errorf("%w; the store still has the tokens, and the product was not told: its settings name no way to revoke them", err)
}

// left is what a logout leaves of a person's consent. If there were no record at all, processes that
// still hold the refresh token would take it for lost and write it back.
func (p *protocol) left(now time.Time) (r tokenRecord) {
	if p.refresh.Expendable || !p.person && p.record.RefreshToken == "" {
		return r
	}
	r = tokenRecord{Generation: newGeneration(p.record.Generation, now), Seed: p.record.Seed}
	if p.person {
		r.ConsentLost = &consentLost{Since: now.Round(0), LoggedOut: true}
	}
	return r
}

// adopts reports whether r has a usable access token that is newer than the token to be replaced. The refresh
// token may have been refused.
func (p *protocol) adopts(now time.Time, r tokenRecord) bool {
	if r.AccessToken == "" {
		return false
	}
	if known := p.task.replaces; known != nil && (r.Generation <= known.record.Generation || r.AccessToken == known.record.AccessToken) {
		return false
	}
	expires := r.Obtained.Add(r.Lifetime)
	if p.task.reason != needed && p.task.reason != login {
		if r.ahead {
			return false
		}
		expires = expires.Add(-min(p.earlyRefresh, r.Lifetime/5)) // it would have to be replaced at once
	}
	return now.Before(expires) && !(p.task.reason == watch && p.refresh.renewalDue(r, now))
}

// adopt ends with r's token.
func (p *protocol) adopt(r tokenRecord) {
	p.record = r
	p.tell(tokenAdopted, r, nil)
	p.end(nil)
}

// settle ends if our token need not be offered to the store: the store has it, or a newer one, which is
// adopted.
func (p *protocol) settle(now time.Time) {
	switch {
	case p.record.Generation < p.task.replaces.record.Generation:
		return // it never had ours, or a failover lost it
	case p.adopts(now, p.record):
		p.tell(tokenAdopted, p.record, nil)
		p.tell(offersExpected, tokenRecord{}, nil)
	default:
		p.tell(tokenSaved, tokenRecord{}, nil)
	}
	p.endWithNothing()
}

// restores reports whether r, the store's record, is older than ours, and ours has a refresh token or a
// logout that must be written back.
func (p *protocol) restores(r tokenRecord) bool {
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
func (r *rules) atStake(known *snapshot) bool {
	return !r.refresh.Expendable && (r.person || known != nil && known.record.RefreshToken != "")
}
