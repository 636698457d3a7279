-- Stands before the scripts that ask when a message is due.

-- The days from the epoch to a date, by the calendar whose years begin in March.
local function days(year, month, day)
    if month < 3 then
        year, month = year - 1, month + 12
    end
    return 365 * year + math.floor(year / 4) - math.floor(year / 100) + math.floor(year / 400)
        + math.floor((153 * (month - 3) + 2) / 5) + day - 719469
end

-- The time a message waits for, in epoch seconds without their fraction; nil if it has none, or if that is no time with
-- a zone: the worker reads it anyway.
local function due_time(text)
    local _, before = string.find(text, '"eta": "', 1, true)
    if not before then
        return nil
    end
    local year, month, day, hour, minute, second, zone = string.match(string.sub(text, before + 1, before + 40),
        '^(%d%d%d%d)%-(%d%d)%-(%d%d)T(%d%d):(%d%d):(%d%d)%.?%d*([Z+%-][%d:]*)"')
    if not zone then
        return nil
    end
    local sign, hours, minutes = string.match(zone, '^([+%-])(%d%d):?(%d%d)$')
    if not sign and zone ~= 'Z' then
        return nil
    end
    local offset = sign and (hours * 3600 + minutes * 60) * (sign == '-' and -1 or 1) or 0
    return days(tonumber(year), tonumber(month), tonumber(day)) * 86400 + hour * 3600 + minute * 60 + second - offset
end

