package redisstore

import "github.com/redis/go-redis/v9"

// Each script may run twice, or late, because an attempt without a reply is retried. The save's id, the
// lock's owner and the slot's id give the second run the same result as the first. Only a second
// delete fails, because the first has deleted the record.
//
// The scripts are sent with EVAL. EVALSHA would need another round trip if Redis does not know the script.

// save has KEYS record; ARGV version, next version, expires, milliseconds to live or 0, data, id.
var save = redis.NewScript(`
local stored = redis.call('HMGET', KEYS[1], 'format', 'version', 'id')
if redis.call('EXISTS', KEYS[1]) == 1 and stored[1] ~= '` + recordFormat + `' then
	return redis.error_reply('FOREIGN')
end
if stored[2] == ARGV[2] and stored[3] == ARGV[6] then return 1 end
if (stored[2] or '0') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'format', '` + recordFormat + `', 'version', ARGV[2], 'expires', ARGV[3], 'data', ARGV[5], 'id', ARGV[6])
if ARGV[4] == '0' then redis.call('PERSIST', KEYS[1]) else redis.call('PEXPIRE', KEYS[1], ARGV[4]) end
return 1`)

// remove has KEYS record; ARGV version.
var remove = redis.NewScript(`
if redis.call('EXISTS', KEYS[1]) == 0 then
	if ARGV[1] == '0' then return 1 end
	return 0
end
local stored = redis.call('HMGET', KEYS[1], 'format', 'version')
if stored[1] ~= '` + recordFormat + `' then return redis.error_reply('FOREIGN') end
if stored[2] ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])`)

// tryLock has KEYS lock, record; ARGV owner, milliseconds to live, known version. It returns
// recordFields if the record has another version, else what lock returns.
var tryLock = redis.NewScript(`
local stored = redis.call('HMGET', KEYS[2], 'format', 'version', 'expires', 'data')
if redis.call('EXISTS', KEYS[2]) == 1 and stored[1] ~= '` + recordFormat + `' then
	return redis.error_reply('FOREIGN')
end
if stored[2] ~= ARGV[3] and (stored[1] or ARGV[3] ~= '0') then return stored end` + takeLock)

// recordFields are the fields that tryLock returns.
var recordFields = []string{"format", "version", "expires", "data"}

// lock has KEYS lock; ARGV owner, milliseconds to live.
var lock = redis.NewScript(takeLock)

// takeLock returns 1 if the owner has the lock now, else 0. A key without a time to live is not a lock
// of this package.
const takeLock = `
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then
	if redis.call('PTTL', KEYS[1]) == -1 then return redis.error_reply('FOREIGN') end
	return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1`

// unlock has KEYS lock; ARGV owner.
var unlock = redis.NewScript(`
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])`)
