//! What a state store has to do, in the words of both: a record for each job, which says what the
//! job is, how each of its batches stands, and in the end its result.
//!
//! A store decides nothing. What an operation has answered for survives the end of the process; an
//! intent also survives the end of the machine.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    diagnosis::Diagnosis,
    job::{Cut, outcome::BatchProgress},
};

/// Which record.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub app: String,
    pub job_id: String,
    /// How often the job was dead-lettered before: a redriven job runs anew.
    pub earlier_deaths: u32,
}

/// What a record says of its job from the start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// SHA-256 of what is to be sent and to whom, in hexadecimal.
    pub content: String,
    pub batch_size: u32,
    /// The size of the batches before the job was split again, where their borders are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<u32>,
    pub batches: u32,
    /// Recipients that were given more than once.
    pub duplicates: u32,
    pub received_at: Timestamp,
}

impl Head {
    pub fn cut(&self) -> Cut {
        Cut { batch_size: self.batch_size, within: self.within }
    }
}

/// A record as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    pub key: Key,
    pub head: Head,
    /// The batches that have been touched, in any order.
    pub batches: Vec<(u32, BatchProgress)>,
    /// The job's result as JSON, once it has ended.
    pub result: Option<String>,
}

/// Names a job's record and carries its beginning, which each write repeats: a store that has lost
/// its data has it again.
#[derive(Debug, Clone, PartialEq)]
pub struct Opening {
    pub key: Key,
    pub head: Head,
    /// Which of the replicas that had the app's jobs, one after the other, writes.
    pub epoch: i64,
}

/// Takes an app's jobs over from the replica that had them before.
#[derive(Debug, Clone)]
pub struct TakeOver {
    pub app: String,
    /// The epoch is not below the Unix milliseconds of this moment, so it is newer too than one
    /// that a store has lost.
    pub at_least: Timestamp,
    /// Whether to take nothing from a replica that has [confirmed](Store::confirm) its epoch
    /// lately.
    pub leave_active: bool,
}

/// What came of a [`TakeOver`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// The jobs are the asker's, until a newer epoch is taken.
    Epoch(i64),
    LeftToAnother,
}

/// For how long a replica counts as active after it has confirmed its epoch.
pub const ACTIVE_FOR: Duration = Duration::from_secs(15);

/// For how long records are kept after they were last written to.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// Those of jobs that have ended.
    pub ended: Duration,
    /// Those of jobs under way.
    pub under_way: Duration,
}

impl Retention {
    /// How long the record of a job that has ended is kept.
    pub fn of(&self, completion: &Completion) -> Duration {
        if completion.owes_result { self.under_way } else { self.ended }
    }
}

/// How a job has ended.
#[derive(Debug, Clone)]
pub struct Completion {
    /// Its result as JSON.
    pub result: String,
    /// The job waits until its result can be published. Its record is kept like that of a job under
    /// way: without it, the job would be sent again when it comes back.
    pub owes_result: bool,
}

/// Whether other processes may write to the same records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    OwnMachine,
    Replicas,
}

/// The store could not do it, or may have. Says what was being done and what an operator can do.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{operation}: {reason}")]
pub struct StoreLost {
    pub operation: &'static str,
    pub reason: Diagnosis,
    pub scope: Scope,
}

/// What a failure of the store is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Store,
    /// One record cannot be read; the others can.
    Record,
    /// Another replica has taken the app's jobs over.
    Displaced,
}

impl StoreLost {
    pub fn new(operation: &'static str, reason: impl Into<Diagnosis>) -> Self {
        Self { operation, reason: reason.into(), scope: Scope::Store }
    }

    pub fn of_record(operation: &'static str, reason: impl Into<Diagnosis>) -> Self {
        Self { scope: Scope::Record, ..Self::new(operation, reason) }
    }

    pub fn displaced(operation: &'static str) -> Self {
        Self {
            scope: Scope::Displaced,
            ..Self::new(operation, "another replica has taken the app's jobs over")
        }
    }
}

pub type Answer<'a, T> = BoxFuture<'a, Result<T, StoreLost>>;

/// Each operation ends in bounded time.
///
/// One whose opening has an older epoch than the app fails as displaced. What is known for certain
/// is written all the same: what came of calls, and a job's result.
pub trait Store: Send + Sync + 'static {
    /// Makes the record unless it is there, and says what is in it. One that nobody else needs may
    /// be made with the first note.
    fn open(&self, opening: Arc<Opening>) -> Answer<'_, Record>;
    /// Remembers how a batch stands, if the job is still cut as its opening says. One that has
    /// ended stays as it ended.
    fn note(&self, opening: Arc<Opening>, batch: u32, progress: BatchProgress) -> Answer<'_, ()>;
    /// Replaces how a job that has not ended is cut, by what its opening says now, and how its
    /// batches stand. What others still note of the batches before is of no account.
    fn split_again(
        &self,
        opening: Arc<Opening>,
        batches: Vec<(u32, BatchProgress)>,
    ) -> Answer<'_, ()>;
    /// Remembers the result, and forgets the batches.
    fn complete(&self, opening: Arc<Opening>, completion: Completion) -> Answer<'_, ()>;
    /// The latest record of a job: the one with the most earlier deaths.
    fn find(&self, app: String, job_id: String) -> Answer<'_, Option<Record>>;
    /// Gives out the app's next epoch.
    fn take_over(&self, take_over: TakeOver) -> Answer<'_, Taken>;
    /// Says whether this is still the app's newest epoch, and remembers that its holder is active.
    fn confirm(&self, app: String, epoch: i64) -> Answer<'_, ()>;
    /// Whether it can be read and written now.
    fn probe(&self) -> Answer<'_, ()>;
    fn sharing(&self) -> Sharing;
}
