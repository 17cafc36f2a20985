// Package follow reads values that may change, such as files, where a read may hang.
package follow

import (
	"context"
	"sync"
	"time"
)

// Patience is how long a call waits for a file that was read before: it may be on a mount that hangs.
const Patience = 50 * time.Millisecond

// A Value is what a read returned last. It is safe for concurrent use; one read runs at a time.
type Value[T any] struct {
	read            func() (T, error)
	every, patience time.Duration

	mu     sync.Mutex
	known  bool
	latest T
	began  time.Time
	took   time.Duration // the last read
	done   chan struct{} // closed when the running read ends, else nil
}

// New makes the Value of read, which is not known yet. Get reads it again if the last read began at least
// every ago, and waits for that for patience. A read that takes more than a tenth of every is made less often.
func New[T any](every, patience time.Duration, read func() (T, error)) *Value[T] {
	return &Value[T]{read: read, every: every, patience: patience}
}

// Know sets the value to what was just read elsewhere, and returns v.
func (v *Value[T]) Know(latest T) *Value[T] {
	v.known, v.latest, v.began = true, latest, time.Now()
	return v
}

// Get returns the latest value. It returns the one before if reading fails, or takes longer than patience or
// until ctx ends; while that read runs on, it does so at once. The first value is waited for until it is
// known or ctx ends.
func (v *Value[T]) Get(ctx context.Context) T { return v.Within(ctx, v.every) }

// Within is Get with another time for every.
func (v *Value[T]) Within(ctx context.Context, every time.Duration) T {
	v.mu.Lock()
	again := every
	if again > 0 {
		again = max(again, 10*v.took)
	}
	if v.done == nil && (!v.known || time.Since(v.began) >= again) {
		v.began, v.done = time.Now(), make(chan struct{})
		go v.run()
	}
	done := v.done
	var late <-chan time.Time
	if done != nil && v.known {
		late = time.After(time.Until(v.began.Add(v.patience)))
	}
	v.mu.Unlock()
	if done != nil {
		select {
		case <-done:
		case <-late:
		case <-ctx.Done():
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.latest
}

func (v *Value[T]) run() {
	latest, err := v.read()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.took = time.Since(v.began)
	if err == nil {
		v.known, v.latest = true, latest
	}
	close(v.done)
	v.done = nil
}

// Func returns a function that calls f at each use, once at a time. If f takes longer than patience, it returns what f
// returned last, an error included. The first result is waited for.
func Func[T any](patience time.Duration, f func() (T, error)) func() (T, error) {
	type result struct {
		value T
		err   error
	}
	latest := New(0, patience, func() (result, error) {
		value, err := f()
		return result{value, err}, nil
	})
	return func() (T, error) {
		r := latest.Get(context.Background())
		return r.value, r.err
	}
}
