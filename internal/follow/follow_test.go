package follow_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/itsmauth/itsmauth/internal/follow"
)

const every, patience = time.Second, 250 * time.Millisecond

func TestEvery(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		reads := 0
		var fails error
		v := follow.New(every, patience, func() (int, error) { reads++; return reads, fails }).Know(-1)
		get := func(want int) {
			t.Helper()
			if got := v.Get(t.Context()); got != want {
				t.Errorf("%d, want %d", got, want)
			}
		}
		get(-1)
		time.Sleep(every - 1)
		get(-1)
		time.Sleep(1 * time.Nanosecond)
		get(1)
		get(1)
		fails = errors.New("no")
		time.Sleep(every)
		get(1)
		get(1)
		fails = nil
		time.Sleep(every)
		get(3)
	})
}

// While a read hangs, Get waits for patience once, or until ctx ends, and returns the last value.
func TestHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		reads := 0
		v := follow.New(0, patience, func() (int, error) { reads++; <-hang; return reads, nil }).Know(-1)
		for _, tc := range []struct{ limit, want time.Duration }{
			{patience / 2, patience / 2}, {time.Hour, patience / 2}, {time.Hour, 0}, {0, 0},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), tc.limit)
			start := time.Now()
			if got := v.Get(ctx); got != -1 {
				t.Error(got)
			}
			if took := time.Since(start); took != tc.want {
				t.Errorf("took %s, want %s", took, tc.want)
			}
			cancel()
		}
		close(hang)
		synctest.Wait()
		if got := v.Get(t.Context()); got != 2 || reads != 2 {
			t.Errorf("%d after %d reads", got, reads)
		}
	})
}

// The first value has none before it, so Get waits until it is known.
func TestFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v := follow.New(every, patience, func() (int, error) { time.Sleep(time.Minute); return 1, nil })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if got := v.Get(ctx); got != 0 {
			t.Error(got)
		}
		if got := v.Get(t.Context()); got != 1 {
			t.Error(got)
		}
	})
}

// A read that takes long is made less often, and each holds a caller for patience at most.
func TestSlow(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		takes, waited time.Duration
		reads         int
	}{
		{0, 0, 10}, {every / 10, every, 10}, {every / 5, every, 5}, {every / 2, 2 * patience, 2}, {10 * every, patience, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			reads := 0
			v := follow.New(every, patience, func() (int, error) { reads++; time.Sleep(tc.takes); return reads, nil }).Know(0)
			start, waited := time.Now(), time.Duration(0)
			for time.Since(start) < 10*every+every/2 {
				before := time.Now()
				v.Get(t.Context())
				waited += time.Since(before)
				time.Sleep(every / 100)
			}
			time.Sleep(time.Hour) // the last read ends
			synctest.Wait()
			if reads != tc.reads || waited != tc.waited {
				t.Errorf("takes %s: %d reads, waited %s; want %d, %s", tc.takes, reads, waited, tc.reads, tc.waited)
			}
		})
	}
}

// Again waits for a read that begins after it was called, which all callers share, or until ctx ends.
func TestAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		reads := 0
		v := follow.New(time.Hour, 0, func() (int, error) { reads++; n := reads; time.Sleep(time.Second); return n, nil }).Know(0)
		start := time.Now()
		if got := v.Again(t.Context()); got != 1 || time.Since(start) != time.Second {
			t.Errorf("%d after %s", got, time.Since(start))
		}
		go v.Again(t.Context())
		synctest.Wait() // read 2 runs
		start = time.Now()
		for range 10 {
			go func() {
				if got := v.Again(t.Context()); got != 3 || time.Since(start) != 2*time.Second {
					t.Errorf("%d after %s", got, time.Since(start))
				}
			}()
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		if got := v.Again(ctx); got != 1 || time.Since(start) != time.Second/2 {
			t.Errorf("%d after %s", got, time.Since(start))
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if reads != 3 {
			t.Errorf("%d reads", reads)
		}
	})
}

// Func calls its function at each use, and gives its last result while that hangs.
func TestFunc(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := 0
		f := follow.NewFunc(patience, func() (int, error) {
			n++
			if n%2 == 1 {
				time.Sleep(time.Minute)
			}
			return n, fmt.Errorf("error %d", n)
		})
		for _, tc := range []struct {
			waited time.Duration
			want   int
		}{
			{time.Minute, 1}, {0, 2}, {patience, 2}, {0, 2},
		} {
			start := time.Now()
			got, err := f.Call()
			if waited := time.Since(start); got != tc.want || fmt.Sprint(err) != fmt.Sprintf("error %d", tc.want) || waited != tc.waited {
				t.Errorf("%d, %v after %s, want %d after %s", got, err, waited, tc.want, tc.waited)
			}
		}
		time.Sleep(time.Minute)
		if got, _ := f.Call(); got != 4 {
			t.Error(got)
		}
	})
}
