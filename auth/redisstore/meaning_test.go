package redisstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/redistest"
	"github.com/itsmauth/itsmauth/internal/testnet"
	"github.com/itsmauth/itsmauth/internal/testpki"
	"github.com/itsmauth/itsmauth/internal/tlsfile"
)

func atoi(t *testing.T, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// wantAll checks that each operation, except those in except, fails with says. s must be unused.
func wantAll(t *testing.T, s *store, says string, except ...string) {
	t.Helper()
	tr := traced(s)
	for _, op := range methods(s) {
		err := op.run(tr.secondTry(t))
		waitBackground(s)
		if slices.Contains(except, op.name) {
			if err != nil {
				t.Errorf("%s: %v", op.name, err)
			}
			continue
		}
		wantSays(t, op.name, err, says)
	}
}

func wantSays(t *testing.T, name string, err error, says string) {
	t.Helper()
	if !errors.Is(err, auth.ErrStore) || !strings.Contains(err.Error(), says) {
		t.Errorf("%s: %v, want ErrStore with %q", name, err, says)
	}
	if text := fmt.Sprint(err); strings.Contains(text, context.Canceled.Error()) || strings.Contains(text, "\n") {
		t.Errorf("%s: %q", name, text)
	}
	for _, secret := range []string{redistest.Password, url.QueryEscape(redistest.Password), "wr+ng"} {
		if text := fmt.Sprintf("%v %+v", err, err); strings.Contains(text, secret) {
			t.Errorf("%s shows the password: %s", name, text)
		}
	}
}

func TestFull(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	save1(t, server.URL())
	server.Do(t, "CONFIG SET maxmemory 1")
	wantAll(t, opened(t, server.URL()), "Redis is full", "Load", "Delete")
}

func TestReadOnly(t *testing.T) {
	t.Parallel()
	master := redistest.Start(t)
	replica := redistest.Start(t, "--replicaof", "127.0.0.1", fmt.Sprint(master.Port))
	save1(t, master.URL())
	redistest.Eventually(t, "the record on the replica", func() bool { return replica.Do(t, "EXISTS itsmauth:{k}").(int64) == 1 })
	wantAll(t, opened(t, replica.URL()), "Redis is read-only", "Load")
	// Operations retry, because a failover may be under way.
	failed := make(chan error)
	s := opened(t, replica.URL())
	tr := traced(s)
	go func() { failed <- s.Save(t.Context(), "k", auth.Record{Version: 1}) }()
	redistest.Eventually(t, "a second try", func() bool { tr.mu.Lock(); defer tr.mu.Unlock(); return len(tr.commands) > 1 })
	replica.Do(t, "REPLICAOF NO ONE")
	if err := <-failed; err != nil {
		t.Errorf("Save while a replica becomes the master: %v", err)
	}
}

// An error has the last error reply of Redis.
func TestLastMeaning(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--min-replicas-to-write", "1")
	s := opened(t, server.URL())
	tr := traced(s)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	failed := make(chan error)
	go func() { failed <- s.Save(ctx, "k", auth.Record{}) }()
	tries := func(n int) {
		tr.seen()
		redistest.Eventually(t, "more tries", func() bool { tr.mu.Lock(); defer tr.mu.Unlock(); return len(tr.commands) >= n })
	}
	tries(2)
	server.Do(t, "REPLICAOF 127.0.0.1 1")
	tries(3) // the first may have been running
	server.Signal(t, syscall.SIGSTOP)
	cancel()
	err := <-failed
	wantSays(t, "Save", err, "token store failed: Redis is read-only")
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled", err)
	}
}

