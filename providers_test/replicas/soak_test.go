//go:build soak

package replicas_test

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/internal/redistest"
	"github.com/itsmauth/itsmauth/providers/beyondtrust/beyondtrusttest"
)

var full = flag.Bool("full", false, "run all numbers of processes at all round trips")

// summary logs a line of a table: the test, its exchanges, failed calls, and figures that depend on the
// machine.
func summary(t *testing.T, what string, exchanges, failed int, figures string, args ...any) {
	t.Helper()
	t.Logf("| %s | %d | %d | %s |", what, exchanges, failed, fmt.Sprintf(figures, args...))
}

// seconds prints d with two decimals.
func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }

// wantNoFailures fails the test if a call of the connector failed or asked for a login.
func wantNoFailures(t *testing.T, sum end, connector string) {
	t.Helper()
	n := sum.Connectors[connector]
	if n.Failed > 0 || n.Refused > 0 {
		t.Errorf("%s: of %d calls %d failed and %d asked for a login", connector, n.Calls, n.Failed, n.Refused)
		for err, times := range n.Errors {
			t.Logf("%4d times: %s", times, err)
		}
	}
	if n.Calls == 0 {
		t.Errorf("%s: no calls", connector)
	}
}

// supportJob is a job that calls BeyondTrust.
func supportJob(loads int, pause time.Duration) job {
	return job{Loads: loads, Calls: map[string]string{support: supportPath}, Pause: pause}
}

// proxied puts a proxy in front of a Redis and returns the URL through it.
func proxied(t *testing.T, server *redistest.Server, roundTrip time.Duration) (url string, proxy *redistest.Proxy) {
	t.Helper()
	proxy = redistest.Delay(t, server.Addr(), roundTrip)
	return strings.Replace(server.URL(), server.Addr(), proxy.Addr(), 1), proxy
}

// atLeast waits until n() has reached want.
func atLeast(t *testing.T, what string, want int, n func() int) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); n() < want; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d %s, want %d", n(), what, want)
		}
	}
}

// agree waits until all processes have the same token of the connector, and returns how long that took.
func agree(t *testing.T, all []*process, connector string) time.Duration {
	t.Helper()
	for begun := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		held := make(map[string]int)
		for _, p := range all {
			if !p.away {
				p.tell(t)
			}
		}
		for _, p := range all {
			if p.away {
				continue
			}
			var digests map[string][]string
			p.read(t, &digests)
			for _, digest := range digests[connector] {
				held[digest]++
			}
		}
		took := time.Since(begun)
		if len(held) == 1 && held[""] == 0 {
			return took
		}
		if took > time.Minute {
			t.Errorf("%s: after %v the processes still hold different tokens, or none: %v", connector, took, held)
			return took
		}
	}
}

// newToken runs revoke, which invalidates the current token, waits until all processes have the same new
// token, and returns how many exchanges that took.
func newToken(t *testing.T, all []*process, connector string, exchanges func() int, revoke func()) (cost int, took time.Duration) {
	t.Helper()
	before, begun := exchanges(), time.Now()
	revoke()
	atLeast(t, "exchanges", before+1, exchanges)
	agree(t, all, connector)
	return exchanges() - before, time.Since(begun)
}

// scripts returns how many scripts Redis has run. The store sends nothing else, except reads of the record.
func scripts(t *testing.T, server *redistest.Server) (n int) {
	t.Helper()
	for name, calls := range commandCalls(t, server) {
		if strings.HasPrefix(name, "eval") {
			n += calls
		}
	}
	return n
}

// keepBusy keeps n processors busy until the test ends.
func keepBusy(t *testing.T, n int) {
	t.Helper()
	for range n {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), replicaEnv+"=busy")
		if _, err := cmd.StdinPipe(); err != nil { // closed when this process ends, which ends the loop
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	}
}

// throttle makes processes share a tenth of a CPU. Without cgroups it skips the test.
func throttle(t *testing.T, all []*process) {
	t.Helper()
	dir, err := cgroup()
	if err != nil {
		t.Skipf("no cgroup that limits the CPU: %v", err)
	}
	t.Cleanup(func() {
		for _, p := range all {
			p.cmd.Process.Kill() // a group that has processes cannot be removed
		}
		for range 100 {
			if syscall.Rmdir(dir) == nil {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Logf("%s is left behind", dir)
	})
	for _, p := range all {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(p.cmd.Process.Pid)), 0); err != nil {
			t.Skipf("no cgroup that limits the CPU: %v", err)
		}
	}
}

// cgroup makes a group whose processes share a tenth of a CPU.
func cgroup() (dir string, err error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	limits := map[string]string{}
	parent := ""
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		switch {
		case f[2] == "cgroup" && slices.Contains(strings.Split(f[3], ","), "cpu"):
			parent = f[1]
			limits = map[string]string{"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "10000"}
		case f[2] == "cgroup2" && parent == "":
			parent = f[1]
			limits = map[string]string{"cpu.max": "10000 100000"}
			controllers, err := os.ReadFile(filepath.Join(parent, "cgroup.controllers"))
			if err != nil || !slices.Contains(strings.Fields(string(controllers)), "cpu") {
				parent = ""
				continue
			}
			if err := os.WriteFile(filepath.Join(parent, "cgroup.subtree_control"), []byte("+cpu"), 0); err != nil {
				return "", err
			}
		}
	}
	if parent == "" {
		return "", fmt.Errorf("none is mounted")
	}
	if dir, err = os.MkdirTemp(parent, "itsmauth-soak-"); err != nil {
		return "", err
	}
	for _, name := range slices.Sorted(maps.Keys(limits)) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(limits[name]), 0); err != nil {
			syscall.Rmdir(dir)
			return "", err
		}
	}
	return dir, nil
}

func exchangesOf(s *beyondtrusttest.Server) func() int {
	return func() int { return s.Stats().Exchanges }
}
