-- Puts a value on the shelf. ARGV: name, value, size, milliseconds to live, most values of one name, most
-- entries, most bytes.
local name, value, size, live = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local list = names .. name
local number = next_number() .. '.' .. #value
local member = name .. ':' .. number
redis.call('SET', values .. member, value, 'PX', live)
redis.call('LPUSH', list, number)
redis.call('PEXPIRE', list, live)
note(member, size, live)
for _ = 1, 100 do
  if redis.call('LLEN', list) <= tonumber(ARGV[5]) then break end
  forget(name .. ':' .. redis.call('LINDEX', list, -1))
end
tidy(ARGV[6], ARGV[7], live)
return true
