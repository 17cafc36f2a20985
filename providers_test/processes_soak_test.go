//go:build soak

package providers_test

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/providers/beyondtrust/beyondtrusttest"
)

// Forty processes use one account, which allows thirty tokens. There is one exchange each at the start, at
// an expiry, after a revocation and after an idle time, and no call fails.
func TestSoakProcesses(t *testing.T) {
	const lifetime = 15 * time.Second // each step is shorter than the 12 s after which a token is stale
	w := startWorkers(t, 40, &beyondtrusttest.Options{TokenLifetime: lifetime, PerSecond: -1, PerHour: -1})
	var mu sync.Mutex
	var last time.Time // time of the last token request
	w.s.BreakToken(func(http.ResponseWriter, *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		last = time.Now()
		return false
	})
	ended := func() time.Duration { // time until the current token expires
		mu.Lock()
		defer mu.Unlock()
		return time.Until(last.Add(lifetime + 200*time.Millisecond))
	}
	w.call(t, "start", 0, false)
	w.call(t, "across an expiry", ended(), false)
	w.s.RevokeAll()
	w.call(t, "after a revocation", 0, true)
	time.Sleep(ended())
	w.call(t, "after an idle time", 0, false)
}
