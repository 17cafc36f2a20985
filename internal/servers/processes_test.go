package servers

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/itsmauth/itsmauth/config"
	"github.com/itsmauth/itsmauth/internal/testworker"
)

func TestMain(m *testing.M) { testworker.Main(m, work) }

// work calls the API four times at once for each line.
func work(path string) error {
	conns, err := config.Load(path)
	if err != nil {
		return err
	}
	c, err := conns.Get("test")
	if err != nil {
		return err
	}
	err = testworker.Serve(func(string) error {
		results := make(chan error)
		for range 4 {
			go func() { results <- call(c) }()
		}
		var failed error
		for range 4 {
			failed = errors.Join(failed, <-results)
		}
		return failed
	})
	return errors.Join(err, conns.Close())
}

// Three processes share a login through one file store, and the server revokes all access tokens again and again. Each
// time one process refreshes. No refresh token is sent twice, which fosite would answer by ending the login.
func TestProcesses(t *testing.T) {
	t.Parallel()
	for name, tc := range registrations(t) {
		if tc.id == publicID {
			continue // the same, but for the credentials
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			yaml := tc.s.yaml(fileStore(t), tc.s.codeFlow(tc.id, tc.settings...)...)
			login(t, parse(t, yaml))
			path := filepath.Join(t.TempDir(), "itsmauth.yaml")
			if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil {
				t.Fatal(err)
			}
			workers := testworker.Start(t, 3, path)
			const rounds = 3 // at once: a session makes no more
			for round := range rounds + 1 {
				workers.Do(t, fmt.Sprint("round ", round))
				if round < rounds {
					tc.s.revokeAll()
				}
			}
			if exchanges, refreshes, reused := tc.s.counts(); exchanges != 1+rounds || refreshes != rounds || reused != 0 {
				t.Errorf("%d token requests with %d refresh tokens, %d of them twice", exchanges, refreshes, reused)
			}
		})
	}
}
