-- Removes consumers that hold nothing and were not heard of for a while: each start of a worker leaves one behind.
--
-- KEYS     streams
-- ARGV[1]  ms

for _, key in ipairs(KEYS) do
  for _, consumer in ipairs(redis.pcall('XINFO', 'CONSUMERS', key)) do
    -- name, pending, idle, as pairs
    if consumer[4] == 0 and consumer[6] >= tonumber(ARGV[1]) then
      redis.call('XGROUP', 'DELCONSUMER', key, 'workers', consumer[2])
    end
  end
end
