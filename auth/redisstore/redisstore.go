// Package redisstore keeps tokens in Redis or Valkey, for many replicas: one server, one that
// Sentinel watches, or a Cluster.
//
//	config.Load(path, config.WithStore("redis", redisstore.Open))
//
// A credential has the keys PREFIX{NAME}, its record, PREFIX{NAME}:lock, PREFIX{NAME}:window, the
// rate limits' slots, and PREFIX{NAME}:peers, all in one slot of a Cluster, and all with a time to
// live unless the record has no end.
package redisstore

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	mathrand "math/rand/v2"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/itsmauth/itsmauth/auth"
)

const (
	// patience is how long an operation waits for Redis, retries included.
	patience = 250 * time.Millisecond
	// breather is how long Redis is left alone after it did not answer in time. Operations fail at
	// once meanwhile, so that an exchange, which has several of them, waits once and not each time.
	breather = patience
	// grace is how long a record outlives its end: clocks differ, and a status may still be wanted.
	grace = time.Hour
	// lockLife is how long a lock outlives its holder.
	lockLife = 5 * time.Second
	// lockRenewal is how often a holder that is alive says so.
	lockRenewal = 1500 * time.Millisecond
)

// Open gives the store at c. It does not connect: Redis may be away, and come back.
//
// Open's error is an [auth.KeyError] for each setting at fault, joined. No operation waits for Redis
// longer than 250 ms; one that got no answer has those of the next 250 ms fail at once. All errors
// wrap [auth.ErrStore] or [auth.ErrConflict], and none shows what Redis holds. What is not ours under
// one of our keys is an error, is never taken to be absent, and is neither overwritten nor removed.
//
// A lock whose holder died lapses after 5 s. One whose holder is paused for longer may be taken by
// another meanwhile; what keeps its save from doing harm is the record's version.
//
// The store is an [io.Closer] and an [auth.Windower].
//
// go-redis writes to stderr what happens to its connections to Sentinels; its logging.Disable ends
// that, for the whole process.
func Open(c Config) (auth.Store, error) { return open(c, patience) }

func open(c Config, patience time.Duration) (auth.Store, error) {
	o, err := c.options(patience)
	if err != nil {
		return nil, err
	}
	s := &store{client: redis.NewUniversalClient(o), prefix: cmp.Or(c.KeyPrefix, "itsmauth:"), patience: patience}
	s.closing, s.shut = context.WithCancel(context.Background())
	return s, nil
}

type store struct {
	client   redis.UniversalClient
	prefix   string
	patience time.Duration
	silent   atomic.Int64 // until when Redis is left alone, in wall-clock ns

	mu      sync.Mutex
	closing context.Context // ends with Close
	shut    context.CancelFunc
	running sync.WaitGroup // what nobody waits for
}

// Format shows where the keys are, for every verb, and nothing of the connections.
func (s *store) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "redisstore(%s)", s.prefix) }

// Close waits for what is still to be told to Redis, which is not longer than 250 ms.
func (s *store) Close() error {
	s.mu.Lock()
	s.shut()
	s.mu.Unlock()
	s.running.Wait()
	return s.client.Close()
}

// recordFormat tells our records from anything else.
const recordFormat = "itsmauth token 1"

func (s *store) Load(ctx context.Context, key string) (auth.Record, error) {
	var fields map[string]string
	err := s.do(ctx, key, func(ctx context.Context) (err error) {
		fields, err = s.client.HGetAll(ctx, s.key(key, "")).Result()
		return err
	})
	if err != nil || len(fields) == 0 {
		return auth.Record{}, err
	}
	r, err := decode(fields)
	if err != nil {
		return auth.Record{}, s.fail(key, err)
	}
	return r, nil
}

func decode(fields map[string]string) (r auth.Record, err error) {
	if fields["format"] != recordFormat {
		return r, errForeign
	}
	data, ok := fields["data"]
	if r.Version, err = strconv.ParseUint(fields["version"], 10, 64); err != nil || r.Version == 0 || !ok {
		return r, errDamaged
	}
	if expires := fields["expires"]; expires != "" {
		if r.Expires, err = time.Parse(time.RFC3339Nano, expires); err != nil {
			return r, errDamaged
		}
	}
	r.Data = []byte(data)
	return r, nil
}

func (s *store) Save(ctx context.Context, key string, r auth.Record) error {
	expires, ttl := "", int64(0)
	if !r.Expires.IsZero() {
		expires = r.Expires.UTC().Format(time.RFC3339Nano)
		ttl = (min(max(time.Until(r.Expires), 0), math.MaxInt64-grace) + grace).Milliseconds()
	}
	return s.change(ctx, key, save, version(r.Version), version(r.Version+1), expires, ttl, r.Data, rand.Text())
}

