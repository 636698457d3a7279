-- Store the result of one task and tell those who wait for it.
--
-- KEYS[1]  string  celery-task-meta-<task id>: the result; also the channel it is published on    Celery's
--
-- ARGV[1]  the result
-- ARGV[2]  seconds until it expires, 0 for never
-- ARGV[3]  how it is known whether what is stored stays (no other state follows a success, and the word that
--          a task will be tried again does not follow the end of that next try, which may be faster):
--          "text"  the result is JSON text, which can be looked at here
--          "ask"   it cannot: give back what is stored, if anything is
--          "force" it was looked at already
--
-- Returns 1 stored, 0 what is stored stays, or what is stored.

local function status_in(text)
    return string.match(text, '^{"status": "([^"]*)"')
end

local function stored_status(key)
    local status = status_in(redis.call('GETRANGE', key, 0, 63))
    if status then
        return status
    end
    -- Written by somebody who orders the fields in another way.
    local parsed, meta = pcall(cjson.decode, redis.call('GET', key))
    return parsed and type(meta) == 'table' and meta['status']
end

local function stays(key, result)
    local stored = stored_status(key)
    if stored == 'FAILURE' or stored == 'REVOKED' then
        return status_in(result) == 'RETRY'
    end
    return stored == 'SUCCESS'
end

local function store(key, result, expires, how)
    if how ~= 'force' and redis.call('EXISTS', key) == 1 then
        if how == 'ask' then
            return redis.call('GET', key)
        end
        if stays(key, result) then
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
