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
	"fmt"
	"math"
	"regexp"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"github.com/itsmauth/itsmauth/auth"
)

const (
	// grace is how long a record outlives its end: clocks differ, and a status may still be wanted.
	grace = time.Hour
	// poolSize is how many connections there are at most, of each of the two kinds.
	poolSize = 32
	// closeLimit is how long Close waits for what is still to be told to Redis.
	closeLimit = time.Second
	// tellAgain is how long a command that nobody waits for waits after it failed.
	tellAgain = time.Second
)

var quiet sync.Once

// Open gives the store at c. It does not connect: Redis may be away, and come back.
//
// Open's error is an [auth.KeyError] for each setting at fault, joined. What fails in passing (no
// connection, a failover, Redis is starting) is tried again until the operation's context ends; a
// context that has no end is given 5 s. What needs somebody's help ends the operation at once, and so
// does a single server that has refused connections for 1 s. All errors wrap [auth.ErrStore] or
// [auth.ErrConflict], and none shows what Redis holds. What is not ours under one of our keys is an
// error, is never taken to be absent, and is neither overwritten nor removed.
//
// A lock whose holder died lapses after 5 s. One whose holder is paused for longer may be taken by
// another meanwhile; what keeps its save from doing harm is the record's version.
//
// The store is an [io.Closer], an [auth.Windower] and an [auth.TryLocker]. It keeps its connections:
// some for records and locks, and others for windows, so that neither waits for the other.
//
// go-redis would write to stderr what happens to its connections. The first Open ends that, for the
// whole process; a service that wants it calls redis.SetLogger afterwards.
func Open(c Config) (auth.Store, error) {
	quiet.Do(logging.Disable)
	d, connect, err := c.connector()
	if err != nil {
		return nil, err
	}
	s := &store{
		dialer:  d,
		records: newClient(d, connect),
		windows: newClient(d, connect),
		prefix:  cmp.Or(c.KeyPrefix, "itsmauth:"),
	}
	s.open, s.shut = context.WithCancel(context.Background())
	return s, nil
}

type store struct {
	dialer           *dialer
	records, windows *client
	prefix           string

	mu         sync.Mutex
	open       context.Context // ends with Close
	shut       context.CancelFunc
	background sync.WaitGroup // what nobody waits for but Close
}

// Format shows where the keys are, for every verb, and nothing of the connections.
func (s *store) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "redisstore(%s)", s.prefix) }

// Close waits for what is still to be told to Redis, for 1 s at most. Operations that are under way
// fail then.
func (s *store) Close() error {
	s.mu.Lock()
	s.shut()
	s.mu.Unlock()
	told := make(chan struct{})
	go func() {
		s.background.Wait()
		close(told)
	}()
	select {
	case <-told:
	case <-time.After(closeLimit):
	}
	s.dialer.close()
	s.records.close()
	s.windows.close()
	<-told
	return nil
}

// goBackground runs f, which ends soon after Close. After Close it does nothing.
func (s *store) goBackground(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open.Err() == nil {
		s.background.Go(f)
	}
}

// tell runs a script that nobody waits for, again and again for as long as it is of use: Redis may
// not be away for long.
func (s *store) tell(c *client, use time.Duration, key string, script *redis.Script, keys []string, args ...any) {
	s.goBackground(func() {
		ctx, cancel := context.WithTimeout(s.dialer.life, use)
		defer cancel()
		for {
			_, err := run(ctx, c, s.key(key, ""), nil, script, keys, args...)
			if err == nil || ctx.Err() != nil {
				return
			}
			select {
			case <-time.After(tellAgain):
			case <-ctx.Done():
				return
			case <-s.open.Done(): // Close waits for a first try alone
				return
			}
		}
	})
}

// run runs a script that answers with one number.
func run(ctx context.Context, c *client, key string, h *hold, script *redis.Script, keys []string, args ...any) (int64, error) {
	return do(ctx, c, key, h, func(ctx context.Context, p *pool) (int64, error) {
		return script.Eval(ctx, p.redis, keys, args...).Int64()
	})
}

// recordFormat tells our records from anything else.
const recordFormat = "itsmauth token 1"

func (s *store) Load(ctx context.Context, key string) (auth.Record, error) {
	name := s.key(key, "")
	return do(ctx, s.records, name, nil, func(ctx context.Context, p *pool) (auth.Record, error) {
		fields, err := p.redis.HGetAll(ctx, name).Result()
		if err != nil || len(fields) == 0 {
			return auth.Record{}, err
		}
		return decode(fields)
	})
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
	return s.change(ctx, key, save, version(r.Version), version(r.Version+1), expires, ttl, string(r.Data), rand.Text())
}

func (s *store) Delete(ctx context.Context, key string, v uint64) error {
	return s.change(ctx, key, remove, version(v))
}

// version is as Redis keeps it. Numbers in Lua are floating, so versions are compared as text.
func version(v uint64) string { return strconv.FormatUint(v, 10) }

func (s *store) change(ctx context.Context, key string, script *redis.Script, args ...any) error {
	name, begun := s.key(key, ""), time.Now()
	changed, err := do(ctx, s.records, name, nil, func(ctx context.Context, p *pool) (int64, error) {
		changed, err := script.Eval(ctx, p.redis, []string{name}, args...).Int64()
		if err == nil && time.Since(begun) > lateAfter {
			err = s.dialer.confirm(ctx, p)
		}
		return changed, err
	})
	if err == nil && changed == 0 {
		return fmt.Errorf("%w: %s in Redis", auth.ErrConflict, name)
	}
	return err
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
