//! The right to work on a delivery. It is lost with the channel that brought the delivery, because the broker then gives
//! the job to somebody else; and before that, when the daemon stops, the right to start calls ends. Looked at right before
//! each call.

use std::time::Duration;

use lapin::{Acker, options::BasicAckOptions};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::broker::BrokerLost;

const ACK_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub struct Lease {
    calls_end: CancellationToken,
    lost: CancellationToken,
    /// `None` for a job that did not come from a broker.
    acker: Option<Acker>,
}

impl Lease {
    /// `calls_end` is cancelled when no further call may start, `lost` when the delivery is somebody else's.
    pub fn of_delivery(acker: Acker, calls_end: CancellationToken, lost: CancellationToken) -> Self {
        Self { calls_end, lost, acker: Some(acker) }
    }

    /// For a job that nobody can take away.
    pub fn unlimited() -> Self {
        Self { calls_end: CancellationToken::new(), lost: CancellationToken::new(), acker: None }
    }

    /// Whether a call may start now.
    pub fn allows_calls(&self) -> bool {
        let taken_away = self.acker.as_ref().is_some_and(Acker::poisoned);
        !self.calls_end.is_cancelled() && !self.lost.is_cancelled() && !taken_away
    }

    /// Runs `work` unless the lease is lost before it is done.
    pub async fn unless_lost<T>(&self, work: impl Future<Output = T>) -> Result<T, BrokerLost> {
        self.lost.run_until_cancelled(work).await.ok_or_else(|| BrokerLost::new("settle a job", "its delivery was lost"))
    }

    /// Acknowledges the delivery. Even success means only that the acknowledgement was written; if it is lost, the job
    /// comes again.
    pub async fn acknowledge(&self) -> Result<(), BrokerLost> {
        let Some(acker) = &self.acker else { return Ok(()) };
        match timeout(ACK_TIMEOUT, acker.ack(BasicAckOptions::default())).await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err(BrokerLost::new("acknowledge", "the channel is closed")),
            Ok(Err(error)) => Err(BrokerLost::new("acknowledge", error)),
            Err(_) => Err(BrokerLost::new("acknowledge", format!("not written within {ACK_TIMEOUT:?}"))),
        }
    }
}
