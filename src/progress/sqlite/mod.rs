//! Records in a SQLite file of this machine.
//!
//! One thread, the writer, owns the file and runs all commands. It runs all waiting commands in one
//! transaction, so they share the cost of a commit. No thread of the runtime waits for a disk. The
//! writer answers after the commit. After a failure it closes the connection, and the next command
//! opens the file again, so the store recovers by itself.

mod fault;
mod file;
mod place;
mod records;
mod schema;
mod stored;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tracing::{error, warn};

pub use self::file::FileAccess;
use self::{
    file::StateFile,
    stored::StoredRecord,
    writer::{Batch, WriteCommand, WriteOperation, WriteResult, Writer},
};
use super::store::{
    Answer, CancelNumber, Cancellations, Cancelled, Completion, Opening, Record, Retention,
    Sharing, Store, StoreLost, TakeOver, Taken,
};
use crate::{
    diagnosis::Diagnosis,
    job::outcome::{BatchProgress, BatchState},
};

/// How many commands the channel holds. Further ones wait in their callers.
const MAX_WAITING: usize = 512;
/// Enough for a group that waits for another process's lock, after one that waited before it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(12);

/// The handle to the writer. The writer ends when this is dropped and all commands are done.
pub struct SqliteStore {
    commands: mpsc::Sender<WriteCommand>,
    path: PathBuf,
}

/// Locks a file beside the state file, because SQLite uses the locks on the state file itself. If
/// the lock file cannot be created, there is nothing to claim, and the store reports the reason.
pub fn claim(path: &Path) -> Result<Option<fs::File>, StoreLost> {
    let Ok(file) =
        fs::OpenOptions::new().create(true).append(true).open(place::beside(path, ".lock"))
    else {
        return Ok(None);
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => {
            let reason = "another daemon uses it. Daemons with the same apps need a Redis in \
                common; daemons with other apps a file each (state.url)";
            Err(StoreLost::new("use the state file", format!("{}: {reason}", path.display())))
        }
        Err(fs::TryLockError::Error(error)) => {
            warn!(file = %path.display(), %error, "cannot lock the state file; let no other daemon \
                use it");
            Ok(None)
        }
    }
}

impl SqliteStore {
    /// Opens the file with the first operation, and creates it if it is missing.
    pub fn new(path: PathBuf, retention: Retention) -> Self {
        Self::start(path, FileAccess::Full, retention)
    }

    /// The store of another process. Never creates the file.
    pub fn existing(path: PathBuf, access: FileAccess, retention: Retention) -> Self {
        Self::start(path, access, retention)
    }

    fn start(path: PathBuf, access: FileAccess, retention: Retention) -> Self {
        let (commands, receiver) = mpsc::channel(MAX_WAITING);
        let writer = Writer::new(StateFile::new(path.clone(), access), retention);
        // Without the thread the channel is closed, and every operation fails.
        if let Err(error) =
            thread::Builder::new().name("state-writer".into()).spawn(move || writer.run(receiver))
        {
            error!(%error, "cannot start the thread that writes the state file");
        }
        Self { commands, path }
    }

    async fn ask(
        &self,
        operation: &'static str,
        work: WriteOperation,
    ) -> Result<WriteResult, StoreLost> {
        let at_this_path = |reason: Diagnosis| Diagnosis {
            what: format!("{}: {}", self.path.display(), reason.what),
            ..reason
        };
        let lost = |what: &str, advice: &'static str| {
            StoreLost::new(operation, at_this_path(Diagnosis::new(what, advice)))
        };
        let asked = async {
            let (answer, answered) = oneshot::channel();
            let gone = || lost("the thread that writes it has ended", "restart the process");
            self.commands.send(WriteCommand { work, answer }).await.map_err(|_| gone())?;
            answered
                .await
                .map_err(|_| gone())?
                .map_err(|reason| StoreLost::new(operation, at_this_path(reason)))
        };
        let late = || lost(&format!("no answer within {ANSWER_TIMEOUT:?}"), "check its disk");
        match timeout(ANSWER_TIMEOUT, asked).await.map_err(|_| late())?? {
            WriteResult::Displaced => Err(StoreLost::displaced(operation)),
            done => Ok(done),
        }
    }

    /// Does an operation with an epoch.
    async fn write(
        &self,
        operation: &'static str,
        work: WriteOperation,
    ) -> Result<CancelNumber, StoreLost> {
        match self.ask(operation, work).await? {
            WriteResult::Confirmed(latest) => Ok(latest),
            _ => Err(no_answer(operation)),
        }
    }

    fn decode(&self, operation: &'static str, stored: StoredRecord) -> Result<Record, StoreLost> {
        let undecodable = |error| {
            StoreLost::of_record(
                operation,
                format!("{}: a record is damaged: {error}", self.path.display()),
            )
        };
        stored.decode().map_err(undecodable)
    }
}

