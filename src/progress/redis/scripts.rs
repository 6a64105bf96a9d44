//! Changes that must be atomic, and must fail if another replica has taken the app's jobs over.
//! Each write carries the epoch of its writer. So the store detects an older writer without another
//! round trip.
//!
//! From a writer with an older epoch, the scripts accept only facts: the outcomes of its calls, and
//! results. A script that fails halfway is run again as a whole; each is safe to repeat.

/// A script of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Script {
    Open,
    Note,
    SplitAgain,
    Complete,
    TakeOver,
    Confirm,
}

impl Script {
    /// In the order of their numbers.
    pub const ALL: [Self; 6] =
        [Self::Open, Self::Note, Self::SplitAgain, Self::Complete, Self::TakeOver, Self::Confirm];

    pub fn source(self) -> String {
        match self {
            Self::Open => format!("{FENCE}{KEEP}{OPEN}"),
            Self::Note => format!("{FENCE}{KEEP}{NOTE}"),
            Self::SplitAgain => format!("{FENCE}{KEEP}{SPLIT_AGAIN}"),
            Self::Complete => format!("{FENCE}{KEEP}{COMPLETE}"),
            Self::TakeOver => TAKE_OVER.to_owned(),
            Self::Confirm => format!("{FENCE}{CONFIRM}"),
        }
    }
}

/// Finds out whether the writer has been displaced. A store that has lost its data learns the epoch
/// from its holder again. `KEYS[1]`: the app's epoch. `ARGV[1]`: the writer's.
const FENCE: &str = "
local newest = tonumber(redis.call('get', KEYS[1]) or 0)
local own = tonumber(ARGV[1])
local displaced = newest > own
if newest < own then redis.call('set', KEYS[1], ARGV[1]) end
";

/// Extends the life of a record, and of a redriven job's `earlier_deaths` values. A record that has
/// ended keeps the retention of its completion. `KEYS[2]`: the record. `KEYS[3]`: the values.
/// `ARGV[2]`: the head. `ARGV[3]`: how long, in ms. `ARGV[4]`: the job's value. `ARGV[5]`: how long
/// to keep the values, in ms.
const KEEP: &str = "
local function has_ended() return redis.call('hexists', KEYS[2], 'result') == 1 end
local function keep()
  redis.call('pexpire', KEYS[2], ARGV[3])
  if ARGV[4] ~= '0' then
    redis.call('sadd', KEYS[3], ARGV[4])
    redis.call('pexpire', KEYS[3], ARGV[5])
  end
end
";

/// `KEYS[4]`: the mark of the data's birth. `ARGV[6]`: a mark for new data. Returns the mark and
/// the record's fields.
const OPEN: &str = "
if displaced then return {1, '', {}} end
redis.call('hsetnx', KEYS[2], 'head', ARGV[2])
if not has_ended() then keep() end
redis.call('set', KEYS[4], ARGV[6], 'NX')
return {0, redis.call('get', KEYS[4]), redis.call('hgetall', KEYS[2])}
";

/// `ARGV[6]`: the field for a batch that has not ended. `ARGV[7]`: the field for one that has.
/// `ARGV[8]`: the batch's progress. `ARGV[9]`: its state, `o`, `i` or `e`: open, intended, ended.
/// An older writer does not overwrite what a writer with a newer epoch said about an open batch.
const NOTE: &str = "
if displaced and ARGV[9] == 'i' then return 1 end
if has_ended() then return displaced and 1 or 0 end
redis.call('hsetnx', KEYS[2], 'head', ARGV[2])
keep()
if ARGV[9] == 'e' then
  redis.call('hsetnx', KEYS[2], ARGV[7], ARGV[8])
  redis.call('hdel', KEYS[2], ARGV[6])
else
  local known = displaced and redis.call('hget', KEYS[2], ARGV[6])
  if not known or tonumber(string.match(known, '^%d+')) <= own then
    redis.call('hset', KEYS[2], ARGV[6], ARGV[1] .. ' ' .. ARGV[8])
  end
end
return displaced and 1 or 0
";

/// `ARGV[6]` and following: fields and their values.
const SPLIT_AGAIN: &str = "
if displaced then return 1 end
if has_ended() then return 0 end
redis.call('hset', KEYS[2], 'head', ARGV[2])
keep()
for i = 6, #ARGV, 2 do redis.call('hset', KEYS[2], ARGV[i], ARGV[i + 1]) end
return 0
";

/// `ARGV[6]`: the result.
const COMPLETE: &str = "
redis.call('del', KEYS[2])
redis.call('hset', KEYS[2], 'head', ARGV[2], 'result', ARGV[6])
keep()
return displaced and 1 or 0
";

/// `KEYS[1]`: the app's epoch. `KEYS[2]`: exists while its holder is active. `ARGV[1]`: the lowest
/// epoch to take. `ARGV[2]`: how long a holder counts as active, in ms. `ARGV[3]`: 1 to leave the
/// jobs to an active holder. Returns 0 if no epoch was taken.
const TAKE_OVER: &str = "
if ARGV[3] == '1' and redis.call('exists', KEYS[2]) == 1 then return 0 end
local newest = tonumber(redis.call('get', KEYS[1]) or 0)
local taken = math.max(newest + 1, tonumber(ARGV[1]))
redis.call('set', KEYS[1], string.format('%.0f', taken))
redis.call('set', KEYS[2], '1', 'PX', ARGV[2])
return taken
";

/// `KEYS[2]`: exists while the holder is active. `ARGV[2]`: how long it counts as active, in ms.
const CONFIRM: &str = "
if displaced then return 1 end
redis.call('set', KEYS[2], '1', 'PX', ARGV[2])
return 0
";
