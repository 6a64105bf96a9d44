//! How long the daemon keeps a job, and how long it tries a batch.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Supervision,
    condition::{Condition, Trouble},
    gate::Gate,
};
use crate::{clock, job::outcome::BatchProgress};

/// A third of the time after which brokers commonly take deliveries back. A job that is split again
/// may be held for this time twice.
pub(super) const HELD_AT_MOST: Duration = Duration::from_secs(10 * 60);

/// Whether a batch may be tried again.
pub(super) enum MayTry {
    Now,
    LookAgainAfter(Duration),
    /// It has been tried for long enough, and this outage is the reason that it ends with.
    NoMore(Trouble),
}

impl Gate {
    /// Whether a batch may be tried again. In an outage no call comes back whose failure would end
    /// a batch that has been tried for long enough, so the batch ends without one.
    pub fn may_try(&self, progress: &BatchProgress) -> MayTry {
        let state = self.lock();
        let Condition::Outage(why) = state.breaker.condition() else { return MayTry::Now };
        let Some(tried_for) = progress.failing_for(&state.idle, clock::now()) else {
            return MayTry::Now;
        };
        let retry = &self.config.borrow().retry;
        match retry.give_up_after.saturating_sub(tried_for) {
            Duration::ZERO => MayTry::NoMore(why.clone()),
            left => MayTry::LookAgainAfter(left.min(retry.max_delay)),
        }
    }

    /// Until when a job may be held that began at `began_at`. In an outage nobody knows how
    /// long it will have to wait, so it is held for less time.
    pub fn held_until(&self, began_at: Instant) -> Option<Instant> {
        if self.settings.supervision == Supervision::Attended {
            return None;
        }
        let state = self.lock();
        let longest = began_at + state.held_at_most;
        let in_outage = state.breaker.outage_since().map(|since| {
            since.max(began_at) + self.config.borrow().retry.hold.min(state.held_at_most)
        });
        Some(in_outage.map_or(longest, |until| until.min(longest)))
    }

    /// How long a job may wait for its next attempt.
    pub fn hold(&self) -> Duration {
        // The gate's lock comes before the configuration's.
        let held_at_most = self.lock().held_at_most;
        self.config.borrow().retry.hold.min(held_at_most)
    }

    /// Holds no job for longer from now on.
    pub fn hold_at_most(&self, held_at_most: Duration) {
        let mut state = self.lock();
        state.held_at_most = state.held_at_most.min(held_at_most);
        state.notify_jobs();
    }

    /// Whether a job may be held until `at`.
    pub fn may_hold_until(&self, at: Instant, now: Instant) -> bool {
        self.settings.supervision == Supervision::Attended
            || at.saturating_duration_since(now) <= self.hold()
    }
}
