package redisstore

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/redistest"
)

// A trace records the commands of a store, except those of a connection's handshake.
type trace struct {
	mu       sync.Mutex
	commands []command
	after    int // after this many commands, then is called
	then     func()
}

type command struct {
	start time.Time
	name  string
	args  []any
}

// traced adds a trace to s, which must not have been used yet.
func traced(s *store) *trace {
	tr := &trace{}
	for _, c := range []*client{s.records, s.windows} {
		connect := c.connect
		c.connect = func(dial dialFunc) redis.UniversalClient {
			r := connect(dial)
			r.AddHook(tr)
			return r
		}
	}
	return tr
}

func (tr *trace) DialHook(next redis.DialHook) redis.DialHook { return next }

func (tr *trace) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (tr *trace) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if !slices.Contains([]string{"hello", "auth", "select", "cluster"}, cmd.Name()) {
			tr.mu.Lock()
			tr.commands = append(tr.commands, command{time.Now(), cmd.Name(), cmd.Args()})
			if tr.after--; tr.after == 0 {
				tr.then()
			}
			tr.mu.Unlock()
		}
		return next(ctx, cmd)
	}
}

// seen returns the commands since the last call of seen.
func (tr *trace) seen() []command {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	defer func() { tr.commands = nil }()
	return tr.commands
}

// secondTry returns a context that ends at the second attempt of an operation. Then the store has the
// error of the first.
func (tr *trace) secondTry(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.after, tr.then = 2, cancel
	return ctx
}

// waitBackground waits for the background commands.
func waitBackground(s *store) {
	s.mu.Lock() // so that none is added
	defer s.mu.Unlock()
	s.background.Wait()
}

// settled waits for the running attempts and the background commands of s.
func settled(t *testing.T, s *store) {
	t.Helper()
	idle := func(c *client) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.current == nil || c.current.attempts == 0 && len(c.pools) == 1
	}
	redistest.Eventually(t, "the end of all attempts", func() bool { return idle(s.records) && idle(s.windows) })
	waitBackground(s) // that the last attempts started
}

func attempting(c *client) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current != nil && c.current.attempts > 0
}

// misses counts how often an operation of s finds no idle connection.
func misses(s *store) func() uint32 {
	var pools []redis.UniversalClient
	for _, c := range []*client{s.records, s.windows} {
		c.mu.Lock()
		if c.current != nil {
			pools = append(pools, c.current.redis)
		}
		c.mu.Unlock()
	}
	return func() (n uint32) {
		for _, p := range pools {
			n += p.PoolStats().Misses
		}
		return n
	}
}

// calls counts how often Redis has executed a command, also in scripts.
func calls(t *testing.T, admin *redis.Client, name string) int {
	t.Helper()
	stats, err := admin.InfoMap(t.Context(), "commandstats").Result()
	if err != nil {
		t.Fatal(err)
	}
	text, _, _ := strings.Cut(strings.TrimPrefix(stats["Commandstats"]["cmdstat_"+name], "calls="), ",")
	if text == "" {
		return 0
	}
	return atoi(t, text)
}

func throughProxy(server *redistest.Server, p *redistest.Proxy) string {
	return strings.Replace(server.URL(), server.Addr(), p.Addr(), 1)
}

