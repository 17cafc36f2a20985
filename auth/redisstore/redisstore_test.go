package redisstore

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9/logging"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/authtest"
	"github.com/itsmauth/itsmauth/internal/redistest"
	"github.com/itsmauth/itsmauth/internal/testpki"
	"github.com/itsmauth/itsmauth/internal/tlsfile"
)

func TestMain(m *testing.M) {
	logging.Disable()
	os.Exit(m.Run())
}

// opened is the store at a URL, for as long as the test lasts. It is calmer than a service's, since
// the machine may be busy.
func opened(t *testing.T, url string) *store {
	t.Helper()
	return openedWith(t, Config{URL: auth.SecretString(url)}, calmly)
}

// asked is the store at a URL as a service has it, for what is to be answered in time.
func asked(t *testing.T, url string) *store {
	t.Helper()
	return openedWith(t, Config{URL: auth.SecretString(url)}, patience)
}

func openedWith(t *testing.T, c Config, patience time.Duration) *store {
	t.Helper()
	s, err := open(c, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.(*store).Close(); err != nil {
			t.Error(err)
		}
	})
	return s.(*store)
}

const (
	// calmly is for tests that ask much of a busy machine and nothing of the time it takes.
	calmly = 10 * time.Second
	// stall is how long such a machine may keep a process from running.
	stall = time.Second
)

func TestConformance(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(t *testing.T) (url string){
		"one server": func(t *testing.T) string { return redistest.Start(t).URL() },
		"sentinel":   func(t *testing.T) string { url, _, _ := redistest.Sentinels(t); return url },
		"cluster":    func(t *testing.T) string { url, _ := redistest.Cluster(t); return url },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := start(t)
			authtest.TestStore(t, func(t *testing.T) auth.Store { return opened(t, url) })
		})
	}
}

type operation struct {
	name string
	run  func() error
}

// operations are all that a session asks of a store, on a record of version 1. Delete is the last,
// since where it succeeds there is no such record any more.
func operations(s *store) []operation {
	ctx := context.Background()
	return []operation{
		{"Load", func() error { _, err := s.Load(ctx, "k"); return err }},
		{"Save", func() error { return s.Save(ctx, "k", auth.Record{Version: 1, Data: []byte("new")}) }},
		{"Lock", func() error {
			unlock, err := s.Lock(ctx, "k")
			if err == nil {
				unlock()
			}
			return err
		}},
		{"Take", func() error { return taken(s) }},
		{"Delete", func() error { return s.Delete(ctx, "k", 1) }},
	}
}

// taken asks for one slot of a rate limit.
func taken(s *store) error {
	_, _, err := s.Window("k", []auth.Limit{{Requests: 1, Per: time.Second}}, time.Second).Take(context.Background(), "id")
	return err
}

// wantAll fails unless each operation but those excepted says what it should, in time.
func wantAll(t *testing.T, s *store, says string, except ...string) {
	t.Helper()
	for _, op := range operations(s) {
		begun := time.Now()
		err := op.run()
		took := time.Since(begun)
		for tries := 20; tries > 0 && !strings.Contains(says, "left alone") && strings.Contains(fmt.Sprint(err), "within 250ms"); tries-- {
			s.silent.Store(0) // it was the machine that was silent
			begun, err = time.Now(), op.run()
			took = time.Since(begun)
		}
		if slices.Contains(except, op.name) {
			if err != nil {
				t.Errorf("%s: %v", op.name, err)
			}
			continue
		}
		if !errors.Is(err, auth.ErrStore) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want ErrStore with %q", op.name, err, says)
		}
		if took > patience+stall {
			t.Errorf("%s took %v", op.name, took)
		}
		if strings.Contains(fmt.Sprint(err), redistest.Password) {
			t.Errorf("%s shows the password: %v", op.name, err)
		}
	}
}

func TestFull(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	save1(t, server.URL())
	server.Do(t, "CONFIG SET maxmemory 1")
	wantAll(t, asked(t, server.URL()), "Redis is full", "Load", "Delete")
	server.Do(t, "CONFIG SET maxmemory 0")
	save1(t, server.URL())
}

func save1(t *testing.T, url string) {
	t.Helper()
	if err := opened(t, url).Save(t.Context(), "k", auth.Record{Data: []byte("old")}); err != nil {
		t.Fatal(err)
	}
}

func TestReadOnly(t *testing.T) {
	t.Parallel()
	master := redistest.Start(t)
	replica := redistest.Start(t, "--replicaof", "127.0.0.1", fmt.Sprint(master.Port))
	save1(t, master.URL())
	s := asked(t, replica.URL())
	redistest.Eventually(t, "the record on the replica", func() bool { r, err := s.Load(t.Context(), "k"); return err == nil && r.Version == 1 })
	wantAll(t, s, "Redis is read-only", "Load")
}

