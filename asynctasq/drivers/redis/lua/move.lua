-- Settles leases whose task goes on or is kept: the entry leaves its stream and its message takes its next place.
--
-- KEYS[1]  asynctasq:{queue}
-- ARGV     for each message, at most 200:
--            stream, entry, id,
--            place: pending, scheduled, dead or completed
--            delay: us until it is due, when scheduled
--            idle: ms for which the lease was not renewed, '0' for its holder
--            duration: us that the attempt took, '' when it did not run to an end
--            n, then n pairs of field and value to change
-- Returns  the positions (from 1) of the messages whose lease was not the current one.

local base = KEYS[1]
local FIELDS = {'id', 'payload', 'attempt', 'lease', 'priority', 'suspect', 'error', 'first_failed', 'last_failed',
  'started', 'finished', 'worker', 'result'}
local PLACES = {pending = true, scheduled = true, dead = true, completed = true}

local moves, i = {}, 1
while i <= #ARGV do
  local pairs_end = i + 7 + 2 * assert(tonumber(ARGV[i + 7]), 'bad arguments')
  assert(PLACES[ARGV[i + 3]] and tonumber(ARGV[i + 4]) and tonumber(ARGV[i + 5]) and #ARGV >= pairs_end,
    'bad arguments')
  moves[#moves + 1] = i
  i = pairs_end + 1
end

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function whole(number)
  return string.format('%.0f', number)
end

-- The message of an entry that was the lease's, as the fields of its next place; nil when the lease is lost.
local function take(at)
  local stream, entry, id, idle = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 5]
  local key = base .. ':stream:' .. stream
  if idle ~= '0' then
    local held = redis.pcall('XPENDING', key, 'workers', 'IDLE', idle, entry, entry, 1)
    if held.err or #held == 0 then
      return nil
    end
  end
  local row = redis.call('XRANGE', key, entry, entry)[1]
  if redis.call('XACK', key, 'workers', entry) ~= 1 or not row then
    return nil
  end
  redis.call('XDEL', key, entry)
  local fields, flat = {}, row[2]
  for n = 1, #flat, 2 do
    fields[flat[n]] = flat[n + 1]
  end
  -- Whoever wrote the entry, what goes on is as we write it.
  fields.id = id
  fields.payload = fields.payload or string.sub(table.concat(flat, ' '), 1, 65536)
  if stream ~= 'suspects' then
    fields.priority = stream
  elseif not redis.call('ZSCORE', base .. ':priorities', fields.priority or '') then
    fields.priority = '0'
  end
  if not string.match(fields.lease or '', '^[1-9]%d*$') or #fields.lease > 13 then
    fields.lease = '300000'
  end
  for n = at + 8, at + 6 + 2 * tonumber(ARGV[at + 7]), 2 do
    fields[ARGV[n]] = ARGV[n + 1]
    if ARGV[n] == 'error' then
      fields.last_failed = whole(now)
      fields.first_failed = fields.first_failed or fields.last_failed
    end
  end
  if ARGV[at + 6] ~= '' then
    fields.started = whole(now - tonumber(ARGV[at + 6]))
  end
  return fields
end

local function flatten(fields)
  local flat = {}
  for _, name in ipairs(FIELDS) do
    if fields[name] then
      flat[#flat + 1] = name
      flat[#flat + 1] = fields[name]
    end
  end
  return flat
end

local function put(fields, place, delay)
  local id = fields.id
  if place == 'pending' or (place == 'scheduled' and delay <= 0) then
    local stream = fields.suspect == '1' and 'suspects' or fields.priority
    local entry = redis.call('XADD', base .. ':stream:' .. stream, '*', unpack(flatten(fields)))
    redis.call('HSET', base .. ':index', id, stream .. ' ' .. entry)
    redis.call('ZADD', base .. ':ids:pending', '0', id)
    return
  end
  if place == 'scheduled' then
    redis.call('ZADD', base .. ':scheduled', whole(now + delay), id)
  else
    fields.finished = whole(now)
  end
  redis.call('HSET', base .. ':task:' .. id, unpack(flatten(fields)))
  redis.call('HSET', base .. ':index', id, place)
  redis.call('ZREM', base .. ':ids:pending', id)
  redis.call('ZADD', base .. ':ids:' .. place, '0', id)
end

local lost = {}
for n, at in ipairs(moves) do
  local fields = take(at)
  if fields then
    put(fields, ARGV[at + 3], tonumber(ARGV[at + 4]))
  else
    lost[#lost + 1] = n
  end
end
return lost
