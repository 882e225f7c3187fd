-- Makes scheduled messages pending once they are due.
--
-- KEYS[1]  asynctasq:{queue}
-- ARGV[1]  most messages, at most 200
-- Returns  how many, us until the next is due (0: there is more now; below 0: nothing is scheduled), when that is.

local base, limit = KEYS[1], tonumber(ARGV[1])
assert(limit and limit >= 1 and limit <= 200, 'bad arguments')
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local due = redis.call('ZRANGEBYSCORE', base .. ':scheduled', '-inf', string.format('%.0f', now), 'LIMIT', 0, limit)
if #due > 0 then
  redis.call('ZREM', base .. ':scheduled', unpack(due))
  redis.call('ZREM', base .. ':ids:scheduled', unpack(due))
end
for _, id in ipairs(due) do
  local task = base .. ':task:' .. id
  local flat, stream = redis.call('HGETALL', task), '0'
  for n = 1, #flat, 2 do
    if flat[n] == 'suspect' and flat[n + 1] == '1' then
      stream = 'suspects'
    elseif flat[n] == 'priority' and stream ~= 'suspects' then
      stream = flat[n + 1]
    end
  end
  if #flat > 0 then
    local entry = redis.call('XADD', base .. ':stream:' .. stream, '*', unpack(flat))
    redis.call('HSET', base .. ':index', id, stream .. ' ' .. entry)
    redis.call('ZADD', base .. ':ids:pending', '0', id)
    redis.call('DEL', task)
  end
end

local head = redis.call('ZRANGE', base .. ':scheduled', 0, 0, 'WITHSCORES')
return {#due, head[2] and math.max(0, tonumber(head[2]) - now) or -1000000, head[2] or ''}