// A connection is made and kept, even if the operation that needs it has too little time.
func TestSlowNetwork(t *testing.T) {
	t.Parallel()
	const roundTrip = 500 * time.Millisecond
	server := redistest.Start(t)
	save1(t, server.URL())
	s := opened(t, throughProxy(server, redistest.Delay(t, server.Addr(), roundTrip)))
	tr := traced(s)

	hasty, cancel := context.WithTimeout(t.Context(), roundTrip/2)
	defer cancel()
	begun := time.Now()
	if _, err := s.Load(hasty, "k"); !errors.Is(err, auth.ErrStore) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Load within half a round trip: %v", err)
	}
	if err := taken(t.Context(), s); err != nil {
		t.Errorf("Take: %v", err)
	}
	if took := time.Since(begun); took < 3*roundTrip {
		t.Errorf("the first connection took %v: the proxy does not delay", took)
	}
	settled(t, s)
	missed := misses(s)
	before := missed()
	tr.seen()
	for _, op := range methods(s) {
		if err := op.run(t.Context()); err != nil && !errors.Is(err, auth.ErrConflict) { // Delete, because Save has changed the version
			t.Errorf("%s: %v", op.name, err)
		}
		waitBackground(s)
	}
	if n := missed() - before; n != 0 {
		t.Errorf("%d operations found no connection", n)
	}
	var names []string
	for _, c := range tr.seen() {
		names = append(names, c.name)
	}
	// Load, Save, Lock, its unlock, TryLock, Take, Delete
	if want := []string{"hgetall", "eval", "eval", "eval", "eval", "eval", "eval"}; !slices.Equal(names, want) {
		t.Errorf("%v, want a command for each operation, %v", names, want)
	}
}

// The first operation after an outage finds the connections of operations that failed during it.
func TestHung(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	save1(t, server.URL())
	var cold, warm []*store
	for range methods(nil) {
		cold = append(cold, opened(t, server.URL()))
		s := opened(t, server.URL())
		for _, err := range []error{func() error { _, err := s.Load(t.Context(), "k"); return err }(), taken(t.Context(), s)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		warm = append(warm, s)
	}
	server.Signal(t, syscall.SIGSTOP)
	var all sync.WaitGroup
	for kind, stores := range map[string][]*store{"connected": warm, "not connected": cold} {
		for i, s := range stores {
			all.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				op := methods(s)[i]
				err := op.run(ctx)
				if !errors.Is(err, auth.ErrStore) || !errors.Is(err, context.DeadlineExceeded) || !strings.HasSuffix(err.Error(), ": no answer from Redis") {
					t.Errorf("%s, %s: %v", op.name, kind, err)
				}
			})
		}
	}
	all.Wait()
	server.Signal(t, syscall.SIGCONT)
	for i, s := range append(cold, warm...) {
		settled(t, s)
		missed := misses(s)
		before := missed()
		op := methods(s)[i%len(cold)]
		if err := op.run(t.Context()); err != nil && !errors.Is(err, auth.ErrConflict) { // two attempts of the same operation
			t.Errorf("%s after it: %v", op.name, err)
		}
		waitBackground(s)
		if n := missed() - before; n != 0 {
			t.Errorf("%s after it found no connection", op.name)
		}
	}
}

// If a connection drops all packets, another one is made while the first still waits.
func TestVanished(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	save1(t, server.URL())
	p := redistest.Delay(t, server.Addr(), 0)
	s := opened(t, throughProxy(server, p))
	tr := traced(s)
	var both sync.WaitGroup
	for range 3 { // so that there are idle connections too
		both.Go(func() { s.Load(t.Context(), "k") })
	}
	both.Wait()
	p.Vanish()
	tr.seen()
	if r, err := s.Load(t.Context(), "k"); err != nil || r.Version != 1 {
		t.Fatalf("%v, %v", r, err)
	}
	if n := len(tr.seen()); n != 2 {
		t.Errorf("%d attempts, want 2", n)
	}
	if r, err := s.Load(t.Context(), "k"); err != nil || r.Version != 1 {
		t.Fatalf("%v, %v", r, err)
	}
	if n := len(tr.seen()); n != 1 {
		t.Errorf("%d attempts after that, want 1", n)
	}
}

