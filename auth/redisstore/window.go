package redisstore

import (
	"context"
	"crypto/rand"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/itsmauth/itsmauth/auth"
)

// peerTTL is how long a process counts after its last Take.
const peerTTL = time.Minute

// Window implements [auth.Windower]. It uses the clock of Redis.
func (s *store) Window(key string, limits []auth.Limit, hold time.Duration) auth.Window {
	w := &window{s: s, key: key, hold: hold, keys: []string{s.key(key, ":window"), s.key(key, ":peers")}}
	var windows []any
	for _, l := range limits {
		w.longest = max(w.longest, l.Per)
		windows = append(windows, l.Requests, l.Per.Microseconds())
	}
	w.args = append([]any{rand.Text(), peerTTL.Microseconds(), hold.Microseconds(), w.longest.Microseconds()}, windows...)
	return w
}

type window struct {
	s       *store
	key     string
	keys    []string
	longest time.Duration
	hold    time.Duration
	args    []any    // of take, after the id
	late    sync.Map // by id: the *acquisition of each Take that returned while attempts were running
}

func (w *window) Take(ctx context.Context, id string) (wait time.Duration, processes int, err error) {
	a := new(acquisition)
	reply, err := do(ctx, w.s.windows, w.s.key(w.key, ""), a, func(ctx context.Context, p *pool) ([]int64, error) {
		reply, err := take.Eval(ctx, p.redis, w.keys, append([]any{id}, w.args...)...).Int64Slice()
		if err == nil && len(reply) != 2 {
			err = errNotRedis
		}
		return reply, err
	})
	if a.attemptsRunning() {
		w.late.Store(id, a)
	}
	if err == nil {
		wait, processes = time.Duration(reply[0])*time.Microsecond, int(reply[1])
	}
	if err != nil || wait > 0 {
		a.release(false, func() {
			w.late.Delete(id)
			w.releaseInBackground(id, false)
		})
	}
	return wait, processes, err
}

func (w *window) Release(id string, sent bool) {
	if a, ok := w.late.LoadAndDelete(id); ok {
		a.(*acquisition).release(true, func() { w.releaseInBackground(id, sent) })
		return
	}
	w.releaseInBackground(id, sent)
}

// releaseInBackground releases a slot. If Redis stays away, the slot expires after hold.
func (w *window) releaseInBackground(id string, sent bool) {
	w.s.runInBackground(w.s.windows, w.hold, w.key, release, w.keys, id, sent, w.longest.Milliseconds()+1)
}

// All windows of an identity share one sorted set of slots. A slot's score is the latest time, in
// microseconds, at which the server received its request: in the future until the slot is released. A
// slot counts in each window until it is older than the window is long.

// take has KEYS window, peers; ARGV id, peer, peerTTL, hold, longest window, and requests and length of
// each window. It returns the wait and the number of peers. A slot further ahead than hold was written
// by another master, whose clock was ahead.
//
// The slot that has to leave a window first may not be released yet. Its request is received now at the
// earliest, so the wait is at least the window's length.
var take = redis.NewScript(`
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local id, peer, peerTTL, hold, longest = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
redis.call('ZADD', KEYS[2], now, peer)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - peerTTL)
redis.call('PEXPIRE', KEYS[2], math.ceil(peerTTL / 1000))
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - longest - 1)
for _, ahead in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], now + hold + 1, '+inf')) do
	redis.call('ZADD', KEYS[1], now + hold, ahead)
end
local wait = 0
if not redis.call('ZSCORE', KEYS[1], id) then
	for i = 6, #ARGV, 2 do
		local requests, per = tonumber(ARGV[i]), tonumber(ARGV[i + 1])
		if redis.call('ZCOUNT', KEYS[1], now - per, '+inf') >= requests then
			local first = redis.call('ZRANGE', KEYS[1], -requests, -requests, 'WITHSCORES')
			wait = math.max(wait, math.min(tonumber(first[2]), now) + per + 1 - now)
		end
	end
	if wait == 0 then
		redis.call('ZADD', KEYS[1], now + hold, id)
		redis.call('PEXPIRE', KEYS[1], math.ceil((longest + hold) / 1000) + 1)
	end
end
return {wait, redis.call('ZCARD', KEYS[2])}`)

// release has KEYS as take; ARGV id, whether the request was sent, and the longest window in
// milliseconds. It also restores a slot that Redis has lost.
var release = redis.NewScript(`
if ARGV[2] == '0' then return redis.call('ZREM', KEYS[1], ARGV[1]) end
local time = redis.call('TIME')
redis.call('ZADD', KEYS[1], time[1] * 1000000 + time[2], ARGV[1])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return 1`)
