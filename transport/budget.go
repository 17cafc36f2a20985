package transport

import (
	"sync"
	"sync/atomic"
)

const (
	budgetSeconds = 10
	budgetFloor   = 10 // retries that are always allowed in budgetSeconds
	budgetShare   = 10 // calls for each further retry
)

// budget limits retries, so that they do not multiply the load in an outage. In 10 s there are at most
// a tenth of the calls, plus 10.
type budget struct {
	calls counts // without mu, which is for retries alone

	mu      sync.Mutex
	retries counts
}

// addCall counts a call in the given second of Unix time.
func (b *budget) addCall(second int64) { b.calls.add(second) }

// takeRetry counts a retry; false if none is left.
func (b *budget) takeRetry(second int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.retries.sum(second) >= b.calls.sum(second)/budgetShare+budgetFloor {
		return false
	}
	b.retries.add(second)
	return true
}

// counts are those of the last seconds, each in one word: the second of Unix time, then countBits for the
// count.
type counts [budgetSeconds]atomic.Int64

const countBits = 28

// add counts one more in a second.
func (c *counts) add(second int64) {
	word := &c[second%budgetSeconds]
	for {
		n := word.Load()
		if word.CompareAndSwap(n, max(n, second<<countBits)+1) {
			return
		}
	}
}

// sum returns the count of the last budgetSeconds.
func (c *counts) sum(second int64) (sum int64) {
	for i := range c {
		if n := c[i].Load(); n>>countBits > second-budgetSeconds {
			sum += n & (1<<countBits - 1)
		}
	}
	return sum
}
