//! A sliding second: how many events were in the last second, and the most in any second. It is
//! exact, because it keeps the moment of each event of the last second. So its size is the number
//! of events in a second.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

/// Two events exactly one second apart are in different seconds.
#[derive(Debug, Default)]
pub struct SlidingSecond {
    recent: VecDeque<Instant>,
    most: usize,
}

impl SlidingSecond {
    /// Events must be recorded in the order of their moments.
    pub fn record(&mut self, now: Instant) {
        while self.recent.front().is_some_and(|&moment| now - moment >= SECOND) {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
        self.most = self.most.max(self.recent.len());
    }

    /// The number of events in the second that ends now.
    pub fn count(&self, now: Instant) -> usize {
        self.recent.len() - self.recent.partition_point(|&moment| now - moment >= SECOND)
    }

    pub fn most(&self) -> usize {
        self.most
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_most_is_what_counting_every_window_finds(gaps_ms in prop::collection::vec(0u64..400, 1..200)) {
            let start = Instant::now();
            let offsets_ms: Vec<u64> = gaps_ms.iter().scan(0, |sum, gap| { *sum += gap; Some(*sum) }).collect();
            let mut second = SlidingSecond::default();
            for (index, &ms) in offsets_ms.iter().enumerate() {
                let now = start + Duration::from_millis(ms);
                second.record(now);
                let within = offsets_ms[..=index].iter().filter(|&&earlier| ms - earlier < 1000).count();
                prop_assert_eq!(second.count(now), within);
            }
            let every_window = offsets_ms.iter().map(|from| offsets_ms.iter().filter(|&ms| (*from..from + 1000).contains(ms)).count());
            prop_assert_eq!(second.most(), every_window.max().unwrap());
        }
    }

    #[test]
    fn an_event_leaves_after_exactly_one_second() {
        let start = Instant::now();
        let mut second = SlidingSecond::default();
        second.record(start);
        assert_eq!(second.count(start + Duration::from_nanos(999_999_999)), 1);
        assert_eq!(second.count(start + SECOND), 0);
    }
}
