-- Counts a queue's tasks; its work does not grow with their number.
--
-- KEYS[1]  asynctasq:{queue}
-- Returns  scheduled, pending, processing, completed, dead, cancelled, age of the oldest pending one in ms (-1: none).

local base = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local pending, processing, oldest = 0, 0, -1

local streams = redis.call('ZRANGE', base .. ':priorities', 0, -1)
streams[#streams + 1] = 'suspects'
for _, stream in ipairs(streams) do
  local key = base .. ':stream:' .. stream
  local groups, after, held = redis.pcall('XINFO', 'GROUPS', key), '-', 0
  for _, group in ipairs(groups) do
    -- name, consumers, pending, last-delivered-id, as pairs
    if group[2] == 'workers' then
      held, after = group[6], '(' .. group[8]
    end
  end
  processing = processing + held
  pending = pending + redis.call('XLEN', key) - held
  local first = redis.call('XRANGE', key, after, '+', 'COUNT', 1)[1]
  if first then
    oldest = math.max(oldest, now - tonumber(string.match(first[1], '^%d+')), 0)
  end
end

local counts = {}
for n, place in ipairs({'scheduled', 'completed', 'dead', 'cancelled'}) do
  counts[n] = redis.call('ZCARD', base .. ':ids:' .. place)
end
return {counts[1], pending, processing, counts[2], counts[3], counts[4], oldest}
