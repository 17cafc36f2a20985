package auth

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"
)

// A Store keeps one [Record] for each credential, for one process or for many. Its errors wrap
// [ErrStore], or [ErrConflict] where that is documented. A method may take as long as its ctx lasts: a
// [Session] cancels ctx when the store has not answered for too long. A Store is safe for concurrent use.
// If it is also an [io.Closer], the code that opened it closes it.
type Store interface {
	// Load returns the record at key. An absent record has Version 0 and is no error.
	Load(ctx context.Context, key string) (Record, error)
	// Save stores r with Version r.Version+1 iff the stored Version is r.Version (0: absent),
	// else it returns ErrConflict.
	Save(ctx context.Context, key string, r Record) error
	// Delete removes the record iff its Version is version, else it returns ErrConflict. Deleting
	// an absent record with version 0 does nothing.
	Delete(ctx context.Context, key string, version uint64) error
	// Lock waits for key's lock, which one caller holds at a time, or until ctx ends. unlock may be
	// called more than once.
	Lock(ctx context.Context, key string) (unlock func(), err error)
}

// A TryLocker is a [Store] that can read a record and try its lock in one operation, so that processes
// that wait for the lock see at once what its holder saves. It is optional and found by type assertion;
// [Encrypt] forwards it.
type TryLocker interface {
	// TryLock compares the Version of the record at key with known. If they differ, it returns the
	// record and does not touch the lock. If they are equal, it takes the lock unless a live process
	// holds it. Then r has only its Version, and unlock is nil if the lock was not taken. TryLock does
	// not wait for the lock. unlock may be called more than once.
	TryLock(ctx context.Context, key string, known uint64) (r Record, unlock func(), err error)
}

// A Record is what a [Store] keeps.
type Record struct {
	// Version counts the saves. 0 is an absent record.
	Version uint64
	// Expires is when the record may be removed. Zero is never.
	Expires time.Time
	// Data belongs to the session and holds tokens. It is printed as [redacted], except by fmt's %p and %w
	// (which is for errors) and in an unexported field of another struct: there fmt prints the bytes.
	Data []byte
}

// Format shows the record without its data.
func (r Record) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "{version %d, expires %s, data %s}", r.Version, r.Expires.Format(time.RFC3339), redacted)
}

// LogValue shows the record without its data.
func (r Record) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(r)) }

// errRecord stops encoders: a record in a log would show its tokens, and one without them, in a store, would
// lose a login.
var errRecord = errors.New("an auth.Record is not encoded as a whole, because it holds tokens: to store it, store its Data, Version and Expires")

// MarshalText returns an error, also for JSON, XML and YAML: to store a record, store its fields.
func (Record) MarshalText() ([]byte, error) { return nil, errRecord }

// MarshalBinary returns an error, also for gob: to store a record, store its fields.
func (Record) MarshalBinary() ([]byte, error) { return nil, errRecord }

// Memory is a [Store] for one process. Its records are lost when the process ends. The zero value is
// ready to use.
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
