package auth_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

// alone returns the sessions of n processes, started apart, that each obtained a token while stalled, which
// is behind store, gave no answer.
func alone(t *testing.T, n int, p *product, stalled *stalling, store auth.Store, apart time.Duration) (all []*auth.Session) {
	t.Helper()
	stalled.stall()
	for range n {
		s := newSession(t, p, &auth.Options{Store: monitor(t, store, nil)})
		all = append(all, s)
		get(t, s)
		time.Sleep(apart)
	}
	return all
}

// Several processes without their store each obtain a token. With the store back they agree on one,
// and make no exchange for it.
func TestLoneTokensSettle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, p := new(stalling), &product{lifetime: time.Hour}
		all := alone(t, 10, p, store, store, 0)
		refused := all[3]
		store.resume()
		refused.Invalidate(must(refused.Token(t.Context()))) // its own is not offered
		time.Sleep(4 * time.Second)
		want := store.stored(t, all[0].Key())
		for i, s := range all {
			if got := get(t, s); got != want {
				t.Errorf("process %d has %s, the store %s", i, got, want)
			}
		}
		if n := p.calls.Load(); n != 10 {
			t.Errorf("%d exchanges", n)
		}
	})
}

// If the store is slow after the outage, the processes agree later.
func TestLoneTokensSettleOverASlowStore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := new(stalling)
		all := alone(t, 5, &product{lifetime: time.Hour}, store, slowStore{store, 1200 * time.Millisecond}, 333*time.Millisecond)
		store.resume()
		time.Sleep(30 * time.Second)
		for i, s := range all {
			if got, want := get(t, s), store.stored(t, s.Key()); got != want {
				t.Errorf("process %d has %s, the store %s", i, got, want)
			}
		}
	})
}

// If a failover loses the offered token, it is offered again.
func TestLostOfferIsRepeated(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := new(stalling)
		s := newSession(t, &product{lifetime: time.Hour}, &auth.Options{Store: monitor(t, store, nil)})
		first := must(s.Token(t.Context()))
		synctest.Wait() // it is saved
		older, err := store.Memory.Load(t.Context(), s.Key())
		if err != nil {
			t.Fatal(err)
		}
		store.stall()
		s.Invalidate(first)
		want := get(t, s)
		store.resume()
		time.Sleep(3 * time.Second)
		if got := store.stored(t, s.Key()); got != want {
			t.Fatalf("the store has %s, want %s", got, want)
		}
		now, _ := store.Memory.Load(t.Context(), s.Key())
		older.Version = now.Version
		if err := store.Memory.Save(t.Context(), s.Key(), older); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		if got := store.stored(t, s.Key()); got != want {
			t.Errorf("the store has %s, want %s", got, want)
		}
	})
}

// After an outage a session goes on looking at what others offer, also while another operation waits.
func TestSlowOperationHidesNoToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, p := new(losing), &product{lifetime: time.Hour}
		outage := new(stalling)
		m := monitor(t, both{store, outage}, nil)
		other := newSession(t, &product{lifetime: time.Hour}, &auth.Options{Connector: "other", Store: m})
		s := newSession(t, p, &auth.Options{Store: m})
		outage.stall()
		get(t, s)
		outage.resume()
		time.Sleep(2500 * time.Millisecond) // it has been offered
		store.lost.Store(other.Key(), nil)
		go other.Token(t.Context())
		time.Sleep(2500 * time.Millisecond)
		replaced := newSession(t, p, &auth.Options{Store: store})
		first := must(replaced.Token(t.Context()))
		replaced.Rejected(response(401, "token"), first)
		want := get(t, replaced)
		time.Sleep(8 * time.Second)
		if got := get(t, s); got != want || got == first.AccessToken {
			t.Errorf("it has %s, the store %s", got, want)
		}
	})
}

// both is a Store that answers only if first does.
type both struct {
	auth.Store
	first *stalling
}

func (b both) Load(ctx context.Context, key string) (auth.Record, error) {
	if err := b.first.answer(ctx, key, false); err != nil {
		return auth.Record{}, err
	}
	return b.Store.Load(ctx, key)
}

func (b both) Save(ctx context.Context, key string, r auth.Record) error {
	if err := b.first.answer(ctx, key, true); err != nil {
		return err
	}
	return b.Store.Save(ctx, key, r)
}
