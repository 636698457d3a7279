-- Put parked messages whose time has come into their queues: before what waits there, but behind everything where one
-- waits already whose time has come.  They would overtake each other otherwise, and the oldest would never be served.
-- Needs due_time.lua before it.
--
-- KEYS[1]  hash  unacked           tag -> JSON [message, exchange, routing key]
-- KEYS[2]  zset  unacked_index     tag -> time of the claim or of its last renewal
-- KEYS[3]  zset  unacked_leases    tag -> time until which the claim is safe
-- KEYS[4]  zset  unacked_schedule  "field\nlist" -> time when the parked message is due
--
-- ARGV[1]  how many at most
-- ARGV[2]  "all": those that are not due yet, too; may be left out
--
-- Returns the seconds until the next one is due, as text: "0" if some are due still, "" if none is parked.

local unacked, index, leases, schedule = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local time = redis.call('TIME')
local micros = string.format('%06d', time[2])
local now = time[1] .. '.' .. micros
local limit = tonumber(ARGV[1])
local until_when = ARGV[2] == 'all' and '+inf' or now
local due = redis.call('ZRANGEBYSCORE', schedule, '-inf', until_when, 'LIMIT', 0, limit)

local behind = {}
local function is_behind(list)
    if behind[list] == nil then
        local text = redis.call('LINDEX', list, -1)
        behind[list] = text and (due_time(text) or math.huge) <= tonumber(now) or false
    end
    return behind[list]
end

local function promote(row, tag, list)
    local entry = redis.call('HGET', unacked, tag)
    local suffix = entry and string.match(string.sub(entry, -#list * 6 - 32), ', "", "[^"]*"%]$')
    if suffix then
        redis.call(is_behind(list) and 'LPUSH' or 'RPUSH', list, string.sub(entry, 2, #entry - #suffix))
        redis.call('HDEL', unacked, tag)
        redis.call('ZREM', index, tag)
        redis.call('ZREM', leases, tag)
    end
    -- An entry of another shape stays in unacked; its lease, which ends soon after, brings it back.
    redis.call('ZREM', schedule, row)
end

-- The left end of a list is served last, the right end first.
for i = 1, #due do
    local tag, list = string.match(due[i], '^([^\n]*)\n(.*)$')
    if is_behind(list) then
        promote(due[i], tag, list)
    end
end
for i = #due, 1, -1 do
    local tag, list = string.match(due[i], '^([^\n]*)\n(.*)$')
    if not is_behind(list) then
        promote(due[i], tag, list)
    end
end
if #due == limit then
    return '0'
end
local first = redis.call('ZRANGE', schedule, 0, 0, 'WITHSCORES')
if #first == 0 then
    return ''
end
return string.format('%.6f', math.max(0, tonumber(first[2]) - tonumber(now)))
