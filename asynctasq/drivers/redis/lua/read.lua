-- Reads tasks by id.
--
-- KEYS[1]  asynctasq:{queue}
-- ARGV     ids, at most 200
-- Returns  for each id '' when it is not there, else: status, stream, fields, due (us since the epoch), and of its lease
--          consumer, begin of the attempt and end (us since the epoch); '' for what there is not.

local base = KEYS[1]

local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Consumer, begin of the attempt, and begin of the lease. An idle time counts from now, so both are taken in the same
-- millisecond: a task looks the same each time it is read.
local function lease_of(key, entry)
  local consumer, began, renewed
  for _ = 1, 5 do
    local now = clock()
    local held = redis.pcall('XPENDING', key, 'workers', entry, entry, 1)
    if held.err or #held == 0 then
      return nil
    end
    consumer, renewed, began = held[1][2], now - held[1][3], held[1][4]
    if clock() == now then
      break
    end
  end
  -- extend.lua puts the begin where the number of deliveries stands.
  return consumer, began < 1000000000 and renewed or began, renewed
end

local function read(id, where)
  local stream, entry = string.match(where, '^(%S+) (%S+)$')
  if not stream then
    local due = redis.call('ZSCORE', base .. ':scheduled', id) or ''
    return {where, '', redis.call('HGETALL', base .. ':task:' .. id), due, '', '', ''}
  end
  local key = base .. ':stream:' .. stream
  local row = redis.call('XRANGE', key, entry, entry)[1]
  if not row then
    return ''
  end
  local consumer, began, renewed = lease_of(key, entry)
  if not consumer then
    return {'pending', stream, row[2], '', '', '', ''}
  end
  local life = 300000
  for n = 1, #row[2], 2 do
    if row[2][n] == 'lease' then
      life = tonumber(row[2][n + 1]) or life
    end
  end
  local ends = string.format('%.0f', (renewed + life) * 1000)
  return {'processing', stream, row[2], '', consumer, string.format('%.0f', began * 1000), ends}
end

local found = {}
for n, where in ipairs(redis.call('HMGET', base .. ':index', unpack(ARGV))) do
  found[n] = where and read(ARGV[n], where) or ''
end
return found
