-- The body of a chord was sent, or failed: forget the chord, and remember that it is over.
--
-- KEYS[1]  string  <group>.c       KEYS[2+]  <group>.j, .t, .s, .d; without .j what the members left stays
--                                  until it expires, for whoever asks what came of the others
-- ARGV[1]  the claim of the worker that sent it
-- ARGV[2]  seconds for which members that come again are ignored
--
-- Returns 1, or 0 if another worker has the claim.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
redis.call('DEL', unpack(KEYS, 2))
redis.call('SET', KEYS[1], 'done', 'EX', ARGV[2])
return 1
