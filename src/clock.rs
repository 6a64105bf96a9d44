//! The wall clock, for what people and other processes see: deadlines, records, results. Waits use
//! tokio's clock.
//!
//! Tests on paused time can set a wall clock that moves with tokio's.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// The current time.
pub fn now() -> Timestamp {
    #[cfg(test)]
    if let Some(now) = simulated::now() {
        return now;
    }
    Timestamp::now()
}

/// A moment on two clocks: a monotonic one, and the wall clock, which goes on while the machine is
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

    /// A moment so long ago that every limit on its age has passed.
    pub fn long_ago() -> Self {
        Self { instant: Instant::now(), wall: Timestamp::UNIX_EPOCH }
    }

    /// The elapsed time by the clock that advanced further. If the wall clock was set forward, the
    /// result is too long.
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
