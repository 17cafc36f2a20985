// Package replicas_test starts many real processes that share one account and one token store, and
// counts their requests to the product. Some of its tests, which take seconds, run with all other tests. The
// rest, which take minutes, have the build tag soak:
//
//	go test -tags soak -count=1 -v -timeout 30m ./providers_test/replicas
package replicas_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
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
	"github.com/itsmauth/itsmauth/providers/beyondtrust/beyondtrusttest"
)

// replicaEnv makes the test binary a replica: it runs the job in its first argument.
const replicaEnv = "ITSMAUTH_REPLICA"

func TestMain(m *testing.M) {
	logging.Disable()
	switch os.Getenv(replicaEnv) {
	case "":
		os.Exit(m.Run())
	case "busy":
		busy()
	default:
		if err := replica(os.Args[1]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
}

// busy uses a processor until its stdin ends.
func busy() {
	go func() { io.Copy(io.Discard, os.Stdin); os.Exit(0) }()
	for n := uint64(0); ; n++ {
	}
}

// A job is what a replica does.
type job struct {
	Config string            // the file
	Loads  int               // how many times the file is loaded, each as if by a process of its own
	Calls  map[string]string // the path to call, by connector
	Pause  time.Duration     // between two calls, on average
}

// A start is what a replica reports when all its connectors have a token.
type start struct {
	Slowest time.Duration // first Token
	Total   time.Duration // of all first Tokens
}

// An end is what a replica reports at its end.
type end struct {
	Connectors map[string]*tally
	Warnings   int // log lines
}

// A tally counts the calls of a connector.
type tally struct {
	Calls   int
	Failed  int            // other than for a login
	Refused int            // because somebody must log in
	Errors  map[string]int // how many calls failed with that error
}

func (t *tally) count(err error) {
	t.Calls++
	switch {
	case err == nil:
	case errors.Is(err, auth.ErrConsentRequired):
		t.Refused++
	default:
		t.Failed++
		t.note(err.Error(), 1)
	}
}

func (t *tally) note(err string, n int) {
	if t.Errors == nil {
		t.Errors = make(map[string]int)
	}
	if t.Errors[err] > 0 || len(t.Errors) < 10 {
		t.Errors[err] += n
	}
}

// replica runs a job. It writes a line when it is up. With a first line on stdin it loads the
// configuration and starts to call. It writes a start when it has its first tokens, then for each line
// on stdin digests of its current tokens, and an end when stdin ends.
func replica(text string) error {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return err
	}
	in, out := bufio.NewScanner(os.Stdin), json.NewEncoder(os.Stdout)
	if err := out.Encode("up"); err != nil || !in.Scan() {
		return err
	}
	r := &running{job: j}
	r.sum.Connectors = make(map[string]*tally)
	for name := range j.Calls {
		r.sum.Connectors[name] = new(tally)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var started, ended sync.WaitGroup
	for range j.Loads {
		started.Add(len(j.Calls))
		ended.Go(func() { r.run(ctx, started.Done) })
	}
	started.Wait()
	if r.failure != nil {
		return r.failure
	}
	if err := out.Encode(r.first); err != nil {
		return err
	}
	for in.Scan() {
		if err := out.Encode(r.digests()); err != nil {
			return err
		}
	}
	stop()
	ended.Wait()
	r.sum.Warnings = int(r.warnings.Load())
	return out.Encode(r.sum)
}

// running is a replica at work.
type running struct {
	job      job
	warnings atomic.Int64

	mu      sync.Mutex
	failure error // to load the configuration
	conns   []*config.Connector
	first   start
	sum     end
}

// run loads the configuration and calls each connector until ctx ends. It calls started once a
// connector.
func (r *running) run(ctx context.Context, started func()) {
	conns, err := config.Load(r.job.Config,
		config.WithStore("redis", redisstore.Open),
		config.WithLogger(slog.New(slog.NewTextHandler(warnings{&r.warnings}, &slog.HandlerOptions{Level: slog.LevelWarn}))),
		config.WithWrap(func(_ string, next http.RoundTripper) http.RoundTripper { return stamp{next} }))
	if err != nil {
		r.mu.Lock()
		r.failure = err
		r.mu.Unlock()
		for range r.job.Calls {
			started()
		}
		return
	}
	defer conns.Close()
	var callers sync.WaitGroup
	for name, path := range r.job.Calls {
		callers.Go(func() {
			conn, err := conns.Get(name)
			if err != nil {
				panic(err) // a mistake in the test
			}
			begun := time.Now()
			_, err = conn.Authenticator().Token(context.Background())
			took := time.Since(begun)
			r.mu.Lock()
			r.conns = append(r.conns, conn)
			r.first.Slowest = max(r.first.Slowest, took)
			r.first.Total += took
			r.mu.Unlock()
			started()
			for {
				r.mu.Lock()
				r.sum.Connectors[name].count(err)
				r.mu.Unlock()
				if r.job.Pause > 0 {
					select {
					case <-time.After(r.job.Pause/2 + rand.N(r.job.Pause)):
					case <-ctx.Done():
					}
				}
				if ctx.Err() != nil {
					return
				}
				err = call(conn, path)
			}
		})
	}
	callers.Wait()
}

// digests returns, by connector, a digest of the current token of each load. It is empty if there is no
// token within a second.
func (r *running) digests() map[string][]string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	all := make(map[string][]string)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, conn := range r.conns {
		wg.Go(func() {
			digest := ""
			if tok, err := conn.Authenticator().Token(ctx); err == nil {
				sum := sha256.Sum256([]byte(tok.AccessToken))
				digest = hex.EncodeToString(sum[:4])
			}
			mu.Lock()
			defer mu.Unlock()
			all[conn.Name] = append(all[conn.Name], digest)
		})
	}
	wg.Wait()
	return all
}

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

// warnings counts log lines.
type warnings struct{ n *atomic.Int64 }

func (w warnings) Write(line []byte) (int, error) {
	w.n.Add(1)
	return len(line), nil
}

// sentAt is the header that says when a request went out, in nanoseconds.
const sentAt = "Sent-At"

// stamp puts sentAt on each attempt.
type stamp struct{ next http.RoundTripper }

func (s stamp) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set(sentAt, strconv.FormatInt(time.Now().UnixNano(), 10))
	return s.next.RoundTrip(r)
}

