-- Write down one run of an entry and push its message, if the lease is still the sender's and nobody else ran
-- the entry since.  KEYS: lease, book, lists.  ARGV: owner, entry, epoch time of the last run that the sender
-- knows of, record, seconds to remember, one text for each list.
-- A record is "epoch time, number of runs, owner", with spaces between; the owner comes last and may have more.
-- Returns sent, again, lost, or "elsewhere" and the record found.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 'lost'
end
local found = redis.call('HGET', KEYS[2], ARGV[2])
if found == ARGV[4] then
    return 'again'
end
if found then
    local at, owner = string.match(found, '^(%S+) %S+ (.*)$')
    if at and owner ~= ARGV[1] and tonumber(at) > tonumber(ARGV[3]) then
        return 'elsewhere ' .. found
    end
end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[4])
redis.call('EXPIRE', KEYS[2], ARGV[5])
for at = 3, #KEYS do
    redis.call('LPUSH', KEYS[at], ARGV[at + 3])
end
return 'sent'
