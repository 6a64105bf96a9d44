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
    Cancel,
}

impl Script {
    /// In the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::Open,
        Self::Note,
        Self::SplitAgain,
        Self::Complete,
        Self::TakeOver,
        Self::Confirm,
        Self::Cancel,
    ];

    pub fn source(self) -> String {
        match self {
            Self::Open => format!("{FENCE}{KEEP}{OPEN}"),
            Self::Note => format!("{FENCE}{KEEP}{NOTE}"),
            Self::SplitAgain => format!("{FENCE}{KEEP}{SPLIT_AGAIN}"),
            Self::Complete => format!("{FENCE}{KEEP}{COMPLETE}"),
            Self::TakeOver => TAKE_OVER.to_owned(),
            Self::Confirm => format!("{FENCE}{CONFIRM}"),
            Self::Cancel => CANCEL.to_owned(),
        }
    }
}

/// Finds out whether the writer has been displaced. A store that has lost its data learns the epoch
/// from its holder again. `KEYS[1]`: the app's epoch. The last key: the number of its latest
/// cancellation. `ARGV[1]`: the writer's epoch. `answer()`: -1 if it has been displaced, and
/// otherwise that number.
const FENCE: &str = "
local function latest() return tonumber(redis.call('get', KEYS[#KEYS]) or 0) end
local newest = tonumber(redis.call('get', KEYS[1]) or 0)
local own = tonumber(ARGV[1])
local displaced = newest > own
if newest < own then redis.call('set', KEYS[1], ARGV[1]) end
local function answer() return displaced and -1 or latest() end
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

/// `KEYS[4]`: exists if the job is cancelled. `KEYS[6]`: the mark of the data's birth. `ARGV[6]`: a
/// mark for new data. Returns the answer, whether the job is cancelled, the mark and the record's
/// fields.
const OPEN: &str = "
if displaced then return {-1, 0, '', {}} end
redis.call('hsetnx', KEYS[2], 'head', ARGV[2])
if not has_ended() then keep() end
redis.call('set', KEYS[6], ARGV[6], 'NX')
return {
  answer(), redis.call('exists', KEYS[4]), redis.call('get', KEYS[6]),
  redis.call('hgetall', KEYS[2])
}
";

/// `ARGV[6]`: the field for a batch that has not ended. `ARGV[7]`: the field for one that has.
/// `ARGV[8]`: the batch's progress. `ARGV[9]`: its state, `o`, `i` or `e`: open, intended, ended.
/// An older writer does not overwrite what a writer with a newer epoch said about an open batch.
const NOTE: &str = "
if displaced and ARGV[9] == 'i' then return answer() end
if has_ended() then return answer() end
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
return answer()
";

/// `ARGV[6]` and following: fields and their values.
const SPLIT_AGAIN: &str = "
if displaced or has_ended() then return answer() end
redis.call('hset', KEYS[2], 'head', ARGV[2])
keep()
for i = 6, #ARGV, 2 do redis.call('hset', KEYS[2], ARGV[i], ARGV[i + 1]) end
return answer()
";

/// `KEYS[4]`: exists if the job is cancelled. `KEYS[5]`: the app's cancellations. `ARGV[6]`: the
/// result. `ARGV[7]`: the job's id.
const COMPLETE: &str = "
redis.call('del', KEYS[2])
redis.call('hset', KEYS[2], 'head', ARGV[2], 'result', ARGV[6])
keep()
if redis.call('del', KEYS[4]) == 1 then redis.call('zrem', KEYS[5], ARGV[7]) end
return answer()
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
if not displaced then redis.call('set', KEYS[2], '1', 'PX', ARGV[2]) end
return answer()
";

/// `KEYS[1]`: the job's latest record. `KEYS[2]`: exists if the job is cancelled. `KEYS[3]`: the
/// app's cancellations. `KEYS[4]`: the number of the latest one. `ARGV[1]`: the lowest number to
/// take. `ARGV[2]`: how long to keep the cancellation of a job that has a record, in ms. `ARGV[3]`:
/// of one that has none. `ARGV[4]`: for how long a cancellation is listed, in ms. `ARGV[5]`: the
/// job's id. Returns 0 if the job has no record, 1 if it has one, and 2 if it has ended.
const CANCEL: &str = "
if redis.call('hexists', KEYS[1], 'result') == 1 then return 2 end
local is_known = redis.call('exists', KEYS[1])
local number = math.max(tonumber(ARGV[1]), tonumber(redis.call('get', KEYS[4]) or 0) + 1)
redis.call('set', KEYS[2], '1', 'PX', is_known == 1 and ARGV[2] or ARGV[3])
redis.call('zadd', KEYS[3], string.format('%.0f', number), ARGV[5])
redis.call('zremrangebyscore', KEYS[3], '-inf', string.format('%.0f', number - ARGV[4]))
redis.call('set', KEYS[4], string.format('%.0f', number))
return is_known
";
