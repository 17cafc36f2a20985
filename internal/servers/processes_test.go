package servers

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/itsmauth/itsmauth/config"
)

// workerEnv has the configuration file for a test binary that runs as a worker instead of tests.
const workerEnv = "ITSMAUTH_TEST_WORKER"

func TestMain(m *testing.M) {
	if path := os.Getenv(workerEnv); path != "" {
		if err := work(path); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// work calls the API four times at once for each line of stdin, and prints the result.
func work(path string) error {
	conns, err := config.Load(path)
	if err != nil {
		return err
	}
	defer conns.Close()
	c, err := conns.Get("test")
	if err != nil {
		return err
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		results := make(chan error)
		for range 4 {
			go func() { results <- call(c) }()
		}
		var failed error
		for range 4 {
			if err := <-results; err != nil {
				failed = err
			}
		}
		if failed != nil {
			return failed
		}
		fmt.Println("ok")
	}
	return conns.Close()
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
			var workers []*worker
			for range 3 {
				workers = append(workers, startWorker(t, path))
			}
			const rounds = 3 // at once: a session makes no more
			for round := range rounds + 1 {
				for _, w := range workers {
					fmt.Fprintln(w.stdin)
				}
				for i, w := range workers {
					if line, err := w.stdout.ReadString('\n'); line != "ok\n" {
						t.Fatalf("round %d, process %d: %s %v", round, i, strings.TrimSpace(line), err)
					}
				}
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

// A worker is a process.
type worker struct {
	stdin  io.Writer
	stdout *bufio.Reader
}

func startWorker(t *testing.T, path string) *worker {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), workerEnv+"="+path, "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil && !t.Failed() {
			t.Error(err)
		}
	})
	return &worker{in, bufio.NewReader(out)}
}