// An operation has at most three running attempts, however long its context lasts.
func TestAttempts(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	p := redistest.Delay(t, server.Addr(), 0)
	p.Hang()
	s := opened(t, throughProxy(server, p))
	tr := traced(s)
	ctx, cancel := context.WithTimeout(t.Context(), 7*time.Second)
	defer cancel()
	if _, err := s.Load(ctx, "k"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if n := len(tr.seen()); n < 2 || n > 3 {
		t.Errorf("%d attempts, want 3", n)
	}
	p.Resume()
	settled(t, s)
	if _, err := s.Load(t.Context(), "k"); err != nil {
		t.Error(err)
	}
}

// A pool that was only slow is used again, and the pool that replaced it is closed.
func TestSlowIsNotGone(t *testing.T) {
	t.Parallel()
	c := newClient(newDialer(address{}), func(dialFunc) redis.UniversalClient { return redis.NewClient(&redis.Options{}) })
	defer c.close()
	begun := time.Now()
	slow, err := c.startAttempt()
	if err != nil {
		t.Fatal(err)
	}
	c.replacePool(slow, begun)
	c.replacePool(slow, begun) // no effect: it is not the current one any more
	second, _ := c.startAttempt()
	if second == slow || len(c.pools) != 2 {
		t.Fatalf("%d pools, and an attempt on the silent one is %v", len(c.pools), second == slow)
	}
	c.endAttempt(slow, true)
	if c.current != slow || len(c.pools) != 2 {
		t.Errorf("the slow one is current: %v, of %d", c.current == slow, len(c.pools))
	}
	c.replacePool(slow, begun) // no effect: it has replied since
	c.endAttempt(second, true)
	if c.current != slow || len(c.pools) != 1 {
		t.Errorf("the slow one is current: %v, of %d", c.current == slow, len(c.pools))
	}
	c.running.Add(-2) // as operation does
}

// If a single server refuses connections for a second, operations fail; they work again when it is back.
func TestRefusesConnections(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := opened(t, server.URL())
	if _, err := s.Load(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	server.Kill()
	var all sync.WaitGroup
	for _, op := range methods(s) {
		all.Go(func() {
			begun := time.Now()
			err := op.run(context.WithoutCancel(t.Context()))
			var dial *net.OpError
			if !errors.Is(err, auth.ErrStore) || !errors.As(err, &dial) || dial.Op != "dial" || !strings.Contains(err.Error(), "cannot reach Redis: dial tcp 127.0.0.1:") {
				t.Errorf("%s: %v", op.name, err)
			}
			if errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s waited as if there were no reply: %v", op.name, err)
			}
			if took := time.Since(begun); took < time.Second {
				t.Errorf("%s failed after %v", op.name, took)
			}
		})
	}
	all.Wait()
	server.Run(t)
	if _, err := s.Load(t.Context(), "k"); err != nil {
		t.Errorf("after it: %v", err)
	}
}

// Operations survive a restart: refused connections are retried for a second, and LOADING longer.
func TestRestart(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024")
	save1(t, server.URL())
	server.Do(t, "EVAL", "for i = 1, 2000 do redis.call('SET', i, i) end", 0)
	server.Do(t, "SAVE")
	s := opened(t, server.URL())
	if _, err := s.Load(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	server.Kill()
	server.Run(t) // it loads for 2 s and replies LOADING
	if r, err := s.Load(t.Context(), "k"); err != nil || r.Version != 1 {
		t.Errorf("%v, %v", r, err)
	}
}

// If all Sentinels refuse connections, operations retry until their context ends.
func TestSentinelsRefuse(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	err := opened(t, "redis://127.0.0.1:1?addr=127.0.0.1:2&master_name=main").Save(ctx, "k", auth.Record{})
	if !errors.Is(err, auth.ErrStore) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "cannot reach a Sentinel: dial tcp 127.0.0.1:") {
		t.Error(err)
	}
}

// replicated opens a store over Sentinels, connected to the master, with a record that all replicas have.
func replicated(t *testing.T) (s *store, url string, redises, watchers []*redistest.Server) {
	t.Helper()
	url, redises, watchers = redistest.Sentinels(t)
	save1(t, url)
	s = opened(t, url)
	redistest.Eventually(t, "the record on the replicas", func() bool {
		return redises[1].Do(t, "EXISTS itsmauth:{k}").(int64)+redises[2].Do(t, "EXISTS itsmauth:{k}").(int64) == 2
	})
	if _, err := s.Load(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	return s, url, redises, watchers
}

func TestFailover(t *testing.T) {
	t.Parallel()
	s, url, redises, watchers := replicated(t)
	watchers[1].Signal(t, syscall.SIGSTOP) // the other two are a majority
	redises[0].Signal(t, syscall.SIGSTOP)  // no connection is closed
	begun := time.Now()
	if err := s.Save(t.Context(), "k", auth.Record{Version: 1, Data: []byte("new")}); err != nil {
		t.Errorf("Save in a failover: %v", err)
	}
	t.Logf("saved %v after the master's death", time.Since(begun).Round(10*time.Millisecond))
	if r, err := opened(t, url).Load(t.Context(), "k"); err != nil || r.Version != 2 || string(r.Data) != "new" {
		t.Errorf("after the failover: %v, %v", r, err)
	}
}

// A master that hung replies again for some seconds after the Sentinels have named another. What is
// written to it then is lost.
func TestMasterWakes(t *testing.T) {
	t.Parallel()
	for name, savesEarly := range map[string]bool{"lock afterwards": false, "save that waits": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, _, redises, watchers := replicated(t)
			redises[0].Signal(t, syscall.SIGSTOP)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			saved := make(chan error, 1)
			save := func() { saved <- s.Save(ctx, "k", auth.Record{Version: 1, Data: []byte("new")}) }
			if savesEarly {
				go save()
			}
			var master int
			redistest.Eventually(t, "another master", func() bool {
				at := watchers[0].Do(t, "SENTINEL GET-MASTER-ADDR-BY-NAME main").([]any)
				master = slices.IndexFunc(redises, func(s *redistest.Server) bool { return strconv.Itoa(s.Port) == at[1] })
				return master > 0
			})
			redises[0].Signal(t, syscall.SIGCONT)
			if !savesEarly {
				_, unlock, err := s.TryLock(ctx, "k", 1)
				if err != nil || unlock == nil {
					t.Fatalf("TryLock: %v", err)
				}
				defer unlock()
				save()
			}
			if err := <-saved; err != nil {
				t.Fatal(err)
			}
			if v := redises[master].Do(t, "HGET itsmauth:{k} version"); v != "2" {
				t.Errorf("the new master has version %v, want 2", v)
			}
		})
	}
}