func TestSlow(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	for name, warm := range map[string]bool{"connected": true, "not connected": false} {
		for i := range operations(nil) {
			s := asked(t, server.URL()) // another, as what is told again would have this one leave Redis alone
			if warm {
				redistest.Eventually(t, "an answer", func() bool { _, err := s.Load(t.Context(), "k"); return err == nil })
			}
			op := operations(s)[i]
			server.Signal(t, syscall.SIGSTOP)
			begun := time.Now()
			err := op.run()
			if took := time.Since(begun); took > patience+stall {
				t.Errorf("%s: %s took %v", name, op.name, took)
			}
			if !errors.Is(err, auth.ErrStore) || !strings.Contains(err.Error(), "no answer from Redis within 250ms") {
				t.Errorf("%s: %s: %v", name, op.name, err)
			}
			server.Signal(t, syscall.SIGCONT)
			redistest.Eventually(t, "an answer again", func() bool { _, err := s.Load(t.Context(), "k"); return err == nil })
		}
	}
	s := asked(t, server.URL())
	s.silent.Store(time.Now().Add(time.Minute).UnixNano())
	begun := time.Now()
	wantAll(t, s, "is left alone")
	if took := time.Since(begun); took > stall {
		t.Errorf("operations during the breather took %v", took)
	}
	s.silent.Store(0)
}

func TestAway(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := asked(t, server.URL())
	redistest.Eventually(t, "an answer", func() bool { _, err := s.Load(t.Context(), "k"); return err == nil })
	server.Kill()
	wantAll(t, s, "cannot reach Redis: dial tcp 127.0.0.1:")
	server.Run(t)
	redistest.Eventually(t, "an answer again", func() bool { _, err := s.Load(t.Context(), "k"); return err == nil })
}

func TestGarbage(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := asked(t, server.URL())
	redistest.Eventually(t, "an answer", func() bool { _, err := s.Load(t.Context(), "k"); return err == nil })
	for name, command := range map[string]string{
		"string":       "SET itsmauth:{k} their-own",
		"list":         "LPUSH itsmauth:{k} their-own",
		"foreign hash": "HSET itsmauth:{k} their own",
		"newer format": "HSET itsmauth:{k} format itsmauth-token-2 version 1 data x",
	} {
		server.Do(t, "FLUSHALL")
		server.Do(t, command)
		before := server.Do(t, "DUMP itsmauth:{k}")
		wantAll(t, s, "the key itsmauth:{k} in Redis holds something that is not of itsmauth", "Lock", "Take")
		if after := server.Do(t, "DUMP itsmauth:{k}"); after != before {
			t.Errorf("%s: overwritten", name)
		}
	}
	for name, command := range map[string]string{
		"no version":  "HSET itsmauth:{k} data x",
		"bad version": "HSET itsmauth:{k} data x version one",
		"no data":     "HSET itsmauth:{k} version 1",
		"bad expires": "HSET itsmauth:{k} data x version 1 expires soon",
	} {
		server.Do(t, "FLUSHALL")
		server.Do(t, "HSET itsmauth:{k} format", recordFormat)
		server.Do(t, command)
		if _, err := s.Load(t.Context(), "k"); !errors.Is(err, auth.ErrStore) || !strings.Contains(err.Error(), "is damaged") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, command := range []string{"SET itsmauth:{k}:lock theirs", "LPUSH itsmauth:{k}:lock theirs"} {
		server.Do(t, "FLUSHALL")
		server.Do(t, command)
		if _, err := s.Lock(t.Context(), "k"); !errors.Is(err, auth.ErrStore) || !strings.Contains(err.Error(), "not of itsmauth") {
			t.Errorf("%s: %v", command, err)
		}
	}
}

func TestTimeToLive(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := opened(t, server.URL())
	now := time.Now()
	for version, tt := range []struct {
		expires  time.Time
		min, max time.Duration
	}{
		{now.Add(2 * time.Hour), 3*time.Hour - time.Minute, 3 * time.Hour},
		{time.Time{}, -1, -1},
		{now.Add(-time.Hour), grace - time.Minute, grace},
		{time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC), 290 * 365 * 24 * time.Hour, math.MaxInt64}, // as some JWTs have it
	} {
		if err := s.Save(t.Context(), "k", auth.Record{Version: uint64(version), Expires: tt.expires}); err != nil {
			t.Fatal(err)
		}
		ms := server.Do(t, "PTTL itsmauth:{k}").(int64)
		if ttl := time.Duration(ms) * time.Millisecond; ms != -1 && (ttl < tt.min || ttl > tt.max) || (ms == -1) != (tt.min == -1) {
			t.Errorf("record that expires at %v lives for %d ms", tt.expires, ms)
		}
	}
	unlock, err := s.Lock(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	w := s.Window("k", []auth.Limit{{Requests: 1, Per: time.Hour}}, time.Second)
	if _, _, err := w.Take(t.Context(), "id"); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"lock", "window", "peers"} {
		if ms := server.Do(t, "PTTL itsmauth:{k}:"+key).(int64); ms <= 0 {
			t.Errorf("%s lives for %d ms", key, ms)
		}
	}
}

