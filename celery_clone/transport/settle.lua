-- Take one claim out of unacked and put its message somewhere else: its queue, or where the dead are kept.
--
-- KEYS[1]  hash  unacked         tag -> JSON [message, exchange, routing key]
-- KEYS[2]  zset  unacked_index   tag -> time of the claim or of its last renewal
-- KEYS[3]  zset  unacked_leases  tag -> time until which the claim is safe
-- KEYS[4+] lists that get the message
--
-- ARGV[1]  tag
-- ARGV[2]  the time the claim must have, from sweep.lua; "": any
-- ARGV[3]  "LPUSH": served last, "RPUSH": served next
-- ARGV[4]  the text to put
--
-- Returns 1, or 0 if the claim was settled, renewed or made anew by somebody else meanwhile.

if ARGV[2] ~= '' and tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1]) or '0') ~= tonumber(ARGV[2]) then
    return 0
end
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
    return 0
end
for i = 4, #KEYS do
    redis.call(ARGV[3], KEYS[i], ARGV[4])
end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
return 1
