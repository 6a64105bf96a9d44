//! Lets several acknowledgements leave together. Each one wakes the AMQP library and brings one new
//! job, which wakes everything else. A few together cost hardly more than one.
//!
//! An acknowledgement waits for `LONGEST_WAIT` at most. No more than one in `ONE_IN` of the held
//! jobs waits, so that the broker keeps sending jobs.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};

const LONGEST_WAIT: Duration = Duration::from_millis(20);
/// The acknowledgements leave when one in this many of the held jobs waits.
const ONE_IN: usize = 8;

#[derive(Debug, Default)]
pub struct AckBatch {
    in_hand: AtomicUsize,
    waiting: AtomicUsize,
    leaves: Notify,
}

impl AckBatch {
    pub fn set_in_hand(&self, jobs: usize) {
        self.in_hand.store(jobs, Ordering::Relaxed);
    }

    /// Returns when it is time to acknowledge.
    pub async fn wait(&self) {
        let leaves = self.leaves.notified();
        let waiting = WaitingAck::one_more(&self.waiting);
        let is_large_enough = waiting.count * ONE_IN >= self.in_hand.load(Ordering::Relaxed);
        if is_large_enough || timeout(LONGEST_WAIT, leaves).await.is_err() {
            self.leaves.notify_waiters();
        }
    }
}

/// Counts an acknowledgement until its wait has ended or is dropped.
struct WaitingAck<'a> {
    waiting: &'a AtomicUsize,
    count: usize,
}

impl<'a> WaitingAck<'a> {
    fn one_more(waiting: &'a AtomicUsize) -> Self {
        Self { waiting, count: waiting.fetch_add(1, Ordering::Relaxed) + 1 }
    }
}

impl Drop for WaitingAck<'_> {
    fn drop(&mut self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::{future::join_all, poll};
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_alone_does_not_wait() {
        let ack_batch = AckBatch::default();
        ack_batch.set_in_hand(ONE_IN);
        let start = Instant::now();
        ack_batch.wait().await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn they_leave_when_they_are_enough() {
        let ack_batch = AckBatch::default();
        ack_batch.set_in_hand(3 * ONE_IN);
        let start = Instant::now();
        let mut first = pin!(ack_batch.wait());
        assert!(poll!(first.as_mut()).is_pending());
        join_all([ack_batch.wait(), ack_batch.wait()]).await;
        first.await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_long_and_one_that_gave_up_does_not_count() {
        let ack_batch = AckBatch::default();
        ack_batch.set_in_hand(2 * ONE_IN);
        let gave_up = timeout(Duration::from_millis(1), ack_batch.wait()).await;
        assert!(gave_up.is_err());
        let start = Instant::now();
        ack_batch.wait().await;
        assert!((LONGEST_WAIT..2 * LONGEST_WAIT).contains(&start.elapsed()));
    }
}