// A lost answer has go-redis send the script again. The second time must be as the first.
func TestScriptsTwice(t *testing.T) {
	t.Parallel()
	s := opened(t, redistest.Start(t).URL())
	for range 2 {
		if err := s.change(t.Context(), "k", save, "0", "1", "", 0, "data", "same"); err != nil {
			t.Errorf("save: %v", err)
		}
		if taken, err := s.lock(t.Context(), "k", "owner"); !taken || err != nil {
			t.Errorf("lock: %v, %v", taken, err)
		}
	}
	if err := s.change(t.Context(), "k", save, "0", "1", "", 0, "data", "another"); !errors.Is(err, auth.ErrConflict) {
		t.Errorf("another's save: %v", err)
	}
	if taken, err := s.lock(t.Context(), "k", "another"); taken || err != nil {
		t.Errorf("another's lock: %v, %v", taken, err)
	}
	s.unlock("k", "another")
	if taken, err := s.lock(t.Context(), "k", "another"); taken || err != nil {
		t.Errorf("another has unlocked: %v, %v", taken, err)
	}
	w := s.Window("k", []auth.Limit{{Requests: 1, Per: time.Hour}}, time.Second)
	for range 2 {
		if wait, _, err := w.Take(t.Context(), "same"); wait != 0 || err != nil {
			t.Errorf("take: %v, %v", wait, err)
		}
	}
}

