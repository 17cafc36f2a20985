package redisstore

import "github.com/redis/go-redis/v9"

// Each script may run twice, since a reply can get lost and go-redis then tries again: what names
// the attempt (the save's id, the lock's owner, the slot's id) makes the second time the same as the
// first. Only a delete may find that somebody was before it, who was itself.

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

// lock has KEYS lock; ARGV owner, milliseconds to live. What has no time to live is not ours.
var lock = redis.NewScript(`
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then
	if redis.call('PTTL', KEYS[1]) == -1 then return redis.error_reply('FOREIGN') end
	return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1`)

// unlock has KEYS lock; ARGV owner.
var unlock = redis.NewScript(`
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])`)
