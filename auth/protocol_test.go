package auth

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"go/parser"
	"go/token"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"
)

// The steps of protocol.go over a shared store, in every order in which two or three processes can take
// them and with each mishap once or twice. The processes are protocols; the store, the product and what
// happens to them are a model. A row says what may happen, how often, and which
// promises are broken by that, each with the length of the shortest way there, which -v shows. The row's
// other promises hold in each of its states.
//
// Time is left out: that 5 s, 10 s or 30 s have passed is an event, which waits for what cannot take
// longer. So is the memory of failures.

// A rec is a record, stored or held, in a form that can be compared. Its token's number is its generation:
// it grows by one with each rotation; a login or a logout begins at a higher number than all before.
type rec struct {
	token             uint8
	mark, interrupted mark
	refused, out      bool // consent required, and since a logout
	rejected          bool // without its access token
	again             again
}

// again is whether a refused refresh token is to be sent once more.
type again uint8

const (
	never again = iota
	later       // in 5 min
	due
)

// A mark names a process, from 1, and which of its flights.
type mark struct{ by, flight uint8 }

// All that happens is within a second of present.
var (
	longAgo = time.Unix(-1_000_000, 0)
	present = time.Unix(0, 0)
	future  = time.Unix(1_000_000, 0)
)

func (m mark) time() time.Time {
	if m.by == 0 {
		return time.Time{}
	}
	return time.Unix(0, int64(m.by)*1000+int64(m.flight))
}

func markAt(t time.Time) mark {
	if t.IsZero() {
		return mark{}
	}
	return mark{uint8(t.UnixNano() / 1000), uint8(t.UnixNano() % 1000)}
}

// real is r as the protocol knows it. Tokens up to need have expired.
func (c *row) real(r rec, need uint8) tokenRecord {
	if r == (rec{}) {
		return tokenRecord{}
	}
	t := tokenRecord{Generation: int64(r.token), Interrupted: r.interrupted.time(), Obtained: longAgo, Lifetime: time.Hour}
	if !r.out && r.token > 0 {
		t.AccessToken = fmt.Sprint("A", r.token)
		if !c.client {
			t.RefreshToken = fmt.Sprint("R", r.token)
		}
		if r.rejected {
			t.AccessToken = ""
		}
		if r.token > need {
			t.Obtained = future
		}
	}
	if r.mark.by != 0 {
		t.Pending = &pending{Owner: fmt.Sprint("P", r.mark.by), Since: r.mark.time()}
	}
	if r.refused {
		t.ConsentLost = &consentLost{LoggedOut: r.out, Again: []time.Time{{}, future, longAgo}[r.again]}
	}
	return t
}

// compact is the inverse of real.
func compact(t tokenRecord) rec {
	r := rec{token: uint8(t.Generation), interrupted: markAt(t.Interrupted)}
	if t.Pending != nil {
		r.mark = markAt(t.Pending.Since)
	}
	if t.ConsentLost != nil {
		r.refused, r.out = true, t.ConsentLost.LoggedOut
		r.rejected = t.AccessToken == "" && !r.out
		if at := t.ConsentLost.Again; !at.IsZero() {
			if r.again = later; at.Equal(longAgo) {
				r.again = due
			}
		}
	}
	return r
}

type place uint8

const (
	idle place = iota
	busy
	dead
)

// A process is what it holds and, while it is busy, its protocol in a form that can be compared.
type process struct {
	at      place
	last    rec   // what it holds
	need    uint8 // no token up to this one is of use: expired
	unsaved bool  // the store lacks its token
	flights uint8 // left to begin
	robbed  bool  // of the lock, by a pause or by Redis
	locked  bool  // it believes that it has the lock
	sent    bool  // its exchange is under way

	step                                                            step
	reason                                                          reason
	replaces, record, writing, previous, made                       rec
	version                                                         uint8
	unanswered                                                      mark // outlives the flight, with givenUp
	givenUp                                                         bool
	awaited                                                         mark
	storeLost, suppressed, spends, alone, rotated, published, again bool
}

func (c *row) rules(id int, p *process) rules {
	return rules{owner: fmt.Sprint("P", id), person: !c.client, unanswered: p.unanswered.time(), givenUp: p.givenUp}
}

// flight is the number of p's flight. An idle process that sends a refresh token once more begins one beside
// the others.
func (p *process) flight() uint8 {
	if p.reason == watch {
		return 9
	}
	return p.flights + 1
}

