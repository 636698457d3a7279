-- Take or renew a lease.  KEYS: lease.  ARGV: owner, milliseconds, a holder that is known to be dead.
-- Returns the holder.
local holder = redis.call('GET', KEYS[1])
if not holder or holder == ARGV[1] or holder == ARGV[3] then
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
    return ARGV[1]
end
return holder
