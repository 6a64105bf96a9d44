//! Remembers the last sends, so that no second ever has more than the limit.
//!
//! A slot is reserved before a call and stamped when the request is written, which may be after a
//! connection's handshake. It is free again [`SPAN`] after its stamp, or at once if nothing was
//! written. Between reservation and stamp it counts in every second. So the limit holds whenever
//! the write happens.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// A little over a second. Otherwise a millisecond of jitter on the way could bring the edges of
/// two bursts into one second.
pub const SPAN: Duration = Duration::from_millis(1005);

#[derive(Debug)]
pub struct SendWindow {
    limit: usize,
    /// When the requests of the last [`SPAN`] were written, oldest first.
    stamps: VecDeque<Instant>,
    /// Slots that are reserved and not yet written.
    unwritten: usize,
    most_in_one_second: usize,
}

/// Whether the window has room.
#[derive(Debug, PartialEq, Eq)]
pub enum WindowRoom {
    Now,
    At(Instant),
    /// All slots are reserved by calls that have not been written. Wait for one of those.
    AfterAWrite,
}

impl SendWindow {
    pub fn new(limit: usize) -> Self {
        Self { limit, stamps: VecDeque::new(), unwritten: 0, most_in_one_second: 0 }
    }

    /// Applies from the next call on. The calls of the last [`SPAN`] count towards it.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    pub fn room(&mut self, now: Instant) -> WindowRoom {
        self.forget_old(now);
        if self.stamps.len() + self.unwritten < self.limit {
            return WindowRoom::Now;
        }
        // Usually only one slot must become free, which is the one of the oldest stamp. After the
        // limit was lowered, more slots must.
        let surplus = self.stamps.len() + self.unwritten - self.limit;
        self.stamps
            .get(surplus)
            .map_or(WindowRoom::AfterAWrite, |&stamp| WindowRoom::At(stamp + SPAN))
    }

    /// Reserves the slot that [`room`](Self::room) has announced.
    pub fn reserve(&mut self) {
        self.unwritten += 1;
    }

    pub fn written(&mut self, now: Instant) {
        self.unwritten -= 1;
        self.stamps.push_back(now);
        let older = self.stamps.partition_point(|&stamp| now - stamp >= Duration::from_secs(1));
        self.most_in_one_second = self.most_in_one_second.max(self.stamps.len() - older);
    }

    /// The most requests that were written in any one second so far.
    pub fn most_in_one_second(&self) -> usize {
        self.most_in_one_second
    }

    /// Frees a slot for which nothing was written and nothing will be.
    pub fn released(&mut self) {
        self.unwritten -= 1;
    }

    /// Whether it has no call of the last [`SPAN`] and no reserved slot.
    pub fn is_idle(&mut self, now: Instant) -> bool {
        self.forget_old(now);
        self.stamps.is_empty() && self.unwritten == 0
    }

    fn forget_old(&mut self, now: Instant) {
        while self.stamps.front().is_some_and(|&stamp| stamp + SPAN <= now) {
            self.stamps.pop_front();
        }
    }
}
