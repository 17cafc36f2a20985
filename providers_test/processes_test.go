package providers_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/config"
	"github.com/itsmauth/itsmauth/internal/testworker"
	"github.com/itsmauth/itsmauth/providers/beyondtrust/beyondtrusttest"
)

func TestMain(m *testing.M) { testworker.Main(m, work) }

// work is a service with one connector. For each line, a duration, it calls the product that long.
func work(path string) error {
	conns, err := config.Load(path)
	if err != nil {
		return err
	}
	c, err := conns.Get("test")
	if err != nil {
		return err
	}
	err = testworker.Serve(func(line string) error {
		d, err := time.ParseDuration(line)
		if err != nil {
			return err
		}
		for end := time.Now().Add(d); ; time.Sleep(200 * time.Millisecond) {
			status, body, err := call(context.Background(), c, "GET", "/api/command?action=get_api_info", "")
			if err != nil || status != 200 {
				return fmt.Errorf("HTTP %d, %v: %.200s", status, err, body)
			}
			if time.Now().After(end) {
				return nil
			}
		}
	})
	return errors.Join(err, conns.Close())
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
	all    testworker.Workers
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
	w.all = testworker.Start(t, n, path)
	return w
}

// call makes each worker call the product for d. There must be one exchange, and no call with a token that
// the product refuses, unless refused is set.
func (w *workers) call(t *testing.T, what string, d time.Duration, refused bool) {
	t.Helper()
	w.all.Do(t, d.String())
	after := w.s.Stats()
	if n := after.Exchanges - w.before.Exchanges; n != 1 {
		t.Errorf("%s: %d exchanges", what, n)
	}
	if n := after.Rejected - w.before.Rejected; !refused && n != 0 || n > len(w.all) {
		t.Errorf("%s: %d calls with a refused token", what, n)
	}
	if n := after.APICalls - w.before.APICalls; n < len(w.all) {
		t.Errorf("%s: %d calls", what, n)
	}
	t.Logf("%s: %+v", what, after)
	w.before = after
}
