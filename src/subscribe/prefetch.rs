//! Decides how many jobs the daemon holds, so that their bodies stay within a bound. Pure.
//!
//! The broker does not change the prefetch of a consumer. So a new prefetch needs a new
//! subscription, and the held jobs go back to the queue for it. The prefetch is lowered when the
//! held bodies exceed the bound. It is raised, rarely, when they are far below it.

use std::time::Duration;

use tokio::time::Instant;

/// How long a prefetch has to last before it is raised.
const RAISED_AFTER: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Prefetch {
    most: u16,
    hold_bytes: u64,
    present: u16,
    changed_at: Option<Instant>,
}

impl Prefetch {
    /// Starts with `most` jobs, and keeps that number while their bodies have at most `hold_bytes`
    /// together. One job always fits.
    pub fn new(most: u16, hold_bytes: u64) -> Self {
        Self { most, hold_bytes, present: most, changed_at: None }
    }

    pub fn present(&self) -> u16 {
        self.present
    }

    /// Adapts the prefetch to the held jobs. Returns whether it has changed.
    pub fn adapt(&mut self, jobs: usize, bytes: u64, now: Instant) -> bool {
        let as_many_would_fit = (self.hold_bytes as u128 * jobs as u128 / u128::from(bytes.max(1)))
            .min(self.most.into()) as u16;
        let is_too_much = bytes > self.hold_bytes && jobs > 1;
        let is_full_of_little = jobs >= self.present.into() && as_many_would_fit / 2 > self.present;
        let has_lasted = self.changed_at.is_some_and(|changed_at| now >= changed_at + RAISED_AFTER);
        self.present = match () {
            () if is_too_much => as_many_would_fit.max(1),
            () if is_full_of_little && has_lasted => as_many_would_fit / 2,
            () => return false,
        };
        self.changed_at = Some(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn small_jobs_leave_it_as_it_is() {
        let mut prefetch = Prefetch::new(200, 256 * MIB);
        assert!((0..=200).all(|jobs| !prefetch.adapt(jobs, jobs as u64 * MIB, Instant::now())));
    }

    #[test]
    fn large_jobs_lower_it_and_small_ones_raise_it_after_a_while() {
        let start = Instant::now();
        let mut prefetch = Prefetch::new(200, 256 * MIB);
        assert!(!prefetch.adapt(17, 17 * 15 * MIB, start));
        assert!(prefetch.adapt(18, 18 * 15 * MIB, start));
        assert_eq!(prefetch.present(), 17);
        assert!(
            !prefetch.adapt(17, 17 * 15 * MIB, start + RAISED_AFTER),
            "they fit, and more would not"
        );
        assert!(!prefetch.adapt(17, 17, start), "not so soon");
        assert!(!prefetch.adapt(16, 16, start + RAISED_AFTER), "no more are there");
        assert!(prefetch.adapt(17, 17 * 5 * MIB, start + RAISED_AFTER));
        assert_eq!(prefetch.present(), 25);
        assert!(prefetch.adapt(25, 25, start + 2 * RAISED_AFTER));
        assert_eq!(prefetch.present(), 100);
    }

    proptest! {
        #[test]
        fn whatever_comes_no_more_than_one_job_is_beyond_the_bound(sizes in prop::collection::vec(1u64..100, 1..400)) {
            let start = Instant::now();
            let mut prefetch = Prefetch::new(200, 500);
            let mut in_hand: Vec<u64> = Vec::new();
            let mut changes = 0;
            for size in sizes {
                in_hand.push(size);
                let bytes: u64 = in_hand.iter().sum();
                prop_assert!(bytes <= 500 + 100);
                if prefetch.adapt(in_hand.len(), bytes, start) {
                    prop_assert!((1..in_hand.len() as u16).contains(&prefetch.present()));
                    changes += 1;
                    in_hand.clear();
                } else if in_hand.len() >= prefetch.present().into() {
                    in_hand.remove(0);
                }
            }
            prop_assert!(changes < 200);
        }
    }
}
