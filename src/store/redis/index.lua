-- What a team keeps in a family is counted in three indexes: members by the order of their writing, by
-- their end, and by size, with the sum and the last number beside them. KEYS: order, ends, sizes, the
-- prefix of values, and on the shelf the prefix of names, each a list of what is kept under it.
local order, ends, sizes, values, names = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function forget(member)
  local size = redis.call('HGET', sizes, member)
  if size then redis.call('HINCRBY', sizes, '#bytes', '-' .. size) end
  redis.call('HDEL', sizes, member)
  redis.call('ZREM', order, member)
  redis.call('ZREM', ends, member)
  redis.call('UNLINK', values .. member)
  if names then
    local name, number = string.match(member, '^(.+):(.+)$')
    redis.call('LREM', names .. name, -1, number)
  end
end

local function next_number()
  return string.format('%.0f', redis.call('HINCRBY', sizes, '#number', 1))
end

local function note(member, size, live)
  local before = redis.call('HGET', sizes, member)
  if before then redis.call('HINCRBY', sizes, '#bytes', '-' .. before) end
  redis.call('HSET', sizes, member, size)
  redis.call('HINCRBY', sizes, '#bytes', size)
  redis.call('ZADD', order, next_number(), member)
  redis.call('ZADD', ends, string.format('%.0f', now + live), member)
end

-- Drops what has ended, and the oldest while there is too much: in small steps, so that others are served.
local function tidy(most, bytes, age)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', ends, '-inf', string.format('%.0f', now), 'LIMIT', 0, 100)) do
    forget(member)
  end
  for _ = 1, 1000 do
    local over = redis.call('ZCARD', order) > tonumber(most)
      or tonumber(redis.call('HGET', sizes, '#bytes') or 0) > tonumber(bytes)
    local oldest = over and redis.call('ZRANGE', order, 0, 0)[1]
    if not oldest then break end
    forget(oldest)
  end
  for _, key in ipairs({ order, ends, sizes }) do redis.call('PEXPIRE', key, age) end
end
