//go:build soak

package replicas_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/internal/redistest"
)

// Many processes start at once on one account, with nothing in Redis. One of them makes an exchange, the
// others adopt its token, and no call fails, however slow the network to Redis is.
func TestSoakStart(t *testing.T) {
	for _, processes := range []int{20, 40, 80} {
		for _, roundTrip := range []time.Duration{0, 50 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond, 500 * time.Millisecond} {
			few := processes == 20 && (roundTrip == 0 || roundTrip == 100*time.Millisecond || roundTrip == 500*time.Millisecond)
			if few || *full {
				t.Run(fmt.Sprintf("%d/%v", processes, roundTrip), func(t *testing.T) {
					started(t, starting{processes: processes, loads: 1, roundTrip: roundTrip, most: 1})
				})
			}
		}
	}
}

// Two hundred replicas start at once, in twenty processes or each in its own process, on an idle machine and
// beside two busy loops.
func TestSoakStartTwoHundred(t *testing.T) {
	for _, tt := range []struct {
		name string
		starting
		full bool
	}{
		{"quiet", starting{processes: 20, loads: 10}, false},
		{"busy", starting{processes: 20, loads: 10, busy: 2}, false},
		{"own processes", starting{processes: 200, loads: 1}, true},
		{"own processes and busy", starting{processes: 200, loads: 1, busy: 2}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.full && !*full {
				t.Skip("wants -full")
			}
			tt.most = 1
			started(t, tt.starting)
		})
	}
}

// Forty processes start at once and share a tenth of a CPU, so each of them waits most of the time. At most one
// mistakes that for a Redis that does not answer, and makes a second exchange.
func TestSoakStartTenthOfCPU(t *testing.T) {
	started(t, starting{processes: 40, loads: 1, throttled: true, most: 2})
}

// A starting is how replicas start.
type starting struct {
	processes, loads int
	roundTrip        time.Duration // to Redis
	busy             int           // processors
	throttled        bool          // the processes have a tenth of a CPU
	most             int           // exchanges
}

func (s starting) String() string {
	text := fmt.Sprintf("%d processes start at once", s.processes)
	if s.loads > 1 {
		text = fmt.Sprintf("%d replicas in %d processes start at once", s.processes*s.loads, s.processes)
	}
	if s.roundTrip > 0 {
		text += fmt.Sprintf(", %v to Redis and back", s.roundTrip)
	}
	if s.busy > 0 {
		text += fmt.Sprintf(", beside %d busy loops", s.busy)
	}
	if s.throttled {
		text += ", sharing a tenth of a CPU"
	}
	return text
}

func started(t *testing.T, how starting) {
	s := newBeyondTrust(t, time.Hour)
	s.Delay(300 * time.Millisecond) // like a real token endpoint, so that the other processes find the lock taken
	server := redistest.Start(t)
	url := server.URL()
	if how.roundTrip > 0 {
		url, _ = proxied(t, server, how.roundTrip)
	}
	secret := secretFile(t)
	keepBusy(t, how.busy)
	all := launch(t, how.processes, supportJob(how.loads, 2*time.Second), func(i int) string {
		return configuration(redisStore(url), beyondtrust(s, secret, "[]", i))
	})
	if how.throttled {
		throttle(t, all)
	}
	before := scripts(t, server)
	first := begin(t, all)
	sent := scripts(t, server) - before
	time.Sleep(3 * time.Second) // calls
	sum := finish(t, all)
	stats := s.Stats()
	summary(t, how.String(), stats.Exchanges, sum.Connectors[support].Failed,
		"slowest first token %s, %.1f commands per replica, %.1f per second of its wait",
		seconds(first.Slowest), float64(sent)/float64(how.processes*how.loads), float64(sent)/first.Total.Seconds())
	if stats.Exchanges < 1 || stats.Exchanges > how.most {
		t.Errorf("%d exchanges, want at most %d", stats.Exchanges, how.most)
	}
	if stats.Killed > 0 {
		t.Errorf("%d tokens were killed by others", stats.Killed)
	}
	wantNoFailures(t, sum, support)
}