// protocol is p's, as it runs.
func (c *row) protocol(id int, p *process) *protocol {
	q := newProtocol(c.rules(id, p), c.task(p, p.reason, p.replaces))
	q.step, q.version = p.step, uint64(p.version)
	q.record, q.writing = c.real(p.record, p.need), c.real(p.writing, p.need)
	q.previous, q.made = c.real(p.previous, p.need), c.real(p.made, p.need)
	q.storeLost, q.spends, q.withoutLock = p.storeLost, p.spends, p.alone
	q.rotated, q.published, q.resaved = p.rotated, p.published, p.again
	if p.suppressed {
		q.suppress = errNotDue
	}
	q.awaited = p.awaited.time()
	return q
}

// task is p's, which holds known. A token that has expired may as well have been rejected.
func (c *row) task(p *process, why reason, known rec) task {
	t := task{reason: why}
	if known != (rec{}) {
		t.replaces = &snapshot{record: c.real(known, p.need)}
		t.forced = p.need >= known.token
	}
	return t
}

// advance gives p's protocol an event, and does what it says.
func (c *row) advance(id int, p *process, now time.Time, e event) {
	q := c.protocol(id, p)
	q.advance(now, e)
	c.keep(p, q)
}

func (c *row) keep(p *process, q *protocol) {
	p.step, p.version, p.awaited = q.step, uint8(q.version), markAt(q.awaited)
	p.record, p.writing, p.previous, p.made = compact(q.record), compact(q.writing), compact(q.previous), compact(q.made)
	p.storeLost, p.spends, p.alone = q.storeLost, q.spends, q.withoutLock
	p.rotated, p.published, p.again, p.suppressed = q.rotated, q.published, q.resaved, q.suppress != nil
	for _, r := range q.results {
		switch r.is {
		case tokenObtained, tokenAdopted, consentEnded, recordForgotten:
			p.last = compact(r.record)
			p.last.mark, p.last.interrupted = mark{}, mark{}
			p.unsaved = p.unsaved && r.is != tokenAdopted
		case storeBypassed, tokenUnsaved:
			p.unsaved = true
		case tokenSaved:
			p.unsaved = false
		case answerLost:
			p.unanswered, p.givenUp = markAt(r.record.Pending.Since), r.err.(*Error).Timeout()
		}
	}
	if p.step == finished && !p.locked {
		c.rest(p)
	}
}

// rest is p after its flight.
func (c *row) rest(p *process) {
	*p = process{last: p.last, need: p.need, unsaved: p.unsaved, flights: p.flights, unanswered: p.unanswered, givenUp: p.givenUp}
	if !c.client {
		p.need = 0
	}
}

// A request is on its way to the product, or its answer on its way back.
type request struct{ token, makes, flight, answer uint8 }

// bounds are how often each thing may still happen.
type bounds struct {
	crash, fault, lost, late, pause, failover, flush, logout, login uint8
	bare, misread                                                   uint8 // logins without a refresh token, and refusals in other words of what is valid
	busy, spoiled                                                   uint8 // responses without a token, before and after the refresh token was spent
}

// stored is a record in the store.
type stored struct {
	rec
	version uint8
}

type world struct {
	stored, replica   stored
	lock, replicaLock uint8 // its holder, from 1
	behind            bool  // what is written now does not reach the replica
	p                 [3]process
	request           [3]request
	valid             uint8 // the refresh token that the product takes, or 0
	newest            uint8 // the highest number given out
	began             uint8 // the number at which the last login began
	out               bool  // logged out since
	reused            bool  // a spent refresh token was sent
	looking           bool  // no exchange begins until all have looked at the store
	wasted            uint8 // exchanges whose token gave way to another
	left              bounds
}

const (
	lost    = 100 // holds a lock that a failover brought back
	refusal = 100
	misread = 101
	noToken = 102
	epoch   = 20 // numbers from one login or logout to the next
)

type row struct {
	name      string
	may       bounds
	processes int    // 2
	flights   uint8  // 2 for each process
	client    bool   // client credentials instead of a rotating refresh token
	lenient   bool   // the product refuses a spent refresh token, and that is all
	careful   bool   // crashes spare an exchange and its save
	long      bool   // pauses may be longer than 30 s
	calm      bool   // Redis fails while no process exchanges, and all look at the store before one does
	large     bool   // is for make soak: it has many states, or says the same as another
	broken    string // promises, with the steps that it takes
}

type transition struct {
	who   int // a process, from 1, or 0
	what  string
	must  bool // happens by itself in the end
	world world
}

