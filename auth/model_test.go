package auth_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
)

var modelSeed = flag.Uint64("model.seed", 0, "seed of TestModel's only run; 0 is some runs with random seeds")

// Two processes of one account do at random what processes do, and a plain model of what was said
// and done says what each answer may be.
func TestModel(t *testing.T) { runModel(t, 4, 1000) }

func runModel(t *testing.T, runs, steps int) {
	t.Parallel()
	seeds := []uint64{*modelSeed}
	if *modelSeed == 0 {
		seeds = make([]uint64, runs)
		for i := range seeds {
			seeds[i] = rand.Uint64()
		}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("model.seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { newModel(t, seed).run(steps) })
		})
	}
}

// model is the account: its product, its record in the store, and all that was ever seen of them.
type model struct {
	t        *testing.T
	rand     *rand.Rand // the driver's alone
	rotating bool       // each refresh token may be spent once
	store    auth.Memory
	callers  sync.WaitGroup

	mu        sync.Mutex
	luck      *rand.Rand // the product's
	weather   weather
	tokens    map[string]*modelToken
	newest    *modelToken
	stored    *modelToken
	told      told
	refresh   string // the one that may be spent
	running   int    // exchanges
	seq       int    // orders what happens in one instant
	processes [2]*process
}

// weather is how the token endpoint does these days.
type weather struct {
	failures float64 // the part of exchanges that fail
	slowest  time.Duration
	lifetime time.Duration
}

type modelToken struct {
	n        int
	value    string
	obtained time.Time // when its exchange began
	made     time.Time
	expires  time.Time
	revoked  bool
}

func (k *modelToken) valid() bool { return k != nil && time.Now().Before(k.expires) }

// process is one session, with the provider and the store as it sees them.
type process struct {
	m        *model
	s        *auth.Session
	best     *modelToken         // the newest that it has handed out
	drops    map[*modelToken]int // given up after a refusal, and when in m.seq
	dropping *modelToken         // perhaps
	closed   bool

	busy      bool // has the store's lock, or waits for it
	seen      told // what the store told it last
	exchanges int
	tried     bool  // an exchange under this lock
	outcome   error // of the last exchange

	// Its failures: what it may answer, when it must not and when it must try again. It forgets
	// them when it adopts a token, which is not always to be seen: hence two counts.
	failed      error
	failedAt    told // by the store
	failedOn    time.Time
	atLeast     int
	atMost      int
	notBefore   time.Time
	again       time.Time
	againBehind time.Time // in the background
}

func newModel(t *testing.T, seed uint64) *model {
	m := &model{
		t: t, rand: rand.New(rand.NewPCG(seed, 0)), luck: rand.New(rand.NewPCG(seed, 1)),
		rotating: seed%3 == 0, refresh: "R0", tokens: map[string]*modelToken{},
		weather: weather{lifetime: 10 * time.Minute},
	}
	for i := range m.processes {
		m.start(i)
	}
	return m
}

func (m *model) start(i int) {
	p := &process{m: m, drops: map[*modelToken]int{}}
	p.s = auth.New(p, &auth.Options{Store: p})
	m.mu.Lock()
	defer m.mu.Unlock()
	m.processes[i] = p
}

// run takes the steps, and then closes both sessions; the bubble reports goroutines that stay.
func (m *model) run(steps int) {
	for range steps {
		if m.t.Failed() {
			break
		}
		m.step()
	}
	for i := range m.processes {
		m.close(i, context.Background())
	}
	m.callers.Wait()
}

