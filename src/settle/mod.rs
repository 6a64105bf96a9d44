//! What a job owes when the work on it ends, in the order it is owed. A job that has ended owes its [`dead_letter`], then the
//! [`reply`] with the [`result`](mod@result), then the record of the result in [`progress`]. One that waits owes its copy in a
//! wait queue ([`parking`]). Each is confirmed before the next; the acknowledgement comes after, in
//! [`pipeline`](crate::pipeline).

pub mod dead_letter;
pub mod kept;
pub mod parking;
pub mod progress;
pub mod reply;
pub mod result;
pub mod undeliverable;

use std::time::Duration;

use self::{
    progress::{Entry, store::StoreLost},
    result::JobResult,
};
use crate::broker::{Outgoing, Routing, Target, publisher::Publisher, queues};

/// What the work on a delivery leaves to be done.
pub enum Owed {
    Answer {
        dead_letter: Option<Box<Outgoing>>,
        reply: Option<Box<Outgoing>>,
        /// The record to be completed, with the result as JSON.
        record: Option<(Entry, String)>,
        tally: Tally,
    },
    Parked(Box<Outgoing>),
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
}

/// Does what is owed. Waits as long as the broker is away.
pub async fn settle(publisher: &Publisher, app: &str, owed: Owed) -> Result<Tally, StoreLost> {
    let (dead_letter, reply, record, tally) = match owed {
        Owed::Answer { dead_letter, reply, record, tally } => (dead_letter, reply, record, tally),
        Owed::Parked(job) => {
            publisher.publish_to_own(*job).await;
            return Ok(Tally::Parked);
        }
    };
    if let Some(letter) = dead_letter {
        publisher.publish_to_own(*letter).await;
    }
    if let Some(reply) = reply
        && publisher.publish(&reply).await == Routing::NoSuchQueue
    {
        publisher.publish_to_own(Outgoing { target: Target::Own(queues::unrouted(app)), ..*reply }).await;
    }
    if let Some((entry, result)) = record {
        entry.complete(&result).await?;
    }
    Ok(tally)
}
