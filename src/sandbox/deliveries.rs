//! Tracks what each recipient got, and what a recipient got twice. The counts show whether a caller
//! repeats calls.
//!
//! A delivery is a group, a topic, a content and a recipient (or "everyone"). Each is kept as a
//! 64-bit fingerprint. With some millions of them, the chance of a collision is below one in a
//! hundred thousand.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashSet;
use serde::Serialize;

use super::notification::Notification;

/// The capacity of a table of 2^24 fingerprints: 150 MB. Further deliveries count as untracked.
const MAX_TRACKED: usize = 14_000_000;
/// Enough to find the cause. The totals include the rest.
const MAX_REPEATED_LISTED: usize = 100;

#[derive(Debug, Default, Clone, Serialize)]
pub struct DeliveryCounts {
    pub distinct_deliveries: u64,
    /// Recipients that got the same content in the same group again.
    pub repeated_recipients: u64,
    /// Calls with at least one such recipient.
    pub repeated_batches: u64,
    /// Deliveries after the table was full. They count as neither distinct nor repeated.
    pub untracked_deliveries: u64,
    /// The first 100 notifications that were repeated.
    pub repeated: Vec<Repeated>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Repeated {
    pub group: String,
    pub content: String,
    pub batches: u64,
    pub recipients: u64,
}

#[derive(Debug, Default)]
pub struct Deliveries {
    seen: HashSet<u64>,
    fingerprints: RandomState,
    counts: DeliveryCounts,
}

impl Deliveries {
    pub fn record(&mut self, notification: &Notification) {
        let Notification { group, content, topic, recipients } = notification;
        let notified = self.fingerprints.hash_one((group, content, topic));
        let mut again = 0;
        if recipients.is_empty() {
            again += self.track(notified);
        }
        for recipient in recipients {
            again += self.track(self.fingerprints.hash_one((notified, &recipient.0)));
        }
        if again > 0 {
            self.note_repeated(group, content, again);
        }
    }

    pub fn counts(&self) -> &DeliveryCounts {
        &self.counts
    }

    /// Records a delivery. Returns 1 if it is a repeat, otherwise 0.
    fn track(&mut self, fingerprint: u64) -> u64 {
        if self.seen.len() == MAX_TRACKED {
            let again = self.seen.contains(&fingerprint);
            self.counts.untracked_deliveries += u64::from(!again);
            return u64::from(again);
        }
        let first = self.seen.insert(fingerprint);
        self.counts.distinct_deliveries += u64::from(first);
        u64::from(!first)
    }

    fn note_repeated(&mut self, group: &str, content: &str, recipients: u64) {
        let DeliveryCounts { repeated_recipients, repeated_batches, repeated, .. } =
            &mut self.counts;
        *repeated_recipients += recipients;
        *repeated_batches += 1;
        if let Some(known) =
            repeated.iter_mut().find(|known| known.group == group && known.content == content)
        {
            known.batches += 1;
            known.recipients += recipients;
        } else if repeated.len() < MAX_REPEATED_LISTED {
            repeated.push(Repeated {
                group: group.into(),
                content: content.into(),
                batches: 1,
                recipients,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(bodies: &[&str]) -> DeliveryCounts {
        let mut deliveries = Deliveries::default();
        for body in bodies {
            deliveries.record(&Notification::read(body.as_bytes()).unwrap());
        }
        deliveries.counts().clone()
    }

    const TO_A_AND_B: &str = r#"{"GroupId":"g","Content":"c","ToMembers_Account":["a","b"]}"#;
    const TO_B: &str = r#"{"GroupId":"g","Content":"c","ToMembers_Account":["b"]}"#;
    const TO_ALL: &str = r#"{"GroupId":"g","Content":"c"}"#;

    #[test]
    fn different_batches_of_one_notification_repeat_nothing() {
        let to_c = TO_B.replace("\"b\"", "\"d\"");
        let counts = recorded(&[TO_A_AND_B, &to_c, TO_ALL]);
        assert_eq!(
            (counts.distinct_deliveries, counts.repeated_recipients, counts.repeated_batches),
            (4, 0, 0)
        );
    }

    #[test]
    fn another_group_topic_or_content_is_no_repeat() {
        let other_topic =
            r#"{"GroupId":"g","Content":"c","ToMembers_Account":["b"],"TopicId":"t"}"#;
        let counts = recorded(&[
            TO_B,
            &TO_B.replace("\"g\"", "\"h\""),
            &TO_B.replace("\"c\"", "\"d\""),
            other_topic,
        ]);
        assert_eq!((counts.distinct_deliveries, counts.repeated_recipients), (4, 0));
    }

    #[test]
    fn a_recipient_reached_twice_is_counted_and_its_notification_listed() {
        let counts = recorded(&[TO_A_AND_B, TO_B, TO_A_AND_B]);
        assert_eq!(
            (counts.distinct_deliveries, counts.repeated_recipients, counts.repeated_batches),
            (2, 3, 2)
        );
        let listed = Repeated { group: "g".into(), content: "c".into(), batches: 2, recipients: 3 };
        assert_eq!(counts.repeated, [listed]);
    }

    #[test]
    fn a_second_broadcast_is_a_repeat() {
        assert_eq!(recorded(&[TO_ALL, TO_ALL]).repeated_recipients, 1);
    }
}
