// Package replicas_test runs many processes of one account on one Redis, and counts what the product
// sees of them.
package replicas_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9/logging"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/redisstore"
	"github.com/itsmauth/itsmauth/config"
	"github.com/itsmauth/itsmauth/internal/redistest"
	"github.com/itsmauth/itsmauth/providers/beyondtrust/beyondtrusttest"
	"github.com/itsmauth/itsmauth/providers/remedy/remedytest"
)

// replicaEnv makes the test binary a replica. Its arguments are the configuration, how many
// times to load it, as if it were so many processes, the path to call, and the pause between calls.
const replicaEnv = "ITSMAUTH_REPLICA"

func TestMain(m *testing.M) {
	logging.Disable()
	if os.Getenv(replicaEnv) == "" {
		os.Exit(m.Run())
	}
	if err := replica(os.Args[1], os.Args[2], os.Args[3], os.Args[4]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// report is what a replica tells of itself at its end.
type report struct {
	Calls, Failed int
	Refused       int    // for want of a login
	Alone         int    // exchanges without Redis, which was silent
	First         string // failure
}

// replica calls until its stdin ends. It says when it has called once, and reports at the end.
func replica(file, loads, path, every string) error {
	n, err := strconv.Atoi(loads)
	if err != nil {
		return err
	}
	pause, err := time.ParseDuration(every)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	go func() { io.Copy(io.Discard, os.Stdin); stop() }()
	var wg, first sync.WaitGroup
	var mu sync.Mutex
	var sum report
	logger := slog.New(slog.NewTextHandler(writerFunc(func(line []byte) (int, error) {
		if strings.Contains(string(line), "exchanging without it") {
			mu.Lock()
			sum.Alone++
			mu.Unlock()
		}
		return len(line), nil
	}), nil))
	var all []*config.Connector
	for range n {
		conns, err := config.Load(file, config.WithStore("redis", redisstore.Open), config.WithLogger(logger))
		if err != nil {
			return err
		}
		defer conns.Close()
		conn, err := conns.Get("it")
		if err != nil {
			return err
		}
		all = append(all, conn)
	}
	for _, conn := range all { // not before: what loads would keep the others from hearing Redis
		first.Add(1)
		wg.Go(func() {
			for once := sync.OnceFunc(first.Done); ctx.Err() == nil; once() {
				err := call(conn, path)
				mu.Lock()
				sum.Calls++
				switch {
				case err == nil:
				case errors.Is(err, auth.ErrConsentRequired):
					sum.Refused++
				default:
					if sum.Failed++; sum.First == "" {
						sum.First = err.Error()
					}
				}
				mu.Unlock()
				if pause > 0 {
					time.Sleep(pause/2 + rand.N(pause))
				}
			}
		})
	}
	first.Wait()
	fmt.Println("ready")
	wg.Wait()
	return json.NewEncoder(os.Stdout).Encode(sum)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func call(conn *config.Connector, path string) error {
	req, err := conn.NewRequest(context.Background(), http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	resp, err := conn.Client().Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return nil
}

// process is a replica that runs.
type process struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	out    *bufio.Reader
	killed atomic.Bool
}

// launch starts n replicas of a configuration, and returns when each has called once.
func launch(t *testing.T, n int, yaml func(i int) string, args ...string) []*process {
	t.Helper()
	dir := t.TempDir()
	var all []*process
	for i := range n {
		file := filepath.Join(dir, fmt.Sprintf("%d.yaml", i))
		if err := os.WriteFile(file, []byte(yaml(i)), 0o600); err != nil {
			t.Fatal(err)
		}
		p := &process{cmd: exec.Command(os.Args[0], append([]string{file}, args...)...)}
		p.cmd.Env = append(os.Environ(), replicaEnv+"=1", "GOMAXPROCS=1")
		p.cmd.Stderr = os.Stderr
		var err error
		if p.stdin, err = p.cmd.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		out, err := p.cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		p.out = bufio.NewReader(out)
		if err := p.cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.cmd.Process.Kill(); p.cmd.Wait() })
		all = append(all, p)
	}
	for _, p := range all {
		if line, err := p.out.ReadString('\n'); line != "ready\n" {
			t.Fatalf("a replica did not come up: %s%v", line, err)
		}
	}
	return all
}

// kill is what an operator calls SIGKILL.
func (p *process) kill() {
	p.killed.Store(true)
	p.cmd.Process.Signal(syscall.SIGKILL)
}

// end ends the replicas and adds up what those alive report.
func end(t *testing.T, all []*process) (sum report) {
	t.Helper()
	for _, p := range all {
		p.stdin.Close()
	}
	for _, p := range all {
		if p.killed.Load() {
			continue
		}
		var r report
		line, err := p.out.ReadBytes('\n')
		if err == nil {
			err = json.Unmarshal(line, &r)
		}
		if err != nil {
			t.Errorf("a replica's end: %v %s", err, line)
		}
		sum.Calls += r.Calls
		sum.Failed += r.Failed
		sum.Refused += r.Refused
		sum.Alone += r.Alone
		if sum.First == "" {
			sum.First = r.First
		}
	}
	return sum
}

func beyondtrust(t *testing.T, s *beyondtrusttest.Server, redisURL, limits string) (yaml func(i int) string, secret string) {
	secret = filepath.Join(t.TempDir(), "secret")
	write(t, secret, beyondtrusttest.DefaultClientSecret)
	return func(i int) string {
		return fmt.Sprintf(`version: 1
token_store: { type: redis, url: '%s', encryption: none }
connectors:
  it:
    provider: beyondtrust
    base_url: %s
    client_id: '%s'
    client_secret: ${file:%s}
    transport: { rate_limits: %s, user_agent: replica/%d }
`, redisURL, s.URL, beyondtrusttest.DefaultClientID, secret, limits, i)
	}, secret
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

const beyondtrustPath = "/api/command?action=get_api_info"

// phase runs f, waits until that has cost so many tokens and d beyond, and tells how many it was.
func phase(t *trial, s *beyondtrusttest.Server, what string, want int, d time.Duration, f func()) {
	t.Helper()
	before := s.Stats()
	f()
	for end := time.Now().Add(30 * time.Second); s.Stats().Exchanges-before.Exchanges < want && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(d)
	after := s.Stats()
	n := after.Exchanges - before.Exchanges
	t.Logf("%-22s %2d exchanges, %4d calls, %3d refused for their token", what, n,
		after.APICalls-before.APICalls, after.Rejected-before.Rejected)
	if n != want {
		t.Errorf("%s: %d exchanges, want %d", what, n, want)
	}
}

// trial is one of the tries of a measurement.
type trial struct {
	*testing.T
	failures []string
}

func (t *trial) Errorf(format string, args ...any) {
	t.failures = append(t.failures, fmt.Sprintf(format, args...))
}

// measure runs f, and again, twice at most, where what failed may be the machine's fault: it kept a
// replica from hearing Redis for 250 ms, so that this one made an exchange without it (f returns how many
// did unexpectedly), or kept this process, which is the product, from running.
func measure(t *testing.T, f func(*trial) (alone int)) {
	t.Helper()
	for tries := 3; ; tries-- {
		stalls := watchForStalls()
		tr := &trial{T: t}
		alone := f(tr)
		stalled := stalls()
		if len(tr.failures) == 0 || tries == 1 || alone <= 0 && stalled < 100*time.Millisecond {
			for _, failure := range tr.failures {
				t.Error(failure)
			}
			return
		}
		t.Logf("%s; but %d could not hear Redis, and this process stood still for %v; again", strings.Join(tr.failures, "; "), alone, stalled)
	}
}

// watchForStalls tells how long at the most this process was kept from running.
func watchForStalls() (longest func() time.Duration) {
	done := make(chan time.Duration)
	end := make(chan struct{})
	go func() {
		var most time.Duration
		for last := time.Now(); ; last = time.Now() {
			select {
			case <-time.After(10 * time.Millisecond):
				most = max(most, time.Since(last)-10*time.Millisecond)
			case <-end:
				done <- most
				return
			}
		}
	}()
	return func() time.Duration { close(end); return <-done }
}

// Forty processes, or two hundred in twenty, on an account that may have thirty tokens.
func TestOneToken(t *testing.T) {
	for _, tt := range []struct{ processes, loads int }{{40, 1}, {20, 10}} {
		t.Run(fmt.Sprint(tt.processes*tt.loads), func(t *testing.T) {
			measure(t, func(t *trial) int { return oneToken(t, tt.processes, tt.loads) })
		})
	}
}

func oneToken(t *trial, processes, loads int) (alone int) {
	s := beyondtrusttest.NewServer(&beyondtrusttest.Options{PerSecond: -1, PerHour: -1, TokenLifetime: 20 * time.Second})
	defer s.Close()
	yaml, secret := beyondtrust(t.T, s, redistest.Start(t.T).URL(), "[]")
	var all []*process
	begun := time.Now()
	phase(t, s, "start", 1, 0, func() {
		all = launch(t.T, processes, yaml, strconv.Itoa(loads), beyondtrustPath, "250ms")
	})
	t.Logf("%d replicas up in %v", processes*loads, time.Since(begun).Round(100*time.Millisecond))
	phase(t, s, "revoked", 1, 3*time.Second, s.RevokeAll)
	revoked := time.Now()
	phase(t, s, "secret regenerated", 1, 3*time.Second, func() {
		write(t.T, secret, "n+w/s=cr&t%")
		s.SetSecret("n+w/s=cr&t%")
	})
	phase(t, s, "stale, then expired", 1, 0, func() { time.Sleep(time.Until(revoked.Add(24 * time.Second))) })
	sum := end(t.T, all)
	t.Logf("%d calls, %d failed %s", sum.Calls, sum.Failed, sum.First)
	if sum.Failed > 0 {
		t.Errorf("%d of %d calls failed, the first with %s", sum.Failed, sum.Calls, sum.First)
	}
	if killed := s.Stats().Killed; killed > 0 {
		t.Errorf("%d tokens were killed by others", killed)
	}
	return sum.Alone
}

// The holder of the lock is killed in the middle of its exchange.
func TestHolderKilled(t *testing.T) {
	for _, tt := range []struct{ processes, loads int }{{40, 1}, {20, 10}} {
		t.Run(fmt.Sprint(tt.processes*tt.loads), func(t *testing.T) {
			measure(t, func(t *trial) int { return holderKilled(t, tt.processes, tt.loads) })
		})
	}
}

func holderKilled(t *trial, processes, loads int) (alone int) {
	s := beyondtrusttest.NewServer(&beyondtrusttest.Options{PerSecond: -1, PerHour: -1})
	defer s.Close()
	yaml, _ := beyondtrust(t.T, s, redistest.Start(t.T).URL(), "[]")
	all := launch(t.T, processes, yaml, strconv.Itoa(loads), beyondtrustPath, "250ms")
	var once sync.Once
	killed := make(chan time.Time, 1)
	s.BreakToken(func(w http.ResponseWriter, r *http.Request) bool {
		hit := false
		once.Do(func() {
			hit = true
			i, err := strconv.Atoi(strings.TrimPrefix(r.UserAgent(), "replica/"))
			if err != nil {
				t.Error(err)
			}
			all[i].kill()
			killed <- time.Now()
		})
		return hit
	})
	phase(t, s, "revoked, holder killed", 1, 10*time.Second, s.RevokeAll)
	at := <-killed
	for _, r := range s.Requests() {
		if r.Path == "/oauth2/token" && r.Status == 200 && r.Time.After(at) {
			t.Logf("the next holder's exchange came %v after the kill", r.Time.Sub(at).Round(10*time.Millisecond))
		}
	}
	sum := end(t.T, all)
	if sum.Failed > 0 {
		t.Errorf("%d of %d calls failed, the first with %s", sum.Failed, sum.Calls, sum.First)
	}
	return sum.Alone
}

// Redis is away for a while: valid tokens keep working, and with Redis back there is one token for all. One
// that is refused meanwhile is replaced by each process itself, for which the account must have room.
func TestRedisStopped(t *testing.T) {
	for _, tt := range []struct {
		processes int
		revoked   bool
	}{{40, false}, {20, true}} {
		t.Run(fmt.Sprint(tt.processes), func(t *testing.T) {
			measure(t, func(t *trial) int { return redisStopped(t, tt.processes, tt.revoked) })
		})
	}
}

func redisStopped(t *trial, processes int, revoked bool) (alone int) {
	away := 10 * time.Second
	if d, err := time.ParseDuration(os.Getenv("ITSMAUTH_REDIS_AWAY")); err == nil {
		away = d
	}
	s := beyondtrusttest.NewServer(&beyondtrusttest.Options{PerSecond: -1, PerHour: -1})
	defer s.Close()
	server := redistest.Start(t.T)
	yaml, _ := beyondtrust(t.T, s, server.URL(), "[]")
	all := launch(t.T, processes, yaml, "1", beyondtrustPath, "250ms")
	phase(t, s, "Redis stopped", 0, away/2, server.Kill)
	if revoked {
		phase(t, s, "revoked without Redis", processes, away/2, s.RevokeAll)
		alone = -processes
	} else {
		time.Sleep(away / 2)
	}
	phase(t, s, "Redis back", 0, 2*time.Second, func() { server.Run(t.T) })
	phase(t, s, "revoked with Redis", 1, 3*time.Second, s.RevokeAll)
	sum := end(t.T, all)
	if sum.Failed > 0 {
		t.Errorf("%d of %d calls failed, the first with %s", sum.Failed, sum.Calls, sum.First)
	}
	return alone + sum.Alone
}

// The master of a Sentinel set dies during traffic.
func TestFailover(t *testing.T) { measure(t, failover) }

func failover(t *trial) (alone int) {
	s := beyondtrusttest.NewServer(&beyondtrusttest.Options{PerSecond: -1, PerHour: -1})
	defer s.Close()
	url, redises, watchers := redistest.Sentinels(t.T)
	yaml, _ := beyondtrust(t.T, s, url, "[]")
	all := launch(t.T, 20, yaml, "1", beyondtrustPath, "250ms")
	phase(t, s, "revoked", 1, 2*time.Second, s.RevokeAll)
	phase(t, s, "failover", 0, 5*time.Second, func() {
		redises[0].Kill()
		redistest.Eventually(t.T, "another master", func() bool {
			at := watchers[0].Do(t.T, "SENTINEL GET-MASTER-ADDR-BY-NAME main").([]any)
			return at[1] != strconv.Itoa(redises[0].Port)
		})
	})
	phase(t, s, "revoked after it", 1, 3*time.Second, s.RevokeAll)
	sum := end(t.T, all)
	if sum.Failed > 0 {
		t.Errorf("%d of %d calls failed, the first with %s", sum.Failed, sum.Calls, sum.First)
	}
	return sum.Alone
}

// Eight processes call as fast as they can, and the server never sees more than the limit.
func TestSharedLimit(t *testing.T) { measure(t, sharedLimit) }

func sharedLimit(t *trial) (alone int) {
	const perSecond, d = 20, 20 * time.Second
	s := beyondtrusttest.NewServer(&beyondtrusttest.Options{PerSecond: -1, PerHour: -1})
	defer s.Close()
	yaml, _ := beyondtrust(t.T, s, redistest.Start(t.T).URL(), fmt.Sprintf("[{ requests: %d, per: 1s }]", perSecond))
	all := launch(t.T, 8, yaml, "1", beyondtrustPath, "0s")
	before, begun := len(s.Requests()), time.Now()
	time.Sleep(d)
	took := time.Since(begun)
	requests := s.Requests()
	sum := end(t.T, all)

	most := 0
	for i, first := 0, 0; i < len(requests); i++ {
		for requests[i].Time.Sub(requests[first].Time) > time.Second {
			first++
		}
		most = max(most, i-first+1)
	}
	used := float64(len(requests)-before) / (perSecond * took.Seconds())
	t.Logf("%d requests in %v: at most %d in any second, %.0f %% of the limit used", len(requests)-before, took.Round(time.Millisecond), most, 100*used)
	if most > perSecond || used < 0.9 {
		t.Errorf("at most %d in any second and %.0f %% used, want %d and 90 %%", most, 100*used, perSecond)
	}
	if sum.Failed > 0 {
		t.Errorf("%d of %d calls failed, the first with %s", sum.Failed, sum.Calls, sum.First)
	}
	return sum.Alone
}

// The same with Redis away: each process keeps to its share.
func TestSharedLimitWithoutRedis(t *testing.T) {
	const perSecond, processes, d = 24, 8, 10 * time.Second
	s := beyondtrusttest.NewServer(&beyondtrusttest.Options{PerSecond: -1, PerHour: -1})
	defer s.Close()
	server := redistest.Start(t)
	yaml, _ := beyondtrust(t, s, server.URL(), fmt.Sprintf("[{ requests: %d, per: 1s }]", perSecond))
	all := launch(t, processes, yaml, "1", beyondtrustPath, "0s")
	time.Sleep(2 * time.Second)
	server.Kill()
	time.Sleep(2 * time.Second) // until all have noticed
	before, begun := len(s.Requests()), time.Now()
	time.Sleep(d)
	rate := float64(len(s.Requests())-before) / time.Since(begun).Seconds()
	t.Logf("%.1f requests a second of %d without Redis", rate, perSecond)
	if rate > perSecond || rate < perSecond/3 {
		t.Errorf("%.1f requests a second, want at most %d", rate, perSecond)
	}
	if sum := end(t, all); sum.Failed > 0 {
		t.Errorf("%d of %d calls failed, the first with %s", sum.Failed, sum.Calls, sum.First)
	}
}

// Twenty processes share a login whose refresh token is another after each exchange, through a
// hundred of them, while every two seconds one is killed, whatever it does, and another takes its
// place. If what the product had answered dies with it, somebody tries the old refresh token once, 30 s
// after, and a person has to log in again. Else none is used twice.
func TestRotations(t *testing.T) {
	const processes, rotations = 20, 100
	s := remedytest.NewServer(&remedytest.Options{TokenLifetime: time.Second})
	defer s.Close()
	s.Delay(10 * time.Millisecond)
	server := redistest.Start(t)
	seed := filepath.Join(t.TempDir(), "seed")
	login := func() { write(t, seed, s.MintRefresh()) }
	login()
	yaml := func(i int) string {
		return fmt.Sprintf(`version: 1
token_store: { type: redis, url: '%s', encryption: none }
connectors:
  it:
    provider: remedy
    base_url: %s
    sso_url: %s
    client_id: '%s'
    client_secret: '%s'
    redirect_uri: %s
    refresh_token: ${file:%s}
`, server.URL(), s.URL, s.SSOURL, remedytest.DefaultClientID, remedytest.DefaultClientSecret, remedytest.DefaultRedirectURI, seed)
	}
	start := func(n int) []*process {
		return launch(t, n, yaml, "1", "/api/arsys/v1/entry/HPD:IncidentInterface", "100ms")
	}
	all := start(processes)
	var during []time.Time // kills of somebody who may have been exchanging
	var kills, logins int
	for begun := time.Now(); s.Stats().Rotations < rotations && time.Since(begun) < 10*time.Minute; {
		time.Sleep(time.Second + rand.N(2*time.Second))
		i := rand.IntN(processes)
		all[i].kill()
		kills++
		if len(server.Do(t, "KEYS *:lock").([]any)) > 0 { // which outlives its holder
			during = append(during, time.Now())
		}
		for reuses := s.Stats().Reuses; logins < reuses; logins++ {
			if logins >= len(during) || time.Since(during[logins]) < 30*time.Second {
				t.Fatalf("%d refresh tokens were used twice, %d processes killed while a lock was held", reuses, len(during))
			}
			login()
		}
		all[i] = start(1)[0]
	}
	sum := end(t, all)
	stats := s.Stats()
	t.Logf("%d rotations, %d processes killed, %d of them while a lock was held, %d logins; %d calls, %d for want of a login, %d failed %s",
		stats.Rotations, kills, len(during), logins, sum.Calls, sum.Refused, sum.Failed, sum.First)
	if stats.Rotations < rotations || stats.Reuses > logins || sum.Refused > 0 && logins == 0 {
		t.Errorf("%d rotations, %d reuses, %d calls refused for want of a login", stats.Rotations, stats.Reuses, sum.Refused)
	}
	// A token lives for a second here, and on a busy machine Redis may be silent, or a call under way, for
	// as long.
	late := strings.Contains(sum.First, "token store failed") || sum.First == "status 401"
	if sum.Failed > 0 && (!late || sum.Failed > sum.Calls/10) {
		t.Errorf("%d of %d calls failed: %s", sum.Failed, sum.Calls, sum.First)
	}
	end(t, start(1)) // the store has the newest
	if after := s.Stats(); after.Reuses > logins {
		t.Errorf("the store did not have the newest refresh token")
	}
}

// A fresh token costs no command.
func TestFreshTokenCostsNothing(t *testing.T) {
	s := beyondtrusttest.NewServer(&beyondtrusttest.Options{PerSecond: -1, PerHour: -1})
	defer s.Close()
	server := redistest.Start(t)
	yaml, _ := beyondtrust(t, s, server.URL(), "[]")
	conns, err := config.Parse("it.yaml", []byte(yaml(0)), config.WithStore("redis", redisstore.Open))
	if err != nil {
		t.Fatal(err)
	}
	defer conns.Close()
	conn, err := conns.Get("it")
	if err != nil {
		t.Fatal(err)
	}
	commands := func() int {
		for line := range strings.Lines(server.Do(t, "INFO stats").(string)) {
			if n, ok := strings.CutPrefix(strings.TrimSpace(line), "total_commands_processed:"); ok {
				n, err := strconv.Atoi(n)
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
		}
		t.Fatal("Redis does not count")
		return 0
	}
	if err := call(conn, beyondtrustPath); err != nil {
		t.Fatal(err)
	}
	commands()
	ours := -commands()
	ours += commands() // what looking costs
	before := commands()
	for range 1000 {
		if err := call(conn, beyondtrustPath); err != nil {
			t.Fatal(err)
		}
	}
	if n := commands() - before - ours; n != 0 {
		t.Errorf("1,000 calls with a fresh token cost %d commands", n)
	}
}