// steps appends all that can happen in s.
func (c *row) steps(s *world, to []transition) []transition {
	add := func(who int, what string, must bool, change func(n *world)) {
		n := *s
		if change(&n); n.left.failover == 0 {
			n.replica, n.replicaLock, n.behind = stored{}, 0, false
		}
		if n != *s {
			to = append(to, transition{who, what, must, n})
		}
	}
	for i := range c.processes {
		c.process(s, i, add)
		c.product(s, i, add)
	}
	c.redis(s, add)
	return to
}

type adder func(who int, what string, must bool, change func(n *world))

// begin begins a flight with a look at the record, which is one step with it.
func (c *row) begin(s *world, i int, why reason) {
	p := &s.p[i]
	q := newProtocol(c.rules(i+1, p), c.task(p, why, p.last))
	if why == offer || why == watch && s.stored.again != due { // else nothing is remembered any more
		q.suppress = errNotDue
	}
	p.at, p.reason, p.replaces = busy, why, p.last
	if q.step == looking {
		q.advance(present, event{record: c.real(s.stored.rec, p.need), version: uint64(s.stored.version)})
	}
	c.keep(p, q)
}

// watches reports whether p, which is idle, would begin something if it looked at the record.
func (c *row) watches(s *world, i int, why reason) bool {
	n := *s
	c.begin(&n, i, why)
	return n.p[i] != s.p[i]
}

var errFault = fmt.Errorf("%w: a fault", ErrStore)

