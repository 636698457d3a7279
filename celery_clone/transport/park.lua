-- Park one claimed message until its time: it stays in unacked, where nobody loses it.
--
-- KEYS[1]  hash  unacked           tag -> JSON [message, exchange, routing key]
-- KEYS[2]  zset  unacked_index     tag -> time; here one that grows old exactly when the message is due,
--                                  so that workers which know kombu's rule alone give it back then
-- KEYS[3]  zset  unacked_leases    tag -> time until which the claim is safe; here until some time after it is due
-- KEYS[4]  zset  unacked_schedule  "field\nlist" -> time when the parked message is due
--
-- ARGV[1]  tag   ARGV[2]  due   ARGV[3]  due less the visibility timeout   ARGV[4]  due and a lease
-- ARGV[5]  list to put it into
--
-- It is kept under a field of its own, not under its tag: a worker that knows kombu's rule alone, and gives it
-- back, claims it under the tag, and that claim must not be taken for the parked message.
--
-- Returns 1, or 0 if the claim was settled by somebody else meanwhile.

local unacked, index, leases, schedule = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local entry = redis.call('HGET', unacked, ARGV[1])
if not entry then
    return 0
end
local parked = ARGV[1] .. '@parked'
while redis.call('HSETNX', unacked, parked, entry) == 0 do
    parked = parked .. '+'
end
redis.call('ZADD', index, ARGV[3], parked)
redis.call('ZADD', leases, ARGV[4], parked)
redis.call('ZADD', schedule, ARGV[2], parked .. '\n' .. ARGV[5])
redis.call('HDEL', unacked, ARGV[1])
redis.call('ZREM', index, ARGV[1])
redis.call('ZREM', leases, ARGV[1])
return 1
