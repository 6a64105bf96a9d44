//! Sends the batches of jobs: the only caller of the API.
//!
//! Each job's own task runs its loop (`job`): a grant, a call that ended, a retry that is due, the
//! end of the delivery's lease. The jobs of an app share one `gate`, which grants their calls one
//! by one: room in flight, then a token, then the choice of the job. Each answer is judged once,
//! first by the `breaker` (whose fault is it?), then by `decision` (what follows for the batch?).
//! The outcome of a call is recorded before its batch is tried again and before its job ends.

mod attempt;
mod batches;
mod breaker;
pub mod condition;
mod decision;
mod dispatcher;
mod gate;
mod idle;
mod job;
mod judge;
mod patience;
mod probe;
mod random;
mod split_again;
mod submission;

use self::decision::{Attempts, Decision};
pub use self::{
    decision::Supervision,
    dispatcher::{Dispatcher, Settings},
    submission::{Advance, Ending, HeldJob, Submission, Unfinished},
};

/// When an app pauses, its jobs go back to the queue. One that went back so often is parked
/// instead, because the broker gives up on a message that it has delivered 50 times. So is a job
/// without a record that would be sent anew.
pub const RETURNED_AT_MOST: u32 = 10;

#[cfg(test)]
mod tests;
