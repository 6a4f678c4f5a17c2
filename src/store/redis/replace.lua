-- Writes a record that is still in the state the caller knows; whether it did. ARGV: member, the known
-- version, the new one, 1 with a value or 0 to leave it, value, size, milliseconds to live, most
-- entries, most bytes, the longest a record lives.
local member, version, live = ARGV[1], ARGV[3], ARGV[7]
local key = values .. member
if redis.call('HGET', key, 'version') ~= ARGV[2] then return 0 end
redis.call('HSET', key, 'version', version, 'written', string.format('%.0f', now))
local size = redis.call('HGET', sizes, member) or '0'
if ARGV[4] == '1' then
  redis.call('HSET', key, 'value', ARGV[5])
  size = ARGV[6]
end
redis.call('PEXPIRE', key, live)
note(member, size, live)
tidy(ARGV[8], ARGV[9], ARGV[10])
return 1