func (m *model) step() {
	i := m.rand.IntN(2)
	p := m.processes[i]
	switch n := m.rand.IntN(100); {
	case n < 30:
		p.get(m.patience(), true)
	case n < 42: // callers that the driver does not wait for
		for range 1 + m.rand.IntN(4) {
			d := m.patience()
			m.callers.Go(func() { p.get(d, false) })
		}
	case n < 54:
		p.request(m.patience())
	case n < 58: // a late refusal, of a token that is not the newest any more
		m.mu.Lock()
		var old *modelToken
		for k := range p.drops {
			old = k
		}
		m.mu.Unlock()
		if old != nil && !p.s.Rejected(response(401, "token"), &oauth2.Token{AccessToken: old.value}) {
			m.t.Error("a late refusal of an old token counts")
		}
	case n < 64:
		m.mu.Lock()
		for _, k := range m.tokens {
			k.revoked = true
		}
		m.mu.Unlock()
	case n < 70:
		m.mu.Lock()
		m.weather = weather{
			failures: []float64{0, 0, 0.3, 1}[m.rand.IntN(4)],
			slowest:  []time.Duration{0, 10 * time.Millisecond, time.Second, 40 * time.Second}[m.rand.IntN(4)],
			lifetime: m.bounded([]time.Duration{time.Second, 2 * time.Second, 30 * time.Second, time.Hour, 24 * time.Hour}[m.rand.IntN(5)]),
		}
		m.mu.Unlock()
	case n < 73:
		m.touch()
	case n < 74:
		ctx := context.Background()
		if m.rand.IntN(2) == 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, m.patience())
			defer cancel()
		}
		m.close(i, ctx)
		m.start(i)
	case n < 80: // to about where the token becomes stale, or ends
		m.mu.Lock()
		var d time.Duration
		if p.best.valid() {
			life := p.best.expires.Sub(p.best.obtained)
			d = time.Until(p.best.expires) - min(time.Duration(m.rand.IntN(2))*min(5*time.Minute, life/5), life)
		}
		m.mu.Unlock()
		time.Sleep(d + time.Duration(m.rand.Int64N(int64(2*time.Second))) - time.Second)
	default:
		most := m.bounded([]time.Duration{time.Millisecond, time.Second, 10 * time.Second, 2 * time.Minute, 3 * time.Hour}[m.rand.IntN(5)])
		time.Sleep(time.Duration(m.rand.Int64N(int64(most))))
	}
}

// bounded is d, or what of it does not take the test minutes: with a refresh token at stake each
// session looks at the store every ten seconds.
func (m *model) bounded(d time.Duration) time.Duration {
	if m.rotating {
		return min(d, 10*time.Minute)
	}
	return d
}

// patience is a caller's deadline. No two are alike, so that nothing ends in the same instant.
func (m *model) patience() time.Duration {
	most := []time.Duration{time.Millisecond, time.Second, 100 * time.Second}[m.rand.IntN(3)]
	return 1 + time.Duration(m.rand.Int64N(int64(most)))
}

// touch saves the record as it is, without the lock, as nobody should: those who have it meet a
// conflict.
func (m *model) touch() {
	key := m.processes[0].s.Key()
	r, _ := m.store.Load(context.Background(), key)
	if r.Version == 0 {
		return
	}
	m.store.Save(context.Background(), key, r)
}

func (m *model) close(i int, ctx context.Context) {
	p := m.processes[i]
	m.mu.Lock()
	p.closed = true
	m.mu.Unlock()
	err := p.s.Close(ctx)
	if err != nil && ctx.Err() == nil {
		m.t.Errorf("Close: %v", err)
	}
	m.mu.Lock()
	busy, exchanges := p.busy, p.exchanges
	m.mu.Unlock()
	p.get(time.Second, true)
	m.mu.Lock()
	defer m.mu.Unlock()
	if busy || p.exchanges != exchanges {
		m.t.Error("an exchange after Close")
	}
}

// request is a call to the product: the token is used, and given up if the product refuses it.
func (p *process) request(patience time.Duration) {
	k := p.get(patience, true)
	if k == nil {
		return
	}
	m := p.m
	m.mu.Lock()
	good := k.valid() && !k.revoked
	if !good {
		p.dropping = k
	}
	m.mu.Unlock()
	tok := &oauth2.Token{AccessToken: k.value}
	if good {
		if p.s.Rejected(response(200, ""), tok) {
			m.t.Error("a good response counts as a refusal")
		}
		return
	}
	dropped := p.s.Rejected(response(401, "token"), tok)
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.dropping = nil; dropped {
		m.seq++
		p.drops[k] = m.seq
	}
}

