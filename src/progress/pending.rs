//! Tracks the writes that the store has not confirmed. If the process ends, outcomes that are known
//! and not recorded are lost. So no call starts while one of them has waited for too long.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// No call starts while an outcome has waited for longer.
const RECORDED_WITHIN: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Pending(Mutex<Writes>);

#[derive(Default)]
struct Writes {
    next: u64,
    /// In the order in which they began.
    began: BTreeMap<u64, Instant>,
}

/// A write that is not confirmed yet. Dropping it ends the wait.
pub(super) struct PendingWrite<'a> {
    pending: &'a Pending,
    number: u64,
}

impl Pending {
    pub(super) fn begin(&self) -> PendingWrite<'_> {
        let mut writes = self.lock();
        let number = writes.next;
        writes.next += 1;
        writes.began.insert(number, Instant::now());
        PendingWrite { pending: self, number }
    }

    /// Whether the store would soon record an outcome that is known now.
    pub(super) fn is_on_time(&self) -> bool {
        self.lock()
            .began
            .first_key_value()
            .is_none_or(|(_, began)| began.elapsed() < RECORDED_WITHIN)
    }

    /// No code panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, Writes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PendingWrite<'_> {
    fn drop(&mut self) {
        self.pending.lock().began.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn calls_stop_while_the_oldest_write_has_waited_for_a_second() {
        let pending = Pending::default();
        assert!(pending.is_on_time());
        let first = pending.begin();
        tokio::time::advance(RECORDED_WITHIN / 2).await;
        let second = pending.begin();
        assert!(pending.is_on_time());
        tokio::time::advance(RECORDED_WITHIN / 2).await;
        assert!(!pending.is_on_time());
        drop(first);
        assert!(pending.is_on_time(), "the second one has waited for half a second");
        tokio::time::advance(RECORDED_WITHIN / 2).await;
        assert!(!pending.is_on_time());
        drop(second);
        assert!(pending.is_on_time());
    }
}
