//go:build soak

package replicas_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/auth/redisstore"
	"github.com/itsmauth/itsmauth/config"
	"github.com/itsmauth/itsmauth/internal/redistest"
	"github.com/itsmauth/itsmauth/providers/remedy/remedytest"
)

// incidents is the name of the connector to Remedy.
const (
	incidents     = "incidents"
	incidentsPath = "/api/arsys/v1/entry/HPD:IncidentInterface"
)

// remedy is the connector's YAML. Its login begins with the refresh token in seedFile.
func remedy(s *remedytest.Server, seedFile string, replica int) string {
	return fmt.Sprintf(`  %s:
    provider: remedy
    base_url: %s
    sso_url: %s
    client_id: '%s'
    client_secret: '%s'
    redirect_uri: %s
    refresh_token: ${file:%s}
    transport: { user_agent: replica/%d }
`, incidents, s.URL, s.SSOURL, remedytest.DefaultClientID, remedytest.DefaultClientSecret, remedytest.DefaultRedirectURI, seedFile, replica)
}

// newRemedy starts a Remedy with a new login.
func newRemedy(t *testing.T, lifetime time.Duration) (s *remedytest.Server, seedFile string) {
	s = remedytest.NewServer(&remedytest.Options{TokenLifetime: lifetime})
	t.Cleanup(s.Close)
	seedFile = filepath.Join(t.TempDir(), "seed")
	write(t, seedFile, s.MintRefresh())
	return s, seedFile
}

// An outage is something that happens to a Redis.
type outage struct {
	name    string
	prepare func(t *testing.T) stage
	// one is whether the processes still share one token.
	one bool
	// refuses is whether Redis answers with an error. Then a call that needs a refresh token fails at once.
	refuses bool
	// quiet is the time from begin until all tokens are revoked, and lasts the time from there to back.
	quiet, lasts time.Duration
}

// A stage is a Redis that something will happen to.
type stage struct {
	url         string
	begin, back func() // the outage
	later       func() // after the outage, or nil
}

var outages = []outage{
	{
		name: "stopped",
		prepare: func(t *testing.T) stage {
			server := redistest.Start(t)
			return stage{url: server.URL(), begin: server.Kill, back: func() { server.Run(t) }}
		},
		quiet: 2 * time.Second, lasts: 8 * time.Second,
	},
	{
		name: "hung",
		prepare: func(t *testing.T) stage {
			server := redistest.Start(t)
			return stage{
				url:   server.URL(),
				begin: func() { server.Signal(t, syscall.SIGSTOP) },
				back:  func() { server.Signal(t, syscall.SIGCONT) },
			}
		},
		quiet: 2 * time.Second, lasts: 10 * time.Second,
	},
	{
		name: "slow, 1 s there and back",
		prepare: func(t *testing.T) stage {
			url, proxy := proxied(t, redistest.Start(t), 0)
			return stage{
				url:   url,
				begin: func() { proxy.SetRoundTrip(time.Second) },
				back:  func() { proxy.SetRoundTrip(0) },
			}
		},
		quiet: 2 * time.Second, lasts: 10 * time.Second,
	},
	{
		name: "full",
		prepare: func(t *testing.T) stage {
			server := redistest.Start(t)
			return stage{
				url: server.URL(),
				begin: func() {
					server.Do(t, "CONFIG SET maxmemory-policy noeviction")
					server.Do(t, "CONFIG SET maxmemory 1")
				},
				back: func() { server.Do(t, "CONFIG SET maxmemory 0") },
			}
		},
		refuses: true, quiet: 2 * time.Second, lasts: 5 * time.Second,
	},
	{
		name: "flushed",
		prepare: func(t *testing.T) stage {
			server := redistest.Start(t)
			return stage{url: server.URL(), begin: func() { server.Do(t, "FLUSHALL") }, back: func() {}}
		},
		one: true, quiet: 2 * time.Second, lasts: 2 * time.Second,
	},
	{
		name: "failing over, master killed",
		prepare: func(t *testing.T) stage {
			set := newSet(t)
			return stage{
				url:   set.url,
				begin: func() { set.replicated(t); set.master.Kill() },
				back:  func() { set.promoted(t) },
				later: func() { set.master.Run(t); set.demoted(t) },
			}
		},
	},
	{
		name: "failing over, master hung",
		prepare: func(t *testing.T) stage {
			set := newSet(t)
			return stage{
				url:   set.url,
				begin: func() { set.replicated(t); set.master.Signal(t, syscall.SIGSTOP) },
				back:  func() { set.promoted(t) },
				later: func() { set.master.Signal(t, syscall.SIGCONT); set.demoted(t) },
			}
		},
	},
	{
		name: "failing over, master hung and soon back",
		prepare: func(t *testing.T) stage {
			set := newSet(t)
			return stage{
				url:   set.url,
				begin: func() { set.replicated(t); set.master.Signal(t, syscall.SIGSTOP) },
				back:  func() { set.promoted(t); set.master.Signal(t, syscall.SIGCONT) },
				later: func() { set.demoted(t) },
			}
		},
	},
}

