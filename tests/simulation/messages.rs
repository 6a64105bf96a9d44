//! The vendor's side of `send_group_msg`: it discards a message whose number it has seen, drops
//! messages of a group that gets too many, and checks that no two batches share a number.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use super::scenario::DedupKey;

/// How long the vendor remembers a message.
pub const WINDOW: Duration = Duration::from_secs(5 * 60);
/// How long the daemon promises not to use a number for another batch.
const NOT_SHARED_FOR: Duration = Duration::from_secs(6 * 60);

/// A group and the first recipient of a batch.
pub type BatchName = (String, String);

#[derive(Default)]
pub struct Messages {
    seen: HashMap<(u32, String), Instant>,
    /// Each number with its batch, oldest first.
    numbers: VecDeque<(Instant, u32, BatchName)>,
}

/// What became of a message that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    New,
    /// It is discarded, and the answer is that of an accepted message.
    Discarded,
}

impl Messages {
    /// A message arrives. Its number is occupied from now on.
    pub fn arrive(&mut self, key: DedupKey, number: u32, batch: &BatchName) -> Arrival {
        let now = Instant::now();
        let scope = match key {
            DedupKey::Number => String::new(),
            DedupKey::Group => batch.0.clone(),
        };
        match self.seen.get(&(number, scope.clone())) {
            Some(at) if now < *at + WINDOW => Arrival::Discarded,
            _ => {
                self.seen.insert((number, scope), now);
                Arrival::New
            }
        }
    }

    /// Another batch that used this number within six minutes.
    pub fn shares_number(&mut self, number: u32, batch: &BatchName) -> Option<BatchName> {
        let now = Instant::now();
        while self.numbers.front().is_some_and(|(at, ..)| *at + NOT_SHARED_FOR <= now) {
            self.numbers.pop_front();
        }
        let other = self.numbers.iter().find(|(_, used, by)| *used == number && by != batch);
        let other = other.map(|(_, _, by)| by.clone());
        self.numbers.push_back((now, number, batch.clone()));
        other
    }
}
