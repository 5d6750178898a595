"""What `RedisLedger` has Redis do, in Lua: each script runs as one step, whoever else calls.

The time is Redis' own, so that replicas whose clocks differ count alike. A bucket is two fields of
a hash: its level, and when that was so. Requests under way are a sorted set by the time when they
are over at the latest: from then on those of a replica that died are not counted. It also tells
what has been done: a script whose answer was lost, and which is run again, changes nothing. It
keeps them an hour longer, for what is settled late.

    KEYS  buckets (hash), calls (sorted set), budget (number)
"""

from __future__ import annotations

_COMMON = """
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6

local function level(name, capacity)
    local found = redis.call('HMGET', KEYS[1], name, name .. ':time')
    if not found[1] then return capacity end
    local gained = (now - tonumber(found[2])) * capacity / 60
    return math.min(capacity, tonumber(found[1]) + math.max(gained, 0))
end

local function put(name, value, capacity)
    redis.call('HSET', KEYS[1], name, value, name .. ':time', now)
    local seconds_to_full = capacity > 0 and (capacity - value) * 60 / capacity or 0
    local left = redis.call('TTL', KEYS[1])
    redis.call('EXPIRE', KEYS[1], math.max(left, math.ceil(seconds_to_full) + 60))
end
"""

RESERVE = (
    _COMMON
    + """
-- ARGV: requests and tokens per minute, calls at a time, budget (each -1: none), tokens of the
-- minute, tokens of the budget, request id, its longest seconds, seconds that the budget is kept.
-- Returns: what refused ('' for nothing), seconds to wait, requests and tokens left.
local rpm, tpm = tonumber(ARGV[1]), tonumber(ARGV[2])
local most_calls, budget = tonumber(ARGV[3]), tonumber(ARGV[4])
local bucket_tokens, tokens = tonumber(ARGV[5]), tonumber(ARGV[6])
local requests_left = level('requests', math.max(rpm, 0))
local tokens_left = level('tokens', math.max(tpm, 0))

local function refuse(limit, seconds)
    return {limit, tostring(seconds), tostring(requests_left), tostring(tokens_left)}
end

if redis.call('ZSCORE', KEYS[2], ARGV[7]) then return refuse('', 0) end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - 3600)
if budget >= 0 and tonumber(redis.call('GET', KEYS[3]) or 0) + tokens > budget then
    return refuse('budget', -1)
end
if most_calls >= 0 and redis.call('ZCOUNT', KEYS[2], '(' .. now, '+inf') >= most_calls then
    return refuse('concurrency', -1)
end
if rpm >= 0 and requests_left < 1 then
    return refuse('requests', (1 - requests_left) * 60 / rpm)
end
if tpm >= 0 and tokens_left < bucket_tokens then
    return refuse('tokens', (bucket_tokens - tokens_left) * 60 / tpm)
end

requests_left = requests_left - 1
tokens_left = tokens_left - bucket_tokens
if rpm >= 0 then put('requests', requests_left, rpm) end
if tpm >= 0 then put('tokens', tokens_left, tpm) end
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[8]), ARGV[7])
local longest = math.ceil(tonumber(ARGV[8])) + 3660
redis.call('EXPIRE', KEYS[2], math.max(redis.call('TTL', KEYS[2]), longest))
if budget >= 0 then
    redis.call('INCRBY', KEYS[3], tokens)
    redis.call('EXPIRE', KEYS[3], ARGV[9])
end
return refuse('', 0)
"""
)

SETTLE = (
    _COMMON
    + """
-- ARGV: tokens per minute and budget (each -1: none), tokens of the minute and of the budget that
-- were reserved, tokens used, request id, seconds that the budget is kept.
local tpm, used = tonumber(ARGV[1]), tonumber(ARGV[5])
if redis.call('ZREM', KEYS[2], ARGV[6]) == 0 then return 0 end
if tpm >= 0 then
    local after = level('tokens', tpm) + tonumber(ARGV[3]) - used
    put('tokens', math.min(tpm, after), tpm)
end
if tonumber(ARGV[2]) >= 0 then
    redis.call('INCRBY', KEYS[3], used - tonumber(ARGV[4]))
    redis.call('EXPIRE', KEYS[3], ARGV[7])
end
return 1
"""
)
