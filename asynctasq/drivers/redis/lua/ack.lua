-- Removes what is done from one stream.
--
-- KEYS[1]  asynctasq:{queue}
-- ARGV     [1] stream, then n entries, then their n ids, at most 200
-- Returns  the positions (from 1) of the entries whose lease was not the current one.

local base, key = KEYS[1], KEYS[1] .. ':stream:' .. ARGV[1]
local n = (#ARGV - 1) / 2
assert(n >= 1 and n == math.floor(n), 'bad arguments')

if redis.call('XACK', key, 'workers', unpack(ARGV, 2, n + 1)) == n then
  redis.call('XDEL', key, unpack(ARGV, 2, n + 1))
  redis.call('HDEL', base .. ':index', unpack(ARGV, n + 2))
  redis.call('ZREM', base .. ':ids:pending', unpack(ARGV, n + 2))
  return {}
end

-- Some were lost. Whoever took them over removed the entry with the lease, so what is still there was ours.
local lost = {}
for i = 1, n do
  if redis.call('XDEL', key, ARGV[i + 1]) == 1 then
    redis.call('HDEL', base .. ':index', ARGV[n + i + 1])
    redis.call('ZREM', base .. ':ids:pending', ARGV[n + i + 1])
  else
    lost[#lost + 1] = i
  end
end
return lost