// All tokens are revoked, the client secret is changed, and all tokens are revoked again. Each time the
// processes make one exchange together, and no call fails.
func TestSoakRevoked(t *testing.T) {
	for _, tt := range []struct{ processes, loads int }{{40, 1}, {20, 10}} {
		t.Run(fmt.Sprint(tt.processes*tt.loads), func(t *testing.T) {
			s := newBeyondTrust(t, time.Hour)
			store, secret := redisStore(redistest.Start(t).URL()), secretFile(t)
			all := launch(t, tt.processes, supportJob(tt.loads, time.Second), func(i int) string {
				return configuration(store, beyondtrust(s, secret, "[]", i))
			})
			begin(t, all)
			agree(t, all, support)
			steps := []struct {
				name string
				f    func()
			}{
				{"all tokens revoked", s.RevokeAll},
				{"the client secret changed", func() {
					write(t, secret, "n+w/s=cr&t%")
					s.SetSecret("n+w/s=cr&t%")
				}},
				{"all tokens revoked again", s.RevokeAll},
			}
			for _, step := range steps {
				cost, took := newToken(t, all, support, exchangesOf(s), step.f)
				time.Sleep(time.Second) // an exchange too many may come late
				summary(t, fmt.Sprintf("%d replicas: %s", tt.processes*tt.loads, step.name), cost, 0, "one token again after %s", seconds(took))
			}
			sum := finish(t, all)
			if n := s.Stats().Exchanges; n != 1+len(steps) {
				t.Errorf("%d exchanges, want %d", n, 1+len(steps))
			}
			wantNoFailures(t, sum, support)
		})
	}
}

// Tokens live for ten seconds. The processes make one exchange for each, and no call fails.
func TestSoakTokensExpire(t *testing.T) {
	const processes, lifetime, d = 40, 10 * time.Second, 25 * time.Second
	begun := time.Now()
	s := newBeyondTrust(t, lifetime)
	store, secret := redisStore(redistest.Start(t).URL()), secretFile(t)
	all := launch(t, processes, supportJob(1, 500*time.Millisecond), func(i int) string {
		return configuration(store, beyondtrust(s, secret, "[]", i))
	})
	begin(t, all)
	time.Sleep(d)
	sum := finish(t, all)
	// A token is replaced in the last fifth of its life, not before.
	least, most := int(d/lifetime), 1+int(time.Since(begun)/(lifetime*8/10))
	n := s.Stats().Exchanges
	summary(t, fmt.Sprintf("%d processes, tokens of %v, for %v", processes, lifetime, d), n, sum.Connectors[support].Failed, "%d calls", sum.Connectors[support].Calls)
	if n < least || n > most {
		t.Errorf("%d exchanges, want %d to %d", n, least, most)
	}
	wantNoFailures(t, sum, support)
}

// The token endpoint needs ten seconds. The processes that wait for it make no exchange of their own, and each
// sends Redis five commands a second at most.
func TestSoakSlowTokenEndpoint(t *testing.T) {
	const processes = 20
	s := newBeyondTrust(t, time.Hour)
	s.Delay(10 * time.Second)
	server, secret := redistest.Start(t), secretFile(t)
	all := launch(t, processes, supportJob(1, 500*time.Millisecond), func(i int) string {
		return configuration(redisStore(server.URL()), beyondtrust(s, secret, "[]", i))
	})
	for _, p := range all {
		p.tell(t)
	}
	atLeast(t, "token requests", 1, func() int { return s.Stats().TokenRequests })
	time.Sleep(3 * time.Second) // at first they ask more often
	before, from := scripts(t, server), time.Now()
	time.Sleep(4 * time.Second)
	looks, waited := scripts(t, server)-before, time.Since(from)
	first := begun(t, all)
	sum := finish(t, all)
	n := s.Stats().Exchanges
	summary(t, "20 processes start at once, the token endpoint needs 10 s", n, sum.Connectors[support].Failed,
		"slowest first token %s, %.1f commands a second of each that waits", seconds(first.Slowest), float64(looks)/processes/waited.Seconds())
	if n != 1 {
		t.Errorf("%d exchanges, want 1", n)
	}
	// One more for each process: a command at the start, or the renewal of the lock.
	if most := processes * (5*waited.Seconds() + 1); float64(looks) > most {
		t.Errorf("%d processes sent %d commands in %v, want at most %.0f", processes, looks, waited, most)
	}
	wantNoFailures(t, sum, support)
}
