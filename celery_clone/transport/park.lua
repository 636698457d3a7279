-- Park claimed messages until their times: they stay in unacked, where nobody loses them.
--
-- KEYS[1]  hash  unacked           tag -> JSON [message, exchange, routing key]
-- KEYS[2]  zset  unacked_index     tag -> time; here one that grows old exactly when the message is due,
--                                  so that workers which know kombu's rule alone give it back then
-- KEYS[3]  zset  unacked_leases    tag -> time until which the claim is safe; here until some time after it is due
-- KEYS[4]  zset  unacked_schedule  "field\nlist" -> time when the parked message is due
--
-- ARGV[1]  seconds of kombu's visibility timeout
-- ARGV[2]  seconds of the lease
-- ARGV[3+] for each message its tag, when it is due, and the list to put it into then
--
-- It is kept under a field of its own, not under its tag: a worker that knows kombu's rule alone, and gives it
-- back, claims it under the tag, and that claim must not be taken for the parked message.
--
-- Returns how many were parked; a claim that was settled by somebody else meanwhile is left out.

local unacked, index, leases, schedule = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local visibility, lease = tonumber(ARGV[1]), tonumber(ARGV[2])
local CHUNK = 3 * 500
local parked = 0

for at = 3, #ARGV, CHUNK do
    local last = math.min(at + CHUNK - 1, #ARGV)
    local tags = {}
    for i = at, last, 3 do
        tags[#tags + 1] = ARGV[i]
    end
    local entries = redis.call('HMGET', unacked, unpack(tags))
    local old, times, expiries, dues = {}, {}, {}, {}
    for i, tag in ipairs(tags) do
        local entry, due, list = entries[i], ARGV[at + 3 * i - 2], ARGV[at + 3 * i - 1]
        if entry then
            local field = tag .. '@parked'
            while redis.call('HSETNX', unacked, field, entry) == 0 do
                field = field .. '+'
            end
            local seconds, place = tonumber(due), 2 * #old + 1
            times[place], times[place + 1] = string.format('%.6f', seconds - visibility), field
            expiries[place], expiries[place + 1] = string.format('%.6f', seconds + lease), field
            dues[place], dues[place + 1] = due, field .. '\n' .. list
            old[#old + 1] = tag
        end
    end
    if #old > 0 then
        redis.call('ZADD', index, unpack(times))
        redis.call('ZADD', leases, unpack(expiries))
        redis.call('ZADD', schedule, unpack(dues))
        redis.call('HDEL', unacked, unpack(old))
        redis.call('ZREM', index, unpack(old))
        redis.call('ZREM', leases, unpack(old))
        parked = parked + #old
    end
end
return parked
