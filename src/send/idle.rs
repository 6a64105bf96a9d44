//! The times in which an app was idle: paused, without deliveries, or not yet started. A batch is
//! not failing in these times, so they do not count towards giving it up. Pure.

use std::{collections::VecDeque, time::Duration};

use jiff::Timestamp;

/// How many idle times are remembered. If a subscription is lost every ten seconds, this covers
/// almost three hours.
const MOST: usize = 1000;

pub(super) struct IdleTimes {
    /// Since when the app is idle, if it is.
    since: Option<Timestamp>,
    /// Earlier idle times, oldest first.
    over: VecDeque<(Timestamp, Timestamp)>,
}

impl IdleTimes {
    /// For a dispatcher that has not had a job yet. All earlier time counts as idle, because the
    /// daemon does not know what happened in it.
    pub fn new() -> Self {
        Self { since: Some(Timestamp::MIN), over: VecDeque::new() }
    }

    pub fn begin(&mut self, now: Timestamp) {
        self.since.get_or_insert(now);
    }

    pub fn end(&mut self, now: Timestamp) {
        if let Some(since) = self.since.take() {
            self.over.push_back((since, now));
            if self.over.len() > MOST {
                self.over.pop_front();
            }
        }
    }

    /// How much of the time from `from` until `now` the app was idle.
    pub fn since(&self, from: Timestamp, now: Timestamp) -> Duration {
        let present = self.since.map(|since| (since, now));
        let recent_first = present.into_iter().chain(self.over.iter().rev().copied());
        let shared = recent_first.take_while(|(_, end)| *end > from).map(|(begin, end)| {
            let shared = end.min(now).duration_since(begin.max(from));
            shared.try_into().unwrap_or(Duration::ZERO)
        });
        shared.sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::constant(second, 0)
    }

    #[test]
    fn what_was_before_the_first_job_is_idle_and_what_is_between_idle_times_is_not() {
        let mut idle = IdleTimes::new();
        assert_eq!(idle.since(at(10), at(30)).as_secs(), 20);
        idle.end(at(100));
        assert_eq!(
            (idle.since(at(10), at(300)).as_secs(), idle.since(at(150), at(300)).as_secs()),
            (90, 0)
        );
        idle.begin(at(200));
        idle.begin(at(210));
        assert_eq!(idle.since(at(150), at(300)).as_secs(), 100, "it goes on, since it began");
        idle.end(at(300));
        idle.end(at(310));
        assert_eq!(
            [50, 150, 250, 350].map(|from| idle.since(at(from), at(400)).as_secs()),
            [150, 100, 50, 0]
        );
    }

    #[test]
    fn no_more_than_so_many_are_remembered() {
        let mut idle = IdleTimes::new();
        for second in 0..3 * MOST as i64 {
            idle.end(at(2 * second));
            idle.begin(at(2 * second + 1));
        }
        assert_eq!(idle.over.len(), MOST);
    }
}
