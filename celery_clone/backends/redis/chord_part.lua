-- One member of a chord has ended: store its result, count it once, and let one worker send the body.
-- Stands behind store.lua, whose function it uses.  Keys and values are Celery's, so that workers of both
-- kinds may run members of one chord.
--
-- KEYS[1]  zset or list  <group>.j  what the members left, by their place in the header
-- KEYS[2]  string        <group>.t  members added while the chord ran
-- KEYS[3]  string        <group>.s  number of members; missing until the last one was sent
-- KEYS[4]  set           <group>.d  "<task id>:<place>" of the members that were counted
-- KEYS[5]  string        <group>    the header itself, if it has groups in it
-- KEYS[6]  string        <group>.c  who sends the body; "done" afterwards
-- KEYS[7]  string        celery-task-meta-<task id>, only if a result is to be stored
--
-- ARGV[1]  "<task id>:<place>"     ARGV[2]  what the member leaves
-- ARGV[3]  "1": .j is a zset       ARGV[4]  its place
-- ARGV[5]  seconds to keep the bookkeeping, 0 for ever     ARGV[6]  the same for the header
-- ARGV[7]  seconds for which the claim to send the body holds
-- ARGV[8]  the claim: "<task id>:<place> <run>".  Another run of the same member waits for it a moment, and
--          takes it up when the worker that had it seems to have died with it
-- ARGV[9]  seconds after which that is assumed
-- ARGV[10+] result, seconds and how, for store()
--
-- Returns {"ask", stored result}, {"done"}, {"waiting"}, {"claimed"}, {"busy"} or
-- {"complete", header or false, what the members left}.

local parts, added, size, counted, header, claim = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local member, part, ordered, place = ARGV[1], ARGV[2], ARGV[3] == '1', ARGV[4]
local expires, header_expires = tonumber(ARGV[5]), tonumber(ARGV[6])

if KEYS[7] then
    local stored = store(KEYS[7], ARGV[10], ARGV[11], ARGV[12])
    if type(stored) == 'string' then
        return {'ask', stored}
    end
end
local holder = redis.call('GET', claim)
if holder == 'done' then
    return {'done'}
end
if redis.call('SADD', counted, member) == 1 then
    if ordered then
        redis.call('ZADD', parts, place, part)
    else
        redis.call('RPUSH', parts, part)
    end
end
if expires > 0 then
    for _, key in ipairs({parts, added, size, counted}) do
        redis.call('EXPIRE', key, expires)
    end
    if header_expires > 0 then
        redis.call('EXPIRE', header, header_expires)
    end
end
local wanted = redis.call('GET', size)
if not wanted then
    return {'waiting'}
end
local there = redis.call(ordered and 'ZCARD' or 'LLEN', parts)
if there < tonumber(wanted) + tonumber(redis.call('GET', added) or 0) then
    return {'waiting'}
end
if holder and holder ~= ARGV[8] then
    if string.sub(holder, 1, #member + 1) ~= member .. ' ' then
        return {'claimed'}
    end
    if tonumber(ARGV[7]) - redis.call('TTL', claim) < tonumber(ARGV[9]) then
        return {'busy'}
    end
end
redis.call('SET', claim, ARGV[8], 'EX', ARGV[7])
local left = redis.call(ordered and 'ZRANGE' or 'LRANGE', parts, 0, -1)
return {'complete', redis.call('GET', header), left}
