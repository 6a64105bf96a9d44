//! The messages of the last minutes by their deduplication key. A later message with the same key
//! is a duplicate.
//!
//! The vendor does not document which fields belong to the key, so a setting chooses them. Keys and
//! messages are kept as 64-bit fingerprints. With a million of them, the chance of a collision is
//! below one in ten million.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use hashbrown::HashMap;
use tokio::time::Instant;

use super::{incoming_message::IncomingMessage, message_settings::DuplicateKey};

/// About 80 MB. Beyond it the oldest message is forgotten early.
const MAX_REMEMBERED: usize = 1_000_000;

/// A message as it is compared with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageFingerprint {
    key: u64,
    /// Of everything in the message.
    whole: u64,
}

/// The first message with a key.
#[derive(Debug, Clone, Copy)]
pub struct FirstMessage {
    whole: u64,
    pub seq: u64,
    /// Unix seconds.
    pub time: u64,
}

impl FirstMessage {
    pub fn is_same(&self, fingerprint: MessageFingerprint) -> bool {
        self.whole == fingerprint.whole
    }
}

#[derive(Debug, Default)]
pub struct RecentMessages {
    fingerprints: RandomState,
    by_key: HashMap<u64, FirstMessage>,
    /// The keys in the order of their arrival.
    arrivals: VecDeque<(Instant, u64)>,
}

impl RecentMessages {
    /// `None` if no message is a duplicate. `caller` sends a message that names no sender.
    pub fn fingerprint(
        &self,
        message: &IncomingMessage,
        caller: &str,
        key: DuplicateKey,
    ) -> Option<MessageFingerprint> {
        let IncomingMessage { notification, random, elements_json, fields_json, .. } = message;
        let sender = message.from_account.as_deref().unwrap_or(caller);
        let group = &notification.group;
        let hash = &self.fingerprints;
        let key = match key {
            DuplicateKey::Random => hash.hash_one((key, random)),
            DuplicateKey::Sender => hash.hash_one((key, sender, random)),
            DuplicateKey::Group => hash.hash_one((key, group, random)),
            DuplicateKey::Content => hash.hash_one((key, group, sender, elements_json, random)),
            DuplicateKey::Off => return None,
        };
        let whole = hash.hash_one((sender, fields_json, &notification.recipients));
        Some(MessageFingerprint { key, whole })
    }

    /// The first message with the key, if it arrived less than `window` ago.
    pub fn find(
        &mut self,
        fingerprint: MessageFingerprint,
        window: Duration,
        now: Instant,
    ) -> Option<FirstMessage> {
        while self.arrivals.front().is_some_and(|(arrived, _)| now - *arrived >= window) {
            self.forget_oldest();
        }
        self.by_key.get(&fingerprint.key).copied()
    }

    /// The key must not be occupied.
    pub fn remember(&mut self, fingerprint: MessageFingerprint, seq: u64, time: u64, now: Instant) {
        if self.arrivals.len() == MAX_REMEMBERED {
            self.forget_oldest();
        }
        let MessageFingerprint { key, whole } = fingerprint;
        self.arrivals.push_back((now, key));
        self.by_key.insert(key, FirstMessage { whole, seq, time });
    }

    fn forget_oldest(&mut self) {
        if let Some((_, key)) = self.arrivals.pop_front() {
            self.by_key.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const WINDOW: Duration = Duration::from_secs(300);

    fn message(change: &Value) -> IncomingMessage {
        let mut body = json!({
            "GroupId": "g",
            "Random": 7,
            "MsgBody": [{"MsgType": "TIMTextElem", "MsgContent": {"Text": "c"}}],
            "To_Account": ["a"],
        });
        for (name, value) in change.as_object().unwrap() {
            body[name] = value.clone();
        }
        IncomingMessage::read(body.to_string().as_bytes()).unwrap()
    }

    /// Whether both messages meet under the key, and whether they are the same.
    fn meet(key: DuplicateKey, change: &Value) -> (bool, bool) {
        let recent = RecentMessages::default();
        let first = recent.fingerprint(&message(&json!({})), "admin", key).unwrap();
        let second = recent.fingerprint(&message(change), "admin", key).unwrap();
        (first.key == second.key, first.whole == second.whole)
    }

    const KEYS: [DuplicateKey; 4] =
        [DuplicateKey::Random, DuplicateKey::Sender, DuplicateKey::Group, DuplicateKey::Content];

    #[test]
    fn each_key_has_its_fields() {
        let text = json!({"MsgBody": [{"MsgType": "TIMTextElem", "MsgContent": {"Text": "d"}}]});
        for (change, meets) in [
            (json!({}), [true, true, true, true]),
            (json!({"Random": 8}), [false, false, false, false]),
            (json!({"From_Account": "another"}), [true, false, true, false]),
            (json!({"From_Account": "admin"}), [true, true, true, true]),
            (json!({"GroupId": "h"}), [true, true, false, false]),
            (text, [true, true, true, false]),
            (json!({"To_Account": ["b"]}), [true, true, true, true]),
        ] {
            assert_eq!(KEYS.map(|key| meet(key, &change).0), meets, "{change}");
        }
        let recent = RecentMessages::default();
        assert_eq!(recent.fingerprint(&message(&json!({})), "admin", DuplicateKey::Off), None);
    }

    #[test]
    fn other_recipients_or_fields_make_another_message() {
        for change in
            [json!({"To_Account": ["b"]}), json!({"To_Account": []}), json!({"MsgPriority": "Low"})]
        {
            assert_eq!(meet(DuplicateKey::Content, &change), (true, false), "{change}");
        }
    }

    #[test]
    fn a_key_is_free_again_after_the_window_which_a_duplicate_does_not_extend() {
        let mut recent = RecentMessages::default();
        let of = recent.fingerprint(&message(&json!({})), "admin", DuplicateKey::Content).unwrap();
        let start = Instant::now();
        recent.remember(of, 1, 0, start);
        let last = start + WINDOW - Duration::from_nanos(1);
        assert!(recent.find(of, WINDOW, last).is_some_and(|first| first.is_same(of)));
        assert!(recent.find(of, WINDOW, start + WINDOW).is_none());
        assert!(recent.by_key.is_empty() && recent.arrivals.is_empty());
    }
}