// Each kind of error, from a real server, says what to do.
func TestMeanings(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	at := func(addr, user, password, path string) string {
		u := url.URL{Scheme: "redis", Host: addr, Path: path}
		if password != "" {
			u.User = url.UserPassword(user, password)
		}
		return u.String()
	}
	server.Do(t, "ACL SETUSER tickets on ~itsmauth:* +@all", ">"+redistest.Password)

	ca := testpki.New(t)
	cert, key := testpki.Files(t, ca.Issue(t, "127.0.0.1", time.Now().Add(time.Hour)))
	encrypted := redistest.FreePort(t)
	redistest.Start(t, "--tls-port", fmt.Sprint(encrypted), "--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", ca.File(t), "--tls-auth-clients", "yes")
	encryptedAt := fmt.Sprintf("redis://127.0.0.1:%d", encrypted)
	trusted := tlsfile.Config{CAFile: ca.File(t)}

	refusing := func(config string) string {
		s := redistest.Start(t)
		s.Do(t, "CONFIG SET "+config)
		return s.URL()
	}
	for _, tt := range []struct {
		name      string
		config    Config
		url       string
		says      string
		temporary bool
		unclear   bool // Redis sends an alert and closes the connection; either may be seen first
	}{
		{name: "no password", url: at(server.Addr(), "", "", ""), says: "Redis requires a password: put user and password into token_store.url"},
		{name: "wrong password", url: at(server.Addr(), "tickets", "wr+ng", ""), says: "Redis refuses the user or the password: correct them in token_store.url"},
		{name: "other keys", url: at(server.Addr(), "tickets", redistest.Password, ""), config: Config{KeyPrefix: "elsewhere:"},
			says: "the user of token_store.url lacks a permission in Redis: give it +@read"},
		{name: "no such database", url: at(server.Addr(), "tickets", redistest.Password, "/99"), says: "Redis has no database with this number: correct the path of token_store.url"},
		{name: "disk", url: func() string {
			dir := filepath.Join(t.TempDir(), "gone")
			os.Mkdir(dir, 0o700)
			s := redistest.Start(t, "--save", "3600", "1000000", "--dir", dir)
			os.Remove(dir)
			if err := s.Admin(t).Do(t.Context(), "SAVE").Err(); err == nil {
				t.Error("it could be saved")
			}
			s.Admin(t).BgSave(t.Context())
			redistest.Eventually(t, "a save that fails", func() bool {
				return strings.Contains(s.Do(t, "INFO persistence").(string), "rdb_last_bgsave_status:err")
			})
			return s.URL()
		}(), says: "Redis refuses writes because it cannot save them to its disk"},
		{name: "replicas", url: refusing("min-replicas-to-write 1"), says: "Redis refuses writes because it has too few replicas", temporary: true},
		{name: "clients", url: func() string {
			s := redistest.Start(t)
			s.Admin(t).Do(t.Context(), "CONFIG", "SET", "maxclients", 1)
			return s.URL()
		}(), says: "Redis has too many connections: raise its maxclients", temporary: true},
		{name: "TLS to a port without", url: strings.Replace(server.URL(), "redis:", "rediss:", 1), says: "no answer from Redis to the TLS handshake; if its port does not use TLS, begin token_store.url with redis://", temporary: true},
		{name: "no TLS to a port with", url: encryptedAt, says: "begin token_store.url with rediss://", temporary: true},
		{name: "another CA", url: strings.Replace(encryptedAt, "redis:", "rediss:", 1), config: Config{TLS: tlsfile.Config{CAFile: testpki.New(t).File(t)}},
			says: "the certificate of Redis is not trusted (tls: failed to verify certificate: x509: certificate signed by unknown authority"},
		{name: "another name", url: strings.Replace(encryptedAt, "redis:", "rediss:", 1), config: Config{TLS: tlsfile.Config{CAFile: trusted.CAFile, ServerName: "redis"}},
			says: "the certificate of Redis is not valid"},
		{name: "no client certificate", url: strings.Replace(encryptedAt, "redis:", "rediss:", 1), config: Config{TLS: trusted},
			says: "token_store.tls_config", unclear: true},
		{name: "a Sentinel's name for a Redis", url: server.URL("master_name=main"), says: "this server is not a Sentinel: give the addresses of the Sentinels, or remove master_name"},
		{name: "no such host", url: "redis://redis.invalid", says: "cannot reach Redis: dial tcp: lookup redis.invalid", temporary: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.config.URL = auth.SecretString(tt.url)
			if tt.unclear {
				wantSays(t, "Save", openedWith(t, tt.config).Save(context.WithoutCancel(t.Context()), "k", auth.Record{}), tt.says)
				return
			}
			wantMeaning(t, tt.config, "k", tt.says, tt.temporary)
		})
	}
}

// wantMeaning checks that a save fails with says, at once unless the error is temporary.
func wantMeaning(t *testing.T, c Config, key, says string, temporary bool) {
	t.Helper()
	s := openedWith(t, c)
	ctx := context.WithoutCancel(t.Context())
	if temporary {
		ctx = traced(s).secondTry(t)
	}
	err := s.Save(ctx, key, auth.Record{Data: []byte("data")})
	wantSays(t, "Save", err, says)
	if errors.Is(err, context.Canceled) != temporary {
		t.Errorf("retried: %v, want %v", !temporary, temporary)
	}
}

func TestMeaningsOfSentinel(t *testing.T) {
	t.Parallel()
	u, _, watchers := redistest.Sentinels(t)
	for says, change := range map[string]func(u string) string{
		"the Sentinels know no master of that name: correct master_name in token_store.url": func(u string) string {
			return strings.Replace(u, "master_name=main", "master_name=mane", 1)
		},
		"the Sentinels require a password: put sentinel_username and sentinel_password into token_store.url": func(u string) string {
			u, _, _ = strings.Cut(u, "&sentinel_password")
			return u
		},
		"the Sentinels refuse the user or the password: correct sentinel_username and sentinel_password in token_store.url": func(u string) string {
			return strings.Replace(u, "sentinel_password=", "sentinel_password=wr%2Bng", 1)
		},
		"if it is a Sentinel, add master_name to token_store.url": func(string) string { return watchers[0].URL() },
	} {
		wantMeaning(t, Config{URL: auth.SecretString(change(u))}, "k", says, false)
	}
}

