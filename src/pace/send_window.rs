//! The last sends, so that no second ever holds more than the limit.
//!
//! A slot is reserved before a call and stamped when the request is written, which may be a
//! connection's handshake later. It is free again [`SPAN`] after its stamp, or at once if nothing
//! was written. Between reservation and stamp it counts as if it were sent at every moment, so the
//! limit holds whenever the write happens.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// A little over a second: a millisecond of jitter on the way must not let the edges of two bursts
/// meet in one second.
pub const SPAN: Duration = Duration::from_millis(1005);

#[derive(Debug)]
pub struct SendWindow {
    limit: usize,
    /// When the requests of the last [`SPAN`] were written, oldest first.
    stamps: VecDeque<Instant>,
    /// Reserved, not written yet.
    unwritten: usize,
    most_in_one_second: usize,
}

/// Whether the window has room.
#[derive(Debug, PartialEq, Eq)]
pub enum Room {
    Now,
    At(Instant),
    /// All slots are reserved by calls that have not been written: wait for one of those.
    AfterAWrite,
}

impl SendWindow {
    pub fn new(limit: usize) -> Self {
        Self { limit, stamps: VecDeque::with_capacity(limit), unwritten: 0, most_in_one_second: 0 }
    }

    /// Holds from the next call on, over the calls of the last [`SPAN`] too.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    pub fn room(&mut self, now: Instant) -> Room {
        self.forget_old(now);
        if self.stamps.len() + self.unwritten < self.limit {
            return Room::Now;
        }
        // If only one more slot is needed, the oldest stamp leaves first; a limit that was lowered
        // needs more.
        let surplus = self.stamps.len() + self.unwritten - self.limit;
        self.stamps.get(surplus).map_or(Room::AfterAWrite, |&stamp| Room::At(stamp + SPAN))
    }

    /// Takes the slot that [`room`](Self::room) said is there.
    pub fn reserve(&mut self) {
        self.unwritten += 1;
    }

    pub fn written(&mut self, now: Instant) {
        self.unwritten -= 1;
        self.stamps.push_back(now);
        let older = self.stamps.partition_point(|&stamp| now - stamp >= Duration::from_secs(1));
        self.most_in_one_second = self.most_in_one_second.max(self.stamps.len() - older);
    }

    /// The most requests written in any second so far.
    pub fn most_in_one_second(&self) -> usize {
        self.most_in_one_second
    }

    /// Nothing was written for this slot, nor will be.
    pub fn released(&mut self) {
        self.unwritten -= 1;
    }

    fn forget_old(&mut self, now: Instant) {
        while self.stamps.front().is_some_and(|&stamp| stamp + SPAN <= now) {
            self.stamps.pop_front();
        }
    }
}
