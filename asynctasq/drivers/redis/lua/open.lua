-- Makes sure of a queue's streams and groups; for the first claim, and after FLUSHALL.
--
-- KEYS[1]  asynctasq:{queue}
-- Returns  number of priorities ever used, then the priorities, highest first; '0' where there is none yet.

local base = KEYS[1]
local priorities = redis.call('ZREVRANGE', base .. ':priorities', 0, -1)
local count = #priorities
if count == 0 then
  priorities = {'0'}
end

local keys = {base .. ':stream:suspects', base .. ':bell:' .. count}
for _, priority in ipairs(priorities) do
  keys[#keys + 1] = base .. ':stream:' .. priority
end
for _, key in ipairs(keys) do
  local made = redis.pcall('XGROUP', 'CREATE', key, 'workers', '0', 'MKSTREAM')
  if made.err and not string.find(made.err, 'BUSYGROUP') then
    return made
  end
end
redis.call('DEL', base .. ':bell:' .. (count - 1))

table.insert(priorities, 1, tostring(count))
return priorities
