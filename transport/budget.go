package transport

import "sync"

const (
	budgetSeconds = 10
	budgetFloor   = 10 // retries that are always allowed in budgetSeconds
	budgetShare   = 10 // calls for each further retry
)

// budget limits retries, so that they do not multiply the load in an outage. In 10 s there are at most
// a tenth of the calls, plus 10.
type budget struct {
	mu      sync.Mutex
	seconds [budgetSeconds]count
}

// count is the count of one second of Unix time.
type count struct{ second, calls, retries int64 }

// atLocked returns the count of a second.
func (b *budget) atLocked(second int64) *count {
	c := &b.seconds[second%budgetSeconds]
	if c.second < second {
		*c = count{second: second}
	}
	return c
}

// addCall counts a call in the given second of Unix time.
func (b *budget) addCall(second int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.atLocked(second).calls++
}

// takeRetry counts a retry; false if none is left.
func (b *budget) takeRetry(second int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	var calls, retries int64
	for _, c := range b.seconds {
		if c.second > second-budgetSeconds {
			calls += c.calls
			retries += c.retries
		}
	}
	if retries >= calls/budgetShare+budgetFloor {
		return false
	}
	b.atLocked(second).retries++
	return true
}
