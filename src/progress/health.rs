//! Tracks whether the store works. After a failed operation the store counts as away, until the
//! same operation succeeds. Another operation proves nothing: a store may accept connections and
//! writes, and still be unable to do what failed.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};
use tracing::{error, info};

use super::store::{Answer, Scope, Store, StoreLost};
use crate::{delay, watch};

const FIRST_PROBE: Duration = Duration::from_millis(200);
const MAX_PROBE: Duration = Duration::from_secs(5);
/// How often a working store is probed. Without probes, a daemon without jobs would not notice that
/// the store is away.
const PROBED_EVERY: Duration = Duration::from_secs(10);
/// How long the store must work before a failure counts as a new one.
const TRUSTED_AFTER: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreCondition {
    /// It has not answered yet.
    Unknown,
    Works,
    Away {
        /// The operation that failed, and why.
        reason: String,
        since: Instant,
    },
}

/// An operation that can be tried again.
pub(super) type Attempt = Arc<dyn for<'a> Fn(&'a dyn Store) -> Answer<'a, ()> + Send + Sync>;

pub struct Health(Arc<HealthState>);

struct HealthState {
    condition: watch::Sender<StoreCondition>,
    /// The failed operations, one for each name. The store works again when all of them have
    /// succeeded.
    failed: Mutex<Vec<(&'static str, Attempt)>>,
}

impl Health {
    /// Probes the store in the background while this value lives.
    pub(super) fn watch(store: Arc<dyn Store>) -> Self {
        let shared = Arc::new(HealthState {
            condition: watch::Sender::new(StoreCondition::Unknown),
            failed: Mutex::default(),
        });
        tokio::spawn(probe_as_needed(Arc::downgrade(&shared), shared.condition.subscribe(), store));
        Self(shared)
    }

    /// Marks the store as away until `attempt`, which failed with this error, succeeds.
    pub(super) fn failed(&self, error: &StoreLost, attempt: Attempt) {
        self.0.failed(error, attempt);
    }

    pub fn condition(&self) -> StoreCondition {
        self.0.condition.borrow().clone()
    }

    pub fn works(&self) -> bool {
        *self.0.condition.borrow() == StoreCondition::Works
    }

    pub async fn until_it_works(&self) {
        let mut receiver = self.0.condition.subscribe();
        // `self` holds the sender, so the channel cannot be closed.
        let _ = receiver.wait_for(|condition| *condition == StoreCondition::Works).await;
    }

    /// Returns when the store has been away for this long without a break.
    pub async fn until_away_for(&self, longest: Duration) {
        let mut receiver = self.0.condition.subscribe();
        loop {
            let away_since = match &*receiver.borrow_and_update() {
                StoreCondition::Away { since, .. } => Some(*since),
                StoreCondition::Unknown | StoreCondition::Works => None,
            };
            let left = away_since.map(|since| longest.saturating_sub(since.elapsed()));
            match left {
                None => drop(receiver.changed().await),
                Some(left) => {
                    if timeout(left, receiver.changed()).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

impl HealthState {
    fn failed(&self, error: &StoreLost, attempt: Attempt) {
        let mut failed = self.lock();
        if failed.iter().all(|(operation, _)| *operation != error.operation) {
            failed.push((error.operation, attempt));
        }
        self.condition.send_if_modified(|condition| {
            if let StoreCondition::Away { .. } = condition {
                return false;
            }
            error!(%error, "the state store does not work; no jobs are taken until it does");
            *condition = StoreCondition::Away { reason: error.to_string(), since: Instant::now() };
            true
        });
    }

    /// Tries each failed operation again, once. If there is none, probes the store.
    async fn try_again(&self, store: &dyn Store) {
        let attempts = self.lock().clone();
        if attempts.is_empty() {
            match store.probe().await {
                Ok(()) => {}
                Err(error) => return self.failed(&error, probing()),
            }
        }
        for (operation, attempt) in attempts {
            match attempt(store).await {
                Err(error) if error.scope == Scope::Store => return,
                // An error about one record still shows that the store reads and writes.
                Ok(()) | Err(_) => self.lock().retain(|(failed, _)| *failed != operation),
            }
        }
        let failed = self.lock();
        if failed.is_empty() {
            self.condition.send_if_modified(|condition| {
                let worked =
                    std::mem::replace(condition, StoreCondition::Works) == StoreCondition::Works;
                if !worked {
                    info!("the state store works");
                }
                !worked
            });
        }
    }

    /// No code panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, Vec<(&'static str, Attempt)>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn probing() -> Attempt {
    Arc::new(|store| store.probe())
}

async fn probe_as_needed(
    shared: Weak<HealthState>,
    mut condition: watch::Receiver<StoreCondition>,
    store: Arc<dyn Store>,
) {
    let mut probes = 0;
    let mut works_since: Option<Instant> = None;
    loop {
        let until_away = condition.wait_for(|condition| *condition != StoreCondition::Works);
        let found = match timeout(PROBED_EVERY, until_away).await {
            Ok(Ok(())) => condition.borrow().clone(),
            Ok(Err(_)) => return,
            Err(_) => StoreCondition::Works,
        };
        if found != StoreCondition::Works {
            // If the store fails again soon, for example on a full disk, the pauses between probes
            // stay long.
            if works_since.take().is_some_and(|since| since.elapsed() > TRUSTED_AFTER) {
                probes = 0;
            }
            if found != StoreCondition::Unknown {
                sleep(delay::after_attempt(probes, FIRST_PROBE, MAX_PROBE, delay::jitter())).await;
            }
            probes += 1;
        }
        let Some(shared) = shared.upgrade() else { return };
        shared.try_again(&*store).await;
        if *condition.borrow() == StoreCondition::Works {
            works_since.get_or_insert_with(Instant::now);
        }
    }
}
