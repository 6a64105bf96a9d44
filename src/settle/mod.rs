//! Publishes and records what is owed for a job when the work on it ends.
//!
//! For a job that has ended, the daemon publishes its [`dead_letter`] and then the [`reply`] with
//! the [`result`](mod@result). Then it records the result in [`progress`](crate::progress). For a
//! job that waits, it publishes a copy to a wait queue ([`parking`]). Each step is confirmed before
//! the next. The acknowledgement comes after all of them, in [`journey`](crate::journey).
//!
//! A queue that takes no messages holds this up for a bounded time only. A result whose reply queue
//! is full, missing or refused goes to `.unrouted`. A dead letter, or a result that the broker does
//! not confirm, stays owed, and the pipeline parks the job with it.

pub mod dead_letter;
pub mod parking;
pub mod reply;
pub mod result;
pub mod undeliverable;

use std::{sync::Arc, time::Duration};

use self::result::JobResult;
use crate::{
    broker::{
        Destination, Outgoing,
        publisher::{Published, Publisher},
        troubles::QueueTrouble,
    },
    job::{Envelope, Job, outcome::Report},
    progress::{
        Entry,
        store::{Completion, StoreLost},
    },
    telemetry::metrics::{self, UnroutedReason},
};

/// What is still to be done when the work on a delivery has ended.
pub enum Owed {
    Answer {
        dead_letter: Option<Box<Outgoing>>,
        /// `None` if the job wants no result, or once the result is confirmed.
        reply: Option<Box<Outgoing>>,
        /// The record to be completed, with the result as JSON.
        record: Option<(Entry, String)>,
        tally: Tally,
        /// The job itself, in case it must be parked with what it still owes.
        job: EndedJob,
    },
    Parked {
        job: Box<Outgoing>,
        /// Whether the delivery could go back to the queue instead, without a repeated send.
        may_go_back: bool,
    },
}

/// A job that has ended, and whose dead letter, result or record is still owed.
pub struct EndedJob {
    pub content: JobContent,
    pub envelope: Arc<Envelope>,
    /// Whether its dead letter is confirmed.
    pub letter_is_confirmed: bool,
    /// Its fingerprint and its outcome, if it has ended now.
    pub ended: Option<(String, Report)>,
    /// Whether it would be recognised if the delivery came again. A job without an id would not,
    /// even if it has a record by now.
    pub may_go_back: bool,
}

/// The body of a job's message.
pub enum JobContent {
    Job(Arc<Job>),
    Original(Vec<u8>),
    /// The same body as that of its dead letter.
    SameAsDeadLetter,
}

/// What to count in the metrics once everything is done.
#[derive(Debug)]
pub enum Tally {
    /// A job has ended. `took` is the time since it was first received, waits included.
    Ended {
        result: Box<JobResult>,
        took: Duration,
    },
    /// A copy was answered from the record.
    Repeated,
    Parked,
}

impl Owed {
    /// Whether the daemon will answer the job from its record if it comes again.
    pub fn is_recorded(&self) -> bool {
        matches!(self, Self::Answer { record: Some(_), .. })
    }

    /// Whether the delivery can go back to the queue without a repeated send.
    pub fn may_go_back(&self) -> bool {
        match self {
            Self::Answer { job, .. } => job.may_go_back,
            Self::Parked { may_go_back, .. } => *may_go_back,
        }
    }

    pub fn into_tally(self) -> Tally {
        match self {
            Self::Answer { tally, .. } => tally,
            Self::Parked { .. } => Tally::Parked,
        }
    }
}

/// How much of what is owed is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    All,
    /// A queue takes no messages; the rest is still owed.
    Blocked(QueueTrouble),
}

/// Does what is owed. It waits as long as the broker is away, but only for seconds if a queue takes
/// no messages.
pub async fn settle(
    publisher: &Publisher,
    app: &str,
    park: &[Duration],
    owed: &mut Owed,
) -> Result<Settled, StoreLost> {
    match owed {
        Owed::Answer { dead_letter, reply, record, job, .. } => {
            if let Some(letter) = dead_letter
                && !job.letter_is_confirmed
            {
                match publisher.publish_to_own(app, letter).await {
                    Ok(()) => job.letter_is_confirmed = true,
                    Err(trouble) => return Ok(Settled::Blocked(trouble)),
                }
            }
            if let Some(result) = reply {
                match publish_result(publisher, app, result).await {
                    Ok(()) => *reply = None,
                    Err(trouble) => return Ok(Settled::Blocked(trouble)),
                }
            }
            if let Some((entry, result)) = record {
                entry.complete(Completion { result: result.clone(), owes_result: false }).await?;
            }
            Ok(Settled::All)
        }
        Owed::Parked { job, .. } => match parking::publish(publisher, app, job, park).await {
            Ok(()) => Ok(Settled::All),
            Err(trouble) => Ok(Settled::Blocked(trouble)),
        },
    }
}

/// Publishes a result to its reply queue. It goes to `.unrouted` only if the broker says that the
/// queue does not exist, is full, or refuses it. A missing confirm is not enough.
async fn publish_result(
    publisher: &Publisher,
    app: &str,
    result: &Outgoing,
) -> Result<(), QueueTrouble> {
    if let Destination::Own(_) = result.target {
        publisher.publish_to_own(app, result).await?;
        metrics::count_unrouted(app, UnroutedReason::Refused);
        publisher.log_unrouted(app, &reply::meant_for(result), UnroutedReason::Refused.as_str());
        return Ok(());
    }
    let (why, suspect) = match publisher.publish(app, result).await {
        Published::Routed => return Ok(()),
        Published::NoSuchQueue => (UnroutedReason::Missing, false),
        Published::Refused => (UnroutedReason::Refused, true),
        Published::NotTaken(QueueTrouble::Full) => (UnroutedReason::Full, false),
        Published::NotTaken(trouble) => return Err(trouble),
    };
    publisher.publish_to_own(app, &reply::unrouted(app, result, suspect)).await?;
    metrics::count_unrouted(app, why);
    publisher.log_unrouted(app, result.target.queue(), why.as_str());
    Ok(())
}
