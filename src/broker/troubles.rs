//! What the publisher remembers about queues that do not take messages. Without this memory, every
//! message for such a queue would wait for the same time. Pure: the caller passes `now`.
//!
//! A queue is in trouble when a message for it was tried for a bounded time without success. The
//! publisher then rejects further messages for it. From time to time it still tries one, to test
//! whether the queue works again. The first confirm ends the trouble.

use std::{collections::HashMap, fmt, time::Duration};

use tokio::time::Instant;

/// How often one message may test whether a queue works again.
const TRIED_EVERY: Duration = Duration::from_secs(5);
/// How often the log may report the same queue.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// The trouble of a queue is forgotten when no message was meant for it for so long.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);
const SWEPT_EVERY: Duration = Duration::from_secs(10);
/// A limit, because producers can name any number of queues.
const MOST_QUEUES: usize = 10_000;

/// Why a queue does not take messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueTrouble {
    /// The broker refuses messages for the queue, for example because it is full.
    Full,
    /// The broker neither confirms nor refuses, for example because a quorum queue has lost its
    /// majority.
    Silent,
    /// One of the daemon's own queues does not exist and cannot be declared.
    Missing,
    /// The broker refuses this message, even without the producer's additions. Other messages may
    /// still pass.
    Refused,
}

impl fmt::Display for QueueTrouble {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Full => "it is full: the broker refuses messages for it",
            Self::Silent => {
                "the broker does not confirm messages for it: it may have lost the majority of its \
                    members"
            }
            Self::Missing => "it does not exist and could not be declared",
            Self::Refused => "the broker refuses this message for it",
        })
    }
}

impl QueueTrouble {
    /// What an operator can do.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Full => "take messages out of it, or raise its limit",
            Self::Silent => {
                "look at its members with `rabbitmq-diagnostics quorum_status`, or restart its node"
            }
            Self::Missing => {
                "declare it (`groupcast topology` prints what to import), or set broker.declare = \
                    true"
            }
            Self::Refused => "read the log of the broker",
        }
    }
}

/// What to do with a message for a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishTurn {
    /// The queue has no known trouble.
    Publish,
    /// The queue is in trouble. This message tests whether it still is.
    TryOnce,
    /// The queue is in trouble.
    NotNow(QueueTrouble),
}

/// What to log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogAction {
    Nothing,
    /// The number of messages not taken since the last log line about this queue.
    Refused(u64),
}

#[derive(Debug)]
struct KnownTrouble {
    trouble: QueueTrouble,
    next_try: Instant,
    last_refusal: Instant,
    /// Messages not taken since the last log line.
    untold: u64,
    told_at: Option<Instant>,
    /// How many messages were in the queue at the first check after a refusal.
    messages: Option<u32>,
}

/// Counts the results of each app that went to `.unrouted`. The log reports them once a minute.
#[derive(Debug, Default)]
pub struct UnroutedResults {
    by_app: HashMap<String, (Instant, u64)>,
}

impl UnroutedResults {
    /// Counts one more result. Returns the number since the last log line, if it is time to log.
    pub fn note(&mut self, app: &str, now: Instant) -> Option<u64> {
        match self.by_app.get_mut(app) {
            Some((told_at, untold)) if now < *told_at + TOLD_EVERY => {
                *untold += 1;
                None
            }
            Some((told_at, untold)) => {
                *told_at = now;
                Some(std::mem::take(untold) + 1)
            }
            None => {
                self.by_app.insert(app.to_owned(), (now, 0));
                Some(1)
            }
        }
    }
}

/// The queues in trouble, by app and name. Each app keeps its own record of a queue.
#[derive(Debug, Default)]
pub struct Troubles {
    known: HashMap<(String, String), KnownTrouble>,
    /// When to look for queues to forget next.
    next_sweep: Option<Instant>,
}