impl Store for SqliteStore {
    fn open(&self, opening: Arc<Opening>) -> Answer<'_, (Record, CancelNumber)> {
        let operation = "open a job's record";
        Box::pin(async move {
            match self.ask(operation, WriteOperation::Open(opening)).await? {
                WriteResult::Opened(stored, latest) => {
                    Ok((self.decode(operation, stored)?, latest))
                }
                _ => Err(no_answer(operation)),
            }
        })
    }

    fn note(
        &self,
        opening: Arc<Opening>,
        batch: u32,
        progress: BatchProgress,
    ) -> Answer<'_, CancelNumber> {
        let work = WriteOperation::Note { opening, batch: Batch::new(batch, progress) };
        Box::pin(self.write("record how a batch stands", work))
    }

    fn split_again(
        &self,
        opening: Arc<Opening>,
        batches: Vec<(u32, BatchProgress)>,
    ) -> Answer<'_, CancelNumber> {
        let batches =
            batches.into_iter().map(|(batch, progress)| Batch::new(batch, progress)).collect();
        let work = WriteOperation::SplitAgain { opening, batches };
        Box::pin(self.write("record that a job is split again", work))
    }

    fn complete(&self, opening: Arc<Opening>, completion: Completion) -> Answer<'_, CancelNumber> {
        let work = WriteOperation::Complete { opening, completion };
        Box::pin(self.write("record a job's result", work))
    }

    fn find(&self, app: String, job_id: String) -> Answer<'_, Option<Record>> {
        let operation = "look a job up";
        Box::pin(async move {
            match self.ask(operation, WriteOperation::Find { app, job_id }).await? {
                WriteResult::Found(stored) => {
                    stored.map(|stored| self.decode(operation, stored)).transpose()
                }
                _ => Err(no_answer(operation)),
            }
        })
    }

    fn take_over(&self, take_over: TakeOver) -> Answer<'_, Taken> {
        let operation = "take an app's jobs over";
        Box::pin(async move {
            match self.ask(operation, WriteOperation::TakeOver(take_over)).await? {
                WriteResult::Taken(taken) => Ok(taken),
                _ => Err(no_answer(operation)),
            }
        })
    }

    fn confirm(&self, app: String, epoch: i64) -> Answer<'_, CancelNumber> {
        let work = WriteOperation::Confirm { app, epoch };
        Box::pin(self.write("confirm that the app's jobs are here", work))
    }

    fn cancel(&self, app: String, job_id: String) -> Answer<'_, Cancelled> {
        let operation = "cancel a job";
        Box::pin(async move {
            match self.ask(operation, WriteOperation::Cancel { app, job_id }).await? {
                WriteResult::Cancelled(cancelled) => Ok(cancelled),
                _ => Err(no_answer(operation)),
            }
        })
    }

    fn undo_cancel(&self, app: String, job_id: String) -> Answer<'_, bool> {
        let operation = "undo a cancellation";
        Box::pin(async move {
            match self.ask(operation, WriteOperation::UndoCancel { app, job_id }).await? {
                WriteResult::Undone(was_cancelled) => Ok(was_cancelled),
                _ => Err(no_answer(operation)),
            }
        })
    }

    fn cancelled_since(&self, app: String, known: CancelNumber) -> Answer<'_, Cancellations> {
        let operation = "read which jobs are cancelled";
        Box::pin(async move {
            match self.ask(operation, WriteOperation::CancelledSince { app, known }).await? {
                WriteResult::Cancellations(cancellations) => Ok(cancellations),
                _ => Err(no_answer(operation)),
            }
        })
    }

    fn probe(&self) -> Answer<'_, ()> {
        Box::pin(async { self.ask("try the state file", WriteOperation::Probe).await.map(drop) })
    }

    fn sharing(&self) -> Sharing {
        Sharing::OwnMachine
    }
}

fn no_answer(operation: &'static str) -> StoreLost {
    StoreLost::new(operation, "there is no answer")
}

impl WriteOperation {
    /// An intent must survive a crash of the machine. If other records are lost, the daemon calls
    /// the API again.
    fn outlives_the_machine(&self) -> bool {
        matches!(self, Self::Note { batch: Batch { state: BatchState::Intended, .. }, .. })
    }
}