// A set is a master with two replicas that Sentinels watch.
type set struct {
	url             string
	master, watcher *redistest.Server
}

func newSet(t *testing.T) set {
	url, redises, watchers := redistest.Sentinels(t)
	return set{url, redises[0], watchers[0]}
}

// replicated waits until the replicas have what the master has.
func (s set) replicated(t *testing.T) {
	t.Helper()
	conn := s.master.Admin(t).Conn()
	defer conn.Close()
	ctx := context.Background()
	if err := conn.Set(ctx, "test", 1, 0).Err(); err != nil {
		t.Fatal(err)
	}
	redistest.Eventually(t, "two replicas with all data", func() bool {
		n, err := conn.Wait(ctx, 2, time.Second).Result()
		return err == nil && n == 2
	})
}

// promoted waits until the Sentinels have another master.
func (s set) promoted(t *testing.T) {
	t.Helper()
	redistest.Eventually(t, "another master", func() bool {
		at := s.watcher.Do(t, "SENTINEL GET-MASTER-ADDR-BY-NAME main").([]any)
		return at[1] != strconv.Itoa(s.master.Port)
	})
}

// demoted waits until the old master is a replica.
func (s set) demoted(t *testing.T) {
	t.Helper()
	redistest.Eventually(t, "the old master a replica", func() bool {
		return strings.Contains(s.master.Do(t, "INFO replication").(string), "role:slave")
	})
}

// Something happens to Redis while twenty processes call BeyondTrust, with client credentials, and Remedy,
// with a login whose refresh token changes with each exchange. During the outage all access tokens are revoked.
// No call to BeyondTrust fails: while Redis is away each process obtains a token of its own, and the account
// has room for these. Calls to Remedy wait for Redis, no refresh token is used twice, and no call asks for a
// login. When Redis is back the processes agree on one token.
func TestSoakOutages(t *testing.T) {
	for _, o := range outages {
		t.Run(o.name, func(t *testing.T) { o.run(t) })
	}
}