// process has the steps of process i.
func (c *row) process(s *world, i int, add adder) {
	me, id := &s.p[i], i+1
	do := func(what string, f func(n *world, p *process)) {
		add(id, what, true, func(n *world) { f(n, &n.p[i]) })
	}
	may := func(left func(*bounds) *uint8, what string, f func(n *world, p *process)) {
		if *left(&s.left) > 0 {
			add(id, what, false, func(n *world) { *left(&n.left)--; f(n, &n.p[i]) })
		}
	}
	fault := func(what string, f func(n *world, p *process)) {
		may(func(b *bounds) *uint8 { return &b.fault }, what, f)
	}
	// A step that may begin an exchange happens at the time of its mark, and one that may begin a new chain at
	// the time of the next number.
	marks := mark{uint8(id), me.flight()}.time()
	number := s.newest + 1
	if me.reason == login || me.reason == logout {
		number = s.newest/epoch*epoch + epoch + 1
	}
	numbers := time.UnixMicro(int64(number))
	save := func(what string, now time.Time, saved func(n *world, p *process)) {
		write := func(n *world, p *process) error {
			if n.stored.version != p.version {
				return ErrConflict
			}
			n.stored = stored{p.writing, p.version + 1}
			if saved != nil {
				saved(n, p)
			}
			return nil
		}
		do(what, func(n *world, p *process) { c.advance(id, p, now, event{err: write(n, p), current: true}) })
		fault(what+", which fails", func(_ *world, p *process) { c.advance(id, p, now, event{err: errFault}) })
		fault(what+", and hears nothing", func(n *world, p *process) {
			_ = write(n, p)
			c.advance(id, p, now, event{err: errFault})
		})
	}

	switch {
	case me.at == dead:
		return
	case me.at == idle:
		if me.flights > 0 && !s.looking {
			begin := func(what string, why reason, need uint8, left func(*bounds) *uint8) {
				if left != nil && *left(&s.left) == 0 {
					return
				}
				add(id, what, false, func(n *world) {
					p := &n.p[i]
					p.flights--
					if p.need = max(p.need, need); left != nil {
						*left(&n.left)--
					}
					c.begin(n, i, why)
				})
			}
			begin("looks: its token was refused", needed, me.last.token, nil)
			begin("looks: all tokens so far have expired", needed, s.newest, nil)
			begin("begins a logout", logout, 0, func(b *bounds) *uint8 { return &b.logout })
			begin("begins a login", login, 0, func(b *bounds) *uint8 { return &b.login })
		}
		if !c.client && c.watches(s, i, watch) {
			do("watches", func(n *world, _ *process) { c.begin(n, i, watch) })
		}
		if me.unsaved && me.last.token > 0 && c.watches(s, i, offer) {
			do("offers its token", func(n *world, _ *process) { c.begin(n, i, offer) })
		}
	case me.step == locking:
		try := func(n *world, p *process) {
			if q := c.protocol(id, p); n.stored.version != p.version {
				r := c.real(n.stored.rec, p.need)
				if p.record, p.version = n.stored.rec, n.stored.version; q.enough(present, r) {
					c.advance(id, p, present, event{record: r, version: uint64(p.version)})
				}
				return
			}
			if n.lock == 0 {
				n.lock, p.locked = uint8(id), true
				c.advance(id, p, marks, event{record: c.real(p.record, p.need), version: uint64(p.version), taken: true, current: true})
			}
		}
		if s.lock == 0 || s.stored.version != me.version {
			do("tries the lock", try)
		}
		fault("cannot lock", func(_ *world, p *process) { c.advance(id, p, marks, event{err: errFault}) })
	case me.step == restoring:
		save("writes its own back", marks, nil)
	case me.step == waiting:
		if c.over(s, me.awaited) {
			do("has waited until 30 s after the mark, and loads", func(n *world, p *process) {
				c.advance(id, p, marks, event{record: c.real(n.stored.rec, p.need), version: uint64(n.stored.version)})
			})
			fault("has waited until 30 s after the mark, and cannot load", func(_ *world, p *process) { c.advance(id, p, marks, event{err: errFault}) })
		}
	case me.step == marking:
		save("marks", marks, nil)
	case me.step == exchanging && me.reason == login:
		do("redeems a login", func(n *world, p *process) {
			n.newest, n.valid, n.began, n.out = number, number, number, false
			c.advance(id, p, numbers, c.response(number))
		})
		if inForce := me.record; inForce.token > 0 && !inForce.refused {
			may(func(b *bounds) *uint8 { return &b.bare }, "redeems a login without a refresh token", func(_ *world, p *process) {
				c.advance(id, p, numbers, event{token: &oauth2.Token{AccessToken: "bare"}, start: future})
			})
		}
	case me.step == exchanging && !me.sent:
		do("sends", func(n *world, p *process) {
			q := request{token: p.previous.token, makes: p.previous.token + 1, flight: p.flight()}
			if c.client {
				n.newest++
				q.token, q.makes = 0, n.newest
			}
			n.request[i], p.sent, p.made.token = q, true, q.makes
		})
	case me.step == exchanging:
		q := s.request[i]
		over := func(n *world, p *process, e event) {
			n.request[i], p.sent, p.made = request{}, false, rec{}
			c.advance(id, p, time.UnixMicro(int64(q.makes)), e)
		}
		if q.answer != 0 && q.flight == me.flight() {
			do("gets the answer", func(n *world, p *process) {
				e := c.response(q.answer)
				switch q.answer {
				case refusal:
					e = event{err: &Error{Status: 400, Code: "invalid_grant", Err: ErrConsentRequired}}
				case misread:
					e = event{err: &Error{Status: 401, Code: "server_error", Err: ErrConsentRequired}}
				case noToken:
					e = event{err: &Error{Status: 503, Err: ErrUnavailable}}
				}
				over(n, p, e)
			})
		}
		unavailable := func(cause error) event { return event{err: &Error{Err: fmt.Errorf("%w: %w", ErrUnavailable, cause)}} }
		may(func(b *bounds) *uint8 { return &b.lost }, "gets no answer", func(n *world, p *process) { over(n, p, unavailable(io.EOF)) })
		if q.answer == 0 {
			may(func(b *bounds) *uint8 { return &b.late }, "gives up a request that is still under way", func(n *world, p *process) {
				request := n.request[i]
				over(n, p, unavailable(context.DeadlineExceeded))
				n.request[i] = request
			})
		}
	case me.step == failing:
		save("saves the refusal, or takes its mark back", marks, nil)
	case me.step == saving:
		save("saves", marks, nil)
	case me.step == offering:
		save("offers", marks, nil)
	case me.step == conflicted:
		do("meets another record", func(n *world, p *process) {
			if c.client && n.stored.token >= p.made.token && n.stored.token != p.made.token {
				n.wasted++
			}
			c.advance(id, p, marks, event{record: c.real(n.stored.rec, p.need), version: uint64(n.stored.version)})
		})
		fault("cannot load the record that it met", func(_ *world, p *process) { c.advance(id, p, marks, event{err: errFault}) })
	case me.step == pausing:
		do("saves again", func(_ *world, p *process) { c.advance(id, p, marks, event{}) })
	case me.step == revoking:
		do("tells the product", func(n *world, p *process) {
			c.advance(id, p, numbers, event{})
		})
	case me.step == forgetting:
		save("saves the logout", numbers, func(n *world, p *process) {
			n.newest, n.out = p.writing.token, true
		})
	case me.step == finished:
		do("unlocks", func(n *world, p *process) {
			if n.lock == uint8(id) {
				n.lock = 0
			}
			if n.replicaLock == uint8(id) {
				n.replicaLock = lost
			}
			c.rest(p)
		})
	}
	if s.lock == 0 && me.locked && me.step != finished {
		do("takes its lost lock again", func(n *world, p *process) { n.lock, p.robbed = uint8(id), false })
	}
	if !(c.careful && me.at == busy && me.inExchange() && (me.sent || me.step != exchanging)) {
		may(func(b *bounds) *uint8 { return &b.crash }, "dies", func(_ *world, p *process) { *p = process{at: dead} })
	}
}

