package redisstore

import "github.com/redis/go-redis/v9"

// Each script may run twice, or late, because an attempt without a reply is retried. The save's id, the
// lock's owner and the slot's id give the second run the same result as the first. Only a second
// delete fails, because the first has deleted the record.
//
// The scripts are sent with EVAL. EVALSHA would need another round trip if Redis does not know the script.

// save has KEYS record; ARGV version, next version, expires, milliseconds to live or 0, data, id.
var save = redis.NewScript(`
local record, version, next, expires, ttl, data, id = KEYS[1], unpack(ARGV)` + readRecord + `
if stored[2] == next and stored[3] == id then return 1 end
if conflict then return 0 end
redis.call('HSET', record, 'format', '` + recordFormat + `', 'version', next, 'expires', expires, 'data', data, 'id', id)
if ttl == '0' then redis.call('PERSIST', record) else redis.call('PEXPIRE', record, ttl) end
return 1`)

// remove has KEYS record; ARGV version.
var remove = redis.NewScript(`
local record, version = KEYS[1], ARGV[1]` + readRecord + `
if conflict then return 0 end
redis.call('DEL', record)
return 1`)

// tryLock has KEYS lock, record; ARGV version, owner, milliseconds to live. It returns the record if it
// has another version, else what lock returns.
var tryLock = redis.NewScript(`
local lock, record, version, owner, ttl = KEYS[1], KEYS[2], unpack(ARGV)` + readRecord + `
if conflict then return redis.call('HGETALL', record) end` + takeLock)

// lock has KEYS lock; ARGV owner, milliseconds to live.
var lock = redis.NewScript(`
local lock, owner, ttl = KEYS[1], unpack(ARGV)` + takeLock)

// readRecord sets conflict if the record has another version. A record that does not exist has version 0.
const readRecord = `
local stored = redis.call('HMGET', record, 'format', 'version', 'id')
if stored[1] ~= '` + recordFormat + `' and redis.call('EXISTS', record) == 1 then
	return redis.error_reply('FOREIGN')
end
local conflict = stored[2] ~= version and (stored[1] or version ~= '0')`

// takeLock returns 1 if the owner has the lock now, else 0. A key without a time to live is not a lock
// of this package.
const takeLock = `
local holder = redis.call('GET', lock)
if holder and holder ~= owner then
	if redis.call('PTTL', lock) == -1 then return redis.error_reply('FOREIGN') end
	return 0
end
redis.call('SET', lock, owner, 'PX', ttl)
return 1`

// unlock has KEYS lock; ARGV owner.
var unlock = redis.NewScript(`
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])`)
