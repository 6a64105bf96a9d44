//! The journey of a job, from its delivery to its acknowledgement. `Pipeline::carry` is the map:
//! one line for each step.
//!
//! Invariant: the daemon acknowledges a delivery only after everything that it owes for it is
//! confirmed. If the work ends earlier, the delivery stays unacknowledged, and the broker delivers
//! it again.

use lapin::BasicProperties;
use tokio::time::Instant;
use tracing::{Instrument, Span, warn};

pub use self::{direct::deliver_directly, pipeline::Pipeline, reading::rules};
use self::{earlier::Found, generated_ids::GeneratedId, reading::ReadMessage};
use crate::{
    api::command,
    broker::BrokerError,
    job::Identity,
    progress::store::{Scope, StoreLost},
    send::{Submission, Unfinished},
    settle::{Owed, Tally},
    subscribe::{consume::Delivery, lease::Lease},
    telemetry::spans,
};

mod answering;
mod direct;
mod earlier;
pub mod failures;
mod generated_ids;
pub mod measured;
pub mod meter;
mod owing;
mod pipeline;
mod reading;
mod sending;
mod steering;

/// Why the work on a delivery ended early. The broker delivers the job again.
#[derive(Debug, thiserror::Error)]
pub enum Interrupted {
    /// No further call may start for the job.
    #[error("the delivery allows no further calls")]
    LetGo,
    /// No queue takes the job's dead letter, result or parked copy.
    #[error("no queue takes the job's dead letter or result")]
    StillOwed,
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Store(#[from] StoreLost),
}

impl From<Unfinished> for Interrupted {
    fn from(unfinished: Unfinished) -> Self {
        match unfinished {
            Unfinished::LetGo => Self::LetGo,
            Unfinished::Store(error) => Self::Store(error),
        }
    }
}

/// What the steps know about a delivery besides its job.
struct Context {
    properties: BasicProperties,
    lease: Lease,
    delivered_at: Instant,
}

impl Pipeline {
    /// Processes one delivery, from its arrival to its acknowledgement.
    async fn carry(&self, delivery: Delivery, lease: Lease) -> Result<(), Interrupted> {
        let Delivery { source, body, properties, .. } = delivery;
        let context = Context { properties, lease, delivered_at: Instant::now() };
        let mut received = self.receive(body, source, &context).await;
        let generated_id = self.keep_generated_id(&mut received);
        let span = spans::of_job(&self.app, &received.envelope);
        let owed = self.find_what_is_owed(received, &context).instrument(span).await?;
        let is_recorded = owed.is_recorded();
        let tally = context.lease.unless_lost(self.settle(owed, &context)).await??;
        self.count(tally);
        self.acknowledge(&context.lease, is_recorded).await?;
        if let Some(id) = generated_id {
            id.settled();
        }
        Ok(())
    }

    /// Gives a job without an id the one that it had in an unfinished delivery, if the app's
    /// command sends it again with the same number.
    fn keep_generated_id(&self, received: &mut ReadMessage) -> Option<GeneratedId> {
        let ReadMessage { envelope, job: Ok((_, fingerprint)), .. } = received else { return None };
        command::of(&self.config().command).dedup_window()?;
        if envelope.identity == Identity::Given {
            return None;
        }
        let (job_id, kept) = self.generated_ids.of(fingerprint, envelope.job_id.clone());
        envelope.job_id = job_id;
        Some(kept)
    }

    /// Looks the job up and sends its open batches. Returns what the daemon owes for it then.
    async fn find_what_is_owed(
        &self,
        received: ReadMessage,
        context: &Context,
    ) -> Result<Owed, Interrupted> {
        let ReadMessage { envelope, body, job } = received;
        let (job, fingerprint) = match job {
            Ok(job) => job,
            Err(rejection) => return Ok(self.reject(rejection, body, &envelope, context)),
        };
        let (job, envelope, entry, batches) = match self
            .find(job, envelope, body, &fingerprint, context)
            .await?
        {
            Found::Owed(owed) => return Ok(owed),
            Found::Unfinished { job, envelope, entry, batches } => (job, envelope, entry, batches),
        };
        if envelope.given_up.is_some() {
            return self.conclude(job, envelope, entry, batches, fingerprint, context).await;
        }
        let (lease, span) = (context.lease.clone(), Span::current());
        let submission = Submission { job, envelope, lease, entry, batches, advance: None, span };
        self.send(submission, fingerprint, context).await
    }

    /// Counts a delivery for which the daemon owes nothing more.
    fn count(&self, tally: Tally) {
        self.meter.count(&tally);
        if let Tally::Ended { result, .. } = tally {
            self.failures.note(&result);
        }
    }

    /// Acknowledges a delivery. If the job's result is recorded, the acknowledgement first waits
    /// for others to join. A second delivery would be answered from the record.
    async fn acknowledge(&self, lease: &Lease, is_recorded: bool) -> Result<(), Interrupted> {
        if is_recorded {
            lease.wait_for_others().await?;
        }
        Ok(lease.acknowledge().await?)
    }

    /// Handles a delivery whose work ended early.
    async fn interrupted(&self, why: Interrupted, lease: &Lease) -> Result<(), Interrupted> {
        match why {
            // The delivery stays unacknowledged, and the broker delivers it again.
            Interrupted::LetGo if !lease.allows_calls() => Ok(()),
            // The subscription ends, and the delivery goes back to the queue with it.
            Interrupted::Store(error) if error.scope == Scope::Displaced => Ok(()),
            Interrupted::Store(error) => self.give_back_when_the_store_works(lease, &error).await,
            Interrupted::StillOwed => Ok(lease.give_back().await?),
            Interrupted::LetGo | Interrupted::Broker(_) => Err(why),
        }
    }

    /// Gives back this delivery alone. The end of the subscription would also give back jobs
    /// without a record, and the daemon would send their batches again.
    async fn give_back_when_the_store_works(
        &self,
        lease: &Lease,
        error: &StoreLost,
    ) -> Result<(), Interrupted> {
        let app = &self.app;
        warn!(app, %error, "the record of a job could not be read or written; the broker delivers \
            it again");
        match lease.while_calls_may_start(self.progress.health().until_it_works()).await {
            Some(()) => Ok(lease.give_back().await?),
            // The subscription ends, so the delivery goes back with all others.
            None => Ok(()),
        }
    }
}
