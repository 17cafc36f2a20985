// Package authtest has conformance tests for implementations of [auth.Provider] and [auth.Store].
package authtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

// TestStore tests a store. Each call of open returns another handle of the same storage, as another
// process would open it, or the same handle if there can be only one. open closes it when the test ends.
// The keys are new each time, so the storage need not be empty. Some records stay in it.
func TestStore(t *testing.T, open func(t *testing.T) auth.Store) {
	for name, test := range map[string]func(t *testing.T, a, b auth.Store){
		"absent":                testAbsent,
		"versions":              testVersions,
		"delete":                testDelete,
		"data":                  testData,
		"data is the caller's":  testIsolation,
		"expires":               testExpires,
		"keys":                  testKeys,
		"concurrent saves":      testConcurrentSaves,
		"loads during saves":    testLoadsDuringSaves,
		"lock excludes":         testLockExcludes,
		"lock is for one key":   testLockKeys,
		"lock allows saves":     testLockAllowsSaves,
		"lock ends with ctx":    testLockContext,
		"unlock more than once": testUnlockTwice,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open(t), open(t))
		})
	}
}

// newKey returns a key like a session's.
func newKey() string { return fmt.Sprintf("%x", rand.Text()) }

func save(t *testing.T, s auth.Store, key string, version uint64, data string) {
	t.Helper()
	if err := s.Save(t.Context(), key, auth.Record{Version: version, Data: []byte(data)}); err != nil {
		t.Fatalf("Save of %q over version %d: %v", key, version, err)
	}
}

func want(t *testing.T, s auth.Store, key string, version uint64, data string) {
	t.Helper()
	r, err := s.Load(t.Context(), key)
	if err != nil {
		t.Fatalf("Load of %q: %v", key, err)
	}
	if r.Version != version || string(r.Data) != data {
		t.Fatalf("Load of %q = version %d, %q; want version %d, %q", key, r.Version, r.Data, version, data)
	}
}

func wantConflict(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, auth.ErrConflict) {
		t.Fatalf("error is %v, want ErrConflict", err)
	}
}

func testAbsent(t *testing.T, a, b auth.Store) {
	key := newKey()
	r, err := a.Load(t.Context(), key)
	if err != nil || r.Version != 0 || !r.Expires.IsZero() || len(r.Data) != 0 {
		t.Fatalf("Load = %+v, %v, want nothing", r, err)
	}
	wantConflict(t, a.Save(t.Context(), key, auth.Record{Version: 1, Data: []byte("x")}))
	wantConflict(t, a.Delete(t.Context(), key, 1))
	if err := a.Delete(t.Context(), key, 0); err != nil {
		t.Fatalf("Delete with version 0: %v", err)
	}
	want(t, b, key, 0, "")
}

func testVersions(t *testing.T, a, b auth.Store) {
	key := newKey()
	save(t, a, key, 0, "one")
	want(t, b, key, 1, "one")
	save(t, b, key, 1, "two")
	want(t, a, key, 2, "two")
	for _, version := range []uint64{0, 1, 3, 1 << 63} {
		wantConflict(t, a.Save(t.Context(), key, auth.Record{Version: version, Data: []byte("x")}))
		want(t, b, key, 2, "two")
	}
}

func testDelete(t *testing.T, a, b auth.Store) {
	key := newKey()
	save(t, a, key, 0, "one")
	save(t, a, key, 1, "two")
	for _, version := range []uint64{0, 1, 3} {
		wantConflict(t, b.Delete(t.Context(), key, version))
		want(t, a, key, 2, "two")
	}
	if err := b.Delete(t.Context(), key, 2); err != nil {
		t.Fatalf("Delete: %v", err)
	}
	want(t, a, key, 0, "")
	wantConflict(t, a.Save(t.Context(), key, auth.Record{Version: 2, Data: []byte("x")}))
	save(t, a, key, 0, "anew")
	want(t, b, key, 1, "anew")
}

