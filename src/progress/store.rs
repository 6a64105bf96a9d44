//! The interface of a state store. It keeps a record for each job: what the job is, the progress of
//! its batches, and in the end its result.
//!
//! A store makes no decisions. A write that it has confirmed survives the end of the process. A
//! confirmed intent also survives a crash of the machine.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    diagnosis::Diagnosis,
    job::{Cut, outcome::BatchProgress},
};

/// The key of a record.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub app: String,
    pub job_id: String,
    /// How often the job was dead-lettered before. A redriven job starts with a new record.
    pub earlier_deaths: u32,
}

/// The part of a record that is known from the start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// SHA-256 of what is to be sent and to whom, in hexadecimal.
    pub content: String,
    pub batch_size: u32,
    /// The batch size before the job was split again. The new batches do not cross the borders of
    /// the old ones.
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
    /// The batches that have progress, in any order.
    pub batches: Vec<(u32, BatchProgress)>,
    /// The job's result as JSON, once it has ended.
    pub result: Option<String>,
    /// Whether an operator has cancelled the job, and it has not ended since.
    pub is_cancelled: bool,
}

/// Names a job's record and carries its head. Each write repeats them, so a store that has lost its
/// data gets them again.
#[derive(Debug, Clone, PartialEq)]
pub struct Opening {
    pub key: Key,
    pub head: Head,
    /// The epoch of the writer. Each replica that takes the app's jobs over gets a newer one.
    pub epoch: i64,
}

/// Takes an app's jobs over from the replica that had them before.
#[derive(Debug, Clone)]
pub struct TakeOver {
    pub app: String,
    /// The new epoch is at least this moment in Unix milliseconds. So it is also newer than an
    /// epoch that the store has lost.
    pub at_least: Timestamp,
    /// Whether to leave the jobs to a replica that has [confirmed](Store::confirm) its epoch
    /// lately.
    pub leave_active: bool,
}

/// The result of a [`TakeOver`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// The caller has the jobs, until another replica takes a newer epoch.
    Epoch(i64),
    LeftToAnother,
}

/// How long a replica counts as active after it has confirmed its epoch.
pub const ACTIVE_FOR: Duration = Duration::from_secs(15);

/// How long records are kept after the last write to them.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// Records of jobs that have ended.
    pub ended: Duration,
    /// Records of unfinished jobs.
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
    /// The job waits until its result can be published. Its record is kept like that of an
    /// unfinished job. Without it, the daemon would send the job again when it comes back.
    pub owes_result: bool,
}

/// The number of an app's latest cancellation, 0 if there was none. It rises with each. The store
/// says it with each confirmation of an epoch, so the replica that makes the calls learns of a
/// cancellation without asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct CancelNumber(pub i64);

/// The cancellations of an app after one that its reader knows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cancellations {
    /// The ids of the jobs.
    pub jobs: Vec<String>,
    /// The reader knows all cancellations up to this one now.
    pub latest: CancelNumber,
}

/// What a cancellation met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// The job has a record and has not ended.
    UnderWay,
    /// No record of the job is there. It is cancelled when it comes.
    NotSeen,
    /// The job has ended. Nothing is changed.
    HasEnded,
}

/// How long the store can list a cancellation for the replica that makes the calls. Jobs that come
/// later are looked up one by one.
pub const LISTED_FOR: Duration = Duration::from_hours(24);

/// Whether other processes may write to the same records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    OwnMachine,
    Replicas,
}

/// The store failed to do an operation, or its outcome is unknown. Names the operation and what an
/// operator can do.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{operation}: {reason}")]
pub struct StoreLost {
    pub operation: &'static str,
    pub reason: Diagnosis,
    pub scope: Scope,
}

/// What a failure of the store affects.
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
/// An operation whose opening has an older epoch than the app fails as displaced. Facts are still
/// written: the outcomes of calls, and a job's result.
pub trait Store: Send + Sync + 'static {
    /// Creates the record unless it exists, and returns its contents. A store may postpone the
    /// creation to the first note, if no other process needs the record before.
    fn open(&self, opening: Arc<Opening>) -> Answer<'_, (Record, CancelNumber)>;
    /// Records the progress of a batch, if the job is still cut as its opening says. The state of
    /// an ended batch never changes.
    fn note(
        &self,
        opening: Arc<Opening>,
        batch: u32,
        progress: BatchProgress,
    ) -> Answer<'_, CancelNumber>;
    /// Replaces the cut of an unfinished job with that of its opening, and replaces the progress of
    /// its batches. Later notes about batches of the old cut are ignored.
    fn split_again(
        &self,
        opening: Arc<Opening>,
        batches: Vec<(u32, BatchProgress)>,
    ) -> Answer<'_, CancelNumber>;
    /// Records the result, and removes the batches and the cancellation of the job.
    fn complete(&self, opening: Arc<Opening>, completion: Completion) -> Answer<'_, CancelNumber>;
    /// The latest record of a job: the one with the most earlier deaths.
    fn find(&self, app: String, job_id: String) -> Answer<'_, Option<Record>>;
    /// Takes the app's next epoch.
    fn take_over(&self, take_over: TakeOver) -> Answer<'_, Taken>;
    /// Fails as displaced unless this is still the app's newest epoch. Records that its holder is
    /// active.
    fn confirm(&self, app: String, epoch: i64) -> Answer<'_, CancelNumber>;
    /// Cancels a job unless it has ended. The cancellation is kept until the job ends: like the
    /// record of an unfinished job, or as long as [`Retention::ended`] if there is none.
    fn cancel(&self, app: String, job_id: String) -> Answer<'_, Cancelled>;
    /// Removes the cancellation of a job. Returns whether there was one.
    fn undo_cancel(&self, app: String, job_id: String) -> Answer<'_, bool>;
    /// The app's cancellations after this one.
    fn cancelled_since(&self, app: String, known: CancelNumber) -> Answer<'_, Cancellations>;
    /// Checks that the store can be read and written now.
    fn probe(&self) -> Answer<'_, ()>;
    fn sharing(&self) -> Sharing;
}