// get asks for a token, as a caller with that much patience, and judges the answer. The driver's
// answers are judged more strictly, since nothing else happens meanwhile.
func (p *process) get(patience time.Duration, driver bool) *modelToken {
	m := p.m
	if driver {
		synctest.Wait()
	}
	m.mu.Lock()
	start, seq, best, stored, exchanges := time.Now(), m.seq, p.best, m.stored, p.exchanges
	closed, failed := p.closed, p.failed
	lone := driver && !m.processes[0].busy && !m.processes[1].busy && !closed
	usable := best.valid() && p.keeps(best)
	// A newer token may have a shorter life: it counts, whether it was handed out or not.
	current := best == m.newest || stored.valid() && !closed
	adoptable := stored.valid() && p.drops[stored] == 0 && (best == nil || stored.n > best.n)
	held := start.Before(p.notBefore) && m.told == p.failedAt
	due := !start.Before(p.again)
	dueBehind := usable && !m.rotating && !start.Before(p.againBehind) &&
		!start.Before(best.expires.Add(-4*min(5*time.Minute, best.expires.Sub(best.obtained)/5)/5))
	m.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tok, err := p.s.Token(ctx)
	took := time.Since(start)
	if dueBehind && lone {
		synctest.Wait() // what was begun behind our back
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	fail := func(format string, args ...any) {
		m.t.Helper()
		m.t.Errorf("at %s: %s", start.Format("2 15:04:05.999999999"), fmt.Sprintf(format, args...))
	}
	if usable && current && p.keeps(best) && (best == m.newest || !p.closed) && (err != nil || took != 0) {
		fail("with %s at hand a caller waits %s and gets %v", best.value, took, err)
	}
	if !closed && !usable && adoptable && (err != nil || took != 0) && !m.rotating && lone {
		fail("with %s in the store a caller waits %s and gets %v", stored.value, took, err)
	}
	if lone && !usable && !adoptable && !m.rotating {
		switch {
		case held && (took != 0 || !errors.Is(err, failed)):
			fail("while %q is remembered a caller waits %s and gets %v", failed, took, err)
		case due && err != nil && p.exchanges == exchanges:
			fail("an exchange is due and not begun: %v", err)
		}
	}
	if lone && dueBehind && best == m.newest && p.exchanges == exchanges {
		fail("%s is stale and not replaced", best.value)
	}
	if err != nil {
		switch {
		case errors.Is(err, context.DeadlineExceeded) && took == patience && !errors.Is(err, auth.ErrUnavailable):
		case closed || p.closed:
			if !errors.Is(err, auth.ErrClosed) && !errors.Is(err, context.Canceled) && !errors.Is(err, p.failed) {
				fail("after Close: %v", err)
			}
		case p.failed == nil || !errors.Is(err, p.failed):
			fail("after %s: %v, but the last failure was %v", took, err, p.failed)
		case driver && stored.valid() && p.drops[stored] == 0:
			fail("%v, though %s could be had from the store", err, stored.value)
		}
		return nil
	}
	k := m.tokens[tok.AccessToken]
	switch at := p.drops[k]; {
	case !k.expires.Equal(tok.Expiry):
		fail("%s ends at %s, not %s", k.value, k.expires, tok.Expiry)
	case !start.Add(took).Before(k.expires) && k.made.Before(start):
		fail("%s ended %s before", k.value, start.Add(took).Sub(k.expires))
	case at != 0 && at <= seq:
		fail("%s was given up before", k.value)
	case best != nil && k.obtained.Before(best.obtained):
		fail("%s after %s", k.value, best.value)
	}
	if p.best == nil || k.n > p.best.n {
		p.best = k
		p.notBefore = time.Time{} // perhaps it was adopted, which forgets failures
		p.againBehind = later(p.againBehind, time.Now().Add(time.Second))
	}
	return k
}

// keeps reports whether the process has not given k up.
func (p *process) keeps(k *modelToken) bool { return p.drops[k] == 0 && p.dropping != k }

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// Exchange is the product's side: one at a time, not while a failure is remembered, and no refresh
// token twice.
func (p *process) Exchange(ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
	m := p.m
	m.mu.Lock()
	start := time.Now()
	if m.running++; m.running > 1 || !p.busy {
		m.t.Errorf("%d exchanges at once, with the lock: %t (%v)", m.running, p.busy, ctx.Err())
	}
	if !p.tried && start.Before(p.notBefore) && p.seen == p.failedAt {
		m.t.Errorf("an exchange %s before its time, after %v", p.notBefore.Sub(start), p.failed)
	}
	p.exchanges++
	p.tried = true
	delay := time.Duration(m.luck.Int64N(int64(m.weather.slowest) + 1))
	m.mu.Unlock()

	var err error
	select {
	case <-time.After(delay):
	case <-ctx.Done():
		err = ctx.Err()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.running--
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		p.outcome = auth.ErrUnavailable
		return nil, err
	case err != nil:
		p.outcome = err
		return nil, err
	case m.luck.Float64() < m.weather.failures:
		e := []auth.Error{{Err: auth.ErrUnavailable}, {Err: auth.ErrProtocol}, {Err: auth.ErrCredentials}, {Err: auth.ErrRateLimited, RetryAfter: limitedFor}, {}}[m.luck.IntN(5)]
		if e.Err == nil { // garbage
			p.outcome = auth.ErrProtocol
			return nil, nil
		}
		p.outcome = e.Err
		return nil, &e
	}
	k := &modelToken{n: len(m.tokens) + 1, value: fmt.Sprintf("T%d", len(m.tokens)+1), obtained: start, made: time.Now(), expires: start.Add(m.weather.lifetime)}
	m.tokens[k.value], m.newest, p.outcome = k, k, nil
	tok := &oauth2.Token{AccessToken: k.value, ExpiresIn: int64(m.weather.lifetime / time.Second)}
	if m.rotating {
		if prev == nil || prev.RefreshToken != m.refresh {
			m.t.Errorf("a refresh token is spent twice: %v", prev)
		}
		m.refresh = "R" + k.value
		tok.RefreshToken = m.refresh
	}
	return tok, nil
}

const limitedFor = 5 * time.Second

func (p *process) Header(*oauth2.Token) http.Header { return nil }

func (p *process) Rejects(resp *http.Response, _ []byte) bool { return resp.StatusCode == 401 }

func (p *process) Refresh() auth.Refresh {
	if !p.m.rotating {
		return auth.Refresh{}
	}
	return auth.Refresh{Token: auth.SecretString("R0")}
}

// told is what a record says: while that stays the same, a remembered failure holds.
type told struct {
	AccessToken string `json:"access_token"`
	Generation  int64  `json:"generation"`
}

func tells(r auth.Record) (t told) {
	json.Unmarshal(r.Data, &t) // an absent one tells nothing
	return t
}

func (p *process) Load(ctx context.Context, key string) (auth.Record, error) {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	r, err := p.m.store.Load(ctx, key)
	p.seen = tells(r)
	return r, err
}

func (p *process) Save(ctx context.Context, key string, r auth.Record) error {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	if err := p.m.store.Save(ctx, key, r); err != nil {
		return err
	}
	p.m.told, p.seen = tells(r), tells(r)
	p.m.stored = p.m.tokens[p.seen.AccessToken]
	return nil
}

func (p *process) Delete(ctx context.Context, key string, version uint64) error {
	return p.m.store.Delete(ctx, key, version)
}

func (p *process) Lock(ctx context.Context, key string) (func(), error) {
	p.m.mu.Lock()
	p.busy, p.tried = true, false
	p.m.mu.Unlock()
	unlock, err := p.m.store.Lock(ctx, key)
	if err != nil {
		p.m.mu.Lock()
		defer p.m.mu.Unlock()
		p.busy = false
		return nil, err
	}
	return func() { p.landed(); unlock() }, nil
}

// landed takes note of how an exchange ended.
func (p *process) landed() {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	p.busy = false
	now := time.Now()
	switch {
	case !p.tried: // somebody else's token was adopted
	case p.outcome == nil:
		if now.After(p.failedOn) { // else those who waited have not all heard of it
			p.failed = nil
		}
		p.atLeast, p.atMost = 0, 0
		p.notBefore, p.again, p.againBehind = time.Time{}, time.Time{}, now.Add(time.Second)
	default:
		var after time.Duration
		switch {
		case errors.Is(p.outcome, auth.ErrCredentials):
			after = time.Minute
		case errors.Is(p.outcome, auth.ErrRateLimited):
			after = limitedFor
		}
		if p.seen != p.failedAt {
			p.atLeast = 0
		}
		p.failed, p.failedAt, p.failedOn = p.outcome, p.seen, now
		p.atMost++
		if p.notBefore = now.Add(after); !(p.best.valid() && p.keeps(p.best) || p.m.stored.valid()) {
			p.atLeast++ // somebody waited for it
			p.notBefore = now.Add(max(after, doubled(p.atLeast, 30*time.Second)))
		}
		p.again = now.Add(max(after, doubled(p.atMost, 30*time.Second)))
		p.againBehind = now.Add(max(after, doubled(p.atMost, time.Minute)))
	}
	p.tried = false
}

func doubled(n int, most time.Duration) time.Duration {
	return min(time.Second<<min(n-1, 16), most)
}
