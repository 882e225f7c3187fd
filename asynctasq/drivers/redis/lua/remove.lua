-- Takes tasks away by id; those that are processing are left alone.
--
-- KEYS[1]  asynctasq:{queue}
-- ARGV     [1] 'cancel': pending and scheduled ones; 'keep': the same, kept as cancelled; 'delete': all
--          then ids, at most 200
-- Returns  how many.

local base, how, count = KEYS[1], ARGV[1], 0
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000000 + time[2])

local function remove(id, where)
  local stream, entry = string.match(where, '^(%S+) (%S+)$')
  local task = base .. ':task:' .. id
  if stream then
    local key = base .. ':stream:' .. stream
    local held = redis.pcall('XPENDING', key, 'workers', entry, entry, 1)
    if not held.err and #held > 0 then
      return
    end
    local row = redis.call('XRANGE', key, entry, entry)[1]
    redis.call('XDEL', key, entry)
    redis.call('ZREM', base .. ':ids:pending', id)
    if row and how == 'keep' then
      redis.call('HSET', task, 'priority', stream, unpack(row[2]))
    end
  elseif where == 'scheduled' or how == 'delete' then
    redis.call('ZREM', base .. ':ids:' .. where, id)
    redis.call('ZREM', base .. ':scheduled', id)
  else
    return
  end
  count = count + 1
  if how == 'keep' then
    redis.call('HSET', task, 'finished', now)
    redis.call('HSET', base .. ':index', id, 'cancelled')
    redis.call('ZADD', base .. ':ids:cancelled', '0', id)
  else
    redis.call('DEL', task)
    redis.call('HDEL', base .. ':index', id)
  end
end

local places = redis.call('HMGET', base .. ':index', unpack(ARGV, 2))
for n, where in ipairs(places) do
  if where then
    remove(ARGV[n + 1], where)
  end
end
return count