impl Troubles {
    pub fn turn(&mut self, app: &str, queue: &str, now: Instant) -> PublishTurn {
        // The common case costs no allocation.
        if self.known.is_empty() {
            return PublishTurn::Publish;
        }
        self.forget(now);
        match self.known.get_mut(&key(app, queue)) {
            None => PublishTurn::Publish,
            Some(known) if now >= known.next_try => {
                known.next_try = now + TRIED_EVERY;
                PublishTurn::TryOnce
            }
            Some(known) => PublishTurn::NotNow(known.trouble),
        }
    }

    /// The known trouble of a queue.
    pub fn of(&self, app: &str, queue: &str) -> Option<QueueTrouble> {
        if self.known.is_empty() {
            None
        } else {
            self.known.get(&key(app, queue)).map(|known| known.trouble)
        }
    }

    /// Records that a message was tried for long enough, or not tried because of a known trouble.
    pub fn not_taken(
        &mut self,
        app: &str,
        queue: &str,
        trouble: QueueTrouble,
        was_tried: bool,
        now: Instant,
    ) -> LogAction {
        if self.known.len() >= MOST_QUEUES && !self.known.contains_key(&key(app, queue)) {
            return LogAction::Refused(1);
        }
        let known = self.known.entry(key(app, queue)).or_insert(KnownTrouble {
            trouble,
            next_try: now + TRIED_EVERY,
            last_refusal: now,
            untold: 0,
            told_at: None,
            messages: None,
        });
        known.untold += 1;
        known.last_refusal = now;
        if was_tried {
            known.trouble = trouble;
            known.next_try = now + TRIED_EVERY;
        }
        if known.told_at.is_some_and(|told_at| now < told_at + TOLD_EVERY) {
            return LogAction::Nothing;
        }
        known.told_at = Some(now);
        LogAction::Refused(std::mem::take(&mut known.untold))
    }

    /// The message that was to test the queue did not. Another message may test it at once.
    pub fn test_inconclusive(&mut self, app: &str, queue: &str, now: Instant) {
        if let Some(known) = self.known.get_mut(&key(app, queue)) {
            known.next_try = now;
        }
    }

    /// Records that the queue took a message. Returns whether it was in trouble.
    pub fn taken(&mut self, app: &str, queue: &str) -> bool {
        !self.known.is_empty() && self.known.remove(&key(app, queue)).is_some()
    }

    /// Records how many messages are in a queue. If there are fewer than at the first check, the
    /// queue has room again, and the trouble ends.
    pub fn record_length(&mut self, app: &str, queue: &str, messages: u32) {
        let Some(known) = self.known.get_mut(&key(app, queue)) else { return };
        match known.messages {
            Some(before) if messages < before => {
                self.known.remove(&key(app, queue));
            }
            Some(_) => {}
            None => known.messages = Some(messages),
        }
    }

    /// The daemon's own queues in trouble, with their apps.
    pub fn own(&self, now: Instant) -> Vec<(String, String, QueueTrouble)> {
        let own = |((app, queue), known): (&(String, String), &KnownTrouble)| {
            let is_own = queue.starts_with(&format!("groupcast.{app}."))
                && now < known.last_refusal + FORGOTTEN_AFTER;
            is_own.then(|| (app.clone(), queue.clone(), known.trouble))
        };
        let mut own: Vec<_> = self.known.iter().filter_map(own).collect();
        own.sort_by(|(_, one, _), (_, other, _)| one.cmp(other));
        own
    }

    fn forget(&mut self, now: Instant) {
        if self.next_sweep.is_some_and(|at| now < at) {
            return;
        }
        self.next_sweep = Some(now + SWEPT_EVERY);
        self.known.retain(|_, known| now < known.last_refusal + FORGOTTEN_AFTER);
    }
}