// response is the product's, with a token.
func (c *row) response(number uint8) event {
	tok := &oauth2.Token{AccessToken: fmt.Sprint("A", number), ExpiresIn: 3600}
	if !c.client {
		tok.RefreshToken = fmt.Sprint("R", number)
	}
	return event{token: tok, start: future}
}

// inExchange reports whether p spends a token, or has what it gave and has not saved it.
func (p *process) inExchange() bool {
	switch p.step {
	case exchanging, failing, saving, conflicted, pausing:
		return true
	}
	return false
}

// over reports whether 30 s may have passed since a mark: its exchange is over, and saved unless the
// process was paused.
func (c *row) over(s *world, m mark) bool {
	p, q := &s.p[m.by-1], &s.request[m.by-1]
	if q.flight == m.flight && q.answer == 0 {
		return false
	}
	return c.long || p.flight() != m.flight || p.at != busy || !p.inExchange()
}

// product has what happens to the request of process i.
func (c *row) product(s *world, i int, add adder) {
	q, p := s.request[i], &s.p[i]
	expected := p.sent && p.flight() == q.flight
	switch {
	case q.flight == 0:
	case q.answer != 0 && !expected:
		add(0, "an answer comes too late", true, func(n *world) { n.request[i] = request{} })
	case q.answer == 0:
		add(0, fmt.Sprintf("the product processes the request of P%d", i+1), true, func(n *world) {
			answer := &n.request[i].answer
			switch {
			case c.client:
				*answer = q.makes
			case q.token == s.valid:
				*answer, n.valid = q.makes, q.makes
				n.newest = max(n.newest, q.makes)
			default:
				*answer = refusal
				if q.token >= s.began { // else it is of a login before
					n.reused = true
					if !c.lenient {
						n.valid = 0
					}
				}
			}
		})
		if s.left.misread > 0 && q.token == s.valid {
			add(0, fmt.Sprintf("the product refuses the request of P%d in other words", i+1), false, func(n *world) { n.left.misread--; n.request[i].answer = misread })
		}
		if s.left.busy > 0 {
			add(0, fmt.Sprintf("the product is too busy for the request of P%d", i+1), false, func(n *world) { n.left.busy--; n.request[i].answer = noToken })
		}
		if s.left.spoiled > 0 && q.token == s.valid {
			add(0, fmt.Sprintf("the product rotates for P%d, and a proxy responds", i+1), false, func(n *world) {
				n.left.spoiled--
				n.request[i].answer, n.valid = noToken, q.makes
				n.newest = max(n.newest, q.makes)
			})
		}
		if !expected {
			add(0, "a request gets lost on its way", false, func(n *world) { n.request[i] = request{} })
		}
	}
}

// redis has what happens to the store by itself.
func (c *row) redis(s *world, add adder) {
	lapse := func(n *world) {
		if n.replicaLock == n.lock {
			n.replicaLock = 0
		}
		n.lock = 0
	}
	switch {
	case s.lock == 0:
	case s.lock == lost || !s.p[s.lock-1].locked:
		add(0, "the lock lapses", true, lapse)
	case s.left.pause > 0:
		add(0, fmt.Sprintf("P%d is paused, and its lock lapses", s.lock), false, func(n *world) { n.left.pause--; n.p[n.lock-1].robbed = true; lapse(n) })
	}
	rob := func(n *world) {
		for i := range n.p {
			p := &n.p[i]
			p.robbed = p.robbed || p.locked && n.lock != uint8(i+1)
		}
	}
	calm := !c.calm || !slices.ContainsFunc(s.p[:], func(p process) bool { return p.at == busy })
	if s.left.failover > 0 && !s.behind {
		add(0, "the replica falls behind", false, func(n *world) { n.behind, n.replica, n.replicaLock = true, s.stored, s.lock })
	} else if s.left.failover > 0 && calm {
		add(0, "a failover loses what the replica has not", false, func(n *world) {
			n.left.failover--
			n.stored, n.lock, n.behind, n.looking = s.replica, s.replicaLock, false, c.calm
			n.replica, n.replicaLock = stored{}, 0
			rob(n)
		})
	}
	if s.left.flush > 0 && calm {
		add(0, "Redis is flushed", false, func(n *world) {
			n.left.flush--
			n.stored, n.lock, n.replica, n.replicaLock, n.looking = stored{}, 0, stored{}, 0, c.calm
			rob(n)
		})
	}
	if s.stored.again == later {
		add(0, "5 min have passed", true, func(n *world) { n.stored.again = due })
	}
	if s.looking {
		for i, p := range s.p {
			if p.at == busy || p.at == idle && c.watches(s, i, watch) {
				return
			}
		}
		add(0, "10 s have passed", true, func(n *world) { n.looking = false })
	}
}

