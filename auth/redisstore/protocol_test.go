//go:build soak

package redisstore_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// The protocol of auth/exchange.go over a shared store, as a model that is small enough to visit
// every state of it. A row of TestSoakProtocol says what may happen, how often, and which promises are
// broken by that, each with the length of the shortest way there, which -v shows. The row's other
// promises hold in each of its states.
//
// Time is left out: that 5 s, 10 s or 30 s have passed is an event, which waits for what cannot take
// longer. So are the memory of failures, and what a record says beside its refresh token.

// A record is what is stored, or held. Its token's number grows by one with each rotation; a login or
// a logout begins at a higher number than all before.
type record struct {
	version, token uint8
	mark           mark // somebody is about to spend the token
	refused        bool // consent required
	out            bool // logged out, at that number
}

// A mark names a process, from 1, and which of its flights.
type mark struct{ by, flight uint8 }

type process struct {
	at        place
	doing     task
	last      record // what it holds, published
	need      uint8  // no token up to this one is of use: expired
	loaded    record // under the lock, or saved since
	made      uint8  // the token of its exchange
	published bool
	robbed    bool // of the lock, by a pause or by Redis
	awaited   mark
	flights   uint8 // left to begin
}

// A request is on its way to the product, or its answer on its way back.
type request struct{ token, makes, flight, answer uint8 }

// bounds are how often each thing may still happen.
type bounds struct {
	crash, fault, lost, late, pause, failover, flush, logout, login uint8
}