fn key(app: &str, queue: &str) -> (String, String) {
    (app.to_owned(), queue.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn unrouted_results_are_told_once_a_minute_with_their_number() {
        let (mut results, start) = (UnroutedResults::default(), Instant::now());
        let told: Vec<_> =
            [0, 1, 59, 60, 61, 200].map(|at| results.note("a", start + seconds(at))).into();
        assert_eq!(told, [Some(1), None, None, Some(3), None, Some(2)]);
        assert_eq!(results.note("b", start), Some(1));
    }

    #[test]
    fn a_queue_in_trouble_is_tried_by_one_message_now_and_then() {
        let (start, mut troubles) = (Instant::now(), Troubles::default());
        assert_eq!(troubles.turn("a", "q", start), PublishTurn::Publish);
        troubles.not_taken("a", "q", QueueTrouble::Full, true, start);
        assert_eq!(
            troubles.turn("a", "q", start + seconds(4)),
            PublishTurn::NotNow(QueueTrouble::Full)
        );
        assert_eq!(troubles.turn("a", "q", start + seconds(5)), PublishTurn::TryOnce);
        assert_eq!(
            troubles.turn("a", "q", start + seconds(5)),
            PublishTurn::NotNow(QueueTrouble::Full)
        );
        assert_eq!(
            troubles.turn("a", "q", start + seconds(10)),
            PublishTurn::TryOnce,
            "the one before may have been lost"
        );
    }

    #[test]
    fn after_a_message_that_did_not_find_out_another_one_may() {
        let (start, mut troubles) = (Instant::now(), Troubles::default());
        troubles.not_taken("a", "q", QueueTrouble::Full, true, start);
        assert_eq!(troubles.turn("a", "q", start + seconds(5)), PublishTurn::TryOnce);
        troubles.test_inconclusive("a", "q", start + seconds(6));
        assert_eq!(troubles.turn("a", "q", start + seconds(6)), PublishTurn::TryOnce);
    }

    #[test]
    fn other_queues_and_other_apps_are_not_concerned() {
        let (start, mut troubles) = (Instant::now(), Troubles::default());
        troubles.not_taken("a", "q", QueueTrouble::Full, true, start);
        assert_eq!(troubles.turn("a", "r", start), PublishTurn::Publish);
        assert_eq!(troubles.turn("b", "q", start), PublishTurn::Publish);
    }

    #[test]
    fn the_first_confirm_ends_it() {
        let (start, mut troubles) = (Instant::now(), Troubles::default());
        assert!(!troubles.taken("a", "q"));
        troubles.not_taken("a", "q", QueueTrouble::Silent, true, start);
        assert!(troubles.taken("a", "q"));
        assert_eq!(troubles.turn("a", "q", start), PublishTurn::Publish);
    }

    #[test]
    fn the_log_is_told_once_a_minute_with_the_number_of_messages() {
        let (start, mut troubles) = (Instant::now(), Troubles::default());
        let mut told = Vec::new();
        for second in 0..130 {
            let was_tried = second % 5 == 0;
            if let LogAction::Refused(messages) =
                troubles.not_taken("a", "q", QueueTrouble::Full, was_tried, start + seconds(second))
            {
                told.push((second, messages));
            }
        }
        assert_eq!(told, [(0, 1), (60, 60), (120, 60)]);
    }

    #[test]
    fn a_queue_is_forgotten_that_nothing_was_meant_for_in_ten_minutes() {
        let (start, mut troubles) = (Instant::now(), Troubles::default());
        troubles.not_taken("a", "groupcast.a.dead", QueueTrouble::Full, true, start);
        let of_the_daemon = troubles.own(start);
        assert_eq!(
            of_the_daemon,
            [("a".to_owned(), "groupcast.a.dead".to_owned(), QueueTrouble::Full)]
        );
        assert_eq!(troubles.own(start + FORGOTTEN_AFTER), []);
        assert_eq!(
            troubles.turn("a", "groupcast.a.dead", start + FORGOTTEN_AFTER),
            PublishTurn::Publish
        );
    }

    #[test]
    fn a_queue_with_fewer_messages_than_when_it_was_full_has_room() {
        let (start, mut troubles) = (Instant::now(), Troubles::default());
        troubles.not_taken("a", "q", QueueTrouble::Full, true, start);
        for messages in [7, 7, 8] {
            troubles.record_length("a", "q", messages);
            assert_eq!(troubles.of("a", "q"), Some(QueueTrouble::Full));
        }
        troubles.record_length("a", "q", 6);
        assert_eq!(troubles.of("a", "q"), None);
    }
}
