//! How fast calls may go to each group. A group that is at its limit delays no other group.
//!
//! No second has more calls for a group than its limit, as in the window of the whole app. When the
//! vendor drops a message because its group gets too many, the rate of this group is halved, it
//! waits for a second, and then its rate grows back.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::send_window::{SendWindow, WindowRoom};

/// How long a group gets no call after the vendor has dropped one.
const WAIT_AFTER_DROP: Duration = Duration::from_secs(1);
/// Drops within this time are answers to the same burst and lower the rate once.
const ROUND: Duration = Duration::from_secs(1);
/// The rate regained in a second, as a share of the limit.
const RECOVERY_PER_SECOND: f64 = 0.05;
/// Groups without recent calls are forgotten when there are this many.
const FORGET_ABOVE: usize = 1024;

#[derive(Debug, Default, Clone)]
pub struct GroupPace(Arc<Mutex<Groups>>);

#[derive(Debug, Default)]
struct Groups {
    by_name: HashMap<Arc<str>, Group>,
    forget_above: usize,
}

#[derive(Debug)]
struct Group {
    window: SendWindow,
    limit: u32,
    throttle: Option<Throttle>,
}

/// A rate below the limit, after the vendor has dropped a message.
#[derive(Debug, Clone, Copy)]
struct Throttle {
    rate: f64,
    set_at: Instant,
    blocked_until: Instant,
    round_began: Instant,
}

/// The right to one call for a group. If it is dropped without [`written`](Self::written), the
/// place is free again.
#[derive(Debug)]
pub struct GroupSlot(Option<(GroupPace, Arc<str>)>);

impl GroupPace {
    /// When a call for the group may leave. `limit` is the most calls of a group in a second.
    pub fn room(&self, group: &str, limit: u32, now: Instant) -> WindowRoom {
        let mut groups = self.lock();
        let Some(group) = groups.by_name.get_mut(group) else { return WindowRoom::Now };
        group.room(limit, now)
    }

    /// Takes the place that [`room`](Self::room) has announced.
    pub fn reserve(&self, group: &str, limit: u32, now: Instant) -> GroupSlot {
        let mut groups = self.lock();
        groups.forget_idle(now);
        let name: Arc<str> = match groups.by_name.get_key_value(group) {
            Some((name, _)) => name.clone(),
            None => group.into(),
        };
        let new = || Group { window: SendWindow::new(limit as usize), limit, throttle: None };
        groups.by_name.entry(name.clone()).or_insert_with(new).window.reserve();
        GroupSlot(Some((self.clone(), name)))
    }

    /// Slows a group down after the vendor has dropped one of its messages. `jitter` is between 0
    /// and 1.
    pub fn slow_down(&self, group: &str, limit: u32, jitter: f64, now: Instant) {
        let mut groups = self.lock();
        let new = || Group { window: SendWindow::new(limit as usize), limit, throttle: None };
        groups.by_name.entry(group.into()).or_insert_with(new).slow_down(jitter, now);
    }

    /// How many groups are slower than their limit.
    pub fn throttled(&self, now: Instant) -> usize {
        let mut groups = self.lock();
        groups.by_name.values_mut().filter_map(|group| group.recover(now)).count()
    }

    /// No code panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, Groups> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Groups {
    /// Forgets groups without recent calls, so that the memory does not grow with every group.
    fn forget_idle(&mut self, now: Instant) {
        if self.by_name.len() < self.forget_above.max(FORGET_ABOVE) {
            return;
        }
        self.by_name.retain(|_, group| group.recover(now).is_some() || !group.window.is_idle(now));
        self.forget_above = 2 * self.by_name.len();
    }
}

impl Group {
    fn room(&mut self, limit: u32, now: Instant) -> WindowRoom {
        self.limit = limit;
        let throttle = self.recover(now);
        let rate = throttle.map_or(limit, |throttle| (throttle.rate as u32).max(1));
        self.window.set_limit(rate as usize);
        match throttle {
            Some(Throttle { blocked_until, .. }) if now < blocked_until => {
                WindowRoom::At(blocked_until)
            }
            _ => self.window.room(now),
        }
    }

