//go:build soak

package main

import (
	"math/rand/v2"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestSoakRotations(t *testing.T) { rotations(t, 50, 40) }

// TestSoakKilledExchanges is TestKilledExchanges with kills at random times, half of them after the start
// of the process, half after its token request.
func TestSoakKilledExchanges(t *testing.T) {
	const kills = 100
	c := newConsented(t, 0)
	c.sso.Delay(20 * time.Millisecond)
	asked := make(chan struct{}, 1)
	var killed atomic.Bool
	c.sso.BreakToken(func(http.ResponseWriter, *http.Request) bool {
		select {
		case asked <- struct{}{}:
		default:
		}
		time.Sleep(20 * time.Millisecond) // the mark is saved, and the token not rotated
		return killed.Load()              // if so, the request did not arrive
	})

	var untouched, finished, interrupted, lost int
	for i := range kills {
		c.expire()
		before := c.sso.Stats()
		select {
		case <-asked: // by the previous process
		default:
		}
		c.killAfter(func() {
			if i%2 == 0 {
				<-asked
			}
			time.Sleep(rand.N(60 * time.Millisecond))
			killed.Store(true)
		})
		time.Sleep(20 * time.Millisecond) // drop a delayed request
		killed.Store(false)

		switch {
		case !c.marked().IsZero():
		case c.sso.Stats().Rotations > before.Rotations:
			finished++
			continue
		default:
			untouched++
			continue
		}

		marked, code, stderr := c.next()
		// The first request spent the refresh token: the killed process's, if the next process's was
		// refused.
		after := c.sso.Stats()
		rotations, reuses := after.Rotations-before.Rotations, after.Reuses-before.Reuses
		if rotations != 1 || reuses > 1 {
			t.Errorf("the killed process and the next one: %d rotations, %d reuses", rotations, reuses)
		}
		if reuses == 0 || code == 0 {
			interrupted++
			if code != 0 || !c.marked().IsZero() {
				t.Errorf("nothing was spent, and still: exit %d, marked %s: %s", code, c.marked(), stderr)
			}
			if reuses > 0 { // the killed process's request was late and made the next process's token invalid
				c.login()
			}
			continue
		}
		lost++
		if code != 3 || !strings.Contains(stderr, interruptedAt(marked)) {
			t.Errorf("exit %d: %s\nwant exit code 3 and %q", code, stderr, interruptedAt(marked))
		}
		c.login()
	}
	t.Logf("%d kills: %d before the exchange, %d after its save; %d between mark and rotation, which lost nothing; %d between rotation and save, which the next start said",
		kills, untouched, finished, interrupted, lost)
	if interrupted == 0 || lost == 0 {
		t.Error("no kill between mark and rotation, or none between rotation and save")
	}
}
