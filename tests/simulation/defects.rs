//! Mistakes made on purpose at the seams of the pipeline: what a daemon would do that had them. The
//! simulation has to find each.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::world::Shared;
use crate::{
    broker::BrokerLost,
    journey::{Interrupted, Pipeline},
    subscribe::{
        consume::{Delivery, Pause, Work},
        lease::{Acknowledge, Lease},
    },
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// The job is acknowledged before the broker has confirmed its answer.
    AckBeforeConfirm,
    /// A message that no queue takes counts as published.
    NotMandatory,
    /// A batch is recorded as sent before the API has answered.
    RecordBeforeAnswer,
    /// What a record says of batches is not looked at.
    ResendOfRecorded,
    /// A parked job is acknowledged before the wait queue has it.
    ParkWithoutConfirm,
    /// Calls go on after the delivery is somebody else's.
    NoFencing,
    /// The store does not say that another replica has taken a newer epoch.
    EpochUnchecked,
    /// The first call of a subscription does not wait until the calls of another replica are a
    /// second old.
    NoWaitAtTakeOver,
    /// The result is not recorded before the acknowledgement.
    NotCompleted,
    /// The dead letter is not waited for.
    LetterWithoutConfirm,
    /// No intent is recorded before a call that must not be repeated.
    NoIntents,
    /// A message goes to the AMQP library as the broker sent it.
    UnreadablePassed,
    /// What the broker has given up is not read.
    UndeliverableUnread,
    /// An outcome that cannot be recorded at once is forgotten.
    OutcomesDropped,
    /// Calls go on while outcomes are not recorded.
    CallsUnrecorded,
    /// An outcome counts as recorded once the store answers a probe.
    ProbeIsProof,
    /// What is in hand goes back before it is parked, when a subscription ends in an orderly way.
    CutAtOnce,
    /// When the broker closes a connection over a message, all that were under way on it are
    /// blamed.
    BlameAllUnderWay,
    /// A result waits until its full reply queue has room.
    WaitForFullQueue,
    /// A broker that does not confirm is taken for one that has no such queue.
    SilenceIsMissing,
}

impl Defect {
    pub const ALL: [Self; 20] = [
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
    ];
}

/// The pipeline, with a defect if the run has one that sits around it.
pub struct Flawed {
    pub pipeline: Pipeline,
    pub world: Shared,
}

/// A delivery that nobody ever seems to take away.
struct Clung(Arc<dyn Acknowledge>);

impl Acknowledge for Clung {
    fn acknowledge(&self) -> BoxFuture<'_, Result<(), BrokerLost>> {
        self.0.acknowledge()
    }

    fn give_back(&self) -> BoxFuture<'_, Result<(), BrokerLost>> {
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
            let clung = Arc::new(Clung(delivery.acknowledge.clone()));
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

    async fn let_go(&self) {
        self.pipeline.let_go().await;
    }
}