func (o outage) run(t *testing.T) {
	const processes = 20
	bt, secret := newBeyondTrust(t, time.Hour), secretFile(t)
	sso, seed := newRemedy(t, time.Hour)
	exchanges, rotations := exchangesOf(bt), func() int { return sso.Stats().Rotations }
	stage := o.prepare(t)
	all := launch(t, processes, job{
		Loads: 1, Calls: map[string]string{support: supportPath, incidents: incidentsPath}, Pause: 500 * time.Millisecond,
	}, func(i int) string {
		return configuration(redisStore(stage.url), beyondtrust(bt, secret, "[{ requests: 500, per: 1s }]", i), remedy(sso, seed, i))
	})
	begin(t, all)
	agree(t, all, support)
	agree(t, all, incidents)
	if exchanges() != 1 || rotations() != 1 {
		t.Errorf("%d exchanges and %d rotations at the start, want 1 and 1", exchanges(), rotations())
	}

	begun := time.Now()
	stage.begin()
	time.Sleep(o.quiet)
	if n := exchanges() + rotations(); n != 2 && o.quiet > 0 {
		t.Errorf("%d exchanges with valid tokens", n-2)
	}
	bt.RevokeAll()
	sso.RevokeAll()
	time.Sleep(o.lasts)
	atLeast(t, "exchanges", 2, exchanges)
	stage.back()
	returned := time.Now()
	agree(t, all, support)
	agreed := time.Since(returned)
	atLeast(t, "rotations", 2, rotations)
	agree(t, all, incidents)
	agreedToo := time.Since(returned)
	during := exchanges() - 1
	if most := processes; during > most || o.one && during != 1 {
		t.Errorf("%d exchanges for one revocation", during)
	}
	if stage.later != nil {
		stage.later()
	}
	after, _ := newToken(t, all, support, exchanges, bt.RevokeAll)
	rotated, _ := newToken(t, all, incidents, rotations, sso.RevokeAll)
	if after != 1 || rotated != 1 {
		t.Errorf("with Redis back a revocation cost %d exchanges and %d rotations, want 1 and 1", after, rotated)
	}

	sum := finish(t, all)
	summary(t, "20 processes, all tokens revoked with Redis "+o.name, during, sum.Connectors[support].Failed,
		"one token again %s after its return, for the rotating login %s; %d of %d calls with that failed; %d log lines",
		seconds(agreed), seconds(agreedToo), sum.Connectors[incidents].Failed, sum.Connectors[incidents].Calls, sum.Warnings)
	wantNoFailures(t, sum, support)
	// An exchange that spends a refresh token waits for Redis for 30 s.
	if lasted := returned.Sub(begun); !o.refuses && lasted < 20*time.Second {
		wantNoFailures(t, sum, incidents)
	} else {
		t.Logf("an outage of %v, errors of %s: %v", lasted, incidents, sum.Connectors[incidents].Errors)
	}
	if n := bt.Stats().Killed; n > 0 {
		t.Errorf("%d tokens were killed by others", n)
	}
	if reuses, refused := sso.Stats().Reuses, sum.Connectors[incidents].Refused; reuses > 0 || refused > 0 {
		t.Errorf("%d refresh tokens were used twice, %d calls asked for a login", reuses, refused)
	}
}

// A process that starts while Redis is away has connectors of three accounts. The first token waits until
// it is certain that Redis is away: 5 s if Redis does not answer, 1 s if it refuses connections. The other two
// do not wait again.
func TestSoakFirstTokenWithoutRedis(t *testing.T) {
	const timeout = 5 * time.Second // token_store.timeout
	for _, tt := range []struct {
		name  string
		stop  func(*testing.T, *redistest.Server)
		least time.Duration // of the first token
	}{
		{"hung", func(t *testing.T, s *redistest.Server) { s.Signal(t, syscall.SIGSTOP) }, timeout},
		{"connections refused", func(_ *testing.T, s *redistest.Server) { s.Kill() }, 900 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, server, secret := newBeyondTrust(t, time.Hour), redistest.Start(t), secretFile(t)
			var connectors []string
			for _, account := range []string{"a", "b", "c"} {
				one := strings.Replace(beyondtrust(s, secret, "", 0), support, account, 1)
				connectors = append(connectors, one+"    account: "+account+"\n")
			}
			text := configuration(redisStore(server.URL()), connectors...)
			conns, err := config.Parse("it.yaml", []byte(text), config.WithStore("redis", redisstore.Open))
			if err != nil {
				t.Fatal(err)
			}
			defer conns.Close()
			tt.stop(t, server)
			var took []time.Duration
			for _, name := range conns.Names() {
				conn, err := conns.Get(name)
				if err != nil {
					t.Fatal(err)
				}
				begun := time.Now()
				if _, err := conn.Authenticator().Token(context.Background()); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				took = append(took, time.Since(begun))
			}
			summary(t, "three accounts in a process, Redis "+tt.name, s.Stats().Exchanges, 0,
				"first token %s, second %s, third %s", seconds(took[0]), seconds(took[1]), seconds(took[2]))
			// A token that waited for Redis took the whole timeout, or longer on a busy machine.
			if took[1] >= timeout || took[2] >= timeout {
				t.Errorf("tokens took %v: more than one waited for Redis", took)
			}
			if took[0] < tt.least {
				t.Errorf("the first token took %v, want at least %v", took[0], tt.least)
			}
			if tt.least < timeout && took[0] >= timeout {
				t.Errorf("the first token took %v: a refused connection was taken for silence", took[0])
			}
			if n := s.Stats().Exchanges; n != 3 {
				t.Errorf("%d exchanges, want 3", n)
			}
		})
	}
}
