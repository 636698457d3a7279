-- Park one claimed message until its time: it stays in unacked, where nobody loses it.
--
-- KEYS[1]  hash  unacked           tag -> JSON [message, exchange, routing key]
-- KEYS[2]  zset  unacked_index     tag -> time; here one that grows old exactly when the message is due,
--                                  so that workers which know kombu's rule alone give it back then
-- KEYS[3]  zset  unacked_leases    tag -> time until which the claim is safe; here until some time after it is due
-- KEYS[4]  zset  unacked_schedule  "tag\nlist" -> time when the parked message is due
--
-- ARGV[1]  tag   ARGV[2]  due   ARGV[3]  due less the visibility timeout   ARGV[4]  due and a lease
-- ARGV[5]  list to put it into
--
-- Returns 1, or 0 if the claim was settled by somebody else meanwhile.

if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
    return 0
end
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
redis.call('ZADD', KEYS[4], ARGV[2], ARGV[1] .. '\n' .. ARGV[5])
redis.call('ZADD', KEYS[3], ARGV[4], ARGV[1])
return 1
