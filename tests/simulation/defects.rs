//! Deliberate mistakes in the pipeline's interfaces, as a faulty daemon would make them. The
//! simulation must find each.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::world::Shared;
use crate::{
    broker::BrokerError,
    journey::{Interrupted, Pipeline},
    subscribe::{
        consume::{Delivery, Pause, Work},
        lease::{Acknowledge, Lease},
    },
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// The job is acknowledged before the broker has confirmed its result.
    AckBeforeConfirm,
    /// A message that no queue takes counts as published.
    NotMandatory,
    /// A batch is recorded as sent before the API has answered.
    RecordBeforeAnswer,
    /// The recorded progress of batches is ignored.
    ResendOfRecorded,
    /// A parked job is acknowledged before the wait queue has it.
    ParkWithoutConfirm,
    /// Calls continue after the broker has given the delivery to another consumer.
    NoFencing,
    /// The store does not report a newer epoch of another replica.
    EpochUnchecked,
    /// The first call of a subscription does not wait until the other replica's calls are a second
    /// old.
    NoWaitAtTakeOver,
    /// The result is not recorded before the acknowledgement.
    NotCompleted,
    /// The daemon does not wait for the confirm of the dead letter.
    LetterWithoutConfirm,
    /// No intent is recorded before a call that must not be repeated.
    NoIntents,
    /// A message goes to the AMQP library as the broker sent it.
    UnreadablePassed,
    /// Jobs that the broker has given up are not read.
    UndeliverableUnread,
    /// An outcome that cannot be recorded at once is forgotten.
    OutcomesDropped,
    /// Calls continue while outcomes are not recorded.
    CallsUnrecorded,
    /// An outcome counts as recorded when the store answers a probe.
    ProbeIsProof,
    /// At an orderly end of a subscription, jobs go back before they are parked.
    CutAtOnce,
    /// When the broker closes a connection over a message, the daemon blames all messages in flight
    /// on it.
    BlameAllUnderWay,
    /// A result waits until its full reply queue has room.
    WaitForFullQueue,
    /// When the broker does not confirm, the daemon assumes that the queue is missing.
    SilenceIsMissing,
    /// Each attempt is a new message.
    NumberPerAttempt,
    /// The record of a batch lacks its epoch.
    EpochNotRecorded,
    /// An answer with a drop reason counts as accepted.
    DropIgnored,
    /// A batch goes on with the number of the message that was dropped.
    NumberAfterDrop,
    /// The store does not tell the replica that makes the calls of a new cancellation.
    CancelUntold,
    /// A job that comes is not looked up among the cancelled ones.
    CancelNotLookedUp,
}

impl Defect {
    pub const ALL: [Self; 26] = [
        Self::AckBeforeConfirm,
        Self::NotMandatory,
        Self::RecordBeforeAnswer,
        Self::ResendOfRecorded,
        Self::ParkWithoutConfirm,
        Self::NoFencing,
        Self::EpochUnchecked,
        Self::NoWaitAtTakeOver,
        Self::NotCompleted,
        Self::LetterWithoutConfirm,
        Self::NoIntents,
        Self::UnreadablePassed,
        Self::UndeliverableUnread,
        Self::OutcomesDropped,
        Self::CallsUnrecorded,
        Self::ProbeIsProof,
        Self::CutAtOnce,
        Self::BlameAllUnderWay,
        Self::WaitForFullQueue,
        Self::SilenceIsMissing,
        Self::NumberPerAttempt,
        Self::EpochNotRecorded,
        Self::DropIgnored,
        Self::NumberAfterDrop,
        Self::CancelUntold,
        Self::CancelNotLookedUp,
    ];
}

/// The pipeline, with the run's defect if it belongs here.
pub struct Flawed {
    pub pipeline: Pipeline,
    pub world: Shared,
}

/// A delivery that never seems to be taken away.
struct NeverTakenAway(Arc<dyn Acknowledge>);

impl Acknowledge for NeverTakenAway {
    fn acknowledge(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        self.0.acknowledge()
    }

    fn give_back(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        self.0.give_back()
    }

    fn is_taken_away(&self) -> bool {
        false
    }
}

impl Work for Flawed {
    type Error = Interrupted;

    async fn until_ready(&self) {
        self.pipeline.until_ready().await;
    }

    async fn until_paused(&self) -> Pause {
        self.pipeline.until_paused().await
    }

    fn begin(&self) {
        if self.world.has(Defect::NoWaitAtTakeOver) {
            self.pipeline.take_over(|_, _| {});
        } else {
            self.pipeline.begin();
        }
    }

    fn is_subscribed(&self) {
        self.pipeline.is_subscribed();
    }

    async fn process(&self, delivery: Delivery, lease: Lease) -> Result<(), Interrupted> {
        let lease = if self.world.has(Defect::NoFencing) {
            let clung = Arc::new(NeverTakenAway(delivery.acknowledge.clone()));
            Lease::of_delivery(
                clung,
                CancellationToken::new(),
                CancellationToken::new(),
                Arc::default(),
            )
        } else {
            lease
        };
        self.pipeline.process(delivery, lease).await
    }

    fn calls_have_ended(&self) {
        self.pipeline.calls_have_ended();
    }
}
