-- Begins leases of one stream anew.
--
-- KEYS[1]  asynctasq:{queue}
-- ARGV     [1] stream, then n entries, then their n ids, at most 200
-- Returns  the positions (from 1) of the entries whose lease was not the current one.
--
-- XCLAIM resets the time of delivery, so when the attempt began is put where the number of deliveries stands: nothing
-- else here uses that, each entry is delivered once.

local key = KEYS[1] .. ':stream:' .. ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lost = {}
for n = 2, (#ARGV + 1) / 2 do
  local held = redis.pcall('XPENDING', key, 'workers', ARGV[n], ARGV[n], 1)
  if held.err or #held == 0 then
    lost[#lost + 1] = n - 1
  else
    local consumer, idle, began = held[1][2], held[1][3], held[1][4]
    if began < 1000000000 then
      began = now - idle
    end
    redis.call('XCLAIM', key, 'workers', consumer, 0, ARGV[n], 'RETRYCOUNT', string.format('%.0f', began), 'JUSTID')
  end
end
return lost
