-- Renew the claims of a living worker.
--
-- KEYS[1]  zset  unacked_index   tag -> time of the last renewal; kombu gives back what is old
-- KEYS[2]  zset  unacked_leases  tag -> time until which the claim is safe
--
-- ARGV[1]  seconds of the lease
-- ARGV[2+] the tags the worker holds
--
-- Returns the tags whose claim is gone: somebody else has the message.

local time = redis.call('TIME')
local micros = string.format('%06d', time[2])
local now = time[1] .. '.' .. micros
local expiry = string.format('%.6f', tonumber(now) + tonumber(ARGV[1]))
local CHUNK = 500
local gone = {}

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