func (s *store) Delete(ctx context.Context, key string, v uint64) error {
	return s.change(ctx, key, remove, version(v))
}

// version is as Redis keeps it. Numbers in Lua are floating, so versions are compared as text.
func version(v uint64) string { return strconv.FormatUint(v, 10) }

func (s *store) change(ctx context.Context, key string, script *redis.Script, args ...any) error {
	changed, err := s.run(ctx, key, script, []string{s.key(key, "")}, args...)
	if err == nil && changed == 0 {
		return fmt.Errorf("%w: %s in Redis", auth.ErrConflict, s.key(key, ""))
	}
	return err
}

func (s *store) Lock(ctx context.Context, key string) (func(), error) {
	owner := rand.Text()
	for {
		taken, err := s.lock(ctx, key, owner)
		if err != nil {
			s.unlock(key, owner) // it may have been granted all the same
			return nil, err
		}
		if taken {
			break
		}
		select {
		case <-time.After(10*time.Millisecond + mathrand.N(40*time.Millisecond)):
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: waiting for the lock: %w", auth.ErrStore, ctx.Err())
		}
	}
	held, release := context.WithCancel(context.Background())
	var renewal sync.WaitGroup
	renewal.Go(func() { s.renew(held, key, owner) })
	return sync.OnceFunc(func() {
		release()
		renewal.Wait()
		s.unlock(key, owner)
	}), nil
}

// lock takes owner's lock, or takes it for longer. One that Redis has lost is taken again.
func (s *store) lock(ctx context.Context, key, owner string) (bool, error) {
	taken, err := s.run(ctx, key, lock, []string{s.key(key, ":lock")}, owner, lockLife.Milliseconds())
	return taken == 1, err
}

func (s *store) renew(ctx context.Context, key, owner string) {
	tick := time.NewTicker(lockRenewal)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			// What fails is tried at the next tick. What was lost to another shows when the record
			// is saved.
			s.lock(ctx, key, owner)
		case <-ctx.Done():
			return
		}
	}
}

// unlock is for the owner alone. If it fails for good the lock lapses.
func (s *store) unlock(key, owner string) {
	keys := []string{s.key(key, ":lock")}
	if _, err := s.run(context.Background(), key, unlock, keys, owner); err != nil {
		s.tell(lockLife, key, unlock, keys, owner)
	}
}

// tell runs a script that nobody waits for, again and again while that is of use: Redis may not have
// been away for long.
func (s *store) tell(use time.Duration, key string, script *redis.Script, keys []string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Err() != nil {
		return
	}
	s.running.Go(func() {
		for end := time.Now().Add(use); ; {
			if _, err := s.run(context.Background(), key, script, keys, args...); err == nil || time.Now().After(end) {
				return
			}
			select {
			case <-time.After(s.patience):
			case <-s.closing.Done():
				return
			}
		}
	})
}

var plain = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,128}$`)

// key names what belongs to an identity. The braces put all of it into one slot of a Cluster, for
// which the name itself must have none.
func (s *store) key(key, suffix string) string {
	if !plain.MatchString(key) {
		sum := sha256.Sum256([]byte(key))
		key = "sha256=" + hex.EncodeToString(sum[:])
	}
	return s.prefix + "{" + key + "}" + suffix
}

// run runs a script that answers with one number.
func (s *store) run(ctx context.Context, key string, script *redis.Script, keys []string, args ...any) (n int64, err error) {
	err = s.do(ctx, key, func(ctx context.Context) (err error) {
		n, err = script.Run(ctx, s.client, keys, args...).Int64()
		return err
	})
	return n, err
}

// do runs one operation within our patience, and explains its error.
func (s *store) do(ctx context.Context, key string, f func(ctx context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", auth.ErrStore, err)
	}
	if time.Now().UnixNano() < s.silent.Load() {
		return fmt.Errorf("%w: Redis did not answer within %s, and is left alone for %s", auth.ErrStore, s.patience, breather)
	}
	bounded, cancel := context.WithTimeout(ctx, s.patience)
	defer cancel()
	err := f(bounded)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", auth.ErrStore, ctx.Err())
	case bounded.Err() != nil:
		s.silent.Store(time.Now().Add(breather).UnixNano())
	}
	return s.fail(key, err)
}

func (s *store) fail(key string, err error) error {
	if redis.HasErrorPrefix(err, "WRONGTYPE") || redis.HasErrorPrefix(err, "FOREIGN") {
		err = errForeign
	}
	if errors.Is(err, errForeign) || errors.Is(err, errDamaged) {
		return fmt.Errorf("%w: the key %s in Redis %w", auth.ErrStore, s.key(key, ""), err)
	}
	return fmt.Errorf("%w: %w", auth.ErrStore, explain(err, s.patience))
}
