//! How many messages each group got in the last second. It keeps the moments of one second for all
//! groups together, so it needs no memory for a group that is silent.

use std::{collections::VecDeque, time::Duration};

use hashbrown::HashMap;
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

/// Two messages exactly one second apart are in different seconds.
#[derive(Debug, Default)]
pub struct GroupRates {
    recent: VecDeque<(Instant, String)>,
    counts: HashMap<String, usize>,
    most: usize,
}

impl GroupRates {
    /// The number of messages of the group in the second that ends now. Moments must not go back.
    pub fn count(&mut self, group: &str, now: Instant) -> usize {
        self.forget_before(now);
        self.counts.get(group).copied().unwrap_or(0)
    }

    pub fn record(&mut self, group: &str, now: Instant) {
        self.forget_before(now);
        self.recent.push_back((now, group.to_owned()));
        let count = self.counts.entry_ref(group).or_default();
        *count += 1;
        self.most = self.most.max(*count);
    }

    /// Most messages of one group in any one second.
    pub fn most(&self) -> usize {
        self.most
    }

    fn forget_before(&mut self, now: Instant) {
        while self.recent.front().is_some_and(|(moment, _)| now - *moment >= SECOND) {
            let Some((_, group)) = self.recent.pop_front() else { return };
            self.decrement(&group);
        }
    }

    fn decrement(&mut self, group: &str) {
        let Some(count) = self.counts.get_mut(group) else { return };
        *count -= 1;
        if *count == 0 {
            self.counts.remove(group);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_counted_apart_and_forgotten_after_a_second() {
        let start = Instant::now();
        let mut rates = GroupRates::default();
        rates.record("g", start);
        rates.record("g", start + Duration::from_millis(500));
        rates.record("h", start + Duration::from_millis(500));
        let nearly = start + Duration::from_nanos(999_999_999);
        assert_eq!((rates.count("g", nearly), rates.count("h", nearly)), (2, 1));
        assert_eq!(rates.count("g", start + SECOND), 1);
        assert_eq!(rates.count("g", start + 2 * SECOND), 0);
        assert!(rates.recent.is_empty() && rates.counts.is_empty());
        assert_eq!(rates.most(), 2);
    }
}
