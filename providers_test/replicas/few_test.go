package replicas_test

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/auth/redisstore"
	"github.com/itsmauth/itsmauth/config"
	"github.com/itsmauth/itsmauth/internal/redistest"
)

// Five processes that start at once share one token.
func TestFiveProcesses(t *testing.T) {
	s := newBeyondTrust(t, time.Hour)
	store, secret := redisStore(redistest.Start(t).URL()), secretFile(t)
	all := launch(t, 5, job{Loads: 1, Calls: map[string]string{support: supportPath}, Pause: 50 * time.Millisecond},
		func(i int) string { return configuration(store, beyondtrust(s, secret, "", i)) })
	begin(t, all)
	sum := finish(t, all).Connectors[support]
	if n := s.Stats().Exchanges; n != 1 || sum.Failed > 0 || sum.Calls < 5 {
		t.Errorf("%d exchanges, %d calls, failed: %v", n, sum.Calls, sum.Errors)
	}
}

// A call with a fresh token sends nothing to Redis.
func TestFreshTokenCostsNothing(t *testing.T) {
	s := newBeyondTrust(t, time.Hour)
	server := redistest.Start(t)
	text := configuration(redisStore(server.URL()), beyondtrust(s, secretFile(t), "[]", 0))
	conns, err := config.Parse("it.yaml", []byte(text), config.WithStore("redis", redisstore.Open))
	if err != nil {
		t.Fatal(err)
	}
	defer conns.Close()
	conn, err := conns.Get(support)
	if err != nil {
		t.Fatal(err)
	}
	// Only scripts and reads of the record count: the store may open connections at any time.
	commands := func() (n int) {
		for name, calls := range commandCalls(t, server) {
			if strings.HasPrefix(name, "eval") || name == "hgetall" {
				n += calls
			}
		}
		return n
	}
	if err := call(conn, supportPath); err != nil {
		t.Fatal(err)
	}
	// The call does not wait for the save of its token, and the save not for the unlock.
	redistest.Eventually(t, "the end of the exchange", func() bool {
		return len(server.Do(t, "KEYS *}").([]any)) == 1 && len(server.Do(t, "KEYS *:lock").([]any)) == 0
	})
	before := commands()
	if before == 0 {
		t.Fatal("the exchange was not counted")
	}
	for range 1000 {
		if err := call(conn, supportPath); err != nil {
			t.Fatal(err)
		}
	}
	if n := commands() - before; n != 0 {
		t.Errorf("1,000 calls with a fresh token sent %d commands", n)
	}
}

// commandCalls returns how often Redis has run each command, within scripts too.
func commandCalls(t *testing.T, server *redistest.Server) map[string]int {
	t.Helper()
	all := make(map[string]int)
	for line := range strings.Lines(server.Do(t, "INFO commandstats").(string)) {
		name, rest, ok := strings.Cut(line, ":calls=")
		if !ok {
			continue
		}
		calls, _, _ := strings.Cut(rest, ",")
		n, err := strconv.Atoi(calls)
		if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimPrefix(name, "cmdstat_")] = n
	}
	return all
}
