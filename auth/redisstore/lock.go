package redisstore

import (
	"context"
	"crypto/rand"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

const (
	// lockTTL is how long a lock stays after its holder died.
	lockTTL = 5 * time.Second
	// renewInterval is how often a holder renews its lock.
	renewInterval = 1500 * time.Millisecond
	// minLockWait and maxLockWait bound the wait before the next try for a lock that is held.
	minLockWait = 10 * time.Millisecond
	maxLockWait = 200 * time.Millisecond
)

// A lease is a lock that this process tries to take, or holds.
type lease struct {
	s           *store
	key         string
	owner       string // random, the lock's value in Redis
	acquisition acquisition
}

func (s *store) newLease(key string) *lease { return &lease{s: s, key: key, owner: rand.Text()} }

func (l *lease) lockKey() string { return l.s.key(l.key, ":lock") }

// take takes or renews the lock. It also takes a lock again that Redis has lost.
func (l *lease) take(ctx context.Context) (bool, error) {
	return do(ctx, l.s.records, l.s.key(l.key, ""), &l.acquisition, func(ctx context.Context, p *pool) (bool, error) {
		taken, err := lock.Eval(ctx, p.redis, []string{l.lockKey()}, l.owner, lockTTL.Milliseconds()).Int64()
		if err == nil {
			err = l.s.confirmLock(ctx, taken == 1, p)
		}
		return taken == 1, err
	})
}

// confirmLock returns an error if the lock was taken on a server that is not the master any more. If
// the lock was not taken, the Sentinels are only asked in the background.
func (s *store) confirmLock(ctx context.Context, taken bool, p *pool) error {
	if taken {
		return s.dialer.confirmMaster(ctx, p)
	}
	s.records.askInBackground()
	return nil
}

// unlockInBackground removes the lock, if it is this lease's. If Redis stays away, the lock expires.
func (l *lease) unlockInBackground() {
	l.s.runInBackground(l.s.records, lockTTL, l.key, unlock, []string{l.lockKey()}, l.owner)
}

// keep renews the lock until unlock is called.
func (l *lease) keep() (unlock func()) {
	held, stop := context.WithCancel(l.s.closing)
	l.s.goBackground(func() { l.renew(held) })
	return sync.OnceFunc(func() {
		stop()
		l.acquisition.release(true, l.unlockInBackground)
	})
}

func (l *lease) renew(held context.Context) {
	ticker := time.NewTicker(renewInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			// An error is retried at the next tick. If another process has the lock now, Save
			// will notice by the record's version.
			l.take(held)
		case <-held.Done():
			return
		}
	}
}

// TryLock implements [auth.TryLocker] with one command.
func (s *store) TryLock(ctx context.Context, key string, known uint64) (auth.Record, func(), error) {
	type result struct {
		record auth.Record
		taken  bool
	}
	l, name := s.newLease(key), s.key(key, "")
	got, err := do(ctx, s.records, name, &l.acquisition, func(ctx context.Context, p *pool) (r result, err error) {
		reply, err := tryLock.Eval(ctx, p.redis, []string{l.lockKey(), name}, version(known), l.owner, lockTTL.Milliseconds()).Result()
		switch reply := reply.(type) {
		case int64:
			r.taken, r.record.Version = reply == 1, known
			err = s.confirmLock(ctx, r.taken, p)
		case []any:
			fields := map[string]string{}
			for pair := range slices.Chunk(reply, 2) {
				name, _ := pair[0].(string)
				value, ok := pair[len(pair)-1].(string)
				if !ok {
					return r, errNotRedis
				}
				fields[name] = value
			}
			if len(fields) > 0 {
				r.record, err = decode(fields)
			}
		}
		return r, err
	})
	if err != nil || !got.taken {
		l.acquisition.release(false, l.unlockInBackground)
		return got.record, nil, err
	}
	return got.record, l.keep(), nil
}

// Lock implements [auth.Store]. After the first second it tries at most five times a second.
func (s *store) Lock(ctx context.Context, key string) (unlock func(), err error) {
	l := s.newLease(key)
	defer func() {
		if unlock == nil {
			l.acquisition.release(false, l.unlockInBackground)
		}
	}()
	for wait := minLockWait; ; wait = min(2*wait, maxLockWait) {
		if taken, err := l.take(ctx); err != nil {
			return nil, err
		} else if taken {
			return l.keep(), nil
		}
		select {
		case <-time.After(wait + mathrand.N(wait/2)):
		case <-ctx.Done():
			return nil, &canceledError{errLocked, ctx.Err()}
		}
	}
}
