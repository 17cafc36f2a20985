package redisstore

import (
	"context"
	"crypto/rand"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/itsmauth/itsmauth/auth"
)

// peerLife is how long a process counts that does not ask any more.
const peerLife = time.Minute

// Window implements [auth.Windower], by Redis's own clock.
func (s *store) Window(key string, limits []auth.Limit, hold time.Duration) auth.Window {
	w := &window{s: s, key: key, hold: hold, keys: []string{s.key(key, ":window"), s.key(key, ":peers")}}
	var windows []any
	for _, l := range limits {
		w.longest = max(w.longest, l.Per)
		windows = append(windows, l.Requests, l.Per.Microseconds())
	}
	w.args = append([]any{rand.Text(), peerLife.Microseconds(), hold.Microseconds(), w.longest.Microseconds()}, windows...)
	return w
}

type window struct {
	s       *store
	key     string
	keys    []string
	longest time.Duration
	hold    time.Duration
	args    []any    // of take, after the id
	late    sync.Map // *hold of each id whose Take has returned while attempts of it were under way
}

func (w *window) Take(ctx context.Context, id string) (wait time.Duration, processes int, err error) {
	h := new(hold)
	answer, err := do(ctx, w.s.windows, w.s.key(w.key, ""), h, func(ctx context.Context, p *pool) ([]int64, error) {
		return take.Eval(ctx, p.redis, w.keys, append([]any{id}, w.args...)...).Int64Slice()
	})
	if h.unsettled() {
		w.late.Store(id, h)
	}
	if err == nil {
		wait, processes = time.Duration(answer[0])*time.Microsecond, int(answer[1])
	}
	if err != nil || wait > 0 {
		h.abandon(func() {
			w.late.Delete(id)
			w.tellRelease(id, false)
		})
	}
	return wait, processes, err
}

func (w *window) Release(id string, sent bool) {
	if h, ok := w.late.LoadAndDelete(id); ok {
		h.(*hold).release(func() { w.tellRelease(id, sent) })
		return
	}
	w.tellRelease(id, sent)
}

// tellRelease gives a slot back. What fails for good leaves it taken for as long as an attempt may
// last.
func (w *window) tellRelease(id string, sent bool) {
	w.s.tell(w.s.windows, w.hold, w.key, release, w.keys, id, sent, w.longest.Milliseconds()+1)
}

// The windows of an identity are one sorted set of slots, scored by the moment, in microseconds, by
// which the server has received the request: for a slot that was not released, that is in the future.
// A slot counts in each window until it is older than the window is long.

// take has KEYS window, peers; ARGV id, peer, peer's life, hold, longest window, and requests and
// length of each window. It answers with the wait and the number of peers. A slot that is further
// ahead than its hold is of a clock that was ahead, of another master.
//
// The slot that must go first may still be in flight. It will not have been received before now, so
// that its window's length is the least there is to wait.
var take = redis.NewScript(`
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local id, peer, life, hold, longest = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
redis.call('ZADD', KEYS[2], now, peer)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - life)
redis.call('PEXPIRE', KEYS[2], math.ceil(life / 1000))
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

// release has KEYS as take; ARGV id, whether it was sent, and the longest window in milliseconds. A
// slot that Redis has lost is put back.
var release = redis.NewScript(`
if ARGV[2] == '0' then return redis.call('ZREM', KEYS[1], ARGV[1]) end
local time = redis.call('TIME')
redis.call('ZADD', KEYS[1], time[1] * 1000000 + time[2], ARGV[1])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return 1`)
