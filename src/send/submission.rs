//! A job on its way through the dispatcher: how it comes, and how it leaves.

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
    /// Where its progress is recorded; `None` for a job that nobody could recognise when it comes
    /// again.
    pub entry: Option<Entry>,
    /// How far it has come before.
    pub batches: Vec<(u32, BatchProgress)>,
    /// Shows how far it has come.
    pub advance: Option<watch::Sender<Advance>>,
    /// What the spans of its batches belong to.
    pub span: Span,
}

/// How many of a job's batches have ended.
#[derive(Debug, Clone, Copy, Default)]
pub struct Advance {
    pub ended: u32,
    pub batches: u32,
}

/// A job that is being sent, for whoever watches.
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
    /// It has to wait for longer than it may be held. With the batches that have been touched.
    Parked(Vec<(u32, BatchProgress)>),
    /// The API takes no batches of this size. With the batches that have been touched.
    TooLarge(Vec<(u32, BatchProgress)>),
}

/// The job was not finished. It comes again.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Unfinished {
    #[error("the job was let go")]
    LetGo,
    #[error("its progress could not be recorded: {0}")]
    Store(#[from] StoreLost),
}
