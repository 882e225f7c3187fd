-- Makes dead letters pending again, as if they were new.
--
-- KEYS[1]  asynctasq:{queue}
-- ARGV     ids, at most 200
-- Returns  how many of them were dead letters.

local base, count = KEYS[1], 0
local places = redis.call('HMGET', base .. ':index', unpack(ARGV))
for n, id in ipairs(ARGV) do
  if places[n] == 'dead' and redis.call('ZREM', base .. ':ids:dead', id) == 1 then
    local task = base .. ':task:' .. id
    local found = redis.call('HMGET', task, 'payload', 'lease', 'priority')
    local stream = found[3] or '0'
    local entry = redis.call('XADD', base .. ':stream:' .. stream, '*',
      'id', id, 'payload', found[1] or '', 'attempt', '1', 'lease', found[2] or '300000')
    redis.call('HSET', base .. ':index', id, stream .. ' ' .. entry)
    redis.call('ZADD', base .. ':ids:pending', '0', id)
    redis.call('DEL', task)
    count = count + 1
  end
end
return count
