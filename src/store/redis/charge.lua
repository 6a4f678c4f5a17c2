-- Charges several meters, all or none. Gives whether it was done, and each level after it.
-- KEYS: the meters. ARGV: the deed, then of each meter: leak, unit, capacity, amount, and in how many
-- milliseconds it can be forgotten, 0 if that depends on the level.
local LONGEST = 32 * 86400000
local deed = ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local meters = {}
local done = true
for i, key in ipairs(KEYS) do
  local at = 5 * (i - 1) + 2
  local leak, unit, capacity = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local amount, ends = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  local full, since = string.match(redis.call('GET', key) or '', '^(%d+) (%d+)$')
  full = leaked(tonumber(full or 0), tonumber(since or now), now, leak)
  done = done and (deed ~= 'take' or admits(full, amount, unit, capacity))
  meters[i] = { leak = leak, unit = unit, amount = amount, ends = ends, full = full }
end

local answer = { done and 1 or 0 }
for i, meter in ipairs(meters) do
  if done then
    if deed == 'refund' then
      meter.full = refund(meter.full, meter.amount, meter.unit)
    else
      meter.full = debit(meter.full, meter.amount, meter.unit)
    end
    local keep = meter.ends
    if keep == 0 then keep = math.ceil(meter.full / meter.leak) + 1000 end
    keep = math.min(keep, LONGEST)
    redis.call('SET', KEYS[i], string.format('%.0f %.0f', meter.full, now), 'PX', string.format('%.0f', keep))
  end
  answer[i + 1] = meter.full
end
return answer