// silence is how long a test waits for a line of a replica.
const silence = 2 * time.Minute

// process is a replica that runs.
type process struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	pipe  *os.File
	out   *bufio.Reader
	away  bool // killed or stopped, so it does not answer
}

// launch starts n replicas, which wait for begin. The file of each is configuration's text.
func launch(t *testing.T, n int, j job, configuration func(i int) string) []*process {
	t.Helper()
	dir := t.TempDir()
	var all []*process
	for i := range n {
		j.Config = filepath.Join(dir, fmt.Sprintf("%d.yaml", i))
		write(t, j.Config, configuration(i))
		all = append(all, spawn(t, j))
	}
	for _, p := range all {
		p.read(t, new(string))
	}
	return all
}

func spawn(t *testing.T, j job) *process {
	t.Helper()
	text, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: exec.Command(os.Args[0], string(text))}
	p.cmd.Env = append(os.Environ(), replicaEnv+"=1", "GOMAXPROCS=1")
	p.cmd.Stderr = os.Stderr
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.pipe, p.out = out.(*os.File), bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.cmd.Process.Kill(); p.cmd.Wait() })
	return p
}

// begin has replicas load their configurations and call, all at once. It returns when each has tokens.
func begin(t *testing.T, all []*process) start {
	t.Helper()
	for _, p := range all {
		p.tell(t)
	}
	return begun(t, all)
}

// begun is the second half of begin: it waits for the replicas' tokens.
func begun(t *testing.T, all []*process) (sum start) {
	t.Helper()
	for _, p := range all {
		var s start
		p.read(t, &s)
		sum.Slowest = max(sum.Slowest, s.Slowest)
		sum.Total += s.Total
	}
	return sum
}

func (p *process) tell(t *testing.T) {
	t.Helper()
	if _, err := io.WriteString(p.stdin, "\n"); err != nil {
		t.Fatalf("a replica has gone: %v", err)
	}
}

// read decodes the next line.
func (p *process) read(t *testing.T, v any) {
	t.Helper()
	if err := p.pipe.SetReadDeadline(time.Now().Add(silence)); err != nil {
		t.Fatal(err)
	}
	line, err := p.out.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, v)
	}
	if err != nil {
		p.cmd.Process.Signal(syscall.SIGQUIT) // prints what it is doing
		time.Sleep(time.Second)
		t.Fatalf("replica %d does not answer: %v %s", p.cmd.Process.Pid, err, line)
	}
}

// finish ends the replicas and adds up their reports, except of those that are away.
func finish(t *testing.T, all []*process) end {
	t.Helper()
	sum := end{Connectors: make(map[string]*tally)}
	for _, p := range all {
		p.stdin.Close()
	}
	for _, p := range all {
		if p.away {
			continue
		}
		var e end
		p.read(t, &e)
		sum.Warnings += e.Warnings
		for name, one := range e.Connectors {
			if sum.Connectors[name] == nil {
				sum.Connectors[name] = new(tally)
			}
			total := sum.Connectors[name]
			total.Calls += one.Calls
			total.Failed += one.Failed
			total.Refused += one.Refused
			for err, n := range one.Errors {
				total.note(err, n)
			}
		}
	}
	return sum
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// configuration is a file with a token store and connectors, each written in YAML.
func configuration(store string, connectors ...string) string {
	return "version: 1\ntoken_store: " + store + "\nconnectors:\n" + strings.Join(connectors, "")
}

func redisStore(url string) string {
	return fmt.Sprintf("{ type: redis, url: '%s', encryption: none }", url)
}

// support is the name of the connector to BeyondTrust.
const (
	support     = "support"
	supportPath = "/api/command?action=get_api_info"
)

// beyondtrust is the connector's YAML. Limits are a list, "" for the product's own. The server finds the
// replica's number in the User-Agent.
func beyondtrust(s *beyondtrusttest.Server, secretFile, limits string, replica int) string {
	if limits != "" {
		limits = "rate_limits: " + limits + ","
	}
	return fmt.Sprintf(`  %s:
    provider: beyondtrust
    base_url: %s
    client_id: '%s'
    client_secret: ${file:%s}
    transport: { %s user_agent: replica/%d }
`, support, s.URL, beyondtrusttest.DefaultClientID, secretFile, limits, replica)
}

func secretFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	write(t, path, beyondtrusttest.DefaultClientSecret)
	return path
}

// newBeyondTrust starts an appliance that allows 30 tokens and any number of requests. Where a test needs rate
// limits, only the processes have them.
func newBeyondTrust(t *testing.T, lifetime time.Duration) *beyondtrusttest.Server {
	s := beyondtrusttest.NewServer(&beyondtrusttest.Options{PerSecond: -1, PerHour: -1, TokenLifetime: lifetime})
	t.Cleanup(s.Close)
	return s
}
