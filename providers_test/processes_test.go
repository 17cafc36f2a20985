package providers_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/config"
	"github.com/itsmauth/itsmauth/providers/beyondtrust/beyondtrusttest"
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

// work is a service with one connector. For each line of stdin, a duration, it calls the product that long,
// and prints the result.
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
	fmt.Println("ok")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		d, err := time.ParseDuration(in.Text())
		if err != nil {
			return err
		}
		for end := time.Now().Add(d); ; time.Sleep(200 * time.Millisecond) {
			status, body, err := call(context.Background(), c, "GET", "/api/command?action=get_api_info", "")
			if err != nil || status != 200 {
				return fmt.Errorf("HTTP %d, %v: %.200s", status, err, body)
			}
			if time.Now().After(end) {
				break
			}
		}
		fmt.Println("ok")
	}
	return conns.Close()
}

// Several processes share one account through one file store. There is one exchange when they start
// together, and one after the product has revoked the token.
func TestProcesses(t *testing.T) {
	t.Parallel()
	w := startWorkers(t, 8, &beyondtrusttest.Options{PerSecond: -1, PerHour: -1})
	w.call(t, "start", 0, false)
	w.s.RevokeAll()
	w.call(t, "after a revocation", 0, true)
}

// workers are processes that share one account through one file store.
type workers struct {
	s      *beyondtrusttest.Server
	before beyondtrusttest.Stats
	stdin  []io.WriteCloser
	stdout []*bufio.Reader
}

func startWorkers(t *testing.T, n int, o *beyondtrusttest.Options) *workers {
	t.Helper()
	w := &workers{s: beyondtrusttest.NewServer(o)}
	t.Cleanup(w.s.Close)
	p := product{name: "beyondtrust", url: w.s.URL, settings: map[string]string{
		"client_id": beyondtrusttest.DefaultClientID, "client_secret": beyondtrusttest.DefaultClientSecret,
	}}
	dir := t.TempDir()
	path := filepath.Join(dir, "itsmauth.yaml")
	write(t, path, fmt.Sprintf("version: 1\ntoken_store: {type: file, path: '%s'}\nconnectors:\n%s", filepath.Join(dir, "tokens"), p.yaml("test", "transport: {rate_limits: []}")))
	for range n {
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
		w.stdin, w.stdout = append(w.stdin, in), append(w.stdout, bufio.NewReader(out))
	}
	w.await(t, "config")
	return w
}

// await waits until each worker has reported success.
func (w *workers) await(t *testing.T, what string) {
	t.Helper()
	for i, out := range w.stdout {
		if line, err := out.ReadString('\n'); line != "ok\n" {
			t.Fatalf("%s: process %d: %s %v", what, i, strings.TrimSpace(line), err)
		}
	}
}

// call makes each worker call the product for d. There must be one exchange, and no call with a token that
// the product refuses, unless refused is set.
func (w *workers) call(t *testing.T, what string, d time.Duration, refused bool) {
	t.Helper()
	for _, in := range w.stdin {
		fmt.Fprintln(in, d)
	}
	w.await(t, what)
	after := w.s.Stats()
	if n := after.Exchanges - w.before.Exchanges; n != 1 {
		t.Errorf("%s: %d exchanges", what, n)
	}
	if n := after.Rejected - w.before.Rejected; !refused && n != 0 || n > len(w.stdin) {
		t.Errorf("%s: %d calls with a refused token", what, n)
	}
	if n := after.APICalls - w.before.APICalls; n < len(w.stdin) {
		t.Errorf("%s: %d calls", what, n)
	}
	t.Logf("%s: %+v", what, after)
	w.before = after
}
