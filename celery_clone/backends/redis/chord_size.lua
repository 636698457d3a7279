-- The header of a chord is sent, but for its last member: say how many there are.  A chord that was over under
-- this id begins anew, and what is left of it does not count.
--
-- KEYS[1]  string  <group>.s       KEYS[2]  string  <group>.c       KEYS[3]  <group>.j
-- ARGV[1]  number of members       ARGV[2]  seconds to keep it, 0 for ever

if redis.call('GET', KEYS[2]) == 'done' then
    redis.call('DEL', KEYS[3])
end
redis.call('DEL', KEYS[2])
redis.call('SET', KEYS[1], ARGV[1])
if tonumber(ARGV[2]) > 0 then
    redis.call('EXPIRE', KEYS[1], ARGV[2])
end
return 1
