-- Stores messages; one whose id is already there, in whatever state, is left as it is.
--
-- KEYS[1]  asynctasq:{queue}
-- ARGV     five for each message, at most 200 messages:
--            id, payload, lease (ms), priority,
--            due: '0' now, '+n' in n us, else us since the epoch
-- Returns  1 when a priority was used for the first time, else 0.

local base = KEYS[1]
local index = base .. ':index'
local ids = {}
for i = 1, #ARGV, 5 do
  if not (tonumber(ARGV[i + 2]) and tonumber(ARGV[i + 3]) and tonumber(ARGV[i + 4])) then
    return redis.error_reply('ERR bad arguments')
  end
  ids[#ids + 1] = ARGV[i]
end

local now
local function due_at(due)
  if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000000 + time[2]
  end
  local at = tonumber(due)
  if string.sub(due, 1, 1) == '+' then
    at = now + at
  end
  return at > now and string.format('%.0f', at)
end

local known = redis.call('HMGET', index, unpack(ids))
local streams, seen, new = {}, {}, 0
local places, pending, scheduled, dues = {}, {}, {}, {}
for n, id in ipairs(ids) do
  if not known[n] and not seen[id] then
    seen[id] = true
    local i = n * 5 - 4
    local payload, lease, priority, due = ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
    local key = streams[priority]
    if not key then
      key = base .. ':stream:' .. priority
      streams[priority] = key
      if redis.call('ZADD', base .. ':priorities', priority, priority) == 1 then
        new = 1
        redis.pcall('XGROUP', 'CREATE', key, 'workers', '0', 'MKSTREAM')
        -- Workers do not read this stream yet. Each of their reads includes an empty stream that is named after the
        -- number of priorities, and fails, or if it waits is woken, when that one's group is gone.
        local count = redis.call('ZCARD', base .. ':priorities')
        redis.pcall('XGROUP', 'DESTROY', base .. ':bell:' .. (count - 1), 'workers')
        redis.pcall('XGROUP', 'CREATE', base .. ':bell:' .. count, 'workers', '0', 'MKSTREAM')
      end
    end
    local at = due ~= '0' and due_at(due)
    places[#places + 1] = id
    if at then
      redis.call('HSET', base .. ':task:' .. id,
        'id', id, 'payload', payload, 'attempt', '1', 'lease', lease, 'priority', priority)
      places[#places + 1] = 'scheduled'
      scheduled[#scheduled + 1] = '0'
      scheduled[#scheduled + 1] = id
      dues[#dues + 1] = at
      dues[#dues + 1] = id
    else
      local entry = redis.call('XADD', key, '*', 'id', id, 'payload', payload, 'attempt', '1', 'lease', lease)
      places[#places + 1] = priority .. ' ' .. entry
      pending[#pending + 1] = '0'
      pending[#pending + 1] = id
    end
  end
end

if #places > 0 then
  redis.call('HSET', index, unpack(places))
end
if #pending > 0 then
  redis.call('ZADD', base .. ':ids:pending', unpack(pending))
end
if #scheduled > 0 then
  redis.call('ZADD', base .. ':ids:scheduled', unpack(scheduled))
  redis.call('ZADD', base .. ':scheduled', unpack(dues))
end
return new
