-- Makes sure of a queue's streams and groups; for the first claim, and after FLUSHALL.
--
-- KEYS[1]  asynctasq:{queue}
-- Returns  the priorities in use, highest first; '0' where there is none.

local base = KEYS[1]
local priorities = redis.call('ZREVRANGE', base .. ':priorities', 0, -1)
if #priorities == 0 then
  priorities = {'0'}
end
for _, priority in ipairs(priorities) do
  redis.pcall('XGROUP', 'CREATE', base .. ':stream:' .. priority, 'workers', '0', 'MKSTREAM')
end
redis.pcall('XGROUP', 'CREATE', base .. ':stream:suspects', 'workers', '0', 'MKSTREAM')
return priorities
