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
	mu      sync.Mutex
	seconds [16]struct {
		at      atomic.Int64 // the second counted here
		calls   atomic.Int64
		retries atomic.Int64
	}
}

// startLocked makes room for the counts of a second of Unix time, if there are none yet.
func (b *budget) startLocked(second int64) {
	if s := &b.seconds[second%int64(len(b.seconds))]; s.at.Load() < second {
		s.calls.Store(0)
		s.retries.Store(0)
		s.at.Store(second)
	}
}

// addCall counts a call in the given second.
func (b *budget) addCall(second int64) {
	s := &b.seconds[second%int64(len(b.seconds))]
	if s.at.Load() != second {
		b.mu.Lock()
		b.startLocked(second)
		b.mu.Unlock()
	}
	s.calls.Add(1)
}

// takeRetry counts a retry; false if none is left.
func (b *budget) takeRetry(second int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	var calls, retries int64
	for i := range b.seconds {
		if s := &b.seconds[i]; s.at.Load() > second-budgetSeconds {
			calls += s.calls.Load()
			retries += s.retries.Load()
		}
	}
	if retries >= calls/budgetShare+budgetFloor {
		return false
	}
	b.startLocked(second)
	b.seconds[second%int64(len(b.seconds))].retries.Add(1)
	return true
}
