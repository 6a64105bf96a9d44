//! Chooses one of an app's two addresses for a call: the first, or the backup while the first
//! cannot be reached. Pure.
//!
//! While calls go to the backup, one call a minute tries the first address again. If neither can be
//! reached, calls alternate.

use std::time::Duration;

use tokio::time::Instant;

/// How often the first address is tried while calls go to the backup.
const FIRST_TRIED_EVERY: Duration = Duration::from_secs(60);
/// After this many connections in a row without an answer of the API, the address counts as wrong.
/// A hijacked DNS name leads to such a server.
const MAX_UNANSWERED_CONNECTIONS: u32 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    First,
    Backup,
}

/// Whether a call reached the API at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// The API answered.
    Answered,
    /// The connection opened, but the API did not answer.
    Connected,
    Unreachable,
}

#[derive(Debug)]
pub struct Endpoints {
    present: Address,
    failures: u32,
    first_tried_at: Instant,
}

impl Endpoints {
    pub fn new(now: Instant) -> Self {
        Self { present: Address::First, failures: 0, first_tried_at: now }
    }

    /// Where the next call goes.
    pub fn choose(&mut self, now: Instant) -> Address {
        match self.present {
            Address::Backup if now >= self.first_tried_at + FIRST_TRIED_EVERY => {
                self.first_tried_at = now;
                Address::First
            }
            present => present,
        }
    }

    /// Records the outcome of a call to `address`. Returns the new address if calls move to another
    /// one.
    pub fn record(&mut self, address: Address, reached: Reached, now: Instant) -> Option<Address> {
        match (reached, address == self.present) {
            (Reached::Answered, true) => {
                self.failures = 0;
                None
            }
            (Reached::Answered, false) if address == Address::First => {
                Some(self.move_to(Address::First, now))
            }
            (Reached::Answered | Reached::Connected | Reached::Unreachable, false) => None,
            (Reached::Connected, true) if self.failures + 1 < MAX_UNANSWERED_CONNECTIONS => {
                self.failures += 1;
                None
            }
            (Reached::Connected | Reached::Unreachable, true) => Some(match address {
                Address::First => self.move_to(Address::Backup, now),
                Address::Backup => self.move_to(Address::First, now),
            }),
        }
    }

    fn move_to(&mut self, to: Address, now: Instant) -> Address {
        self.present = to;
        self.failures = 0;
        self.first_tried_at = now;
        to
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_backup_is_used_when_the_first_cannot_be_reached_and_left_when_it_can() {
        let start = Instant::now();
        let mut endpoints = Endpoints::new(start);
        assert_eq!(endpoints.choose(start), Address::First);
        assert_eq!(
            endpoints.record(Address::First, Reached::Unreachable, start),
            Some(Address::Backup)
        );
        // This call left before the move.
        assert_eq!(endpoints.record(Address::First, Reached::Unreachable, start), None);
        assert_eq!(endpoints.choose(start), Address::Backup);
        let later = start + FIRST_TRIED_EVERY;
        assert_eq!(
            [endpoints.choose(later), endpoints.choose(later)],
            [Address::First, Address::Backup],
            "one call tries"
        );
        assert_eq!(endpoints.record(Address::First, Reached::Unreachable, later), None);
        assert_eq!(endpoints.choose(later + FIRST_TRIED_EVERY), Address::First);
        assert_eq!(
            endpoints.record(Address::First, Reached::Answered, later),
            Some(Address::First)
        );
        assert_eq!(endpoints.choose(later), Address::First);
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_takes_connections_and_never_answers_is_left_too() {
        let now = Instant::now();
        let mut endpoints = Endpoints::new(now);
        for _ in 1..MAX_UNANSWERED_CONNECTIONS {
            assert_eq!(endpoints.record(Address::First, Reached::Connected, now), None);
        }
        assert_eq!(
            endpoints.record(Address::First, Reached::Connected, now),
            Some(Address::Backup)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn when_neither_is_reached_they_alternate() {
        let now = Instant::now();
        let mut endpoints = Endpoints::new(now);
        for moved in [Address::Backup, Address::First, Address::Backup] {
            let address = endpoints.choose(now);
            assert_eq!(endpoints.record(address, Reached::Unreachable, now), Some(moved));
        }
    }
}