func TestClusterIsGone(t *testing.T) {
	t.Parallel()
	url, nodes := redistest.Cluster(t)
	save1(t, url)
	for _, n := range nodes {
		n.Kill()
	}
	wantAll(t, opened(t, url), "cannot reach Redis: dial tcp 127.0.0.1:")
}

// A lock or slot that an attempt takes after its caller has given up is released.
func TestTakenLate(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	p := redistest.Delay(t, server.Addr(), 0)
	s := opened(t, throughProxy(server, p))
	w := s.Window("k", []auth.Limit{{Requests: 1, Per: time.Minute}}, time.Hour)
	for name, take := range map[string]func(ctx context.Context) error{
		"Lock":    func(ctx context.Context) error { _, err := s.Lock(ctx, "lock"); return err },
		"TryLock": func(ctx context.Context) error { _, _, err := s.TryLock(ctx, "trylock", 0); return err },
		"Take":    func(ctx context.Context) error { _, _, err := w.Take(ctx, "late"); return err },
		"Take and Release": func(ctx context.Context) error {
			_, _, err := w.Take(ctx, "released")
			w.Release("released", false)
			return err
		},
	} {
		p.Hang()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- take(ctx) }()
		redistest.Eventually(t, "an attempt", func() bool { return attempting(s.records) || attempting(s.windows) })
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
		p.Resume()
		settled(t, s)
		for _, key := range []string{"itsmauth:{lock}:lock", "itsmauth:{trylock}:lock", "itsmauth:{k}:window"} {
			if n := server.Do(t, "EXISTS "+key).(int64); n != 0 {
				t.Errorf("%s was not released", name)
			}
		}
	}
	admin := server.Admin(t)
	if sets, dels := calls(t, admin, "set"), calls(t, admin, "del"); sets < 2 || dels != sets {
		t.Errorf("of %d locks %d were released", sets, dels)
	}
	if adds, rems := calls(t, admin, "zadd"), calls(t, admin, "zrem"); adds < 4 || rems < 2 {
		t.Errorf("after %d ZADDs, two for each slot, there were %d ZREMs", adds, rems)
	}
}