func testData(t *testing.T, a, b auth.Store) {
	var all []byte
	for i := range 1 << 16 {
		all = append(all, byte(i), byte(i>>8))
	}
	for _, data := range []string{"", "\x00", "null", "{}\n", "+/=&% ü \xff", string(all)} {
		key := newKey()
		save(t, a, key, 0, data)
		want(t, b, key, 1, data)
		save(t, a, key, 1, "short")
		want(t, b, key, 2, "short")
	}
}

func testIsolation(t *testing.T, a, b auth.Store) {
	key := newKey()
	data := []byte("data")
	if err := a.Save(t.Context(), key, auth.Record{Data: data}); err != nil {
		t.Fatal(err)
	}
	if string(data) != "data" {
		t.Fatalf("Save changed what it was given to %q", data)
	}
	data[0] = 'X'
	want(t, a, key, 1, "data")
	r, err := a.Load(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	r.Data[0] = 'X'
	want(t, a, key, 1, "data")
	want(t, b, key, 1, "data")
}

func testExpires(t *testing.T, a, b auth.Store) {
	now := time.Now()
	for _, expires := range []time.Time{
		{},
		now.Add(time.Hour),
		now.AddDate(0, 2, 0).In(time.FixedZone("east", 5*3600+1800)),
		time.Date(2100, 1, 2, 3, 4, 5, 999_999_999, time.UTC),
	} {
		key := newKey()
		if err := a.Save(t.Context(), key, auth.Record{Expires: expires, Data: []byte("x")}); err != nil {
			t.Fatal(err)
		}
		r, err := b.Load(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		if d := r.Expires.Sub(expires).Abs(); d >= time.Second || r.Expires.IsZero() != expires.IsZero() {
			t.Errorf("Expires is %v, want %v", r.Expires, expires)
		}
	}
}

func testKeys(t *testing.T, a, b auth.Store) {
	id := newKey()
	keys := []string{
		id, id + "A", id + "a", id + ".json", id + ".lock", id + ".save.lock", id + ".tmp", id + " ",
		id + "/b", id + `\b`, id + ":b", id + "%2Fb", id + "*", id + "\x00", id + "\n", id + "ü", id + "u\u0308",
		id + "\xff", id + "\xfe", "../" + id, "../../" + id, "/" + id, "." + id, "-" + id, "~" + id, "{" + id + "}",
		id + string(bytes.Repeat([]byte("k"), 300)), id + string(bytes.Repeat([]byte("k"), 301)),
	}
	for _, key := range keys {
		save(t, a, key, 0, "of "+key)
		unlock, err := a.Lock(t.Context(), key)
		if err != nil {
			t.Fatalf("Lock of %q: %v", key, err)
		}
		unlock()
	}
	for _, key := range keys {
		want(t, b, key, 1, "of "+key)
		if err := b.Delete(t.Context(), key, 1); err != nil {
			t.Fatalf("Delete of %q: %v", key, err)
		}
	}
}

func testConcurrentSaves(t *testing.T, a, b auth.Store) {
	key := newKey()
	for round := range 5 {
		errs := make([]error, 8)
		together(len(errs), func(i int) {
			s := []auth.Store{a, b}[i%2]
			errs[i] = s.Save(t.Context(), key, auth.Record{Version: uint64(round), Data: fmt.Append(nil, i)})
		})
		winner := -1
		for i, err := range errs {
			switch {
			case err == nil && winner < 0:
				winner = i
			case err == nil:
				t.Fatalf("round %d: saves %d and %d both succeeded", round, winner, i)
			default:
				wantConflict(t, err)
			}
		}
		if winner < 0 {
			t.Fatalf("round %d: no save succeeded", round)
		}
		want(t, a, key, uint64(round+1), fmt.Sprint(winner))
	}
}

func testLoadsDuringSaves(t *testing.T, a, b auth.Store) {
	const saves = 20
	key := newKey()
	data := func(version uint64) string { return string(bytes.Repeat(fmt.Append(nil, version, " "), 1000)) }
	save(t, a, key, 0, data(1))
	together(4, func(i int) {
		if i == 0 {
			for version := uint64(1); version < saves; version++ {
				if err := a.Save(t.Context(), key, auth.Record{Version: version, Data: []byte(data(version + 1))}); err != nil {
					t.Errorf("Save over version %d: %v", version, err)
					return
				}
			}
			return
		}
		for last := uint64(1); last < saves && !t.Failed(); {
			r, err := b.Load(t.Context(), key)
			if err != nil || r.Version < last || string(r.Data) != data(r.Version) {
				t.Errorf("Load after version %d = version %d with %d bytes, %v", last, r.Version, len(r.Data), err)
				return
			}
			last = r.Version
		}
	})
}

func testLockExcludes(t *testing.T, a, b auth.Store) {
	key := newKey()
	const goroutines, rounds = 16, 4
	var holders, sum atomic.Int64 // atomic: a lock outside the process does not order memory accesses
	together(goroutines, func(i int) {
		for range rounds {
			unlock, err := []auth.Store{a, b}[i%2].Lock(t.Context(), key)
			if err != nil {
				t.Error(err)
				return
			}
			if n := holders.Add(1); n != 1 {
				t.Errorf("%d hold the lock", n)
			}
			before := sum.Load()
			runtime.Gosched()
			sum.Store(before + 1)
			holders.Add(-1)
			unlock()
		}
	})
	if n := sum.Load(); n != goroutines*rounds {
		t.Errorf("%d of %d increments under the lock were kept", n, goroutines*rounds)
	}
}

func testLockKeys(t *testing.T, a, b auth.Store) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for _, s := range []auth.Store{a, b} {
		unlock, err := s.Lock(ctx, newKey())
		if err != nil {
			t.Fatal(err)
		}
		defer unlock()
	}
}

// testLockAllowsSaves checks that the lock does not protect the record: a process that has lost the lock
// can still save and delete, and only the version decides.
func testLockAllowsSaves(t *testing.T, a, b auth.Store) {
	key := newKey()
	unlock, err := a.Lock(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	save(t, b, key, 0, "by another")
	save(t, a, key, 1, "by the holder")
	want(t, b, key, 2, "by the holder")
	if err := b.Delete(t.Context(), key, 2); err != nil {
		t.Fatal(err)
	}
}

func testLockContext(t *testing.T, a, b auth.Store) {
	key := newKey()
	unlock, err := a.Lock(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	wantHeld(t, b, key)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Lock(gone, key); !errors.Is(err, auth.ErrStore) || !errors.Is(err, context.Canceled) {
		t.Fatalf("Lock with a cancelled context: %v, want ErrStore and context.Canceled", err)
	}
	unlock()
	unlock, err = b.Lock(t.Context(), key)
	if err != nil {
		t.Fatalf("Lock after others gave up: %v", err)
	}
	unlock()
}

func testUnlockTwice(t *testing.T, a, b auth.Store) {
	key := newKey()
	first, err := a.Lock(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	first()
	second, err := b.Lock(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	defer second()
	first()
	wantHeld(t, a, key)
}

// wantHeld checks that key's lock is held: Lock must fail when its context ends.
func wantHeld(t *testing.T, s auth.Store, key string) {
	t.Helper()
	const limit = 100 * time.Millisecond
	start := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	unlock, err := s.Lock(ctx, key)
	if err == nil {
		unlock()
		t.Fatal("Lock of a held lock succeeded")
	}
	if !errors.Is(err, auth.ErrStore) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Lock of a held lock: %v, want ErrStore and context.DeadlineExceeded", err)
	}
	if d := time.Since(start); d < limit || d > limit+5*time.Second {
		t.Fatalf("Lock of a held lock gave up after %v, want %v", d, limit)
	}
}

// together runs f in n goroutines that start at the same time, and waits for them.
func together(n int, f func(i int)) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-start
			f(i)
		})
	}
	close(start)
	wg.Wait()
}
