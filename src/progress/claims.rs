//! The jobs that this process is working on. Only one delivery of a job is processed at a time.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::store::Key;

#[derive(Default)]
pub(super) struct Claims(Arc<ClaimTable>);

#[derive(Default)]
struct ClaimTable {
    cancelled: Mutex<HashMap<Key, CancellationToken>>,
    released: Notify,
}

/// Released when dropped.
pub(super) struct Claim {
    key: Key,
    /// Cancelled when an operator cancels the job.
    pub cancelled: CancellationToken,
    shared: Arc<ClaimTable>,
}

impl Claims {
    /// Waits until no other delivery holds the key.
    pub(super) async fn claim(&self, key: Key) -> Claim {
        loop {
            let mut released = std::pin::pin!(self.0.released.notified());
            // Registers before the check: a release right after the check would otherwise be
            // missed.
            released.as_mut().enable();
            if let Entry::Vacant(free) = lock(&self.0.cancelled).entry(key.clone()) {
                let cancelled = free.insert(CancellationToken::new()).clone();
                return Claim { key, cancelled, shared: self.0.clone() };
            }
            released.await;
        }
    }

    /// Cancels those of the jobs that are claimed.
    pub(super) fn cancel(&self, app: &str, jobs: &[String]) {
        let jobs: HashSet<&str> = jobs.iter().map(String::as_str).collect();
        for (key, cancelled) in &*lock(&self.0.cancelled) {
            if key.app == app && jobs.contains(key.job_id.as_str()) {
                cancelled.cancel();
            }
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.shared.cancelled).remove(&self.key);
        self.shared.released.notify_waiters();
    }
}

/// No code panics while it holds the lock.
fn lock(
    cancelled: &Mutex<HashMap<Key, CancellationToken>>,
) -> MutexGuard<'_, HashMap<Key, CancellationToken>> {
    cancelled.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(job_id: &str) -> Key {
        Key { app: "a".into(), job_id: job_id.into(), earlier_deaths: 0 }
    }

    #[tokio::test]
    async fn a_second_claim_waits_for_the_first_and_others_do_not() {
        let claims = Claims::default();
        let first = claims.claim(key("1")).await;
        let other = claims.claim(key("2")).await;
        let mut second = std::pin::pin!(claims.claim(key("1")));
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        drop(other);
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        drop(first);
        assert!(futures_util::poll!(second.as_mut()).is_ready());
    }
}
