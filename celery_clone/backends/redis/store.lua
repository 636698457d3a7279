-- Store the result of one task and tell those who wait for it.
--
-- KEYS[1]  string  celery-task-meta-<task id>: the result; also the channel it is published on    Celery's
--
-- ARGV[1]  the result
-- ARGV[2]  seconds until it expires, 0 for never
-- ARGV[3]  how a stored success is known, since no other state may follow one:
--          "text"  the result is JSON text, which can be looked at here
--          "ask"   it cannot: give back what is stored, if anything is
--          "force" it was looked at already
--
-- Returns 1 stored, 0 a success is stored already, or what is stored.

local SUCCESS = '{"status": "SUCCESS"'

local function is_success(key)
    if redis.call('GETRANGE', key, 0, #SUCCESS - 1) == SUCCESS then
        return true
    end
    if redis.call('GETRANGE', key, 0, 11) == '{"status": "' then
        return false
    end
    -- Written by somebody who orders the fields in another way.
    local parsed, meta = pcall(cjson.decode, redis.call('GET', key))
    return parsed and type(meta) == 'table' and meta['status'] == 'SUCCESS'
end

local function store(key, result, expires, how)
    if how ~= 'force' and redis.call('EXISTS', key) == 1 then
        if how == 'ask' then
            return redis.call('GET', key)
        end
        if is_success(key) then
            return 0
        end
    end
    if tonumber(expires) > 0 then
        redis.call('SETEX', key, expires, result)
    else
        redis.call('SET', key, result)
    end
    redis.call('PUBLISH', key, result)
    return 1
end
