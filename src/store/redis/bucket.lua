-- The formula of `meter.rs`: a bucket that leaks. Numbers are whole and below 2^52, which doubles hold exactly.
local CEILING = 4503599627370496

local function leaked(full, at, now, leak)
  if now <= at then return full end
  return math.max(full - (now - at) * leak, 0)
end

local function admits(full, amount, unit, capacity)
  return full + math.max(amount, 1) * unit <= capacity
end

local function debit(full, amount, unit)
  return math.min(full + amount * unit, CEILING)
end

local function refund(full, amount, unit)
  return math.max(full - amount * unit, 0)
end
