package transport

import (
	"sync"
	"sync/atomic"
)

const (
	budgetSeconds = 10
	budgetFloor   = 10 // retries in budgetSeconds, whatever the calls
	budgetShare   = 10 // one retry in so many calls
)

// budget keeps retries from multiplying an outage: of the last 10 s, at most a tenth of the calls
// and 10 more.
type budget struct {
	seconds [16]struct {
		at      atomic.Int64 // the second counted here
		calls   atomic.Int64
		retries atomic.Int64
	}
	mu sync.Mutex
}

// call counts a call in the given second of the clock.
func (b *budget) call(second int64) {
	s := &b.seconds[second%int64(len(b.seconds))]
	if s.at.Load() != second {
		b.mu.Lock()
		if s.at.Load() < second {
			s.calls.Store(0)
			s.retries.Store(0)
			s.at.Store(second)
		}
		b.mu.Unlock()
	}
	s.calls.Add(1)
}

// retry takes one retry, if there is one left.
func (b *budget) retry(second int64) bool {
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
	s := &b.seconds[second%int64(len(b.seconds))]
	if s.at.Load() < second {
		s.calls.Store(0)
		s.retries.Store(0)
		s.at.Store(second)
	}
	s.retries.Add(1)
	return true
}