var promises = map[byte]string{
	'A': "no spent refresh token is sent",
	'B': "at rest the newest token that a process holds is in the store; refresh tokens are held by all",
	'C': "the product's refresh token is known to a process or the store",
	'D': "at rest no process holds a login that was ended, nor does the store",
	'E': "it comes to rest, with no lock held",
	'F': "one exchange at a time",
	'G': "with client credentials all get a token, with one exchange too many at most for each lost lock",
	'H': "a process loses the lock only by a pause or by Redis",
	'I': "at rest no login that the product takes counts as refused",
	'J': "the mark of an exchange that was answered goes away, unless more than the product fails",
}

// check returns the promises that s breaks. It is at rest if nothing more happens by itself.
func (c *row) check(s *world, rest bool) (broken []byte) {
	ended := func(r rec) bool { return r.token != 0 && !r.out && (s.out || r.token < s.began) }
	known, exchanges := s.stored.token == s.valid, 0
	var held uint8
	var stale, differ, stuck, without, robbed bool
	for i, p := range s.p[:c.processes] {
		if p.at == dead {
			continue
		}
		known = known || p.last.token == s.valid ||
			p.at == busy && p.made.token == s.valid && (p.step == saving || p.step == conflicted || p.step == pausing || p.sent && s.request[i].answer == s.valid)
		if p.sent {
			exchanges++
		}
		held = max(held, p.last.token)
		without = without || p.at == idle && p.need > 0 && p.last.token <= p.need
		stale = stale || ended(p.last)
		differ = differ || p.last.token != s.stored.token && !s.stored.refused && !s.stored.out
		robbed = robbed || p.locked && p.step != finished && !p.robbed && s.lock != uint8(i+1)
		stuck = stuck || rest && p.at != idle || p.at == idle && s.lock == uint8(i+1)
	}
	for b, is := range map[byte]bool{
		'A': s.reused,
		'B': rest && (held > s.stored.token && (!c.client || c.may == bounds{fault: c.may.fault}) || differ && !c.client),
		'C': !c.client && !s.out && (s.valid == 0 || !known),
		'D': rest && (stale || ended(s.stored.rec)),
		'E': stuck,
		'F': exchanges > 1,
		'G': c.client && (without || s.wasted > c.may.pause+c.may.failover+c.may.flush),
		'H': robbed,
		'I': rest && s.stored.refused && !s.stored.out && s.stored.token == s.valid,
		'J': rest && s.stored.mark.by != 0 && c.may == bounds{misread: c.may.misread, busy: c.may.busy, spoiled: c.may.spoiled},
	} {
		if is {
			broken = append(broken, b)
		}
	}
	return broken
}

// A node is a state and the shortest way to it.
type node struct {
	world world
	from  int32
	depth uint8
	who   int8
	what  string
}

