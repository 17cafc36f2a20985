//go:build soak

package replicas_test

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/internal/redistest"
)

// cli builds the command.
func cli(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "itsmauth")
	if out, err := exec.Command("go", "build", "-o", path, "github.com/itsmauth/itsmauth/cmd/itsmauth").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

// runCLI runs the command on a configuration, and returns its output and its errors.
func runCLI(path, file string, args ...string) (stdout, stderr string, err error) {
	cmd := exec.Command(path, append([]string{"--config", file}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// Ten times in a row the command is asked for a token, with a round trip of 100 ms to Redis: there is one
// exchange, and each prints its token.
func TestSoakCommandToken(t *testing.T) {
	const times = 10
	s, command := newBeyondTrust(t, time.Hour), cli(t)
	url, _ := proxied(t, redistest.Start(t), 100*time.Millisecond)
	file := filepath.Join(t.TempDir(), "it.yaml")
	write(t, file, configuration(redisStore(url), beyondtrust(s, secretFile(t), "", 0)))
	tokens := make(map[string]bool)
	failed := 0
	begun := time.Now()
	for range times {
		stdout, stderr, err := runCLI(command, file, "token", support)
		if err != nil {
			failed++
			t.Errorf("%v: %s", err, stderr)
		}
		tokens[stdout] = true
	}
	n := s.Stats().Exchanges
	summary(t, "itsmauth token, 10 times in a row, 100 ms to Redis and back", n, failed, "%s each", seconds(time.Since(begun)/times))
	if n != 1 || len(tokens) != 1 {
		t.Errorf("%d exchanges, %d tokens, want 1 and 1", n, len(tokens))
	}
}

// Five times in a row the command calls Remedy with a token that was revoked, with a round trip of 100 ms
// to Redis: each time it spends the login's refresh token, saves the new one, and has its answer.
func TestSoakCommandRotates(t *testing.T) {
	const times = 5
	s, seed := newRemedy(t, time.Hour)
	command := cli(t)
	url, _ := proxied(t, redistest.Start(t), 100*time.Millisecond)
	file := filepath.Join(t.TempDir(), "it.yaml")
	write(t, file, configuration(redisStore(url), remedy(s, seed, 0)))
	failed := 0
	begun := time.Now()
	for range times {
		s.RevokeAll()
		if _, stderr, err := runCLI(command, file, "call", incidents, incidentsPath); err != nil {
			failed++
			t.Errorf("%v: %s", err, stderr)
		}
	}
	n := s.Stats()
	summary(t, "itsmauth call with a revoked token and a rotating login, 5 times in a row, 100 ms to Redis and back", n.Exchanges, failed, "%s each", seconds(time.Since(begun)/times))
	if n.Rotations != times || n.Reuses > 0 {
		t.Errorf("%d rotations, %d refresh tokens used twice, want %d and 0", n.Rotations, n.Reuses, times)
	}
}
