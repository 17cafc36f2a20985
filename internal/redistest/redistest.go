// Package redistest starts Redis servers for tests: one server, a set watched by Sentinel, or a Cluster.
package redistest

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// Password is the password of all servers.
const Password = "p+a/s=s&w%rd"

// Server is a running Redis or Sentinel.
type Server struct {
	Port  int
	args  []string
	cmd   *exec.Cmd
	log   *bytes.Buffer
	ended chan struct{}
}

// program finds a program. Debian's package has the same name.
func program(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing; install the package %s", name, name)
	}
	t.Skipf("%s is missing; install the package %s to run this test", name, name)
	return ""
}

// lastPort is what FreePort returned last. It starts at random, because other processes have ports too.
var lastPort = func() *atomic.Uint32 {
	p := new(atomic.Uint32)
	p.Store(rand.Uint32N(20000))
	return p
}()

// FreePort returns a port that nothing listens on. It is below the ports that the system gives to
// outgoing connections, and no other test of this process gets it.
func FreePort(t testing.TB) int {
	t.Helper()
	for range 1000 {
		port := 10000 + int(lastPort.Add(1)%20000)
		if l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// Start starts a Redis on a free port, and stops it when the test ends.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	s := &Server{Port: FreePort(t)}
	s.args = append([]string{
		program(t, "redis-server"), "--port", strconv.Itoa(s.Port), "--bind", "127.0.0.1", "--dir", t.TempDir(),
		"--save", "", "--requirepass", Password, "--masterauth", Password, "--repl-diskless-sync-delay", "0",
	}, args...)
	s.Run(t)
	t.Cleanup(s.Kill)
	return s
}

// Run starts the process, or restarts it after Kill, and returns when it replies.
func (s *Server) Run(t testing.TB) {
	t.Helper()
	s.log, s.ended = new(bytes.Buffer), make(chan struct{})
	s.cmd = exec.Command(s.args[0], s.args[1:]...)
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func(cmd *exec.Cmd, ended chan struct{}) { cmd.Wait(); close(ended) }(s.cmd, s.ended)
	c := redis.NewClient(&redis.Options{Addr: s.Addr(), Password: Password, Protocol: 2})
	defer c.Close()
	ours := fmt.Sprintf("process_id:%d\r\n", s.cmd.Process.Pid) // another process may have taken the port
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if info, err := c.Info(context.Background(), "server").Result(); err == nil && strings.Contains(info, ours) {
			return
		}
		select {
		case <-s.ended:
			t.Fatalf("%s ended: %s", s.args[0], s.log)
		default:
		}
		if time.Now().After(end) {
			s.Kill()
			t.Fatalf("%s does not reply: %s", s.args[0], s.log)
		}
	}
}

func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port)) }

// URL returns the URL for a store's Config, with parameters such as "addr=...".
func (s *Server) URL(params ...string) string {
	u := url.URL{Scheme: "redis", User: url.UserPassword("default", Password), Host: s.Addr(), RawQuery: strings.Join(params, "&")}
	return u.String()
}

func (s *Server) Signal(t *testing.T, sig os.Signal) {
	t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

func (s *Server) Kill() {
	s.cmd.Process.Signal(syscall.SIGCONT)
	s.cmd.Process.Kill()
	<-s.ended
}

// Admin returns a client with go-redis's default timeouts.
func (s *Server) Admin(t *testing.T) *redis.Client {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: s.Addr(), Password: Password, Protocol: 2})
	t.Cleanup(func() { c.Close() })
	return c
}

// Do runs a command, which is one line, with further arguments.
func (s *Server) Do(t *testing.T, command string, args ...any) any {
	t.Helper()
	var all []any
	for _, word := range strings.Fields(command) {
		all = append(all, word)
	}
	v, err := s.Admin(t).Do(context.Background(), append(all, args...)...).Result()
	if err != nil && err != redis.Nil {
		t.Fatalf("%s: %v", command, err)
	}
	return v
}

// Eventually waits until ok returns true. It allows a minute, for busy machines.
func Eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("did not happen: %s", what)
		}
	}
}

// Sentinels starts a master with two replicas, and three Sentinels that watch it.
func Sentinels(t *testing.T) (url string, redises, watchers []*Server) {
	t.Helper()
	path := program(t, "redis-sentinel")
	master := Start(t)
	redises = []*Server{master}
	for range 2 {
		redises = append(redises, Start(t, "--replicaof", "127.0.0.1", strconv.Itoa(master.Port)))
	}
	for range 3 {
		s := &Server{Port: FreePort(t)}
		conf := filepath.Join(t.TempDir(), "sentinel.conf")
		text := fmt.Sprintf(`port %d
bind 127.0.0.1
requirepass %q
sentinel monitor main 127.0.0.1 %d 2
sentinel auth-pass main %s
sentinel down-after-milliseconds main 1000
sentinel failover-timeout main 5000
`, s.Port, Password, master.Port, Password)
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s.args = []string{path, conf}
		s.Run(t)
		t.Cleanup(s.Kill)
		watchers = append(watchers, s)
	}
	for _, s := range watchers {
		Eventually(t, "a Sentinel that knows all", func() bool {
			c := redis.NewSentinelClient(&redis.Options{Addr: s.Addr(), Password: Password, Protocol: 2})
			defer c.Close()
			m, err := c.Master(context.Background(), "main").Result()
			return err == nil && m["num-slaves"] == "2" && m["num-other-sentinels"] == "2"
		})
	}
	return watchers[0].URL("addr="+watchers[1].Addr(), "addr="+watchers[2].Addr(), "master_name=main",
		"sentinel_password="+escaped), redises, watchers
}

var escaped = url.QueryEscape(Password)

// Cluster starts a Cluster of three masters.
func Cluster(t *testing.T) (url string, nodes []*Server) {
	t.Helper()
	for range 3 {
		nodes = append(nodes, Start(t, "--cluster-enabled", "yes", "--cluster-port", strconv.Itoa(FreePort(t))))
	}
	for i, n := range nodes {
		n.Do(t, "CLUSTER ADDSLOTSRANGE", i*16384/3, (i+1)*16384/3-1)
		n.Do(t, "CLUSTER SET-CONFIG-EPOCH", i+1)
	}
	for _, n := range nodes[1:] {
		busPort := nodes[0].args[len(nodes[0].args)-1]
		n.Do(t, "CLUSTER MEET 127.0.0.1", nodes[0].Port, busPort)
	}
	for _, n := range nodes {
		Eventually(t, "a Cluster that is whole", func() bool {
			info := n.Do(t, "CLUSTER INFO").(string)
			return strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_known_nodes:3")
		})
	}
	return nodes[0].URL("addr=" + nodes[1].Addr()), nodes
}
