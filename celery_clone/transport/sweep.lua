-- Take over what dead workers held.
--
-- KEYS[1]  hash  unacked           tag -> JSON [message, exchange, routing key]
-- KEYS[2]  zset  unacked_index     tag -> time of the claim or of its last renewal
-- KEYS[3]  zset  unacked_leases    tag -> time until which the claim is safe
-- KEYS[4]  hash  unacked_sweeps    since: since when renewals followed each other without a gap (renew.lua)
--
-- ARGV[1]  seconds of the lease
-- ARGV[2]  seconds after which a claim without a lease is given back (kombu's visibility timeout)
-- ARGV[3]  how many claims at most whose lease has run out
-- ARGV[4]  how many claims at most that have none
--
-- Returns {time, tag, entry, tag, entry, ...}: claims that belong to the caller for a lease from that time on,
-- for it to put back (settle.lua).

local unacked, index, leases, sweeps = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local lease, visibility = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local micros = string.format('%06d', time[2])
local now = time[1] .. '.' .. micros
local seconds = tonumber(now)
local expiry = string.format('%.6f', seconds + lease)

-- Is it the claim of a worker that knows kombu's rule alone, which put our message back and took it again?  Such a
-- worker claims under the message's own tag; ours do so the first time only, before it is marked as redelivered.
-- The times of the claim and of the lease do not tell: they may come from two clocks.
local function is_kombus(tag, entry)
    local valid, decoded = pcall(cjson.decode, entry)
    local message = valid and type(decoded) == 'table' and decoded[1]
    if type(message) ~= 'table' or type(message.properties) ~= 'table' or type(message.headers) ~= 'table' then
        return false
    end
    return message.properties.delivery_tag == tag and message.headers.redelivered == true
end

local found = {now}
local function take_over(tag, entry)
    if entry then
        -- Not old by kombu's rule either, while it is put back.
        redis.call('ZADD', index, now, tag)
        redis.call('ZADD', leases, expiry, tag)
        found[#found + 1] = tag
        found[#found + 1] = entry
    else
        redis.call('ZREM', leases, tag)
        redis.call('ZREM', index, tag)
    end
end

-- Whose lease ran out while nobody could renew has had the time of one lease to do so since.
local since = redis.call('HGET', sweeps, 'since')
if since and seconds - tonumber(since) >= lease then
    local over = redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'LIMIT', 0, ARGV[3])
    for _, tag in ipairs(over) do
        local entry = redis.call('HGET', unacked, tag)
        if entry and is_kombus(tag, entry) then
            redis.call('ZREM', leases, tag)
        else
            take_over(tag, entry)
        end
    end
end
local oldest = string.format('%.6f', seconds - visibility)
for _, tag in ipairs(redis.call('ZRANGEBYSCORE', index, '-inf', oldest, 'LIMIT', 0, ARGV[4])) do
    if not redis.call('ZSCORE', leases, tag) then
        take_over(tag, redis.call('HGET', unacked, tag))
    end
end
return found
