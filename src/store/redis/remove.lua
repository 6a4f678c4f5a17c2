-- Removes a record that is still in the state the caller knows; whether it did. ARGV: member, version.
if redis.call('HGET', values .. ARGV[1], 'version') ~= ARGV[2] then return 0 end
forget(ARGV[1])
return 1
