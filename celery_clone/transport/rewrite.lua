-- Change the text of one claimed message, for whoever gets it if this worker dies.
--
-- KEYS[1]  hash  unacked  tag -> JSON [message, exchange, routing key]
--
-- ARGV[1]  tag   ARGV[2]  the new entry
--
-- Returns 1, or 0 if the claim was settled by somebody else meanwhile.

if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
    return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
