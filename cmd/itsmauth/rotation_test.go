package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/filestore"
	"github.com/itsmauth/itsmauth/providers/remedy/remedytest"
)

// consented is a Remedy connector that somebody has logged in, with its tokens in files.
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
	cmd := exec.Command("itsmauth", append([]string{"--config", c.yaml}, args...)...)
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0")
	return cmd
}

// login runs itsmauth login, and plays the person.
func (c *consented) login() {
	c.Helper()
	cmd := c.command("login", "remedy", "--no-browser")
	out, err := cmd.StdoutPipe()
	if err != nil {
		c.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		c.Fatal(err)
	}
	lines := bufio.NewReader(out)
	page, err := lines.ReadString('\n')
	if err != nil {
		c.Fatal(err, stderr.String())
	}
	back, err := c.sso.Consent(strings.TrimSpace(page))
	if err != nil {
		c.Fatal(err)
	}
	resp, err := http.Get(back.String())
	if err != nil {
		c.Fatal(err)
	}
	resp.Body.Close()
	lines.ReadString(0)
	if err := cmd.Wait(); err != nil {
		c.Fatal(err, stderr.String())
	}
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

// marked is when the exchange began whose mark is in the stored record, which must be whole.
func (c *consented) marked() time.Time {
	c.Helper()
	r, err := c.store.Load(c.Context(), c.key)
	if err != nil {
		c.Fatalf("the record is not whole: %v", err)
	}
	var record struct {
		Pending struct{ Since time.Time }
	}
	if err := json.Unmarshal(r.Data, &record); err != nil {
		c.Fatalf("the record is not whole: %v", err)
	}
	return record.Pending.Since
}

// whole is how long a process takes, as a rule, to renew an expired token.
func (c *consented) whole() time.Duration {
	c.Helper()
	var took [3]time.Duration
	for i := range took {
		c.expire()
		start := time.Now()
		if out, err := c.command("token", "remedy").CombinedOutput(); err != nil {
			c.Fatalf("%v: %s", err, out)
		}
		took[i] = time.Since(start)
	}
	slices.Sort(took[:])
	return took[1]
}

func TestRotations(t *testing.T) {
	t.Parallel()
	c := newConsented(t, 0)
	seen := map[string]bool{}
	for range 50 {
		c.expire()
		out, err := c.command("token", "remedy").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		seen[string(out)] = true
	}
	if st := c.sso.Stats(); st.Rotations != 50 || st.Reuses != 0 || len(seen) != 50 {
		t.Errorf("%d tokens in 50 processes, %+v", len(seen), st)
	}

	c.expire()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if out, err := c.command("call", "remedy", "/api/arsys/v1/entry/HPD:IncidentInterface").CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	wg.Wait()
	if st := c.sso.Stats(); st.Rotations != 51 || st.Reuses != 0 {
		t.Errorf("20 processes at once: %+v", st)
	}
}

// Killed at any point of an exchange, a process leaves a record that is whole. The next one goes on
// from it, or, where the product had rotated and the kill came before the new token was saved, says
// so, with the time.
func TestKilledExchanges(t *testing.T) {
	if testing.Short() {
		t.Skip("kills 200 processes")
	}
	t.Parallel()
	const kills = 200
	c := newConsented(t, 0)
	c.sso.Delay(20 * time.Millisecond)

	var untouched, finished, interrupted, lost int
	var whole time.Duration // how long a process takes that nobody kills
	// On a busy machine that changes, and all kills may miss: then there are more.
	for i := 0; i < kills || i < 3*kills && interrupted+lost == 0; i++ {
		if i%50 == 0 {
			whole = c.whole()
		}
		c.expire()
		before := c.sso.Stats()
		cmd := c.command("token", "remedy")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(whole/4 + rand.N(whole))
		cmd.Process.Kill()
		cmd.Wait()

		marked := c.marked()
		switch {
		case !marked.IsZero():
		case c.sso.Stats().Rotations > before.Rotations:
			finished++
			continue
		default:
			untouched++
			continue
		}

		// The next process would wait until the exchange must be over: let it be.
		marked = marked.Add(-time.Minute)
		c.edit(func(r map[string]any) { r["pending"].(map[string]any)["since"] = marked })
		out, err := c.command("token", "remedy").CombinedOutput()
		// The one refresh token was spent by whoever came first: the killed process, if the next one was
		// refused for it.
		after := c.sso.Stats()
		rotations, reuses := after.Rotations-before.Rotations, after.Reuses-before.Reuses
		if rotations != 1 || reuses > 1 {
			t.Errorf("the killed process and the next one: %d rotations, %d reuses", rotations, reuses)
		}
		if reuses == 0 || err == nil {
			interrupted++
			if err != nil || !c.marked().IsZero() {
				t.Errorf("nothing was spent, and still: %v, marked %s: %s", err, c.marked(), out)
			}
			if reuses > 0 { // the killed one's request was late, and has ended the next one's token
				c.login()
			}
			continue
		}
		lost++
		var exit *exec.ExitError
		says := "an exchange was interrupted at " + marked.Format(time.RFC3339)
		if exit, _ = err.(*exec.ExitError); exit == nil || exit.ExitCode() != 3 || !strings.Contains(string(out), says) {
			t.Errorf("%v: %s\nwant exit code 3 and %q", err, out, says)
		}
		c.login()
	}
	t.Logf("%d kills: %d before the exchange, %d after its save; %d between mark and rotation, which lost nothing; %d between rotation and save, which the next start said",
		kills, untouched, finished, interrupted, lost)
	if interrupted+lost == 0 {
		t.Error("no kill came during an exchange: this proves nothing")
	}
}
