-- Looks through the leases of a stream, a page at a time.
--
-- KEYS[1]  stream
-- ARGV     [1] where the page begins: '-' or '(' and an entry, [2] its length, at most 200,
--          [3] 'expired' for those whose own time is up, 'ids' for the ids of all
-- Returns  the last entry looked at ('' when the page was not full), ms until the next of this page expires (-1: none),
--          then for each lease found: an id, or entry, consumer and fields.

local held = redis.pcall('XPENDING', KEYS[1], 'workers', ARGV[1], '+', ARGV[2])
if held.err then
  held = {}
end
local reply = {#held == tonumber(ARGV[2]) and held[#held][1] or '', -1}
for _, lease in ipairs(held) do
  local entry, consumer, idle = lease[1], lease[2], lease[3]
  local row = redis.call('XRANGE', KEYS[1], entry, entry)[1]
  local flat, life, id = row and row[2] or {}, 300000, nil
  for n = 1, #flat, 2 do
    if flat[n] == 'lease' then
      life = tonumber(flat[n + 1]) or life
    elseif flat[n] == 'id' then
      id = flat[n + 1]
    end
  end
  if ARGV[3] == 'ids' then
    reply[#reply + 1] = id
  elseif idle >= life then
    reply[#reply + 1] = {entry, consumer, flat}
  elseif reply[2] < 0 or life - idle < reply[2] then
    reply[2] = life - idle
  end
end
return reply
