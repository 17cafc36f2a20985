package redisstore

import (
	"context"
	"crypto/rand"
	mathrand "math/rand/v2"
	"sync"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

const (
	// lockLife is how long a lock outlives its holder.
	lockLife = 5 * time.Second
	// lockRenewal is how often a holder that is alive says so.
	lockRenewal = 1500 * time.Millisecond
	// lockLeast and lockMost bound the time between two looks at a lock that another process holds.
	lockLeast = 10 * time.Millisecond
	lockMost  = 200 * time.Millisecond
)

// A lease is a lock that this process wants or has.
type lease struct {
	s     *store
	key   string
	owner string
	hold
}

func (s *store) newLease(key string) *lease { return &lease{s: s, key: key, owner: rand.Text()} }

func (l *lease) lockKey() string { return l.s.key(l.key, ":lock") }

// take takes the lock, or takes it for longer. A lock that Redis has lost is taken again.
func (l *lease) take(ctx context.Context) (bool, error) {
	return do(ctx, l.s.records, l.s.key(l.key, ""), &l.hold, func(ctx context.Context, p *pool) (bool, error) {
		taken, err := lock.Eval(ctx, p.redis, []string{l.lockKey()}, l.owner, lockLife.Milliseconds()).Int64()
		if err == nil {
			err = l.s.confirmLock(ctx, taken == 1, p)
		}
		return taken == 1, err
	})
}

// confirmLock gives an error if a lock that was taken is worth nothing, since p's server is not the
// master any more. Where it could not be taken, that is found out in the background.
func (s *store) confirmLock(ctx context.Context, taken bool, p *pool) error {
	if taken {
		return s.dialer.confirm(ctx, p)
	}
	s.records.doubt()
	return nil
}

// tellUnlock frees the lock for others, if it is this lease's. If that fails for good, it lapses.
func (l *lease) tellUnlock() {
	l.s.tell(l.s.records, lockLife, l.key, unlock, []string{l.lockKey()}, l.owner)
}

// keep extends the lock until the unlock that it returns is called.
func (l *lease) keep() (unlock func()) {
	held, release := context.WithCancel(l.s.open)
	l.s.goBackground(func() { l.renew(held) })
	return sync.OnceFunc(func() {
		release()
		l.hold.release(l.tellUnlock)
	})
}

func (l *lease) renew(held context.Context) {
	ticker := time.NewTicker(lockRenewal)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			// What fails is tried at the next tick. What was lost to another process shows when the
			// record is saved.
			l.take(held)
		case <-held.Done():
			return
		}
	}
}

// TryLock implements [auth.TryLocker] with one command.
func (s *store) TryLock(ctx context.Context, key string, known uint64) (auth.Record, func(), error) {
	type trial struct {
		record auth.Record
		taken  bool
	}
	l, name := s.newLease(key), s.key(key, "")
	t, err := do(ctx, s.records, name, &l.hold, func(ctx context.Context, p *pool) (t trial, err error) {
		reply, err := tryLock.Eval(ctx, p.redis, []string{l.lockKey(), name}, l.owner, lockLife.Milliseconds(), version(known)).Result()
		switch reply := reply.(type) {
		case int64:
			t.taken, t.record.Version = reply == 1, known
			err = s.confirmLock(ctx, t.taken, p)
		case []any:
			fields := map[string]string{}
			for i, name := range recordFields {
				if value, ok := reply[i].(string); ok {
					fields[name] = value
				}
			}
			if len(fields) > 0 {
				t.record, err = decode(fields)
			}
		}
		return t, err
	})
	if err != nil || !t.taken {
		l.abandon(l.tellUnlock)
		return t.record, nil, err
	}
	return t.record, l.keep(), nil
}

// Lock implements [auth.Store]. After the first second it asks Redis five times a second at most.
func (s *store) Lock(ctx context.Context, key string) (func(), error) {
	l := s.newLease(key)
	for wait := lockLeast; ; wait = min(2*wait, lockMost) {
		taken, err := l.take(ctx)
		if err != nil {
			l.abandon(l.tellUnlock)
			return nil, err
		}
		if taken {
			return l.keep(), nil
		}
		select {
		case <-time.After(wait + mathrand.N(wait/2)):
		case <-ctx.Done():
			l.abandon(l.tellUnlock)
			return nil, &unanswered{errLocked, ctx.Err()}
		}
	}
}
