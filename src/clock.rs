//! The wall clock, for what people and other processes see: deadlines, records, results. Waiting
//! goes by tokio's clock.
//!
//! In tests on paused time a wall clock can be set that moves with tokio's.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// The present moment.
pub fn now() -> Timestamp {
    #[cfg(test)]
    if let Some(now) = simulated::now() {
        return now;
    }
    Timestamp::now()
}

/// A moment of two clocks: a monotonic one, and the wall clock, which goes on while the machine is
/// suspended.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    instant: Instant,
    wall: Timestamp,
}

impl Moment {
    pub fn now() -> Self {
        Self { instant: Instant::now(), wall: now() }
    }

    /// Before anything that is still of account.
    pub fn long_ago() -> Self {
        Self { instant: Instant::now(), wall: Timestamp::UNIX_EPOCH }
    }

    /// By the clock that went further. One that was set forward makes the time longer than it was.
    pub fn elapsed(self) -> Duration {
        let by_wall = now().duration_since(self.wall).try_into().unwrap_or_default();
        self.instant.elapsed().max(by_wall)
    }

    pub fn is_after(self, other: Self) -> bool {
        self.instant > other.instant
    }
}

#[cfg(test)]
pub mod simulated {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        static START: Cell<Option<(Timestamp, tokio::time::Instant)>> = const { Cell::new(None) };
    }

    /// From now on this thread's wall clock moves with tokio's, beginning at `start`.
    pub fn start_at(start: Timestamp) {
        START.set(Some((start, tokio::time::Instant::now())));
    }

    pub(super) fn now() -> Option<Timestamp> {
        START.get().map(|(start, since)| start + since.elapsed())
    }
}