func TestClosed(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := opened(t, server.URL())
	server.Signal(t, syscall.SIGSTOP)
	failed := make(chan error)
	go func() { _, err := s.Load(t.Context(), "k"); failed <- err }()
	redistest.Eventually(t, "an attempt", func() bool {
		s.records.mu.Lock()
		defer s.records.mu.Unlock()
		return s.records.current != nil
	})
	s.Close()
	if err := <-failed; !errors.Is(err, auth.ErrStore) || !strings.Contains(err.Error(), "the store is closed") {
		t.Errorf("running at Close: %v", err)
	}
	for _, op := range methods(s) {
		if err := op.run(t.Context()); !errors.Is(err, auth.ErrStore) || !strings.Contains(err.Error(), "the store is closed") {
			t.Errorf("%s after Close: %v", op.name, err)
		}
	}
}

// Operations with a context that never ends time out.
func TestDefaultTimeout(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := opened(t, server.URL())
	server.Signal(t, syscall.SIGSTOP)
	if _, err := s.Load(context.Background(), "k"); !errors.Is(err, auth.ErrStore) || !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

const childOf = "ITSMAUTH_TEST_CHILD_OF"

func TestMain(m *testing.M) {
	if url := os.Getenv(childOf); url != "" {
		child(url)
		return
	}
	flag.Parse()
	flag.Set("test.parallel", "16") // these tests mostly wait
	os.Exit(m.Run())
}

// child loads from the store at url, closes it, and prints the error and the remaining goroutines.
func child(url string) {
	s, err := Open(Config{URL: auth.SecretString(url)})
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	_, err = s.Load(ctx, "k")
	fmt.Println(err)
	s.(*store).Close()
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > 1 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	if runtime.NumGoroutine() > 1 {
		stacks := make([]byte, 1<<20)
		fmt.Printf("left: %s", stacks[:runtime.Stack(stacks, true)])
	}
}

// go-redis writes nothing to stderr, and Close leaves no goroutine behind, whatever does not reply.
func TestQuiet(t *testing.T) {
	t.Parallel()
	hung, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hung.Close() })
	for url, says := range map[string]string{
		"redis://127.0.0.1:1?addr=127.0.0.1:2&master_name=main":          "cannot reach a Sentinel",
		"redis://127.0.0.1:1?addr=127.0.0.1:2":                           "cannot reach Redis",
		"redis://127.0.0.1:1":                                            "cannot reach Redis",
		"redis://" + hung.Addr().String():                                "no answer from Redis",
		"rediss://" + hung.Addr().String():                               "no answer from Redis to the TLS handshake",
		"redis://127.0.0.1:1?master_name=m&addr=" + hung.Addr().String(): "no answer from Redis",
		"redis://" + hung.Addr().String() + "?cluster=true":              "no answer from Redis",
	} {
		t.Run(url, func(t *testing.T) {
			t.Parallel()
			child := exec.Command(os.Args[0])
			child.Env = append(os.Environ(), childOf+"="+url)
			var stdout, stderr strings.Builder
			child.Stdout, child.Stderr = &stdout, &stderr
			if err := child.Run(); err != nil {
				t.Fatal(err)
			}
			if text := stdout.String(); !strings.HasPrefix(text, "token store failed: "+says) || strings.Contains(text, "left:") {
				t.Error(text)
			}
			if stderr.Len() > 0 {
				t.Errorf("stderr: %s", &stderr)
			}
		})
	}
}