// explore visits every state, the nearest first, and returns how soon each broken promise is.
func (c *row) explore(t *testing.T) (broken []string) {
	var nodes []node
	seen := map[world]int32{}
	visit := func(n node) int32 {
		i, ok := seen[n.world]
		if !ok {
			i = int32(len(nodes))
			seen[n.world] = i
			nodes = append(nodes, n)
		}
		return i
	}
	r := rec{token: 1}
	s := world{stored: stored{r, 5}, valid: 1, newest: 1, began: 1, left: c.may}
	for i := range s.p {
		if s.p[i] = (process{last: r, flights: c.flights}); i >= c.processes {
			s.p[i] = process{at: dead}
		}
	}
	visit(node{world: s, from: -1, what: "all hold R1"})
	s.p[1].last = rec{}
	visit(node{world: s, from: -1, what: "all hold R1 but P2, which has just started"})

	found := map[byte]int32{}
	must := [][2]int32{} // steps that happen by themselves: to, from
	open := []int32{}    // how many of those each state has
	var steps []transition
	for i := int32(0); i < int32(len(nodes)); i++ {
		n := nodes[i]
		steps = c.steps(&n.world, steps[:0])
		open = append(open, 0)
		for _, st := range steps {
			j := visit(node{st.world, i, n.depth + 1, int8(st.who), st.what})
			if st.must {
				must = append(must, [2]int32{j, i})
				open[i]++
			}
		}
		for _, b := range c.check(&n.world, open[i] == 0) {
			if _, ok := found[b]; !ok {
				found[b] = i
			}
		}
		if len(nodes) > 2_000_000 {
			t.Fatal("too many states")
		}
	}
	t.Logf("%s: %d states", c.name, len(nodes))
	// It comes to rest in the end, in whatever order, if those steps make no circle.
	slices.SortFunc(must, func(a, b [2]int32) int { return int(a[0] - b[0]) })
	var rest []int32
	for i := range open {
		if open[i] == 0 {
			rest = append(rest, int32(i))
		}
	}
	for k := 0; k < len(rest); k++ {
		at, _ := slices.BinarySearchFunc(must, rest[k], func(e [2]int32, i int32) int { return int(e[0] - i) })
		for ; at < len(must) && must[at][0] == rest[k]; at++ {
			from := must[at][1]
			if open[from]--; open[from] == 0 {
				rest = append(rest, from)
			}
		}
	}
	if len(rest) < len(nodes) {
		for i := range open {
			if open[i] > 0 {
				found['E'] = int32(i)
				break
			}
		}
	}
	for _, b := range []byte("ABCDEFGHIJ") {
		if i, ok := found[b]; ok {
			broken = append(broken, fmt.Sprintf("%c%d", b, nodes[i].depth))
			t.Logf("%c, %s: broken by\n%s", b, promises[b], way(nodes, i))
		}
	}
	return broken
}

func way(nodes []node, i int32) string {
	var lines []string
	for ; i >= 0; i = nodes[i].from {
		n := &nodes[i]
		s := &n.world
		who := ""
		if n.who > 0 {
			who = fmt.Sprintf("P%d ", n.who)
		}
		r := s.stored
		note := ""
		if r.mark.by > 0 {
			note += fmt.Sprintf(" marked by P%d", r.mark.by)
		}
		if r.refused {
			note += " refused"
		}
		if r.out {
			note += " logged out"
		}
		lines = append(lines, fmt.Sprintf("%3d %-50s stored R%d v%d%s, lock %d, valid R%d", n.depth, who+n.what, r.token, r.version, note, s.lock, s.valid))
	}
	slices.Reverse(lines)
	return strings.Join(lines, "\n")
}