func TestMeaningOfCluster(t *testing.T) {
	t.Parallel()
	_, nodes := redistest.Cluster(t)
	seen := 0
	for _, n := range nodes {
		if err := n.Admin(t).Get(t.Context(), "{k}").Err(); err != redis.Nil { // another node has the key
			seen++
			wantMeaning(t, Config{URL: auth.SecretString(n.URL())}, "k", "this Redis is a Cluster node: add ?cluster=true to token_store.url", false)
		}
		if err := opened(t, n.URL("cluster=true")).Save(t.Context(), "k"+fmt.Sprint(n.Port), auth.Record{}); err != nil {
			t.Errorf("with cluster=true: %v", err)
		}
	}
	if seen != 2 {
		t.Errorf("%d of 3 nodes did not have the key", seen)
	}
}

// Replies that Redis 7 does not give, or that are hard to provoke.
func TestClassifyReply(t *testing.T) {
	t.Parallel()
	for reply, want := range map[string]struct {
		says      string
		temporary bool
	}{
		"ERR Error running script (call to f_e0e1f9fabfc9d4800c877a703b823ac0578ff8db): @user_script:2: WRONGTYPE Operation against a key": {"the key k in Redis was not written by itsmauth", false},
		"ERR Error running script (call to f_e0e1f9fabfc9d4800c877a703b823ac0578ff8db): @user_script: 9: -READONLY You can't write":        {"Redis is read-only", true},
		"ERR Error running script (call to f_e0e1f9fabfc9d4800c877a703b823ac0578ff8db): @user_script:9: OOM command not allowed":           {"Redis is full", false},
		"ERR Error running script (call to f_e0e1): @user_script:9: @user_script: 9: -READONLY You can't write":                            {"Redis is read-only", true},
		"ERR Error running script (call to f_e0e1): @user_script:9: @user_script: 9: -NOREPLICAS Not enough good replicas":                 {"Redis refuses writes", true},
		"ERR Error running script (call to f_e0e1): @user_script:9: @user_script: 9: -OOM command not allowed when used":                   {"Redis is full", false},
		"ERR Client sent AUTH, but no password is set": {"Redis has no password", false},
		"DENIED Redis is running in protected mode":    {"Redis is in protected mode", false},
		"BUSY Redis is busy running a script":          {"Redis is busy", true},
		"CLUSTERDOWN The cluster is down":              {"Redis Cluster is down", true},
		"MASTERDOWN Link with MASTER is down":          {"Redis is failing over", true},
		"TRYAGAIN Multiple keys request":               {"Redis Cluster is moving the key", true},
		"ODD and secret":                               {"unexpected reply from Redis: see its log", false},
	} {
		err, temporary := newClient(newDialer(address{}), nil).classifyReply(inScript.ReplaceAllString(reply, ""), "k", false)
		if !strings.HasPrefix(err.Error(), want.says) || temporary != want.temporary {
			t.Errorf("%s: %v, temporary %v", reply, err, temporary)
		}
	}
}

// A server that is none, or says what it was sent, is not quoted.
func TestNoReplyIsQuoted(t *testing.T) {
	t.Parallel()
	const said = "PEERSAYS"
	for name, reply := range map[string]string{
		"error": "-" + said + " " + said + "\r\n", "ERR": "-ERR " + said + "\r\n", "garbage": said + "\r\n", "length": "$" + said + "\r\n",
		"array": "*" + said + "\r\n", "number": ":" + said + "\r\n", "map": "%" + said + "\r\n", "bulk error": "!8\r\n" + said + "\r\n",
		"moved": "-MOVED 1 " + said + ":1\r\n", "string": "+" + said + "\r\n", "verbatim": "=12\r\ntxt:" + said + "\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := testnet.Serve(t, func(conn net.Conn) {
				for b := make([]byte, 4<<10); ; {
					if _, err := conn.Read(b); err != nil {
						return
					}
					io.WriteString(conn, reply)
				}
			})
			for _, path := range []string{"", "?master_name=m", "?cluster=true"} {
				s := openedWith(t, Config{URL: auth.SecretString("redis://u:secret@" + address + path)})
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				err := s.Save(ctx, "k", auth.Record{Data: []byte("data")})
				cancel()
				if text := fmt.Sprintf("%v %+v %#v", err, err, err); err == nil || strings.Contains(strings.ToUpper(text), said) {
					t.Errorf("%s: %s", path, text)
				}
				for e := err; e != nil; e = errors.Unwrap(e) {
					if strings.Contains(strings.ToUpper(e.Error()), said) {
						t.Errorf("%s: %v", path, e)
					}
				}
			}
		})
	}
}