    fn slow_down(&mut self, jitter: f64, now: Instant) {
        let blocked_until = now + WAIT_AFTER_DROP.mul_f64(1.0 + jitter / 4.0);
        self.throttle = Some(match self.recover(now) {
            Some(throttle) if now < throttle.round_began + ROUND => throttle,
            throttle => {
                let rate = throttle.map_or(f64::from(self.limit), |throttle| throttle.rate);
                let rate = (rate / 2.0).max(1.0);
                Throttle { rate, set_at: blocked_until, blocked_until, round_began: now }
            }
        });
    }

    /// The throttle as it is now, if the rate has not fully grown back.
    fn recover(&mut self, now: Instant) -> Option<Throttle> {
        let throttle = self.throttle.as_mut()?;
        let gained = now.saturating_duration_since(throttle.set_at).as_secs_f64()
            * RECOVERY_PER_SECOND
            * f64::from(self.limit);
        throttle.rate += gained;
        throttle.set_at = throttle.set_at.max(now);
        self.throttle.take_if(|throttle| throttle.rate >= f64::from(self.limit));
        self.throttle
    }
}

impl GroupSlot {
    /// For a command without a limit per group.
    pub fn unlimited() -> Self {
        Self(None)
    }

    /// Records that the request is written at this moment.
    pub fn written(mut self, now: Instant) {
        if let Some((pace, name)) = self.0.take()
            && let Some(group) = pace.lock().by_name.get_mut(&name)
        {
            group.window.written(now);
        }
    }
}

impl Drop for GroupSlot {
    fn drop(&mut self) {
        if let Some((pace, name)) = self.0.take()
            && let Some(group) = pace.lock().by_name.get_mut(&name)
        {
            group.window.released();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pace::send_window::SPAN;

    proptest! {
        #[test]
        fn no_group_is_above_its_limit_in_any_second(
            limit in 1..50u32,
            asks in prop::collection::vec((0..3usize, 0..200u64, any::<bool>(), any::<bool>()), 1..400),
        ) {
            let (pace, mut now) = (GroupPace::default(), Instant::now());
            let groups = ["a", "b", "c"];
            let mut written: HashMap<&str, Vec<Instant>> = HashMap::new();
            for (group, wait_ms, is_written, is_dropped) in asks {
                now += Duration::from_millis(wait_ms);
                let group = groups[group];
                if pace.room(group, limit, now) != WindowRoom::Now {
                    continue;
                }
                let slot = pace.reserve(group, limit, now);
                if is_written {
                    slot.written(now);
                    written.entry(group).or_default().push(now);
                }
                if is_dropped {
                    pace.slow_down(group, limit, 0.5, now);
                }
            }
            for times in written.values() {
                for begin in times {
                    let in_a_second = times.iter().filter(|at| *at >= begin && **at < *begin + Duration::from_secs(1)).count();
                    prop_assert!(in_a_second <= limit as usize);
                }
            }
        }
    }

    #[test]
    fn a_drop_halves_the_rate_of_its_group_alone_which_then_grows_back() {
        let (pace, start) = (GroupPace::default(), Instant::now());
        let calls_at = |group: &str, now: Instant| {
            let mut calls = 0;
            while pace.room(group, 40, now) == WindowRoom::Now {
                pace.reserve(group, 40, now).written(now);
                calls += 1;
            }
            calls
        };
        assert_eq!((calls_at("a", start), calls_at("b", start)), (40, 40));
        // All these answers belong to one burst.
        (0..10).for_each(|_| pace.slow_down("a", 40, 0.0, start));
        let soon = start + SPAN;
        assert_eq!((calls_at("a", soon), calls_at("b", soon)), (20, 40));
        assert_eq!((pace.throttled(soon), calls_at("a", soon + SPAN)), (1, 22));
        let later = start + Duration::from_secs(20);
        assert_eq!((pace.throttled(later), calls_at("a", later)), (0, 40));
    }

    #[test]
    fn groups_without_calls_are_forgotten() {
        let (pace, start) = (GroupPace::default(), Instant::now());
        for group in 0..10_000 {
            let now = start + Duration::from_millis(10 * group);
            pace.reserve(&group.to_string(), 20, now).written(now);
        }
        let known = pace.lock().by_name.len();
        assert!(known <= 2 * FORGET_ABOVE, "{known}");
    }
}
