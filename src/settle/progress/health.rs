//! Whether the store works. An operation that fails says that it does not; a probe, made again and again, that it does.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tracing::{error, info};

use super::store::{Store, StoreLost};
use crate::delay;

const FIRST_PROBE: Duration = Duration::from_millis(200);
const MAX_PROBE: Duration = Duration::from_secs(5);
/// How long a store has to work before a failure is taken for a new one.
const TRUSTED_AFTER: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// It has not answered yet.
    Unknown,
    Works,
    /// What it could not do, and why.
    Away(String),
}

#[derive(Debug)]
pub struct Health(Arc<watch::Sender<Condition>>);

impl Health {
    /// Probes the store in the background whenever it is not known to work, as long as this lives.
    pub(super) fn watch(store: Arc<dyn Store>) -> Self {
        let health = Self(Arc::new(watch::Sender::new(Condition::Unknown)));
        tokio::spawn(probe_when_needed(health.0.subscribe(), Arc::downgrade(&health.0), store));
        health
    }

    pub(super) fn is_away(&self, error: &StoreLost) {
        self.0.send_if_modified(|condition| tell_away(condition, error));
    }

    pub fn condition(&self) -> Condition {
        self.0.borrow().clone()
    }

    pub fn works(&self) -> bool {
        *self.0.borrow() == Condition::Works
    }

    pub async fn until_it_works(&self) {
        let mut receiver = self.0.subscribe();
        // The sender is ours, so it cannot be gone.
        let _ = receiver.wait_for(|condition| *condition == Condition::Works).await;
    }
}

fn tell_away(condition: &mut Condition, error: &StoreLost) -> bool {
    if let Condition::Away(_) = condition {
        return false;
    }
    error!(%error, "the state store does not work; no jobs are taken until it does");
    *condition = Condition::Away(error.to_string());
    true
}

async fn probe_when_needed(
    mut condition: watch::Receiver<Condition>,
    sender: std::sync::Weak<watch::Sender<Condition>>,
    store: Arc<dyn Store>,
) {
    let mut probes = 0;
    let mut works_since: Option<Instant> = None;
    while condition.wait_for(|condition| *condition != Condition::Works).await.is_ok() {
        // One that fails again soon, as one on a full disk does, is probed as seldom as before.
        if works_since.take().is_some_and(|since| since.elapsed() > TRUSTED_AFTER) {
            probes = 0;
        }
        if *condition.borrow() != Condition::Unknown {
            sleep(delay::after_attempt(probes, FIRST_PROBE, MAX_PROBE, delay::jitter())).await;
        }
        probes += 1;
        let probed = store.probe().await;
        let Some(sender) = sender.upgrade() else { return };
        match probed {
            Ok(()) => {
                info!("the state store works");
                works_since = Some(Instant::now());
                sender.send_replace(Condition::Works);
            }
            Err(error) => {
                sender.send_if_modified(|condition| tell_away(condition, &error));
            }
        }
    }
}
