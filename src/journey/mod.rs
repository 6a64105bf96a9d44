//! The journey of a job, from its delivery to its acknowledgement. `Pipeline::carry` is the map:
//! one line for each step.
//!
//! Invariant: a delivery is acknowledged only after everything it owes is confirmed. Work that ends
//! earlier leaves it unacknowledged, and the broker delivers it again.

use lapin::BasicProperties;
use tokio::time::Instant;
use tracing::{Instrument, Span, warn};

pub use self::{direct::deliver_directly, pipeline::Pipeline, reading::rules};
use self::{earlier::Found, reading::ReadMessage};
use crate::{
    broker::BrokerError,
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
pub mod measured;
pub mod meter;
mod owing;
mod pipeline;
mod reading;
mod sending;
mod steering;

/// Why a delivery was not carried to its end. It comes again.
#[derive(Debug, thiserror::Error)]
pub enum Interrupted {
    /// No further call may start for it.
    #[error("let go of a job")]
    LetGo,
    /// No queue takes what the job owes.
    #[error("no queue takes what a job owes")]
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

/// What the steps know of a delivery beside its job.
struct Context {
    properties: BasicProperties,
    lease: Lease,
    delivered_at: Instant,
}

impl Pipeline {
    /// Carries one delivery from the broker to its acknowledgement.
    async fn carry(&self, delivery: Delivery, lease: Lease) -> Result<(), Interrupted> {
        let Delivery { source, body, properties, .. } = delivery;
        let context = Context { properties, lease, delivered_at: Instant::now() };
        let received = self.receive(body, source, &context).await;
        let span = spans::of_job(&self.app, &received.envelope);
        let owed = self.find_what_is_owed(received, &context).instrument(span).await?;
        let is_recorded = owed.is_recorded();
        let tally = context.lease.unless_lost(self.settle(owed, &context)).await??;
        self.count(tally);
        self.acknowledge(&context.lease, is_recorded).await
    }

    /// Looks the job up, and sends what is left of it.
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

    /// Counts a delivery that owes nothing more.
    fn count(&self, tally: Tally) {
        self.meter.count(&tally);
        if let Tally::Ended { result, .. } = tally {
            self.failures.note(&result);
        }
    }

    /// A job that will be known if it comes again waits for other acknowledgements to join.
    async fn acknowledge(&self, lease: &Lease, is_recorded: bool) -> Result<(), Interrupted> {
        if is_recorded {
            lease.wait_for_others().await?;
        }
        Ok(lease.acknowledge().await?)
    }

    /// Deals with a delivery that was not carried to its end.
    async fn interrupted(&self, why: Interrupted, lease: &Lease) -> Result<(), Interrupted> {
        match why {
            // It stays unacknowledged and comes again.
            Interrupted::LetGo if !lease.allows_calls() => Ok(()),
            // The subscription ends.
            Interrupted::Store(error) if error.scope == Scope::Displaced => Ok(()),
            Interrupted::Store(error) => self.give_back_when_the_store_works(lease, &error).await,
            Interrupted::StillOwed => Ok(lease.give_back().await?),
            Interrupted::LetGo | Interrupted::Broker(_) => Err(why),
        }
    }

    /// The delivery comes again alone. Others may have no record to go on from.
    async fn give_back_when_the_store_works(
        &self,
        lease: &Lease,
        error: &StoreLost,
    ) -> Result<(), Interrupted> {
        warn!(app = self.app, %error, "a job could not be settled; it comes again");
        match lease.while_calls_may_start(self.progress.health().until_it_works()).await {
            Some(()) => Ok(lease.give_back().await?),
            // It goes back with all the others.
            None => Ok(()),
        }
    }
}
