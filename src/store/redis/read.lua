-- Gives a record with its age. KEYS: the record.
local there = redis.call('HMGET', KEYS[1], 'version', 'value', 'written')
if not there[1] then return false end
local time = redis.call('TIME')
return { there[1], there[2], time[1] * 1000 + math.floor(time[2] / 1000) - there[3] }
