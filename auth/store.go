package auth

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"
)

// A Store keeps one [Record] for each credential, for this process or for many. Its errors wrap
// [ErrStore], or [ErrConflict] where said. A method may take as long as its ctx lasts: a [Session]
// ends that when the store has been silent for too long. A Store is safe for concurrent use. One
// that is also an [io.Closer] is closed by the code that opened it.
type Store interface {
	// Load returns the record at key. An absent one has Version 0 and no error.
	Load(ctx context.Context, key string) (Record, error)
	// Save stores r with Version r.Version+1 iff the stored Version is r.Version (0: absent),
	// else it returns ErrConflict.
	Save(ctx context.Context, key string, r Record) error
	// Delete removes the record iff its Version is version, else it returns ErrConflict. Deleting
	// an absent record with version 0 does nothing.
	Delete(ctx context.Context, key string, version uint64) error
	// Lock waits until nobody else holds key's lock, or ctx ends. unlock may be called more than
	// once.
	Lock(ctx context.Context, key string) (unlock func(), err error)
}

// A TryLocker is a [Store] that can look at a record and try its lock in one operation. Then any
// number of processes can wait for the lock and see at once what its holder has saved. It is
// optional and found by type assertion; [Encrypt] forwards it.
type TryLocker interface {
	// TryLock compares the Version of the record at key with known. If they differ, it returns the
	// record and does not touch the lock. If they are equal, it takes the lock unless a living
	// process holds it; r then has the Version alone, and unlock is nil if the lock was not taken.
	// TryLock does not wait for the lock. unlock may be called more than once.
	TryLock(ctx context.Context, key string, known uint64) (r Record, unlock func(), err error)
}

// A Record is what a [Store] keeps.
type Record struct {
	// Version counts the saves; 0 is the absent record.
	Version uint64
	// Expires is when the record is of no more use and may be removed; zero is never.
	Expires time.Time
	// Data is the session's own, tokens included. Printed, it shows [redacted].
	Data []byte
}

// Format shows the record without its data.
func (r Record) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "{version %d, expires %s, data %s}", r.Version, r.Expires.Format(time.RFC3339), redacted)
}

// LogValue shows the record without its data.
func (r Record) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(r)) }

// Memory is the [Store] of one process: what it holds is gone with the process. The zero value is
// ready for use.
type Memory struct {
	mu      sync.Mutex
	records map[string]*Record // fmt does not follow a pointer that deep
	locks   sync.Map           // key to chan struct{}, full while held
}

// Format shows nothing of what m holds, for every verb.
func (m *Memory) Format(f fmt.State, _ rune) { io.WriteString(f, "auth.Memory") }

// Load implements [Store].
func (m *Memory) Load(_ context.Context, key string) (Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.stored(key)
	r.Data = append([]byte(nil), r.Data...)
	return r, nil
}

// Save implements [Store].
func (m *Memory) Save(_ context.Context, key string, r Record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stored(key).Version != r.Version {
		return ErrConflict
	}
	if m.records == nil {
		m.records = make(map[string]*Record)
	}
	r.Version++
	r.Data = append([]byte(nil), r.Data...)
	m.records[key] = &r
	return nil
}

// Delete implements [Store].
func (m *Memory) Delete(_ context.Context, key string, version uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stored(key).Version != version {
		return ErrConflict
	}
	delete(m.records, key)
	return nil
}

func (m *Memory) stored(key string) Record {
	if r := m.records[key]; r != nil {
		return *r
	}
	return Record{}
}

// Lock implements [Store].
func (m *Memory) Lock(ctx context.Context, key string) (func(), error) {
	l, _ := m.locks.LoadOrStore(key, make(chan struct{}, 1))
	lock := l.(chan struct{})
	select {
	case lock <- struct{}{}:
		return sync.OnceFunc(func() { <-lock }), nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: waiting for the lock: %w", ErrStore, ctx.Err())
	}
}
