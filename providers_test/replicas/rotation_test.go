//go:build soak

package replicas_test

import (
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/internal/redistest"
)

// A spent has the refresh tokens that a product has received, and the replica that sent each first.
type spent struct {
	mu     sync.Mutex
	by     map[string]int
	killed map[int]bool
	faults []string
}

// see records a token request. It is an error to send a refresh token twice, unless the replica that sent it
// first was killed: it may not have saved the new one.
func (s *spent) see(r *http.Request) (replica int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	replica, err := strconv.Atoi(strings.TrimPrefix(r.UserAgent(), "replica/"))
	if err != nil {
		s.faults = append(s.faults, err.Error())
	}
	token := r.FormValue("refresh_token")
	if first, again := s.by[token]; !again {
		s.by[token] = replica
	} else if !s.killed[first] {
		s.faults = append(s.faults, "a refresh token was used again, by replica "+strconv.Itoa(replica)+", while replica "+strconv.Itoa(first)+", which used it first, is alive")
	}
	return replica
}

func (s *spent) kill(p *process, replica int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.killed[replica] = true
	p.away = true
	p.cmd.Process.Kill()
}

// Twenty processes share a login whose refresh token changes with each exchange. During forty exchanges one
// process after another is killed, at any moment, and replaced. No refresh token is used twice, unless the
// process that used it first was killed and the product's answer was lost. The test logs in again then. In the
// end the store has the newest refresh token.
func TestSoakRotations(t *testing.T) {
	const processes = 20
	want := 40
	if *full {
		want = 200
	}
	s, seed := newRemedy(t, 2*time.Second)
	s.Delay(10 * time.Millisecond)
	seen := &spent{by: make(map[string]int), killed: make(map[int]bool)}
	s.BreakToken(func(_ http.ResponseWriter, r *http.Request) bool { seen.see(r); return false })
	store := redisStore(redistest.Start(t).URL())
	started := 0
	launched := func(n int) []*process {
		base := started
		started += n
		return launch(t, n, job{Loads: 1, Calls: map[string]string{incidents: incidentsPath}, Pause: 200 * time.Millisecond},
			func(i int) string { return configuration(store, remedy(s, seed, base+i)) })
	}
	all := launched(processes)
	number := make([]int, processes)
	for i := range number {
		number[i] = i
	}
	begin(t, all)
	kills, logins := 0, 0
	for end := time.Now().Add(10 * time.Minute); s.Stats().Rotations < want; kills++ {
		if time.Now().After(end) {
			t.Fatalf("%d rotations, want %d", s.Stats().Rotations, want)
		}
		time.Sleep(time.Second + rand.N(2*time.Second))
		i := rand.IntN(processes)
		seen.kill(all[i], number[i])
		for ; logins < s.Stats().Reuses; logins++ {
			write(t, seed, s.MintRefresh())
		}
		number[i] = started
		all[i] = launched(1)[0]
		all[i].tell(t) // which reports its start at the end
	}
	for i, p := range all {
		if number[i] >= processes {
			p.read(t, new(start))
		}
	}
	sum := finish(t, all).Connectors[incidents]
	summary(t, "20 processes, a rotating login, one process killed every 2 s", s.Stats().Rotations, sum.Failed,
		"%d killed, %d logins, %d of %d calls asked for one", kills, logins, sum.Refused, sum.Calls)
	seen.mu.Lock()
	for _, fault := range seen.faults {
		t.Error(fault)
	}
	seen.mu.Unlock()
	if sum.Refused > 0 && logins == 0 {
		t.Errorf("%d calls asked for a login although no refresh token was lost", sum.Refused)
	}
	for err, n := range sum.Errors {
		if err == "status 401" {
			t.Logf("%4d times: %s: a token of 2 s ended on its way", n, err)
		} else {
			t.Errorf("%4d times: %s", n, err)
		}
	}

	before := s.Stats()
	last := launched(1)
	begin(t, last)
	if sum := finish(t, last).Connectors[incidents]; sum.Refused > 0 || s.Stats().Reuses > before.Reuses {
		t.Error("the store did not have the newest refresh token")
	}
}

// The process that spends a refresh token is killed before it has the answer. The other processes wait until
// that exchange can no longer be under way, and one of them sends the old refresh token. If the product has
// never seen it, it works. If the product has, it is refused, is not sent again, and calls ask for a login;
// after the login they work.
func TestSoakRotatingHolderKilled(t *testing.T) {
	for _, tt := range []struct {
		name string
		lost bool
	}{{"before the product has seen it", false}, {"after the product has answered", true}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // both wait for half a minute
			s, seed := newRemedy(t, time.Hour)
			store := redisStore(redistest.Start(t).URL())
			all := launch(t, 20, job{Loads: 1, Calls: map[string]string{incidents: incidentsPath}, Pause: time.Second},
				func(i int) string { return configuration(store, remedy(s, seed, i)) })
			begin(t, all)
			agree(t, all, incidents)
			seen := &spent{by: make(map[string]int), killed: make(map[int]bool)}
			hit := make(chan struct{})
			before := s.Stats()
			s.BreakToken(func(_ http.ResponseWriter, r *http.Request) bool {
				replica := seen.see(r)
				select {
				case <-hit:
					return false
				default:
				}
				seen.kill(all[replica], replica)
				close(hit)
				return !tt.lost
			})
			s.RevokeAll()
			select {
			case <-hit:
			case <-time.After(silence):
				t.Fatal("no token request")
			}
			at := time.Now()
			want := 0
			if tt.lost {
				want = 1
				atLeast(t, "second uses", before.Reuses+1, func() int { return s.Stats().Reuses })
				time.Sleep(3 * time.Second) // calls that ask for a login
				write(t, seed, s.MintRefresh())
			}
			atLeast(t, "exchanges", before.Exchanges+1+want, func() int { return s.Stats().Exchanges })
			agree(t, all, incidents)
			took := time.Since(at)
			sum := finish(t, all).Connectors[incidents]
			stats := s.Stats()
			summary(t, "20 processes, a rotating login, its holder killed "+tt.name, stats.Exchanges, sum.Failed,
				"one token again after %s; %d of %d calls asked for a login", seconds(took), sum.Refused, sum.Calls)
			seen.mu.Lock()
			for _, fault := range seen.faults {
				t.Error(fault)
			}
			seen.mu.Unlock()
			for err, n := range sum.Errors {
				if !tt.lost || err != "status 401" { // where the login is lost, a call returns the product's 401
					t.Errorf("%4d times: %s", n, err)
				}
			}
			if stats.Reuses != want || (sum.Refused > 0) != tt.lost {
				t.Errorf("%d refresh tokens were used twice, want %d; %d calls asked for a login", stats.Reuses, want, sum.Refused)
			}
		})
	}
}
