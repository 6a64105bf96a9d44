//! The right to work on a delivery. It is lost with the channel that brought the delivery, because
//! the broker then delivers the job again, perhaps to another replica. The right to start calls can
//! end before that, for example when the daemon stops. The daemon checks the lease right before
//! each call.

use std::{fmt, sync::Arc};

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use crate::{broker::BrokerError, subscribe::ack_batch::AckBatch};

/// Settles a delivery with the broker.
pub trait Acknowledge: Send + Sync {
    /// Success means only that the acknowledgement was written. If it is lost, the broker delivers
    /// the job again. Ends in bounded time.
    fn acknowledge(&self) -> BoxFuture<'_, Result<(), BrokerError>>;
    /// Gives the delivery back to the queue. Ends in bounded time.
    fn give_back(&self) -> BoxFuture<'_, Result<(), BrokerError>>;
    /// Whether the broker has taken the delivery away.
    fn is_taken_away(&self) -> bool;
}

#[derive(Clone)]
pub struct Lease {
    calls_end: CancellationToken,
    lost: CancellationToken,
    /// `None` for a job that did not come from a broker.
    delivery: Option<Arc<dyn Acknowledge>>,
    ack_batch: Arc<AckBatch>,
}

impl Lease {
    /// `calls_end` is cancelled when no further call may start, and `lost` when the daemon loses
    /// the delivery.
    pub fn of_delivery(
        delivery: Arc<dyn Acknowledge>,
        calls_end: CancellationToken,
        lost: CancellationToken,
        ack_batch: Arc<AckBatch>,
    ) -> Self {
        Self { calls_end, lost, delivery: Some(delivery), ack_batch }
    }

    /// A lease that cannot be lost, for a job that did not come from a broker.
    pub fn unlimited() -> Self {
        Self {
            calls_end: CancellationToken::new(),
            lost: CancellationToken::new(),
            delivery: None,
            ack_batch: Arc::default(),
        }
    }

    /// Whether a call may start now.
    pub fn allows_calls(&self) -> bool {
        !self.calls_end.is_cancelled() && !self.is_lost()
    }

    /// Whether the daemon has lost the delivery.
    pub fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
            || self.delivery.as_ref().is_some_and(|delivery| delivery.is_taken_away())
    }

    /// Returns when no further call may start.
    pub async fn until_calls_end(&self) {
        self.calls_end.cancelled().await;
    }

    /// Runs `work` unless the lease is lost before it is done.
    pub async fn unless_lost<T>(&self, work: impl Future<Output = T>) -> Result<T, BrokerError> {
        self.lost
            .run_until_cancelled(work)
            .await
            .ok_or_else(|| BrokerError::lost("settle a job", "its delivery was lost"))
    }

    /// Runs `work` unless calls may no longer start before it is done.
    pub async fn while_calls_may_start<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.unless_lost(self.calls_end.run_until_cancelled(work)).await.ok().flatten()
    }

    /// Waits for a moment, so that several acknowledgements leave together. If the broker delivers
    /// the job again in that moment, the daemon must be able to recognise it.
    pub async fn wait_for_others(&self) -> Result<(), BrokerError> {
        self.unless_lost(self.ack_batch.wait()).await
    }

    /// Acknowledges the delivery.
    pub async fn acknowledge(&self) -> Result<(), BrokerError> {
        match &self.delivery {
            Some(delivery) => delivery.acknowledge().await,
            None => Ok(()),
        }
    }

    /// Gives the delivery back to the queue. The broker counts this.
    pub async fn give_back(&self) -> Result<(), BrokerError> {
        match &self.delivery {
            Some(delivery) => delivery.give_back().await,
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Lease").field("allows_calls", &self.allows_calls()).finish()
    }
}
