//! Computes how long to wait before the next attempt. No other file uses `backoff`.
//!
//! `backoff` computes the exponential part. The jitter is computed here, so that a seed decides it
//! and tests can repeat a run.

use std::time::Duration;

use backoff::{ExponentialBackoff, backoff::Backoff};

/// The wait after failed attempt number `attempt` (from 1): `first`, doubled each time up to `max`.
/// `jitter`, from 0 to 1, scales it by 0.5 to 1.5, so that many waits spread out.
pub fn after_attempt(attempt: u32, first: Duration, max: Duration, jitter: f64) -> Duration {
    let mut backoff = ExponentialBackoff {
        current_interval: first,
        initial_interval: first,
        multiplier: 2.0,
        randomization_factor: 0.0,
        max_interval: max,
        max_elapsed_time: None,
        ..ExponentialBackoff::default()
    };
    // After this many doublings every maximum is reached.
    let doublings = attempt.clamp(1, 40);
    let exponential = (0..doublings).filter_map(|_| backoff.next_backoff()).last().unwrap_or(max);
    exponential.min(max).mul_f64(0.5 + jitter.clamp(0.0, 1.0))
}

/// A random jitter from 0 to 1. In tests a seed can decide it.
pub fn jitter() -> f64 {
    #[cfg(test)]
    if let Some(jitter) = seeded::jitter() {
        return jitter;
    }
    rand::random()
}

#[cfg(test)]
pub mod seeded {
    use std::cell::RefCell;

    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    thread_local! {
        static CHANCE: RefCell<Option<SmallRng>> = const { RefCell::new(None) };
    }

    /// From now on this thread's jitters follow from `seed`.
    pub fn start_with(seed: u64) {
        CHANCE.set(Some(SmallRng::seed_from_u64(seed)));
    }

    pub(super) fn jitter() -> Option<f64> {
        CHANCE.with_borrow_mut(|chance| chance.as_mut().map(|chance| chance.random()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FIRST: Duration = Duration::from_millis(500);
    const MAX: Duration = Duration::from_secs(30);

    #[test]
    fn the_delay_doubles_up_to_its_maximum() {
        let middle = |attempt| after_attempt(attempt, FIRST, MAX, 0.5).as_millis();
        assert_eq!([1, 2, 3, 4].map(middle), [500, 1000, 2000, 4000]);
        assert_eq!(middle(7), 30_000);
        assert_eq!(middle(u32::MAX), 30_000);
    }

    proptest! {
        #[test]
        fn the_delay_stays_within_half_of_its_middle(attempt in 0u32..100, jitter in 0.0f64..=1.0) {
            let delay = after_attempt(attempt, FIRST, MAX, jitter);
            prop_assert!(delay >= FIRST / 2 && delay <= MAX * 3 / 2);
        }
    }
}
