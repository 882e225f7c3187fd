-- Deletes what is pending or scheduled, a part at a time.
--
-- KEYS[1]  asynctasq:{queue}
-- ARGV[1]  most messages, at most 200
-- Returns  how many; fewer than asked when nothing is left.

local base, limit = KEYS[1], tonumber(ARGV[1])
assert(limit and limit >= 1 and limit <= 200, 'bad arguments')
local index = base .. ':index'

local function purge_stream(stream, count)
  local key = base .. ':stream:' .. stream
  local groups = redis.pcall('XINFO', 'GROUPS', key)
  local after = '-'
  for _, group in ipairs(groups) do
    -- name, consumers, pending, last-delivered-id, as pairs
    if group[2] == 'workers' then
      after = '(' .. group[8]
    end
  end
  local rows = redis.call('XRANGE', key, after, '+', 'COUNT', count)
  local entries, ids = {}, {}
  for n, row in ipairs(rows) do
    entries[n] = row[1]
    for m = 1, #row[2], 2 do
      if row[2][m] == 'id' then
        ids[#ids + 1] = row[2][m + 1]
      end
    end
  end
  if #entries > 0 then
    redis.call('XDEL', key, unpack(entries))
  end
  if #ids > 0 then
    redis.call('HDEL', index, unpack(ids))
    redis.call('ZREM', base .. ':ids:pending', unpack(ids))
  end
  return #entries
end

local streams = redis.call('ZRANGE', base .. ':priorities', 0, -1)
streams[#streams + 1] = 'suspects'
local count = 0
for _, stream in ipairs(streams) do
  if count < limit then
    count = count + purge_stream(stream, limit - count)
  end
end

if count < limit then
  local ids = redis.call('ZRANGE', base .. ':scheduled', 0, limit - count - 1)
  if #ids > 0 then
    local tasks = {}
    for n, id in ipairs(ids) do
      tasks[n] = base .. ':task:' .. id
    end
    redis.call('ZREM', base .. ':scheduled', unpack(ids))
    redis.call('ZREM', base .. ':ids:scheduled', unpack(ids))
    redis.call('HDEL', index, unpack(ids))
    redis.call('DEL', unpack(tasks))
    count = count + #ids
  end
end
return count
