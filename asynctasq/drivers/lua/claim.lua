-- Reads several streams in order, never more than asked of all together (XREADGROUP counts for each stream).
--
-- KEYS     streams, those of suspects first
-- ARGV     [1] consumer, [2] most entries in all, [3] most suspects, [4] how many of KEYS are of suspects
-- Returns  what XREADGROUP returns.

local left, suspects, of_suspects = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local found, problem = {}, nil
for i, key in ipairs(KEYS) do
  local count = i <= of_suspects and math.min(left, suspects) or left
  if count > 0 then
    local reply = redis.pcall('XREADGROUP', 'GROUP', 'workers', ARGV[1], 'COUNT', count, 'STREAMS', key, '>')
    if reply and reply.err then
      problem = reply
    elseif reply then
      found[#found + 1] = reply[1]
      local n = #reply[1][2]
      left = left - n
      if i <= of_suspects then
        suspects = suspects - n
      end
    end
  end
end
-- What was read is leased: it is handed out even if a later stream had no group.
if #found == 0 and problem then
  return problem
end
return found
