package providers_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/config"
	"github.com/itsmauth/itsmauth/providers/beyondtrust/beyondtrusttest"
)

// workerEnv names the configuration of a test binary that is to be a worker, not to test.
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

// work is a service of one connector: for each line of stdin, a duration, it calls the product that
// long, and says how that went.
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

// Forty processes use one account, which has room for thirty tokens, through one file store: at the
// start, across an expiry, after a revocation and after an idle time there is one exchange each, and
// no call of theirs is refused.
func TestProcesses(t *testing.T) {
	t.Parallel()
	const processes, lifetime = 40, 15 * time.Second // no step takes the 12 s after which a token is stale
	s := beyondtrusttest.NewServer(&beyondtrusttest.Options{TokenLifetime: lifetime, PerSecond: -1, PerHour: -1})
	t.Cleanup(s.Close)
	var mu sync.Mutex
	var last time.Time // when an exchange was asked for
	s.BreakToken(func(http.ResponseWriter, *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		last = time.Now()
		return false
	})
	ended := func() time.Duration { // until the current token has
		mu.Lock()
		defer mu.Unlock()
		return time.Until(last.Add(lifetime + 200*time.Millisecond))
	}

	p := product{name: "beyondtrust", url: s.URL, settings: map[string]string{
		"client_id": beyondtrusttest.DefaultClientID, "client_secret": beyondtrusttest.DefaultClientSecret,
	}}
	dir := t.TempDir()
	path := filepath.Join(dir, "itsmauth.yaml")
	yaml := fmt.Sprintf("version: 1\ntoken_store: {type: file, path: '%s'}\nconnectors:\n%s", filepath.Join(dir, "tokens"), p.yaml("test", "transport: {rate_limits: []}"))
	if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}

	var workers []*exec.Cmd
	var stdin []io.WriteCloser
	var stdout []*bufio.Reader
	t.Cleanup(func() {
		for _, in := range stdin {
			in.Close()
		}
		for _, w := range workers {
			if err := w.Wait(); err != nil && !t.Failed() {
				t.Error(err)
			}
		}
	})
	for range processes {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), workerEnv+"="+path)
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
		workers, stdin, stdout = append(workers, cmd), append(stdin, in), append(stdout, bufio.NewReader(out))
	}
	all := func(what string) {
		t.Helper()
		for i, out := range stdout {
			if line, err := out.ReadString('\n'); line != "ok\n" {
				t.Fatalf("%s: process %d: %s %v", what, i, strings.TrimSpace(line), err)
			}
		}
	}
	all("config")

	var before beyondtrusttest.Stats
	for _, step := range []struct {
		name    string
		prepare func()
		calls   func() time.Duration
		refused bool // calls go out with a token that the product has killed, and are repeated
	}{
		{name: "start"},
		{name: "across an expiry", calls: ended},
		{name: "after a revocation", prepare: s.RevokeAll, refused: true},
		{name: "after an idle time", prepare: func() { time.Sleep(ended()) }},
	} {
		if step.prepare != nil {
			step.prepare()
		}
		var d time.Duration
		if step.calls != nil {
			d = step.calls()
		}
		for _, in := range stdin {
			fmt.Fprintln(in, d)
		}
		all(step.name)
		after := s.Stats()
		if n := after.Exchanges - before.Exchanges; n != 1 {
			t.Errorf("%s: %d exchanges", step.name, n)
		}
		if n := after.Rejected - before.Rejected; !step.refused && n != 0 || n > processes {
			t.Errorf("%s: %d calls with a refused token", step.name, n)
		}
		if n := after.APICalls - before.APICalls; n < processes {
			t.Errorf("%s: %d calls", step.name, n)
		}
		t.Logf("%s: %+v", step.name, after)
		before = after
	}
}
