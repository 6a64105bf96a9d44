//! Takes recipients one by one, drops repeated ones, keeps the order and cuts batches.
//!
//! Two recipients are equal if their JSON encodings are equal, because each string has exactly one
//! encoding. So the set of seen recipients holds only offsets.

use hashbrown::{DefaultHashBuilder, HashTable};
use std::hash::BuildHasher;

use crate::job::{Cut, Recipients};

/// Collects [`Recipients`].
pub struct Splitter {
    json: Vec<u8>,
    seen: HashTable<u32>,
    hasher: DefaultHashBuilder,
    batch_ends: Vec<u32>,
    batch_size: u32,
    distinct: u32,
    duplicates: u32,
}

impl Splitter {
    /// `batch_size` is at least 1; `capacity` is the expected size of all recipients as JSON, in
    /// bytes.
    pub fn new(batch_size: u32, capacity: usize) -> Self {
        Self {
            json: Vec::with_capacity(capacity),
            seen: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            batch_ends: Vec::new(),
            batch_size,
            distinct: 0,
            duplicates: 0,
        }
    }

    pub fn push(&mut self, recipient: &str) {
        let before = self.json.len();
        if before > 0 {
            self.json.push(b',');
        }
        let start = self.json.len();
        serde_json::to_writer(&mut self.json, recipient).expect("a string is always JSON");
        if self.already_seen(start) {
            self.json.truncate(before);
            self.duplicates += 1;
            return;
        }
        if self.distinct > 0 && self.distinct.is_multiple_of(self.batch_size) {
            self.batch_ends.push(before as u32);
        }
        self.distinct += 1;
    }

    /// Adds the recipient at the end of `json` to the set, and returns whether it was there before.
    /// The closing quote makes a prefix comparison exact.
    fn already_seen(&mut self, start: usize) -> bool {
        let Self { json, seen, hasher, .. } = self;
        let candidate = &json[start..];
        let same = |&offset: &u32| {
            (offset as usize) < start && json[offset as usize..].starts_with(candidate)
        };
        let hash_at = |&offset: &u32| hasher.hash_one(json_string_at(json, offset as usize));
        let hash = hasher.hash_one(candidate);
        if seen.find(hash, same).is_some() {
            return true;
        }
        seen.insert_unique(hash, start as u32, hash_at);
        false
    }

    pub fn is_empty(&self) -> bool {
        self.distinct == 0
    }

    pub fn finish(mut self) -> Recipients {
        if self.distinct > 0 {
            self.batch_ends.push(self.json.len() as u32);
        }
        let Self { json, batch_ends, batch_size, distinct, duplicates, .. } = self;
        Recipients { json, batch_ends, cut: Cut::even(batch_size), distinct, duplicates }
    }
}

/// The JSON string, quotes included, that begins at `offset`.
fn json_string_at(json: &[u8], offset: usize) -> &[u8] {
    let mut end = offset + 1;
    while json[end] != b'"' {
        end += if json[end] == b'\\' { 2 } else { 1 };
    }
    &json[offset..=end]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::job::{Audience, Job};

    fn split(recipients: &[String], batch_size: u32) -> Recipients {
        let mut splitter = Splitter::new(batch_size, 0);
        recipients.iter().for_each(|recipient| splitter.push(recipient));
        splitter.finish()
    }

    fn first_occurrences(recipients: &[String]) -> Vec<String> {
        let mut seen = std::collections::HashSet::new();
        recipients.iter().filter(|recipient| seen.insert(recipient.as_str())).cloned().collect()
    }

    proptest! {
        #[test]
        fn every_recipient_is_in_exactly_one_batch_in_order(
            recipients in prop::collection::vec("[a-c\"\\\\é,]{1,3}", 1..80),
            batch_size in 1u32..9,
        ) {
            let expected = first_occurrences(&recipients);
            let split = split(&recipients, batch_size);
            prop_assert_eq!(split.requested() as usize, recipients.len());
            prop_assert_eq!(split.duplicates() as usize, recipients.len() - expected.len());

            let job = Job { group_id: "g".into(), topic_id: None, content: "c".into(), audience: Audience::Members(split) };
            let batches: Vec<Vec<String>> = (0..job.batch_count())
                .map(|batch| {
                    let body: serde_json::Value = serde_json::from_slice(&job.request_body(batch)).unwrap();
                    serde_json::from_value(body["ToMembers_Account"].clone()).unwrap()
                })
                .collect();
            for (index, batch) in batches.iter().enumerate() {
                prop_assert_eq!(batch.len() as u32, job.recipients_in(index as u32).unwrap());
                prop_assert!(!batch.is_empty() && batch.len() as u32 <= batch_size);
            }
            prop_assert_eq!(batches.concat(), expected);
        }
    }

    #[test]
    #[should_panic(expected = "never become empty")]
    fn a_list_of_recipients_cannot_become_an_empty_one() {
        let audience = Audience::Members(split(&["a".to_owned()], 500));
        Job { group_id: "g".into(), topic_id: None, content: "c".into(), audience }
            .body_for(std::iter::empty());
    }
}
