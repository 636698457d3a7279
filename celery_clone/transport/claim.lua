-- Acknowledge what is done and claim what comes next, in one step.
--
-- KEYS[1]  hash  unacked         tag -> JSON [message, exchange, routing key]      kombu's
-- KEYS[2]  zset  unacked_index   tag -> time of the claim or of its last renewal   kombu's
-- KEYS[3]  zset  unacked_leases  tag -> time until which the claim is safe         ours
-- KEYS[4]  string                 the tags of the last claim of this worker, should it not hear of it   ours
-- KEYS[5+] lists the queues: for each priority, most urgent first, all queues in order
--
-- ARGV[1]  how many messages to claim at most; 0 only acknowledges
-- ARGV[2]  index of the queue to begin with, from 0
-- ARGV[3]  seconds of the lease
-- ARGV[4]  number of queues
-- ARGV[5]  "1": share the credit among the queues, "0": empty them in order
-- ARGV[6]  how many messages may be claimed beyond that: so many that are due later than ARGV[7] do not count,
--          because they are parked at once.  A flood of them would be taken in small bites otherwise.
-- ARGV[7]  the time (epoch seconds) from which a message is due later
-- ARGV[8+] for each queue, what closes its entry in unacked; then the tags to acknowledge
--
-- Needs due_time.lua before it.
--
-- Returns {tags, list, messages, list, messages, ...}: the tags as lines; for each part of a list its index and
-- its messages as they stood in it, newest first.  The tags follow the parts and, in a part, go from old to new.
-- Messages leave their list last: should anything fail before, they are still in it.

local unacked, index, leases = KEYS[1], KEYS[2], KEYS[3]
local credit, first, lease = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local queues, fair = tonumber(ARGV[4]), ARGV[5] == '1'
local beyond, later = tonumber(ARGV[6]), tonumber(ARGV[7])
local CHUNK = 1000

for at = 8 + queues, #ARGV, CHUNK do
    local last = math.min(at + CHUNK - 1, #ARGV)
    redis.call('HDEL', unacked, unpack(ARGV, at, last))
    redis.call('ZREM', index, unpack(ARGV, at, last))
    redis.call('ZREM', leases, unpack(ARGV, at, last))
end
if credit < 1 then
    return {''}
end

local time = redis.call('TIME')
-- Whole numbers, because small sorted sets keep and compare them as such.
local now = time[1]
local expiry = string.format('%.6f', time[1] + time[2] / 1e6 + lease)
local find, sub = string.find, string.sub
local tags, reply = {}, {''}

-- A text that is no JSON is kept as a JSON string, so that every reader of unacked can read the entry.
local function quoted(text)
    return '"' .. string.gsub(text, '[%c"\\\127-\255]', function(byte)
        return string.format('\\u%04x', string.byte(byte))
    end) .. '"'
end

-- The tag of a message, or nil if it needs a new one; its text as a JSON value; a name to make a tag of.
-- A message that was claimed before gets a new one: the worker that lost it may still acknowledge the old.
local function identify(text)
    -- As kombu writes it.  Plain searches near the end: a pattern costs several times as much.
    local _, before = find(text, ', "delivery_tag": "', -120, true)
    if before and sub(text, -3) == '"}}' and sub(text, 1, 1) == '{' then
        local tag = sub(text, before + 1, -4)
        if not (find(tag, '"', 1, true) or find(tag, '\\', 1, true) or find(tag, '\n', 1, true)) then
            if find(text, '"redelivered": true', -240, true) then
                return nil, text, tag
            end
            return tag, text, tag
        end
    end
    local valid, message = pcall(cjson.decode, text)
    if not valid or type(message) ~= 'table' then
        return nil, quoted(text), 'unreadable'
    end
    local properties, headers = message.properties, message.headers
    local tag = type(properties) == 'table' and properties.delivery_tag
    if type(tag) ~= 'string' or not find(tag, '^[^%c]+$') then
        return nil, text, 'untagged'
    end
    if type(headers) == 'table' and headers.redelivered then
        return nil, text, tag
    end
    return tag, text, tag
end

local function claim(list, key, suffix, wanted)
    local asked = wanted + beyond
    local found = redis.call('LRANGE', key, -asked, -1)
    local count, used = 0, 0
    if #found == 0 then
        return 0, false
    end
    local times, expiries = {}, {}
    for i = #found, 1, -1 do
        if used == wanted then
            break
        end
        local text = found[i]
        if beyond > 0 and (due_time(text) or 0) > later then
            beyond = beyond - 1
        else
            used = used + 1
        end
        count = count + 1
        local tag, value, name = identify(text)
        local entry = '[' .. value .. suffix
        if not tag or redis.call('HSETNX', unacked, tag, entry) == 0 then
            tag = string.format('%s@%s%06d.%d', name, time[1], time[2], #tags)
            redis.call('HSET', unacked, tag, entry)
        end
        times[#times + 1] = now
        times[#times + 1] = tag
        expiries[#expiries + 1] = expiry
        expiries[#expiries + 1] = tag
        tags[#tags + 1] = tag
    end
    for at = 1, #times, CHUNK do
        local last = math.min(at + CHUNK - 1, #times)
        redis.call('ZADD', index, unpack(times, at, last))
        redis.call('ZADD', leases, unpack(expiries, at, last))
    end
    redis.call('LTRIM', key, 0, -count - 1)
    reply[#reply + 1] = list
    reply[#reply + 1] = count == #found and found or {unpack(found, #found - count + 1)}
    return used, count < #found or #found == asked
end

for level = 0, (#KEYS - 4) / queues - 1 do
    local open = {}
    for i = 0, queues - 1 do
        open[i + 1] = (first + i) % queues
    end
    while credit > 0 and #open > 0 do
        local share = fair and math.max(1, math.floor(credit / #open)) or credit
        local more = {}
        for _, queue in ipairs(open) do
            local list = level * queues + queue
            local wanted = math.min(share, credit)
            if wanted > 0 then
                local used, deeper = claim(list, KEYS[5 + list], ARGV[8 + queue], wanted)
                credit = credit - used
                if deeper then
                    more[#more + 1] = queue
                end
            end
        end
        open = more
    end
end
if #tags > 0 then
    reply[1] = table.concat(tags, '\n')
    -- Later than that the leases have run out, and a sweep has found them.
    redis.call('SET', KEYS[4], reply[1], 'EX', math.ceil(2 * lease))
end
return reply
