//! What the dispatcher receives and returns: a job to send, and how the work on it ended.

use std::sync::Arc;

use serde::Serialize;
use tokio::sync::watch;
use tracing::Span;

use crate::{
    job::{
        Envelope, Job,
        outcome::{BatchProgress, Report},
    },
    progress::{Entry, store::StoreLost},
    subscribe::lease::Lease,
};

/// A job to send.
#[derive(Clone)]
pub struct Submission {
    pub job: Arc<Job>,
    pub envelope: Arc<Envelope>,
    pub lease: Lease,
    /// Its record in the state store. `None` for a job without an id: the daemon could not
    /// recognise it if it came again.
    pub entry: Option<Entry>,
    /// Its progress from earlier runs.
    pub batches: Vec<(u32, BatchProgress)>,
    /// Receives its progress, for a caller that shows it.
    pub advance: Option<watch::Sender<Advance>>,
    /// The parent of the spans of its batches.
    pub span: Span,
}

/// How many of a job's batches have ended.
#[derive(Debug, Clone, Copy, Default)]
pub struct Advance {
    pub ended: u32,
    pub batches: u32,
}

/// A job that is being sent, for the status page.
#[derive(Debug, Clone, Serialize)]
pub struct HeldJob {
    pub job_id: String,
    pub group_id: String,
    pub batches: u32,
    pub batches_ended: u32,
}

/// How the work on a job ended.
pub enum Ending {
    Finished(Report),
    /// The job has to wait for longer than the daemon may hold it. With the batches that have
    /// progress.
    Parked(Vec<(u32, BatchProgress)>),
    /// The API takes no batches of this size. With the batches that have progress.
    TooLarge(Vec<(u32, BatchProgress)>),
}

/// The job is not finished. The broker delivers it again.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Unfinished {
    #[error("the job was let go")]
    LetGo,
    #[error("its progress could not be recorded: {0}")]
    Store(#[from] StoreLost),
}

/// A job with the numbers below `recipients` as its recipients.
#[cfg(test)]
pub(super) fn submission(recipients: u32, batch_size: u32) -> Submission {
    use crate::{
        accept::{envelope, split::Splitter},
        config::Replies,
        job::Audience,
    };

    let mut splitter = Splitter::new(batch_size, 0);
    (0..recipients).for_each(|number| splitter.push(&number.to_string()));
    let audience = Audience::Members(splitter.finish());
    let job = Job { group_id: "g".into(), topic_id: None, content: "c".into(), audience };
    let received_at = jiff::Timestamp::UNIX_EPOCH;
    let properties = lapin::BasicProperties::default();
    let (envelope, _) = envelope::read(&properties, "a", None, &Replies::anywhere(), received_at);
    Submission {
        job: Arc::new(job),
        envelope: Arc::new(envelope),
        lease: Lease::unlimited(),
        entry: None,
        batches: Vec::new(),
        advance: None,
        span: Span::none(),
    }
}
