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
	reads  int           // that have begun
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
func (v *Value[T]) Get(ctx context.Context) T { return v.GetEvery(ctx, v.every) }

// GetEvery is Get with another time for every.
func (v *Value[T]) GetEvery(ctx context.Context, every time.Duration) T {
	v.mu.Lock()
	again := every
	if again > 0 {
		again = max(again, 10*v.took)
	}
	if v.done == nil && (!v.known || time.Since(v.began) >= again) {
		v.startLocked()
	}
	done, left := v.done, forever
	if done != nil && v.known {
		left = time.Until(v.began.Add(v.patience))
	}
	v.mu.Unlock()
	if done != nil {
		wait(ctx, done, left)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.latest
}

// forever outlives the process.
const forever = 100 * 365 * 24 * time.Hour

// wait waits until done is closed, ctx ends, or the patience does. That is counted in ticks: a process that does not
// run for a time, because the machine is overloaded, misses ticks, and these do not count.
func wait(ctx context.Context, done <-chan struct{}, patience time.Duration) {
	tick := max(patience/5, time.Millisecond)
	for ; patience > 0; patience -= tick {
		select {
		case <-done:
			return
		case <-ctx.Done():
			return
		case <-time.After(min(tick, patience)):
		}
	}
}

// Again returns the latest value after a read that began no earlier than this call, for which it waits until ctx ends.
func (v *Value[T]) Again(ctx context.Context) T {
	v.mu.Lock()
	defer v.mu.Unlock()
	for before, recent := v.reads, false; !recent && ctx.Err() == nil; {
		if v.done == nil && v.reads == before {
			v.startLocked()
		}
		recent = v.reads > before
		if done := v.done; done != nil {
			v.mu.Unlock()
			select {
			case <-done:
			case <-ctx.Done():
			}
			v.mu.Lock()
		}
	}
	return v.latest
}

func (v *Value[T]) startLocked() {
	v.began, v.done = time.Now(), make(chan struct{})
	v.reads++
	go v.run()
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

// A Func calls a function at each use, once at a time.
type Func[T any] struct{ latest *Value[result[T]] }

type result[T any] struct {
	value T
	err   error
}

// NewFunc makes the Func of f. If f takes longer than patience, Call returns what f returned last, an error included. The
// first result is waited for.
func NewFunc[T any](patience time.Duration, f func() (T, error)) *Func[T] {
	return &Func[T]{New(0, patience, func() (result[T], error) {
		value, err := f()
		return result[T]{value, err}, nil
	})}
}

// Call calls the function.
func (f *Func[T]) Call() (T, error) {
	r := f.latest.Get(context.Background())
	return r.value, r.err
}

// Again is Call, but waits until ctx ends for a call that began no earlier than this one.
func (f *Func[T]) Again(ctx context.Context) (T, error) {
	r := f.latest.Again(ctx)
	return r.value, r.err
}