var rows = []row{
	// What is guaranteed.
	{name: "nothing"},
	{name: "nothing, three processes", large: true, processes: 3},
	{name: "crash before or after an exchange", may: bounds{crash: 1}, careful: true},
	{name: "two crashes before or after an exchange, three processes", large: true, may: bounds{crash: 2}, careful: true, processes: 3, flights: 1},
	{name: "store operations fail, or their replies get lost", may: bounds{fault: 2}},
	{name: "store fault, crash before or after an exchange", large: true, may: bounds{fault: 1, crash: 1}, careful: true},
	{name: "pauses", may: bounds{pause: 2}},
	{name: "pauses, three processes", large: true, may: bounds{pause: 2}, processes: 3, flights: 1},
	{name: "pause, store fault", large: true, may: bounds{pause: 1, fault: 1}},
	{name: "calm failover", large: true, may: bounds{failover: 1}, calm: true},
	{name: "calm failover, three processes", large: true, may: bounds{failover: 1}, calm: true, processes: 3, flights: 1},
	{name: "two calm failovers", large: true, may: bounds{failover: 2}, calm: true},
	{name: "calm failover, store fault", large: true, may: bounds{failover: 1, fault: 1}, calm: true},
	{name: "calm flush, store fault", large: true, may: bounds{flush: 1, fault: 1}, calm: true},
	{name: "failover, one process", may: bounds{failover: 1, fault: 1}, processes: 1},
	{name: "logout, login", large: true, may: bounds{logout: 1, login: 1}, flights: 3},
	{name: "logout, login, calm failover", large: true, may: bounds{logout: 1, login: 1, failover: 1}, calm: true},
	{name: "login without a refresh token", may: bounds{login: 1, bare: 1}, flights: 1},
	{name: "logout, store fault", large: true, may: bounds{logout: 1, fault: 1}},
	{name: "refused in other words", may: bounds{misread: 1}},
	{name: "refused in other words, three processes", large: true, may: bounds{misread: 1}, processes: 3, flights: 1},
	{name: "refused in other words, store fault", large: true, may: bounds{misread: 1, fault: 1}},
	{name: "refused in other words, crash before or after an exchange", large: true, may: bounds{misread: 1, crash: 1}, careful: true},
	{name: "product unavailable", may: bounds{busy: 2}},
	{name: "product unavailable, three processes", large: true, may: bounds{busy: 2}, processes: 3, flights: 1},
	{name: "product unavailable, store fault", large: true, may: bounds{busy: 1, fault: 1}},
	{name: "product unavailable, refused in other words", large: true, may: bounds{busy: 1, misread: 1}},
	{name: "client credentials", client: true},
	{name: "client credentials, crash", client: true, may: bounds{crash: 1}},
	{name: "client credentials, crash, three processes", large: true, client: true, may: bounds{crash: 1}, processes: 3, flights: 1},

	// What cannot be, and what holds all the same.
	{name: "crash in an exchange", may: bounds{crash: 1}, broken: "A13 C6"},
	{name: "new tokens lost in an error response", may: bounds{spoiled: 1}, broken: "A13 C5"},
	{name: "refused twice in other words", may: bounds{misread: 2}, broken: "I17"},
	{name: "answer lost", large: true, may: bounds{lost: 1}, broken: "A12 C6"},
	{name: "request given up and yet processed", large: true, may: bounds{late: 1}, broken: "A13 C6"},
	{name: "pause of more than 30 s", large: true, may: bounds{pause: 1}, long: true, broken: "A12 C12 F10"},
	{name: "failover in an exchange", large: true, may: bounds{failover: 1}, broken: "A12 C12 F10"},
	{name: "failover in an exchange, lenient product", large: true, may: bounds{failover: 1}, lenient: true, broken: "A12 F10"},
	{name: "calm failover, its writer dies", large: true, may: bounds{failover: 1, crash: 1}, calm: true, careful: true, broken: "A16 C10"},
	{name: "flush in an exchange", large: true, may: bounds{flush: 1}, broken: "A12 C12 F8"},
	{name: "flush in an exchange, lenient product", large: true, may: bounds{flush: 1}, lenient: true, broken: "A12 F8"},
	{name: "logout, failover in an exchange", large: true, may: bounds{logout: 1, failover: 1}, flights: 1, broken: "A12 C12 F10"},
	{name: "logout, calm failover, who logged out dies", large: true, may: bounds{logout: 1, failover: 1, crash: 1}, calm: true, careful: true, broken: "A16 C10 D8"},
	{name: "logout, login, pause", large: true, may: bounds{logout: 1, login: 1, pause: 1}, broken: "F15"},
	{name: "client credentials, pause", large: true, client: true, may: bounds{pause: 1}, broken: "F7"},
	{name: "client credentials, pauses, three processes", large: true, client: true, may: bounds{pause: 1}, processes: 3, flights: 1, broken: "F7"},
	{name: "client credentials, Redis away", large: true, client: true, may: bounds{fault: 2}, broken: "F6"},
	{name: "client credentials, failover", large: true, client: true, may: bounds{failover: 1}, broken: "F8"},
	{name: "client credentials, flush", large: true, client: true, may: bounds{flush: 1}, broken: "F7"},
}

func TestProtocol(t *testing.T) {
	t.Parallel()
	for _, c := range rows {
		if !c.large {
			c.run(t)
		}
	}
}

func (c row) run(t *testing.T) {
	c.processes, c.flights = cmp.Or(c.processes, 2), cmp.Or(c.flights, 2)
	t.Run(c.name, func(t *testing.T) {
		t.Parallel()
		if broken := strings.Join(c.explore(t), " "); broken != c.broken {
			t.Errorf("broken: %q, want %q", broken, c.broken)
		}
	})
}

// state.go and protocol.go decide on what they are given: they must not wait, lock, call or read a clock.
func TestDecisionsArePure(t *testing.T) {
	t.Parallel()
	for file, imports := range map[string]string{
		"state.go":    `"errors" "time"`,
		"protocol.go": `"errors" "fmt" "net" "time" "golang.org/x/oauth2"`,
	} {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, source, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range f.Imports {
			if !strings.Contains(imports, i.Path.Value) {
				t.Errorf("%s imports %s", file, i.Path.Value)
			}
		}
		for _, clock := range []string{"time.Now", "time.Since", "time.Until", "time.After(", "time.Sleep"} {
			if bytes.Contains(source, []byte(clock)) {
				t.Errorf("%s uses %s", file, clock)
			}
		}
	}
}
