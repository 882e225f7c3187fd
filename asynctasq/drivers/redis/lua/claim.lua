-- Reads several streams in order, never more than asked of all together: XREADGROUP counts for each stream.
--
-- KEYS     bells, then streams of suspects, then streams
-- ARGV     [1] consumer, [2] most entries in all, [3] most suspects, [4] number of bells, [5] streams of suspects
-- Returns  what XREADGROUP returns.

local left, suspects = tonumber(ARGV[2]), tonumber(ARGV[3])
local first_of_suspects = tonumber(ARGV[4]) + 1
local first_stream = first_of_suspects + tonumber(ARGV[5])
local found, problem = {}, nil

for i, key in ipairs(KEYS) do
  local of_suspects = i >= first_of_suspects and i < first_stream
  local count = of_suspects and math.min(left, suspects) or left
  if count > 0 then
    local reply = redis.pcall('XREADGROUP', 'GROUP', 'workers', ARGV[1], 'COUNT', count, 'STREAMS', key, '>')
    if reply and reply.err then
      problem = problem or reply
      if i < first_of_suspects then
        return problem
      end
    elseif reply then
      found[#found + 1] = reply[1]
      local n = #reply[1][2]
      left = left - n
      if of_suspects then
        suspects = suspects - n
      end
    end
  end
end

-- What was read is leased: it is handed out even if another stream had no group.
if #found == 0 and problem then
  return problem
end
return found
