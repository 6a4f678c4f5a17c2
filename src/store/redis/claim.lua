-- Writes a record if there is none; gives the one there is. ARGV: member, version, value, size,
-- milliseconds to live, most entries, most bytes, the longest a record lives.
local member, version, value, size, live = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local there = redis.call('HMGET', values .. member, 'version', 'value', 'written')
if there[1] then return { there[1], there[2], now - there[3] } end
redis.call('HSET', values .. member, 'version', version, 'value', value, 'written', string.format('%.0f', now))
redis.call('PEXPIRE', values .. member, live)
note(member, size, live)
tidy(ARGV[6], ARGV[7], ARGV[8])
return false
