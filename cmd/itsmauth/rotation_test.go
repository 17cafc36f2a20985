package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
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

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/filestore"
	"github.com/itsmauth/itsmauth/providers/remedy/remedytest"
)

// consented is a Remedy connector after a login, with a file store.
type consented struct {
	*testing.T
	sso   *remedytest.Server
	yaml  string
	store auth.Store
	key   string
}

func newConsented(t *testing.T, refreshLifetime time.Duration) *consented {
	t.Helper()
	redirect, err := freeRedirectURI()
	if err != nil {
		t.Fatal(err)
	}
	c := &consented{T: t, sso: remedytest.NewServer(&remedytest.Options{RedirectURIs: []string{redirect}, RefreshLifetime: refreshLifetime})}
	t.Cleanup(c.sso.Close)
	dir := t.TempDir()
	tokens := filepath.Join(dir, "tokens")
	c.yaml = filepath.Join(dir, "itsmauth.yaml")
	err = os.WriteFile(c.yaml, fmt.Appendf(nil, `version: 1
token_store: {type: file, path: '%s'}
connectors:
  remedy:
    provider: remedy
    base_url: %s
    sso_url: %s
    client_id: '%s'
    client_secret: '%s'
    redirect_uri: %s
`, tokens, c.sso.URL, c.sso.SSOURL, remedytest.DefaultClientID, remedytest.DefaultClientSecret, redirect), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if c.store, err = filestore.Open(filestore.Config{Path: tokens}); err != nil {
		t.Fatal(err)
	}
	c.login()
	files, err := filepath.Glob(filepath.Join(tokens, "*.json"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	c.key = strings.TrimSuffix(filepath.Base(files[0]), ".json")
	return c
}

func (c *consented) command(args ...string) *exec.Cmd {
	return exec.Command("itsmauth", append([]string{"--config", c.yaml}, args...)...)
}

// run runs command in this process.
func (c *consented) run(args ...string) (code int, stdout, stderr string) {
	return itsmauth(context.WithoutCancel(c.Context()), append([]string{"--config", c.yaml}, args...)...)
}

// login runs itsmauth login and plays the person.
func (c *consented) login() {
	c.Helper()
	if code, page, says := c.logIn(c.Context()); code != 0 {
		c.Fatal(code, page, says)
	}
}

// logIn is login until ctx ends. It returns the last page, and the output of the command.
func (c *consented) logIn(ctx context.Context) (code int, page, says string) {
	c.Helper()
	shown, stdout := io.Pipe()
	var stderr bytes.Buffer
	done := make(chan int)
	go func() {
		code := run(ctx, []string{"--config", c.yaml, "login", "remedy", "--no-browser"}, nil, stdout, &stderr)
		stdout.Close()
		done <- code
	}()
	lines := bufio.NewReader(shown)
	address, err := lines.ReadString('\n')
	if err != nil {
		<-done
		c.Fatal(err, stderr.String())
	}
	back, err := c.sso.Consent(strings.TrimSpace(address))
	if err != nil {
		c.Fatal(err)
	}
	resp, err := http.Get(back.String())
	if err != nil {
		c.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.Fatal(err)
	}
	says, _ = lines.ReadString(0)
	return <-done, string(b), says + stderr.String()
}

// edit changes the stored record.
func (c *consented) edit(change func(map[string]any)) {
	c.Helper()
	r, err := c.store.Load(c.Context(), c.key)
	if err != nil {
		c.Fatal(err)
	}
	var record map[string]any
	if err := json.Unmarshal(r.Data, &record); err != nil {
		c.Fatal(err)
	}
	change(record)
	if r.Data, err = json.Marshal(record); err != nil {
		c.Fatal(err)
	}
	if err := c.store.Save(c.Context(), c.key, r); err != nil {
		c.Fatal(err)
	}
}

// expire makes the access token two hours old.
func (c *consented) expire() {
	c.Helper()
	c.edit(func(r map[string]any) { r["obtained"] = time.Now().Add(-2 * time.Hour) })
}

// marked returns the start of the exchange whose mark is in the stored record. The record must be intact.
func (c *consented) marked() time.Time {
	c.Helper()
	r, err := c.store.Load(c.Context(), c.key)
	if err != nil {
		c.Fatalf("the record is damaged: %v", err)
	}
	var record struct {
		Pending struct{ Since time.Time }
	}
	if err := json.Unmarshal(r.Data, &record); err != nil {
		c.Fatalf("the record is damaged: %v", err)
	}
	return record.Pending.Since
}

func TestRotations(t *testing.T) {
	t.Parallel()
	rotations(t, 20, 8)
}

// rotations renews the token several times in this process, and then once in several processes that
// start together.
func rotations(t *testing.T, times, processes int) {
	c := newConsented(t, 0)
	seen := map[string]bool{}
	for range times {
		c.expire()
		code, stdout, stderr := c.run("token", "remedy")
		if code != 0 {
			t.Fatal(code, stderr)
		}
		seen[stdout] = true
	}
	if st := c.sso.Stats(); st.Rotations != times || st.Reuses != 0 || len(seen) != times {
		t.Errorf("%d tokens of %d rotations, %+v", len(seen), times, st)
	}

	c.expire()
	var wg sync.WaitGroup
	for range processes {
		wg.Go(func() {
			if out, err := c.command("call", "remedy", "/api/arsys/v1/entry/HPD:IncidentInterface").CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	wg.Wait()
	if st := c.sso.Stats(); st.Rotations != times+1 || st.Reuses != 0 {
		t.Errorf("%d processes at once: %+v", processes, st)
	}
}

// A process that is killed during an exchange leaves an intact record. The next process uses it. If the
// product has rotated the refresh token already, its error says when the exchange was interrupted.
func TestKilledExchanges(t *testing.T) {
	t.Parallel()
	t.Run("between mark and rotation", func(t *testing.T) {
		t.Parallel()
		c := newConsented(t, 0)
		asked, killed := make(chan struct{}), make(chan struct{})
		c.sso.BreakToken(func(http.ResponseWriter, *http.Request) bool {
			close(asked)
			<-killed
			return true
		})
		c.killAfter(func() { <-asked })
		c.sso.BreakToken(nil)
		close(killed)
		if _, code, stderr := c.next(); code != 0 || c.sso.Stats().Rotations != 1 || !c.marked().IsZero() {
			t.Errorf("exit %d, %s", code, stderr)
		}
	})
	t.Run("between rotation and save", func(t *testing.T) {
		t.Parallel()
		c := newConsented(t, 0)
		c.sso.Delay(time.Hour)
		c.killAfter(func() {
			for c.sso.Stats().Rotations == 0 {
				time.Sleep(time.Millisecond)
			}
		})
		c.sso.Delay(0)
		if marked, code, stderr := c.next(); code != 3 || !strings.Contains(stderr, interruptedAt(marked)) {
			t.Errorf("exit %d, %s", code, stderr)
		}
	})
}

// killAfter starts a process that renews the expired token and kills it when wait returns.
func (c *consented) killAfter(wait func()) {
	c.Helper()
	c.expire()
	cmd := c.command("token", "remedy")
	if err := cmd.Start(); err != nil {
		c.Fatal(err)
	}
	wait()
	cmd.Process.Kill()
	cmd.Wait()
}

// next renews the token after a process was killed. It backdates the mark, so that it need not wait for
// the killed process's exchange.
func (c *consented) next() (marked time.Time, code int, stderr string) {
	c.Helper()
	marked = c.marked().Add(-time.Minute)
	c.edit(func(r map[string]any) {
		mark := r["pending"].(map[string]any)
		mark["since"], mark["until"] = marked, marked
	})
	code, _, stderr = c.run("token", "remedy")
	return marked, code, stderr
}

func interruptedAt(t time.Time) string {
	return "an exchange was interrupted at " + t.Format(time.RFC3339)
}