func TestLockIsHeld(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	a, b := opened(t, server.URL()), opened(t, server.URL())
	unlock, err := a.Lock(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	// Redis forgets it, and gets it again before its life would have ended.
	server.Do(t, "DEL itsmauth:{k}:lock")
	redistest.Eventually(t, "the lock taken again", func() bool { return server.Do(t, "EXISTS itsmauth:{k}:lock").(int64) == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), lockLife+time.Second)
	defer cancel()
	if _, err := b.Lock(ctx, "k"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Lock of what is held for longer than its life: %v", err)
	}
	unlock()
	if n := server.Do(t, "EXISTS itsmauth:{k}:lock").(int64); n != 0 {
		t.Error("unlocked, and still there")
	}
}

// What Redis was not there to hear, it hears when it is back.
func TestToldAgain(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := asked(t, server.URL())
	var unlock func()
	redistest.Eventually(t, "a lock", func() bool {
		var err error
		unlock, err = s.Lock(t.Context(), "k")
		return err == nil
	})
	w := s.Window("k", []auth.Limit{{Requests: 1, Per: time.Millisecond}}, time.Hour)
	redistest.Eventually(t, "a slot", func() bool { wait, _, err := w.Take(t.Context(), "id"); return err == nil && wait == 0 })
	server.Do(t, "PERSIST itsmauth:{k}:lock") // and so it does not lapse
	server.Signal(t, syscall.SIGSTOP)
	unlock()
	w.Release("id", true)
	time.Sleep(patience)
	server.Signal(t, syscall.SIGCONT)
	redistest.Eventually(t, "the lock given up", func() bool { return server.Do(t, "EXISTS itsmauth:{k}:lock").(int64) == 0 })
	redistest.Eventually(t, "the slot back", func() bool { wait, _, err := w.Take(t.Context(), "next"); return err == nil && wait == 0 })
}

func TestLockOfTheDead(t *testing.T) {
	t.Parallel()
	s := opened(t, redistest.Start(t).URL())
	if taken, err := s.lock(t.Context(), "k", "dead"); !taken || err != nil {
		t.Fatal(taken, err)
	}
	begun := time.Now()
	unlock, err := s.Lock(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	if took := time.Since(begun); took < lockLife-time.Second || took > lockLife+5*time.Second {
		t.Errorf("taken after %v, want %v", took, lockLife)
	}
}

func TestFailover(t *testing.T) {
	t.Parallel()
	url, redises, _ := redistest.Sentinels(t)
	save1(t, url)
	s := asked(t, url)
	redistest.Eventually(t, "the record on the replicas", func() bool {
		return redises[1].Do(t, "EXISTS itsmauth:{k}").(int64)+redises[2].Do(t, "EXISTS itsmauth:{k}").(int64) == 2
	})
	redises[0].Kill()
	begun := time.Now()
	if _, err := s.Load(t.Context(), "k"); !errors.Is(err, auth.ErrStore) {
		t.Errorf("with the master just killed: %v", err)
	}
	redistest.Eventually(t, "a new master", func() bool {
		err := s.Save(t.Context(), "k", auth.Record{Version: 1, Data: []byte("new")})
		return err == nil || errors.Is(err, auth.ErrConflict) // the save before, whose answer was late
	})
	t.Logf("the first save came %v after the master's death", time.Since(begun).Round(10*time.Millisecond))
	if r, err := opened(t, url).Load(t.Context(), "k"); err != nil || r.Version != 2 || string(r.Data) != "new" {
		t.Errorf("after the failover: %v, %v", r, err)
	}
}

func TestClusterLosesANode(t *testing.T) {
	t.Parallel()
	url, nodes := redistest.Cluster(t)
	save1(t, url)
	for _, n := range nodes {
		n.Kill()
	}
	wantAll(t, asked(t, url), "Redis")
}

// A Redis that wants TLS, a client certificate, and a user who may do what docs/operations.md says.
func TestTLSAndUser(t *testing.T) {
	t.Parallel()
	ca := testpki.New(t)
	cert, key := testpki.Files(t, ca.Issue(t, "127.0.0.1", time.Now().Add(time.Hour)))
	port := redistest.FreePort(t)
	server := redistest.Start(t, "--tls-port", fmt.Sprint(port), "--tls-cert-file", cert, "--tls-key-file", key,
		"--tls-ca-cert-file", ca.File(t), "--tls-auth-clients", "yes")
	server.Do(t, "ACL SETUSER tickets on ~itsmauth:* +@read +@write +@scripting +@connection +time -@dangerous", ">"+redistest.Password)

	c := Config{TLS: tlsfile.Config{CAFile: ca.File(t)}}
	c.TLS.CertFile, c.TLS.KeyFile = testpki.Files(t, ca.Issue(t, "client", time.Now().Add(time.Hour)))
	at := func(user, password, path string) auth.Secret {
		u := url.URL{Scheme: "rediss", User: url.UserPassword(user, password), Host: fmt.Sprintf("127.0.0.1:%d", port), Path: path}
		return auth.SecretString(u.String())
	}
	c.URL = at("tickets", redistest.Password, "/3")
	t.Run("conformance", func(t *testing.T) { // which waits for its parallel tests
		authtest.TestStore(t, func(t *testing.T) auth.Store { return openedWith(t, c, calmly) })
	})
	if err := taken(openedWith(t, c, calmly)); err != nil {
		t.Error(err)
	}
	if keys := server.Do(t, "INFO keyspace").(string); !strings.Contains(keys, "db3:") || strings.Contains(keys, "db0:") {
		t.Errorf("the records are not in database 3: %s", keys)
	}

	for says, change := range map[string]func(*Config){
		"Redis refuses the user and password in url": func(c *Config) { c.URL = at("tickets", "wr+ng", "") },
		"Redis does not let this user do that":       func(c *Config) { c.KeyPrefix = "elsewhere:" },
		"Redis has no database of that number":       func(c *Config) { c.URL = at("tickets", redistest.Password, "/99") },
		"certificate signed by unknown authority":    func(c *Config) { c.TLS.CAFile = testpki.New(t).File(t) },
		"Redis wants a user and password":            func(c *Config) { c.URL = auth.SecretString(fmt.Sprintf("rediss://127.0.0.1:%d", port)) },
	} {
		c := c
		change(&c)
		_, err := openedWith(t, c, calmly).Load(t.Context(), "k")
		if !errors.Is(err, auth.ErrStore) || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "wr+ng") {
			t.Errorf("%v, want %q", err, says)
		}
	}
	c.TLS.CertFile, c.TLS.KeyFile = "", ""
	if _, err := openedWith(t, c, calmly).Load(t.Context(), "k"); !errors.Is(err, auth.ErrStore) {
		t.Errorf("without the client's certificate: %v", err)
	}
}

// A password that changes is read again for the next connection.
func TestPasswordChanges(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	var text atomic.Value
	text.Store(server.URL())
	s := openedWith(t, Config{URL: auth.SecretFunc(func() (string, error) { return text.Load().(string), nil })}, calmly)
	if err := s.Save(t.Context(), "k", auth.Record{}); err != nil {
		t.Fatal(err)
	}
	admin := server.Admin(t)
	for _, command := range [][]any{
		{"ACL", "SETUSER", "default", "resetpass", ">n+w"},
		{"CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"},
	} {
		if err := admin.Do(t.Context(), command...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	text.Store("redis://:n%2Bw@" + server.Addr())
	if r, err := s.Load(t.Context(), "k"); err != nil || r.Version != 1 {
		t.Errorf("%v, %v", r, err)
	}
}
