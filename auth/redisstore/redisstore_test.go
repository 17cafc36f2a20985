package redisstore

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/authtest"
	"github.com/itsmauth/itsmauth/internal/redistest"
	"github.com/itsmauth/itsmauth/internal/testpki"
	"github.com/itsmauth/itsmauth/internal/tlsfile"
)

// opened opens the store at url and closes it when the test ends.
func opened(t *testing.T, url string) *store {
	t.Helper()
	return openedWith(t, Config{URL: auth.SecretString(url)})
}

func openedWith(t *testing.T, c Config) *store {
	t.Helper()
	s, err := Open(c)
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

type method struct {
	name string
	run  func(ctx context.Context) error
}

// methods are the operations of a store, on a record of version 1. Delete is the last, because it
// removes the record.
func methods(s *store) []method {
	freed := func(unlock func(), err error) error {
		if unlock != nil {
			unlock()
		}
		return err
	}
	return []method{
		{"Load", func(ctx context.Context) error { _, err := s.Load(ctx, "k"); return err }},
		{"Save", func(ctx context.Context) error {
			return s.Save(ctx, "k", auth.Record{Version: 1, Data: []byte("new")})
		}},
		{"Lock", func(ctx context.Context) error { return freed(s.Lock(ctx, "k")) }},
		{"TryLock", func(ctx context.Context) error { _, unlock, err := s.TryLock(ctx, "k", 1); return freed(unlock, err) }},
		{"Take", func(ctx context.Context) error { return taken(ctx, s) }},
		{"Delete", func(ctx context.Context) error { return s.Delete(ctx, "k", 1) }},
	}
}

// taken takes one slot of a rate limit.
func taken(ctx context.Context, s *store) error {
	_, _, err := s.Window("k", []auth.Limit{{Requests: 1, Per: time.Second}}, time.Second).Take(ctx, "id")
	return err
}

func save1(t *testing.T, url string) {
	t.Helper()
	if err := opened(t, url).Save(t.Context(), "k", auth.Record{Data: []byte("old")}); err != nil {
		t.Fatal(err)
	}
}

func TestGarbage(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := opened(t, server.URL())
	for name, command := range map[string]string{
		"string":       "SET itsmauth:{k} their-own",
		"list":         "LPUSH itsmauth:{k} their-own",
		"foreign hash": "HSET itsmauth:{k} their own",
		"newer format": "HSET itsmauth:{k} format itsmauth-token-2 version 1 data x",
	} {
		server.Do(t, "FLUSHALL")
		server.Do(t, command)
		before := server.Do(t, "DUMP itsmauth:{k}")
		wantAll(t, s, "the key itsmauth:{k} in Redis was not written by itsmauth", "Lock", "Take")
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
			t.Errorf("Load, %s: %v", name, err)
		}
		if _, unlock, err := s.TryLock(t.Context(), "k", 0); unlock != nil || !errors.Is(err, auth.ErrStore) || !strings.Contains(err.Error(), "is damaged") {
			t.Errorf("TryLock, %s: %v", name, err)
		}
	}
	for _, command := range []string{"SET itsmauth:{k}:lock theirs", "LPUSH itsmauth:{k}:lock theirs"} {
		server.Do(t, "FLUSHALL")
		server.Do(t, command)
		if _, err := s.Lock(t.Context(), "k"); !errors.Is(err, auth.ErrStore) || !strings.Contains(err.Error(), "not written by itsmauth") {
			t.Errorf("Lock, %s: %v", command, err)
		}
		if _, unlock, err := s.TryLock(t.Context(), "k", 0); unlock != nil || !errors.Is(err, auth.ErrStore) || !strings.Contains(err.Error(), "not written by itsmauth") {
			t.Errorf("TryLock, %s: %v", command, err)
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
		{now.Add(-time.Hour), keepExpired - time.Minute, keepExpired},
		{time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC), 290 * 365 * 24 * time.Hour, math.MaxInt64}, // as in some JWTs
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

// An attempt without a reply is retried. The second run must give the same result as the first.
func TestScriptsTwice(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := opened(t, server.URL())
	owner, another := s.newLease("k"), s.newLease("k")
	for range 2 {
		if err := s.change(t.Context(), "k", save, "0", "1", "", 0, "data", "same"); err != nil {
			t.Errorf("save: %v", err)
		}
		if taken, err := owner.take(t.Context()); !taken || err != nil {
			t.Errorf("lock: %v, %v", taken, err)
		}
	}
	if err := s.change(t.Context(), "k", save, "0", "1", "", 0, "data", "another"); !errors.Is(err, auth.ErrConflict) {
		t.Errorf("another's save: %v", err)
	}
	if taken, err := another.take(t.Context()); taken || err != nil {
		t.Errorf("another's lock: %v, %v", taken, err)
	}
	if n, err := unlock.Eval(t.Context(), server.Admin(t), []string{another.lockKey()}, another.owner).Int64(); n != 0 || err != nil {
		t.Errorf("another has unlocked: %v, %v", n, err)
	}
	if taken, err := another.take(t.Context()); taken || err != nil {
		t.Errorf("another has unlocked: %v, %v", taken, err)
	}
	w := s.Window("k", []auth.Limit{{Requests: 1, Per: time.Hour}}, time.Second)
	for range 2 {
		if wait, _, err := w.Take(t.Context(), "same"); wait != 0 || err != nil {
			t.Errorf("take: %v, %v", wait, err)
		}
	}
}

// A Redis with TLS, a client certificate, and a user with the permissions of docs/operations.md.
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
	t.Run("conformance", func(t *testing.T) { // waits for its parallel tests
		authtest.TestStore(t, func(t *testing.T) auth.Store { return openedWith(t, c) })
	})
	if err := taken(t.Context(), openedWith(t, c)); err != nil {
		t.Error(err)
	}
	if keys := server.Do(t, "INFO keyspace").(string); !strings.Contains(keys, "db3:") || strings.Contains(keys, "db0:") {
		t.Errorf("the records are not in database 3: %s", keys)
	}
}

// The certificate authorities are read again for each connection.
func TestCAFileChanges(t *testing.T) {
	t.Parallel()
	ca := testpki.New(t)
	cert, key := testpki.Files(t, ca.Issue(t, "127.0.0.1", time.Now().Add(time.Hour)))
	port := redistest.FreePort(t)
	redistest.Start(t, "--tls-port", fmt.Sprint(port), "--tls-cert-file", cert, "--tls-key-file", key, "--tls-auth-clients", "no")
	file := testpki.New(t).File(t) // of another authority
	s := openedWith(t, Config{URL: auth.SecretString(fmt.Sprintf("rediss://:%s@127.0.0.1:%d", url.QueryEscape(redistest.Password), port)), TLS: tlsfile.Config{CAFile: file}})
	if err := s.Save(t.Context(), "k", auth.Record{}); !errors.Is(err, auth.ErrStore) || !strings.Contains(err.Error(), "certificate") {
		t.Fatalf("with another authority: %v", err)
	}
	pem, err := os.ReadFile(ca.File(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, pem, 0o600); err != nil {
		t.Fatal(err)
	}
	for start := time.Now(); ; time.Sleep(100 * time.Millisecond) { // real time: the file is read once a second
		_, err := s.Load(t.Context(), "k")
		if err == nil {
			break
		}
		if time.Since(start) > time.Minute {
			t.Fatal(err)
		}
	}
}

// The password is read again for each connection.
func TestPasswordChanges(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	var text atomic.Value
	text.Store(server.URL())
	s := openedWith(t, Config{URL: auth.SecretFunc(func() (string, error) { return text.Load().(string), nil })})
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
