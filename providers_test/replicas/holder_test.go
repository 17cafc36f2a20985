//go:build soak

package replicas_test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/internal/redistest"
)

// The process that holds the lock is killed, or stopped as by Ctrl-Z, in the middle of its exchange. One of
// the other processes makes the exchange, and no call fails: a call may take a minute, and this takes less. When
// the stopped process goes on, it uses the same token as the others.
func TestSoakHolder(t *testing.T) {
	for _, store := range []struct {
		name string
		yaml func(*testing.T) string
	}{
		{"redis", func(t *testing.T) string { return redisStore(redistest.Start(t).URL()) }},
		{"file", fileStore},
	} {
		for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP} {
			for _, n := range []struct{ processes, loads int }{{40, 1}, {20, 10}} {
				if n.loads > 1 && (store.name != "redis" || signal != syscall.SIGKILL) && !*full {
					continue
				}
				name := map[syscall.Signal]string{syscall.SIGKILL: "killed", syscall.SIGSTOP: "stopped"}[signal]
				t.Run(fmt.Sprintf("%s/%s/%d", store.name, name, n.processes*n.loads), func(t *testing.T) {
					holder(t, n.processes, n.loads, store.yaml(t), signal,
						fmt.Sprintf("%d replicas, %s store, the lock's holder %s in its exchange", n.processes*n.loads, store.name, name))
				})
			}
		}
	}
}

func holder(t *testing.T, processes, loads int, store string, signal syscall.Signal, what string) {
	s, secret := newBeyondTrust(t, time.Hour), secretFile(t)
	all := launch(t, processes, supportJob(loads, time.Second), func(i int) string {
		return configuration(store, beyondtrust(s, secret, "[]", i))
	})
	begin(t, all)
	agree(t, all, support)
	var once sync.Once
	var at time.Time
	hit := make(chan *process, 1)
	s.BreakToken(func(w http.ResponseWriter, r *http.Request) (answered bool) {
		once.Do(func() {
			i, err := strconv.Atoi(strings.TrimPrefix(r.UserAgent(), "replica/"))
			if err != nil {
				t.Error(err)
				return
			}
			at = time.Now()
			if err := all[i].signal(signal); err != nil {
				t.Error(err)
			}
			answered = signal == syscall.SIGKILL // a stopped process finds the answer when it wakes
			hit <- all[i]
		})
		return answered
	})
	before := s.Stats().TokenRequests
	s.RevokeAll()
	var p *process
	select {
	case p = <-hit:
		p.away = true
	case <-time.After(silence):
		t.Fatal("no token request")
	}
	atLeast(t, "token requests", before+2, func() int { return s.Stats().TokenRequests })
	agree(t, all, support)
	took := time.Since(at)
	if signal == syscall.SIGSTOP {
		if err := p.signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		p.away = false
		agree(t, all, support)
	}
	time.Sleep(2 * time.Second) // an exchange too many may come late
	requests := s.Stats().TokenRequests - before
	sum := finish(t, all)
	summary(t, what, requests-1, sum.Connectors[support].Failed, "one token again after %s", seconds(took))
	if requests != 2 {
		t.Errorf("%d token requests, want the holder's and one more", requests)
	}
	wantNoFailures(t, sum, support)
}

// signal sends a signal, and returns when a SIGSTOP has stopped the process.
func (p *process) signal(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil || sig != syscall.SIGSTOP {
		return err
	}
	for end := time.Now().Add(silence); ; time.Sleep(time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
		if err != nil {
			return err
		}
		if _, state, _ := bytes.Cut(stat, []byte(") ")); bytes.HasPrefix(state, []byte("T")) {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("the process does not stop: %s", stat)
		}
	}
}
