// Package redisstore keeps tokens in Redis or Valkey, so that many replicas can share them. Redis may be
// a single server, a set of servers watched by Sentinel, or a Cluster.
//
//	config.Load(path, config.WithStore("redis", redisstore.Open))
//
// Each credential has these keys, which are in one hash slot of a Cluster. All have a time to live,
// except for a record that does not expire.
//
//	PREFIX{NAME}         the record
//	PREFIX{NAME}:lock    who is requesting a new token
//	PREFIX{NAME}:window  the requests that count for the rate limits
//	PREFIX{NAME}:peers   the processes that share the rate limits
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
	// keepExpired is how long a record is kept after it expired: clocks differ, and a status command may
	// still show it.
	keepExpired = time.Hour
	// poolSize is the largest number of connections for records, and of those for windows.
	poolSize = 32
	// closeTimeout is how long Close waits for background commands.
	closeTimeout = time.Second
	// backgroundRetryWait is how long a background command waits before a retry.
	backgroundRetryWait = time.Second
)

var disableLogging = sync.OnceFunc(logging.Disable)

// Open returns the store in the Redis that c names. It does not connect, so Redis may be down. Its error
// joins an [auth.KeyError] for each wrong setting.
//
// The store retries after temporary errors, such as no connection, a failover, or a Redis that is
// starting, until the operation's context ends, or for 5 s if the context never ends. Errors that need
// a repair end the operation at once. So does a single server that refuses connections for 1 s. All
// errors wrap [auth.ErrStore] or [auth.ErrConflict], and none shows what is stored. If one of the
// store's keys holds something else, that is an error, and it is neither overwritten nor removed.
//
// A lock expires 5 s after its holder died. If its holder is paused for longer, another process may
// take the lock; the holder's save then fails with [auth.ErrConflict] if the other has saved.
//
// The store is an [io.Closer], an [auth.Windower] and an [auth.TryLocker]. It uses separate connections
// for records and for windows, so that neither waits for the other.
//
// The first Open disables go-redis's log on stderr for the whole process. To get the log, call
// redis.SetLogger after Open.
func Open(c Config) (auth.Store, error) {
	disableLogging()
	d, connect, err := c.prepare()
	if err != nil {
		return nil, err
	}
	s := &store{
		dialer:  d,
		records: newClient(d, connect),
		windows: newClient(d, connect),
		prefix:  cmp.Or(c.KeyPrefix, "itsmauth:"),
	}
	s.closing, s.startClosing = context.WithCancel(context.Background())
	return s, nil
}

type store struct {
	dialer           *dialer
	records, windows *client
	prefix           string

	mu           sync.Mutex
	closing      context.Context // ends when Close begins
	startClosing context.CancelFunc
	background   sync.WaitGroup
}

// Format prints the key prefix for every verb, and nothing of the URL.
func (s *store) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "redisstore(%s)", s.prefix) }

// Close waits at most 1 s for background commands, then ends running operations with an error.
func (s *store) Close() error {
	s.mu.Lock()
	s.startClosing()
	s.mu.Unlock()
	done := make(chan struct{})
	go func() {
		s.background.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(closeTimeout):
	}
	s.dialer.close()
	s.records.close()
	s.windows.close()
	<-done
	return nil
}

// goBackground runs f, unless the store is closed. f must end soon after closing does.
func (s *store) goBackground(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Err() == nil {
		s.background.Go(f)
	}
}

// runInBackground runs a script, and retries it until limit if it fails.
func (s *store) runInBackground(c *client, limit time.Duration, key string, script *redis.Script, keys []string, args ...any) {
	s.goBackground(func() {
		ctx, cancel := context.WithTimeout(s.dialer.ctx, limit)
		defer cancel()
		for {
			_, err := do(ctx, c, s.key(key, ""), nil, func(ctx context.Context, p *pool) (any, error) {
				return script.Eval(ctx, p.redis, keys, args...).Result()
			})
			if err == nil || ctx.Err() != nil {
				return
			}
			select {
			case <-time.After(backgroundRetryWait):
			case <-ctx.Done():
				return
			case <-s.closing.Done(): // Close waits for the first try only
				return
			}
		}
	})
}

// recordFormat marks a hash as a record of this package.
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
		ttl = (min(max(time.Until(r.Expires), 0), math.MaxInt64-keepExpired) + keepExpired).Milliseconds()
	}
	return s.change(ctx, key, save, version(r.Version), version(r.Version+1), expires, ttl, string(r.Data), rand.Text())
}

func (s *store) Delete(ctx context.Context, key string, v uint64) error {
	return s.change(ctx, key, remove, version(v))
}

// version is v as text, in which Redis keeps and compares it: Lua's numbers are floating-point.
func version(v uint64) string { return strconv.FormatUint(v, 10) }

func (s *store) change(ctx context.Context, key string, script *redis.Script, args ...any) error {
	name, start := s.key(key, ""), time.Now()
	changed, err := do(ctx, s.records, name, nil, func(ctx context.Context, p *pool) (int64, error) {
		changed, err := script.Eval(ctx, p.redis, []string{name}, args...).Int64()
		if err == nil && time.Since(start) > lateAfter {
			err = s.dialer.confirmMaster(ctx, p)
		}
		return changed, err
	})
	if err == nil && changed == 0 {
		return fmt.Errorf("%w: %s in Redis", auth.ErrConflict, name)
	}
	return err
}

var plainName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,128}$`)

// key returns the Redis key of an identity. The braces put all keys of an identity into one slot of a
// Cluster, so the name itself must not contain any.
func (s *store) key(key, suffix string) string {
	if !plainName.MatchString(key) {
		sum := sha256.Sum256([]byte(key))
		key = "sha256=" + hex.EncodeToString(sum[:])
	}
	return s.prefix + "{" + key + "}" + suffix
}
