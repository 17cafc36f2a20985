package auth_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

// windows is a Windower whose slots can stop coming.
type windows struct {
	stalling
	takes, releases atomic.Int64
	slots           stalling
}

func (w *windows) Window(string, []auth.Limit, time.Duration) auth.Window { return w }

func (w *windows) Take(ctx context.Context, id string) (time.Duration, int, error) {
	w.takes.Add(1)
	return 0, 1, w.slots.answer(ctx, "", true)
}

func (w *windows) Release(string, bool) { w.releases.Add(1) }

// Take waits as long as an exchange for its first answer, then for a few round trips. After one Take without
// an answer, others fail at once, and records are still read and written.
func TestWindowSilence(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := new(windows)
		m := monitor(t, store, nil)
		w := m.(auth.Windower).Window("it", nil, time.Second)
		take := func(what string, want time.Duration, fails bool) {
			t.Helper()
			start := time.Now()
			_, _, err := w.Take(t.Context(), what)
			if took := time.Since(start); took < want || took > want+100*time.Millisecond || errors.Is(err, auth.ErrStore) != fails {
				t.Errorf("%s: %v after %v, want %v and failure %t", what, err, took, want, fails)
			}
		}
		store.slots.stall()
		take("never heard", 5*time.Second, true)
		take("known to be silent", 0, true)
		if _, err := m.Load(t.Context(), "it"); err != nil {
			t.Errorf("records: %v", err)
		}
		time.Sleep(time.Minute)
		store.slots.resume()
		time.Sleep(2 * time.Second)
		take("heard again", 0, false)
		store.slots.stall()
		take("silent once it was heard", 250*time.Millisecond, true)
		store.slots.resume()
		time.Sleep(2 * time.Second)
		take("heard again", 0, false)

		store.stall() // the records alone
		if _, err := m.Load(t.Context(), "it"); !errors.Is(err, auth.ErrStore) {
			t.Errorf("records: %v", err)
		}
		take("no records", 0, true)
		store.resume()
		time.Sleep(2 * time.Second)
		take("records are back", 0, false)
		asked, released := store.takes.Load(), store.releases.Load()
		store.slots.stall()
		for _, id := range []string{"asked for", "not asked for", "not either"} {
			w.Take(t.Context(), id)
			w.Release(id, false)
		}
		if n := store.takes.Load() - asked; n != 1 {
			t.Errorf("%d slots were asked for, want 1", n)
		}
		if n := store.releases.Load() - released; n != 1 {
			t.Errorf("%d slots were given back, want the one that was asked for", n)
		}
		store.slots.resume()
	})
}

// If another program has overwritten the key of a window, other windows still work.
func TestSpoiledWindow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := new(windows)
		w := monitor(t, store, nil).(auth.Windower).Window("it", nil, time.Second)
		store.slots.set(func() { store.slots.refuse = errors.New("WRONGTYPE") })
		if _, _, err := w.Take(t.Context(), "spoiled"); !errors.Is(err, auth.ErrStore) {
			t.Error(err)
		}
		store.slots.resume()
		if _, _, err := w.Take(t.Context(), "good"); err != nil {
			t.Error(err)
		}
	})
}
