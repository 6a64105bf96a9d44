//! What a job owes when the work on it ends, in the order it is owed. A job that has ended owes its
//! [`dead_letter`], then the [`reply`] with the [`result`](mod@result), then the record of the
//! result in [`progress`](crate::progress). One that waits owes its copy in a wait queue
//! ([`parking`]). Each is confirmed before the next; the acknowledgement comes after, in
//! [`journey`](crate::journey).
//!
//! A queue that takes no messages ends that in bounded time. A result whose reply queue is full,
//! missing or refused goes to `.unrouted`. What else is not taken (a dead letter, or a result that
//! the broker does not confirm) stays owed, and the pipeline parks the job with it.

pub mod dead_letter;
pub mod parking;
pub mod reply;
pub mod result;
pub mod undeliverable;

use std::{sync::Arc, time::Duration};

use self::result::JobResult;
use crate::{
    broker::{
        Outgoing, Target,
        publisher::{Published, Publisher},
        troubles::Trouble,
    },
    job::{Envelope, Job, outcome::Report},
    progress::{
        Entry,
        store::{Completion, StoreLost},
    },
    telemetry::metrics::{self, Unrouted},
};

/// What the work on a delivery leaves to be done.
pub enum Owed {
    Answer {
        dead_letter: Option<Box<Outgoing>>,
        /// `None` once it is confirmed, too.
        reply: Option<Box<Outgoing>>,
        /// The record to be completed, with the result as JSON.
        record: Option<(Entry, String)>,
        tally: Tally,
        /// The job itself, in case that it has to wait with what it owes.
        job: Owing,
    },
    Parked {
        job: Box<Outgoing>,
        /// Whether the delivery could go back to the queue instead, and nothing would be sent
        /// twice.
        may_go_back: bool,
    },
}

/// A job that has ended and owes something.
pub struct Owing {
    pub content: Content,
    pub envelope: Arc<Envelope>,
    /// Whether its dead letter is confirmed.
    pub letter_is_confirmed: bool,
    /// How it ended, with its fingerprint, if that stands in no record.
    pub unrecorded: Option<(String, Report)>,
}

/// What a job's message has as its body.
pub enum Content {
    Job(Arc<Job>),
    Original(Vec<u8>),
    /// The same as its dead letter.
    OfLetter,
}

/// What there is to count once it is done.
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
    /// Whether the job will be answered from its record if it comes again.
    pub fn is_recorded(&self) -> bool {
        matches!(self, Self::Answer { record: Some(_), .. })
    }

    /// Whether the delivery can go back to the queue, and nothing would be sent twice.
    pub fn may_go_back(&self) -> bool {
        match self {
            Self::Answer { job, .. } => job.unrecorded.is_none(),
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

/// How far it came with what is owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    All,
    /// A queue takes no messages; the rest is still owed.
    Withheld(Trouble),
}

/// Does what is owed. Waits as long as the broker is away, and for seconds while a queue takes no
/// messages.
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
                    Err(trouble) => return Ok(Settled::Withheld(trouble)),
                }
            }
            if let Some(result) = reply {
                match publish_result(publisher, app, result).await {
                    Ok(()) => *reply = None,
                    Err(trouble) => return Ok(Settled::Withheld(trouble)),
                }
            }
            if let Some((entry, result)) = record {
                entry.complete(Completion { result: result.clone(), owes_result: false }).await?;
            }
            Ok(Settled::All)
        }
        Owed::Parked { job, .. } => match parking::publish(publisher, app, job, park).await {
            Ok(()) => Ok(Settled::All),
            Err(trouble) => Ok(Settled::Withheld(trouble)),
        },
    }
}

/// Publishes a result to where it was asked for. Only the broker's word sends it to `.unrouted`:
/// the queue does not exist, is full, or is refused. Silence is no word.
async fn publish_result(
    publisher: &Publisher,
    app: &str,
    result: &Outgoing,
) -> Result<(), Trouble> {
    if let Target::Own(_) = result.target {
        publisher.publish_to_own(app, result).await?;
        metrics::count_unrouted(app, Unrouted::Refused);
        publisher.tell_unrouted(app, &reply::meant_for(result), Unrouted::Refused.as_str());
        return Ok(());
    }
    let (why, suspect) = match publisher.publish(app, result).await {
        Published::Routed => return Ok(()),
        Published::NoSuchQueue => (Unrouted::Missing, false),
        Published::Refused => (Unrouted::Refused, true),
        Published::NotTaken(Trouble::Full) => (Unrouted::Full, false),
        Published::NotTaken(trouble) => return Err(trouble),
    };
    publisher.publish_to_own(app, &reply::unrouted(app, result, suspect)).await?;
    metrics::count_unrouted(app, why);
    publisher.tell_unrouted(app, result.target.queue(), why.as_str());
    Ok(())
}
