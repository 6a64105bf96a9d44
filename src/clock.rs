//! The wall clock, for what people and other processes see: deadlines, records, results. Waiting goes by tokio's clock.
//!
//! In tests on paused time a wall clock can be set that moves with tokio's.

use jiff::Timestamp;

/// The present moment.
pub fn now() -> Timestamp {
    #[cfg(test)]
    if let Some(now) = simulated::now() {
        return now;
    }
    Timestamp::now()
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