type state struct {
	stored, replica   record
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

type place uint8

const (
	idle place = iota
	locking
	loading
	restoring
	waiting
	reloading
	marking
	sending
	answering
	saving
	conflicted
	refusing
	leaving
	redeeming
	unlocking
	dead
)

type task uint8

const (
	flying task = iota
	alone       // without the store
	watching
	loggingOut
	loggingIn
)

const (
	nobody  = 100 // holds a lock that a failover brought back
	refusal = 100
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
	calm      bool   // Redis fails while nobody exchanges, and all look at the store before anybody does
	skewed    bool   // the second process's clock is late
	without   string // a piece of the protocol, to see it missed
	broken    string // promises, with the steps that it takes
}

// obtained is when a token was, by the clock of who obtained it.
func (c *row) obtained(token uint8) int {
	if c.skewed && token%2 == 1 { // of two processes in turn
		return int(token) - 2
	}
	return int(token)
}

// newer reports whether a held record is newer than the stored one, and to be written back. Versions
// do not tell: they begin again where the store lost some.
func (c *row) newer(last, stored record) bool {
	switch {
	case c.client || last.token == 0 || c.without == "restore" || last.out && c.without == "memory of the logout":
		return false
	case c.without == "numbers, by version":
		return !stored.out && (last.version > stored.version || stored.refused && last.token > stored.token)
	case c.without == "numbers, by clock":
		return c.obtained(last.token) > c.obtained(stored.token)
	}
	return last.token > stored.token
}

// adopts takes a stored record if it is newer than what p holds, and of use.
func (c *row) adopts(p *process, r record) bool {
	newer := r.token > p.last.token
	if strings.HasPrefix(c.without, "numbers") {
		newer = r.token != p.last.token && (p.last.token == 0 || r.version > p.last.version || c.obtained(r.token) > c.obtained(p.last.token))
	}
	if !newer || r.token <= p.need || r.refused || r.out {
		return false
	}
	p.last = record{version: r.version, token: r.token}
	return true
}

// leaves gives up what was held of a consent that ended.
func (c *row) leaves(p *process, r record) bool {
	if !r.out || p.last.token > r.token {
		return false
	}
	p.last = record{version: r.version, token: r.token, out: true}
	if c.without == "memory of the logout" {
		p.last = record{}
	}
	return true
}

type step struct {
	who   int // a process, from 1, or 0
	what  string
	must  bool // happens by itself in the end
	state state
}

// steps appends all that can happen in s.
func (c *row) steps(s *state, to []step) []step {
	add := func(who int, what string, must bool, change func(n *state)) {
		n := *s
		if change(&n); n.left.failover == 0 {
			n.replica, n.replicaLock, n.behind = record{}, 0, false
		}
		if n != *s {
			to = append(to, step{who, what, must, n})
		}
	}
	for i := range c.processes {
		c.process(s, i, add)
		c.product(s, i, add)
	}
	c.redis(s, add)
	return to
}

type adder func(who int, what string, must bool, change func(n *state))

// process has the steps of process i.
func (c *row) process(s *state, i int, add adder) {
	me, id := &s.p[i], uint8(i+1)
	do := func(what string, f func(n *state, p *process)) {
		add(i+1, what, true, func(n *state) { f(n, &n.p[i]) })
	}
	may := func(left func(*bounds) *uint8, what string, f func(n *state, p *process)) {
		if *left(&s.left) > 0 {
			add(i+1, what, false, func(n *state) { *left(&n.left)--; f(n, &n.p[i]) })
		}
	}
	fault := func(what string, f func(n *state, p *process)) {
		may(func(b *bounds) *uint8 { return &b.fault }, what, f)
	}
	rest := func(p *process, at place) {
		*p = process{at: at, last: p.last, need: p.need, flights: p.flights}
		if !c.client {
			p.need = 0
		}
	}
	done := func(_ *state, p *process) { rest(p, unlocking) }
	save := func(n *state, p *process, r record) bool {
		if n.stored.version != p.loaded.version && c.without != "versions" {
			return false
		}
		r.version = p.loaded.version + 1
		n.stored, p.loaded = r, r
		return true
	}
	// proceed is after each load under the lock.
	proceed := func(n *state, p *process) {
		r := p.loaded
		switch {
		case p.doing == loggingOut:
			p.at = leaving
		case p.doing == loggingIn:
			p.at = redeeming
		case c.newer(p.last, r) && (p.doing == watching || c.without != "restore under the exchange's lock"):
			p.at = restoring
		case c.leaves(p, r) || c.adopts(p, r):
			done(n, p)
		case p.doing == watching || r.refused || r.out || r.token == 0 && !c.client:
			done(n, p)
		case c.client:
			p.at = sending
		case r.mark.by != 0 && r.mark.by != id && r.mark != p.awaited && c.without != "wait for a mark":
			p.at, p.awaited = waiting, r.mark
		default:
			p.at = marking
		}
	}

	switch me.at {
	case idle:
		begin := func(what string, doing task, need uint8) {
			if me.flights > 0 && !s.looking && !(c.newer(me.last, s.stored) && c.without == "restore under the exchange's lock") {
				add(i+1, what, false, func(n *state) {
					p := &n.p[i]
					p.flights--
					p.need = need
					switch {
					case doing == loggingOut:
						n.left.logout--
					case doing == loggingIn:
						n.left.login--
					case c.leaves(p, n.stored) || c.adopts(p, n.stored):
						rest(p, idle)
						return
					}
					p.at, p.doing = locking, doing
				})
			}
		}
		begin("looks: its token was refused", flying, me.last.token)
		begin("looks: all tokens so far have expired", flying, s.newest)
		if s.left.logout > 0 {
			begin("begins a logout", loggingOut, 0)
		}
		if s.left.login > 0 {
			begin("begins a login", loggingIn, 0)
		}
		if c.without == "watch" {
			break
		}
		do("watches: takes what is newer", func(n *state, p *process) { _ = c.leaves(p, n.stored) || c.adopts(p, n.stored) })
		if c.newer(me.last, s.stored) {
			do("watches: its own is newer", func(n *state, p *process) { p.at, p.doing = locking, watching })
		}
	case locking:
		if s.lock == 0 {
			do("locks", func(n *state, p *process) { n.lock, p.at = id, loading })
		}
		fault("cannot lock", func(n *state, p *process) {
			if rest(p, idle); c.client {
				p.at, p.doing = sending, alone
			}
		})
	case loading, reloading:
		do("loads", func(n *state, p *process) { p.loaded = n.stored; proceed(n, p) })
		fault("cannot load", func(n *state, p *process) {
			if done(n, p); c.client && n.lock == id {
				n.lock, p.at, p.doing = 0, sending, alone
			}
		})
	case restoring:
		restore := func(n *state, p *process) {
			if !save(n, p, p.last) {
				done(n, p)
				return
			}
			p.last.version = p.loaded.version
			proceed(n, p)
		}
		do("writes its own back", restore)
		fault("cannot write its own back", done)
		fault("writes its own back, and hears nothing", func(n *state, p *process) { save(n, p, p.last); done(n, p) })
	case waiting:
		if m := me.awaited; c.over(s, m) {
			do("has waited until 30 s after the mark", func(n *state, p *process) { p.at = reloading })
		}
	case marking:
		marked := func(n *state, p *process) bool {
			r := p.loaded
			r.mark = mark{id, p.flights + 1}
			return c.without == "mark" || save(n, p, r)
		}
		do("marks", func(n *state, p *process) {
			if p.at = sending; !marked(n, p) {
				done(n, p)
			}
		})
		fault("cannot mark", done)
		fault("marks, and hears nothing", func(n *state, p *process) { marked(n, p); done(n, p) })
	case sending:
		do("sends", func(n *state, p *process) {
			p.made = p.loaded.token + 1
			if c.client {
				n.newest++
				p.made = n.newest
			}
			n.request[i] = request{p.loaded.token, p.made, p.flights + 1, 0}
			p.at = answering
		})
	case answering:
		q := s.request[i]
		if q.answer != 0 && q.flight == me.flights+1 {
			do("gets the answer", func(n *state, p *process) {
				n.request[i] = request{}
				switch {
				case p.doing == alone:
					p.last = record{token: p.made}
					rest(p, idle)
				case q.answer == refusal:
					p.at = refusing
				default:
					p.at = saving
				}
			})
		}
		may(func(b *bounds) *uint8 { return &b.lost }, "gets no answer", func(n *state, p *process) {
			n.request[i] = request{}
			done(n, p)
		})
		if q.answer == 0 {
			may(func(b *bounds) *uint8 { return &b.late }, "gives up a request that is still under way", done)
		}
	case saving:
		r := record{token: me.made}
		saved := func(n *state, p *process) {
			p.last = record{version: p.loaded.version, token: r.token}
			done(n, p)
		}
		do("saves", func(n *state, p *process) {
			if p.at = conflicted; save(n, p, r) {
				saved(n, p)
			}
		})
		tries := func(n *state, p *process) {
			p.last, p.published = record{version: me.loaded.version, token: r.token}, true
			if p.loaded = me.loaded; c.client {
				done(n, p)
			}
		}
		fault("cannot save", tries)
		fault("saves, and hears nothing", func(n *state, p *process) { save(n, p, r); tries(n, p) })
	case conflicted:
		do("meets another record", func(n *state, p *process) {
			r := n.stored
			theirs := r.token >= p.made
			if c.without == "their newer record" {
				theirs = r.token != p.loaded.token && !p.published && c.adopts(p, r)
			}
			switch {
			case !theirs:
				p.at, p.loaded.version = saving, r.version
			case r.token == p.last.token:
				p.last.version = r.version
				done(n, p)
			default:
				if c.client {
					n.wasted++
				}
				_ = c.leaves(p, r) || c.adopts(p, r)
				done(n, p)
			}
		})
	case refusing:
		refuse := func(n *state, p *process) {
			r := p.loaded
			r.mark, r.refused = mark{}, true
			save(n, p, r)
			done(n, p)
		}
		do("saves the refusal", refuse)
		fault("cannot save the refusal", done)
	case leaving, redeeming:
		number := s.newest/epoch*epoch + epoch + 1
		if me.at == redeeming {
			do("redeems a login", func(n *state, p *process) {
				n.newest, n.valid, n.began, n.out = number, number, number, false
				p.made, p.at, p.loaded.token = number, saving, 0
			})
			break
		}
		do("logs out", func(n *state, p *process) {
			r := record{token: number, out: true}
			if c.without == "tombstone" {
				r = record{}
			}
			if save(n, p, r) {
				n.newest, n.out = number, true
				p.last = record{}
				if c.without == "tombstone" {
					n.stored = record{}
				}
				c.leaves(p, n.stored)
			}
			done(n, p)
		})
	case unlocking:
		do("unlocks", func(n *state, p *process) {
			if n.lock == id || c.without == "owner of the lock" {
				n.lock = 0
			}
			if n.replicaLock == id {
				n.replicaLock = nobody
			}
			p.at = idle
		})
	}
	if s.lock == 0 && me.locked() && me.at != unlocking {
		do("takes its lost lock again", func(n *state, p *process) { n.lock, p.robbed = id, false })
	}
	if me.at != dead && !(c.careful && me.at >= answering && me.at <= conflicted) {
		may(func(b *bounds) *uint8 { return &b.crash }, "dies", func(n *state, p *process) { *p = process{at: dead} })
	}
}

// locked reports whether p believes that it has the lock.
func (p *process) locked() bool {
	return p.at >= loading && p.at <= unlocking && p.doing != alone
}

// over reports whether 30 s may have passed since a mark: its exchange is over, and saved unless the
// process was paused.
func (c *row) over(s *state, m mark) bool {
	p, q := &s.p[m.by-1], &s.request[m.by-1]
	if q.flight == m.flight && q.answer == 0 {
		return false
	}
	return c.long || p.flights+1 != m.flight || p.at < sending || p.at > refusing
}

// product has what happens to the request of process i.
func (c *row) product(s *state, i int, add adder) {
	q, p := s.request[i], &s.p[i]
	expected := p.at == answering && p.flights+1 == q.flight
	switch {
	case q.flight == 0:
	case q.answer != 0 && !expected:
		add(0, "an answer finds nobody", true, func(n *state) { n.request[i] = request{} })
	case q.answer == 0:
		add(0, fmt.Sprintf("the product processes the request of P%d", i+1), true, func(n *state) {
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
		if !expected {
			add(0, "a request gets lost on its way", false, func(n *state) { n.request[i] = request{} })
		}
	}
}

// redis has what happens to the store by itself.
func (c *row) redis(s *state, add adder) {
	lapse := func(n *state) {
		if n.replicaLock == n.lock {
			n.replicaLock = 0
		}
		n.lock = 0
	}
	switch {
	case s.lock == 0:
	case s.lock == nobody || !s.p[s.lock-1].locked():
		add(0, "the lock lapses", true, lapse)
	case s.left.pause > 0:
		add(0, fmt.Sprintf("P%d is paused, and its lock lapses", s.lock), false, func(n *state) { n.left.pause--; n.p[n.lock-1].robbed = true; lapse(n) })
	}
	rob := func(n *state) {
		for i := range n.p {
			p := &n.p[i]
			p.robbed = p.robbed || p.locked() && n.lock != uint8(i+1)
		}
	}
	calm := !c.calm || !slices.ContainsFunc(s.p[:], func(p process) bool { return p.at != idle && p.at != dead })
	if s.left.failover > 0 && !s.behind {
		add(0, "the replica falls behind", false, func(n *state) { n.behind, n.replica, n.replicaLock = true, s.stored, s.lock })
	} else if s.left.failover > 0 && calm {
		add(0, "a failover loses what the replica has not", false, func(n *state) {
			n.left.failover--
			n.stored, n.lock, n.behind, n.looking = s.replica, s.replicaLock, false, c.calm
			n.replica, n.replicaLock = record{}, 0
			rob(n)
		})
	}
	if s.left.flush > 0 && calm {
		add(0, "Redis is flushed", false, func(n *state) {
			n.left.flush--
			n.stored, n.lock, n.replica, n.replicaLock, n.looking = record{}, 0, record{}, 0, c.calm
			rob(n)
		})
	}
	looked := func(p process) bool {
		return p.at == dead || p.at == idle && !c.newer(p.last, s.stored) && !c.leaves(&p, s.stored) && !c.adopts(&p, s.stored)
	}
	if s.looking && looked(s.p[0]) && looked(s.p[1]) && looked(s.p[2]) {
		add(0, "10 s have passed", true, func(n *state) { n.looking = false })
	}
}

var promises = map[byte]string{
	'A': "no spent refresh token is sent",
	'B': "at rest the newest token that anybody holds is in the store, and held by all",
	'C': "the product's refresh token is known to somebody",
	'D': "at rest nobody holds a login that was ended, nor does the store",
	'E': "it comes to rest, with no lock held",
	'F': "one exchange at a time",
	'G': "with client credentials all get a token, with one exchange too many at most for each lost lock",
	'H': "nobody loses the lock but by a pause or by Redis",
}

// check returns the promises that s breaks. It is at rest if nothing more happens by itself.
func (c *row) check(s *state, rest bool) (broken []byte) {
	ended := func(r record) bool { return r.token != 0 && !r.out && (s.out || r.token < s.began) }
	known, exchanges := s.stored.token == s.valid, 0
	var held uint8
	var stale, differ, stuck, without, robbed bool
	for i, p := range s.p[:c.processes] {
		if p.at == dead {
			continue
		}
		known = known || p.last.token == s.valid ||
			p.made == s.valid && (p.at == saving || p.at == conflicted || p.at == answering && s.request[i].answer == s.valid)
		if p.at == answering {
			exchanges++
		}
		held = max(held, p.last.token)
		without = without || p.at == idle && p.need > 0 && p.last.token <= p.need
		stale = stale || ended(p.last)
		differ = differ || p.last.token != s.stored.token && !s.stored.refused && !s.stored.out
		robbed = robbed || p.locked() && p.at != unlocking && !p.robbed && s.lock != uint8(i+1)
		stuck = stuck || rest && p.at != idle || p.at == idle && s.lock == uint8(i+1)
	}
	for b, is := range map[byte]bool{
		'A': s.reused,
		'B': rest && !c.client && (held > s.stored.token || differ && c.without != "watch"),
		'C': !c.client && !s.out && (s.valid == 0 || !known),
		'D': rest && (stale || ended(s.stored)),
		'E': stuck,
		'F': exchanges > 1,
		'G': c.client && (without || s.wasted > c.may.pause+c.may.failover+c.may.flush),
		'H': robbed,
	} {
		if is {
			broken = append(broken, b)
		}
	}
	return broken
}

// A node is a state and the shortest way to it.
type node struct {
	state state
	from  int32
	depth uint8
	who   int8
	what  string
}

// explore visits every state, the nearest first, and returns how soon each broken promise is.
func (c *row) explore(t *testing.T) (broken []string) {
	var nodes []node
	seen := map[state]int32{}
	visit := func(n node) int32 {
		i, ok := seen[n.state]
		if !ok {
			i = int32(len(nodes))
			seen[n.state] = i
			nodes = append(nodes, n)
		}
		return i
	}
	r := record{version: 5, token: 1}
	s := state{stored: r, valid: 1, newest: 1, began: 1, left: c.may}
	for i := range s.p {
		if s.p[i] = (process{last: r, flights: c.flights}); i >= c.processes {
			s.p[i] = process{at: dead}
		}
	}
	visit(node{state: s, from: -1, what: "all hold R1"})
	s.p[1].last = record{}
	visit(node{state: s, from: -1, what: "all hold R1 but P2, which has just started"})

	found := map[byte]int32{}
	must := [][2]int32{} // steps that happen by themselves: to, from
	open := []int32{}    // how many of those each state has
	var steps []step
	for i := int32(0); i < int32(len(nodes)); i++ {
		n := nodes[i]
		steps = c.steps(&n.state, steps[:0])
		open = append(open, 0)
		for _, st := range steps {
			j := visit(node{st.state, i, n.depth + 1, int8(st.who), st.what})
			if st.must {
				must = append(must, [2]int32{j, i})
				open[i]++
			}
		}
		for _, b := range c.check(&n.state, open[i] == 0) {
			if _, ok := found[b]; !ok {
				found[b] = i
			}
		}
		if len(nodes) > 2_000_000 {
			t.Fatal("too many states")
		}
	}
	t.Logf("%d states", len(nodes))
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
	for _, b := range []byte("ABCDEFGH") {
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
		s := &n.state
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

func TestSoakProtocol(t *testing.T) {
	t.Parallel()
	for _, c := range []row{
		// What is guaranteed.
		{name: "nothing"},
		{name: "nothing, three processes", processes: 3},
		{name: "crash before or after an exchange", may: bounds{crash: 1}, careful: true},
		{name: "two crashes before or after an exchange, three processes", may: bounds{crash: 2}, careful: true, processes: 3, flights: 1},
		{name: "store operations fail, or their replies get lost", may: bounds{fault: 2}},
		{name: "store fault, crash before or after an exchange", may: bounds{fault: 1, crash: 1}, careful: true},
		{name: "pauses", may: bounds{pause: 2}},
		{name: "pauses, three processes", may: bounds{pause: 2}, processes: 3, flights: 1},
		{name: "pause, store fault", may: bounds{pause: 1, fault: 1}},
		{name: "calm failover", may: bounds{failover: 1}, calm: true},
		{name: "calm failover, three processes", may: bounds{failover: 1}, calm: true, processes: 3, flights: 1},
		{name: "two calm failovers", may: bounds{failover: 2}, calm: true},
		{name: "calm failover, store fault", may: bounds{failover: 1, fault: 1}, calm: true},
		{name: "calm flush, store fault", may: bounds{flush: 1, fault: 1}, calm: true},
		{name: "failover, one process", may: bounds{failover: 1, fault: 1}, processes: 1},
		{name: "logout, login", may: bounds{logout: 1, login: 1}, flights: 3},
		{name: "logout, login, calm failover", may: bounds{logout: 1, login: 1, failover: 1}, calm: true},
		{name: "client credentials", client: true},
		{name: "client credentials, crash", client: true, may: bounds{crash: 1}},
		{name: "client credentials, crash, three processes", client: true, may: bounds{crash: 1}, processes: 3, flights: 1},

		// What cannot be, and what holds all the same.
		{name: "crash in an exchange", may: bounds{crash: 1}, broken: "A16 C7"},
		{name: "answer lost", may: bounds{lost: 1}, broken: "A14 C7"},
		{name: "request given up and yet processed", may: bounds{late: 1}, broken: "A14 C7"},
		{name: "pause of more than 30 s", may: bounds{pause: 1}, long: true, broken: "A15 C15 F13"},
		{name: "failover in an exchange", may: bounds{failover: 1}, broken: "A14 C14 F12"},
		{name: "failover in an exchange, lenient product", may: bounds{failover: 1}, lenient: true, broken: "A14 F12"},
		{name: "calm failover, its writer dies", may: bounds{failover: 1, crash: 1}, calm: true, careful: true, broken: "A18 C11"},
		{name: "flush in an exchange", may: bounds{flush: 1}, broken: "A14 C14 F12"},
		{name: "flush in an exchange, lenient product", may: bounds{flush: 1}, lenient: true, broken: "A14 F12"},
		{name: "logout, failover in an exchange", may: bounds{logout: 1, failover: 1}, flights: 1, broken: "A14 C14 F12"},
		{name: "logout, calm failover, who logged out dies", may: bounds{logout: 1, failover: 1, crash: 1}, calm: true, careful: true, broken: "A18 C11 D8"},
		{name: "logout, login, pause", may: bounds{logout: 1, login: 1, pause: 1}, broken: "F17"},
		{name: "client credentials, pause", client: true, may: bounds{pause: 1}, broken: "F9"},
		{name: "client credentials, pauses, three processes", client: true, may: bounds{pause: 1}, processes: 3, flights: 1, broken: "F9"},
		{name: "client credentials, Redis away", client: true, may: bounds{fault: 2}, broken: "F6"},
		{name: "client credentials, failover", client: true, may: bounds{failover: 1}, broken: "F10"},
		{name: "client credentials, flush", client: true, may: bounds{flush: 1}, broken: "F9"},

		// What each piece is for.
		{without: "mark", may: bounds{pause: 1}, broken: "A13 C13 F11"},
		{without: "wait for a mark", may: bounds{pause: 1}, broken: "A13 C13 F11"},
		{without: "versions", may: bounds{pause: 1}, broken: "A13 C13 F11"},
		{without: "owner of the lock", may: bounds{pause: 1}, client: true, processes: 3, flights: 1, broken: "F9 H11"},
		{without: "their newer record", may: bounds{pause: 1, fault: 1}, broken: "A28 C28"},
		{without: "restore", may: bounds{failover: 1}, calm: true, broken: "A18 B12 C18"},
		{without: "restore under the exchange's lock", may: bounds{failover: 1}, processes: 1, broken: "A17 C17"},
		{without: "watch", may: bounds{failover: 1}, calm: true, broken: "B11"},
		{without: "numbers, by version", may: bounds{failover: 1}, calm: true, broken: "A38 C30"},
		{without: "numbers, by version", may: bounds{flush: 1}, calm: true, broken: "A28 C20"},
		{without: "numbers, by clock", skewed: true, broken: "A25 B28 C23"},
		{without: "tombstone", may: bounds{logout: 1}, broken: "A21 D11"},
		{without: "memory of the logout", may: bounds{logout: 1, failover: 1}, calm: true, broken: "A24 D9"},
	} {
		if c.processes == 0 {
			c.processes = 2
		}
		if c.flights == 0 {
			c.flights = 2
		}
		if c.name == "" {
			c.name = "without " + c.without
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if broken := strings.Join(c.explore(t), " "); broken != c.broken {
				t.Errorf("broken: %q, want %q", broken, c.broken)
			}
		})
	}
}
