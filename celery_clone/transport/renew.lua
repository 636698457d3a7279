-- Renew the claims of a living worker, and note that the server could be reached at this time.
--
-- KEYS[1]  zset  unacked_index   tag -> time of the last renewal; kombu gives back what is old
-- KEYS[2]  zset  unacked_leases  tag -> time until which the claim is safe
-- KEYS[3]  hash  unacked_sweeps  since, last: since when renewals have followed each other without a gap
--
-- ARGV[1]  seconds of the lease
-- ARGV[2+] the tags the worker holds
--
-- Returns the tags whose claim is gone: somebody else has the message.

local time = redis.call('TIME')
local micros = string.format('%06d', time[2])
local now = time[1] .. '.' .. micros
local seconds, lease = tonumber(now), tonumber(ARGV[1])
local expiry = string.format('%.6f', seconds + lease)
local CHUNK = 500
local gone = {}

-- Renewed is every third of a lease.  After a longer gap, by a pause of the server, an outage or a step of its
-- clock, leases may have run out though their owners live; sweep.lua gives them time to renew.  Half a lease, so
-- that a claim whose renewal came just before the gap has not run out yet where the gap is too short to be seen.
local since, last = unpack(redis.call('HMGET', KEYS[3], 'since', 'last'))
local gap = last and seconds - tonumber(last)
if not since or not gap or gap < 0 or gap > lease / 2 then
    since = now
end
redis.call('HSET', KEYS[3], 'since', since, 'last', now)

for at = 2, #ARGV, CHUNK do
    local times, expiries = {}, {}
    for i = at, math.min(at + CHUNK - 1, #ARGV) do
        if redis.call('ZSCORE', KEYS[2], ARGV[i]) then
            times[#times + 1] = now
            times[#times + 1] = ARGV[i]
            expiries[#expiries + 1] = expiry
            expiries[#expiries + 1] = ARGV[i]
        else
            gone[#gone + 1] = ARGV[i]
        end
    end
    if #times > 0 then
        redis.call('ZADD', KEYS[1], 'XX', unpack(times))
        redis.call('ZADD', KEYS[2], 'XX', unpack(expiries))
    end
end
return gone
