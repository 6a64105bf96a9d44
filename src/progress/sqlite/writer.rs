//! The thread that owns the file. It takes a command and all that wait behind it, and carries them
//! out in one transaction.
//!
//! A group succeeds or fails as a whole.

use std::sync::Arc;

use rusqlite::TransactionBehavior;
use tokio::sync::{
    mpsc::{self, error::TryRecvError},
    oneshot,
};
use tracing::warn;

use super::{
    super::store::{
        CancelNumber, Cancellations, Cancelled, Completion, Opening, Retention, TakeOver, Taken,
    },
    fault::SqliteFailure,
    file::{Durability, FileAccess, StateFile},
    records::{Records, Removed},
    stored::StoredRecord,
};
use crate::{
    clock,
    diagnosis::Diagnosis,
    job::outcome::{BatchProgress, BatchState},
};

const MAX_GROUP: usize = 512;
/// Small enough that a command that comes meanwhile waits only a few milliseconds.
const MAX_REMOVED: usize = 500;
const REMOVAL_PAUSE_MS: i64 = 60_000;
/// The pause while there is more to remove and the writer is never idle. The writer still removes
/// records faster than jobs can come.
const BUSY_REMOVAL_PAUSE_MS: i64 = 1_000;

/// An operation, and the channel for its answer.
pub struct WriteCommand {
    pub work: WriteOperation,
    pub answer: oneshot::Sender<Result<WriteResult, Diagnosis>>,
}

/// The answer to an operation.
#[derive(Debug)]
pub enum WriteResult {
    /// The answer to `Probe`.
    Works,
    /// The answer to an operation with an epoch that has not been displaced.
    Confirmed(CancelNumber),
    /// The answer to `Open`.
    Opened(StoredRecord, CancelNumber),
    /// The answer to `Find`.
    Found(Option<StoredRecord>),
    /// The answer to `Cancel`.
    Cancelled(Cancelled),
    /// The answer to `UndoCancel`: whether there was a cancellation.
    Undone(bool),
    /// The answer to `CancelledSince`.
    Cancellations(Cancellations),
    /// The answer to `TakeOver`.
    Taken(Taken),
    /// Another process has taken the app's jobs over.
    Displaced,
}

pub enum WriteOperation {
    Open(Arc<Opening>),
    Note { opening: Arc<Opening>, batch: Batch },
    SplitAgain { opening: Arc<Opening>, batches: Vec<Batch> },
    Complete { opening: Arc<Opening>, completion: Completion },
    Find { app: String, job_id: String },
    TakeOver(TakeOver),
    Confirm { app: String, epoch: i64 },
    Cancel { app: String, job_id: String },
    UndoCancel { app: String, job_id: String },
    CancelledSince { app: String, known: CancelNumber },
    Probe,
}

/// The progress of a batch, ready to be written.
pub struct Batch {
    pub number: u32,
    /// The batch's progress.
    pub json: String,
    pub state: BatchState,
}

impl Batch {
    pub fn new(number: u32, progress: BatchProgress) -> Self {
        Self {
            number,
            json: serde_json::to_string(&progress).expect("progress is always JSON"),
            state: progress.state,
        }
    }
}

pub struct Writer {
    pub(super) file: StateFile,
    retention: Retention,
    /// When expired records are removed next, in Unix milliseconds.
    pub(super) next_removal: i64,
    more_to_remove: bool,
    /// The last record that was read.
    removed_up_to: i64,
}

impl Writer {
    pub fn new(file: StateFile, retention: Retention) -> Self {
        Self { file, retention, next_removal: 0, more_to_remove: false, removed_up_to: 0 }
    }

    /// Works until the channel is closed.
    pub fn run(mut self, mut commands: mpsc::Receiver<WriteCommand>) {
        loop {
            let first = match commands.try_recv() {
                Err(TryRecvError::Empty) if self.more_to_remove => None,
                Err(TryRecvError::Empty) => commands.blocking_recv(),
                Err(TryRecvError::Disconnected) => None,
                Ok(first) => Some(first),
            };
            let idle = first.is_none();
            if let Some(first) = first {
                let behind = std::iter::from_fn(|| commands.try_recv().ok());
                self.carry_out(std::iter::once(first).chain(behind).take(MAX_GROUP).collect());
            } else if commands.is_closed() {
                return;
            }
            self.remove_expired(idle);
        }
    }

    pub(super) fn carry_out(&mut self, mut group: Vec<WriteCommand>) {
        // Drops commands whose caller has stopped waiting. The caller got no answer, and asks again
        // if needed.
        group.retain(|command| !command.answer.is_closed());
        match self.transact(&group) {
            Ok(done) => {
                for (command, done) in group.into_iter().zip(done) {
                    let _ = command.answer.send(Ok(done));
                }
            }
            Err(failure) => {
                self.file.close();
                let reason = failure.diagnosis();
                for command in group {
                    let _ = command.answer.send(Err(reason.clone()));
                }
            }
        }
    }

    fn transact(&mut self, group: &[WriteCommand]) -> Result<Vec<WriteResult>, SqliteFailure> {
        let outlives_the_machine = group.iter().any(|command| command.work.outlives_the_machine());
        let durability =
            if outlives_the_machine { Durability::Machine } else { Durability::Process };
        let behavior = match self.file.access() {
            FileAccess::Full | FileAccess::Existing => TransactionBehavior::Immediate,
            FileAccess::ReadOnly => TransactionBehavior::Deferred,
        };
        let transaction = self.file.connection(durability)?.transaction_with_behavior(behavior)?;
        let records = Records::new(&transaction, now(), self.retention);
        let done = group
            .iter()
            .map(|command| records.carry_out(&command.work))
            .collect::<Result<_, _>>()?;
        transaction.commit()?;
        Ok(done)
    }

    /// Removes some expired records when it is time, or when there are more and the writer is idle.
    pub(super) fn remove_expired(&mut self, idle: bool) {
        let now = now();
        let due = now >= self.next_removal || (idle && self.more_to_remove);
        if !due || self.file.access() != FileAccess::Full || !self.file.is_open() {
            self.more_to_remove = false;
            return;
        }
        match self.remove_some(now) {
            // The records after these came later, and most of them expire later.
            Ok(Removed { count: 0, .. }) if self.more_to_remove => {
                self.more_to_remove = false;
                self.removed_up_to = 0;
            }
            // The next search continues from here, because records that expire later may stand
            // before expired ones.
            Ok(Removed { count, up_to }) => {
                self.more_to_remove = count > 0;
                self.removed_up_to = up_to.unwrap_or(0);
            }
            Err(error) => {
                warn!(%error, "cannot remove expired records from the state file");
                self.file.close();
                self.more_to_remove = false;
            }
        }
        self.next_removal =
            now + if self.more_to_remove { BUSY_REMOVAL_PAUSE_MS } else { REMOVAL_PAUSE_MS };
    }

    fn remove_some(&mut self, now: i64) -> Result<Removed, SqliteFailure> {
        let after = self.removed_up_to;
        let connection = self.file.connection(Durability::Process)?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let removed =
            Records::new(&transaction, now, self.retention).remove_expired(after, MAX_REMOVED)?;
        transaction.commit()?;
        Ok(removed)
    }
}

fn now() -> i64 {
    clock::now().as_millisecond()
}
