//! A job that has passed every check. Only `accept` makes a [`Job`], so every `Job` is valid.
//!
//! Recipients are one compact buffer of JSON strings, cut at the batch borders. Request bodies
//! contain its parts unchanged. Invariant: each batch of an audience of members has at least one
//! recipient, so no batch can become a broadcast.

pub mod outcome;

use std::{fmt, ops::Range};

use serde::Serialize;
use sha2::{Digest, Sha256};

/// The number of recipients in one call that all of the vendor's documents allow. One document says
/// 500, another 50.
pub const SMALL_BATCH: u32 = 50;

/// What to send and to whom.
#[derive(Debug, Clone)]
pub struct Job {
    pub group_id: String,
    pub topic_id: Option<String>,
    pub content: String,
    pub audience: Audience,
}

#[derive(Debug, Clone)]
pub enum Audience {
    /// Every member of the group: one call without a recipient list.
    All,
    Members(Recipients),
}

/// Whether new batches must keep the borders of the present ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Borders {
    Free,
    Kept,
}

/// How recipients are cut into batches, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// The maximum number of recipients in a batch.
    pub batch_size: u32,
    /// The batch size before the job was split again, if no new batch may cross a border of the old
    /// ones.
    pub within: Option<u32>,
}

/// Recipients without duplicates, in the order given, cut into batches.
#[derive(Debug, Clone)]
pub struct Recipients {
    /// JSON strings, separated by commas: `"a","b","c"`.
    pub(crate) json: Vec<u8>,
    /// Where each batch ends in `json`.
    pub(crate) batch_ends: Vec<u32>,
    pub(crate) cut: Cut,
    pub(crate) distinct: u32,
    pub(crate) duplicates: u32,
}

impl Recipients {
    /// The number of recipients in the job, duplicates included.
    pub fn requested(&self) -> u32 {
        self.distinct + self.duplicates
    }

    pub fn duplicates(&self) -> u32 {
        self.duplicates
    }

    fn range(&self, batch: u32) -> Range<usize> {
        let batch = batch as usize;
        let start = if batch == 0 { 0 } else { self.batch_ends[batch - 1] as usize + 1 };
        start..self.batch_ends[batch] as usize
    }

    fn len_of(&self, batch: u32) -> u32 {
        self.cut.start_of(batch + 1).min(self.distinct) - self.cut.start_of(batch)
    }

    /// Cuts the recipients into new batches.
    fn cut_anew(&mut self, cut: Cut) {
        let commas = commas_between_strings(&self.json);
        let last_of_batch = commas.zip(1u32..).filter(|(_, count)| cut.is_start(*count));
        self.batch_ends =
            last_of_batch.map(|(comma, _)| comma as u32).chain([self.json.len() as u32]).collect();
        self.cut = cut;
    }
}

impl Cut {
    /// Consecutive batches of this size.
    pub fn even(batch_size: u32) -> Self {
        Self { batch_size, within: None }
    }

    /// Cuts each batch of `size` into parts of about the same size. It makes as few parts as
    /// possible, none larger than `most`.
    fn parts_of(size: u32, most: u32) -> Self {
        let batch_size = size.div_ceil(size.div_ceil(most));
        Self { batch_size, within: Some(size).filter(|size| !size.is_multiple_of(batch_size)) }
    }

    /// How many recipients come before a batch.
    pub fn start_of(self, batch: u32) -> u32 {
        match self.within {
            None => batch.saturating_mul(self.batch_size),
            Some(size) => {
                let parts = size.div_ceil(self.batch_size);
                (batch / parts).saturating_mul(size).saturating_add(batch % parts * self.batch_size)
            }
        }
    }

    fn is_start(self, recipient: u32) -> bool {
        self.start_of(self.batch_of(recipient)) == recipient
    }

    /// The batch of a recipient. Both are counted from 0.
    pub fn batch_of(self, recipient: u32) -> u32 {
        match self.within {
            None => recipient / self.batch_size,
            Some(size) => {
                recipient / size * size.div_ceil(self.batch_size)
                    + recipient % size / self.batch_size
            }
        }
    }
}

/// The positions of the commas outside the strings.
fn commas_between_strings(json: &[u8]) -> impl Iterator<Item = usize> {
    #[derive(PartialEq)]
    enum At {
        Between,
        Inside,
        Escape,
    }
    let mut at = At::Between;
    json.iter().enumerate().filter_map(move |(index, byte)| {
        let (next, is_comma) = match (&at, byte) {
            (At::Between, b'"') => (At::Inside, false),
            (At::Between, byte) => (At::Between, *byte == b','),
            (At::Inside, b'\\') => (At::Escape, false),
            (At::Inside, b'"') => (At::Between, false),
            (At::Inside | At::Escape, _) => (At::Inside, false),
        };
        at = next;
        is_comma.then_some(index)
    })
}

impl Job {
    pub fn batch_count(&self) -> u32 {
        match &self.audience {
            Audience::All => 1,
            Audience::Members(recipients) => recipients.batch_ends.len() as u32,
        }
    }

    /// How many recipients a batch has; `None` for all members.
    pub fn recipients_in(&self, batch: u32) -> Option<u32> {
        match &self.audience {
            Audience::All => None,
            Audience::Members(recipients) => Some(recipients.len_of(batch)),
        }
    }

    pub fn cut(&self) -> Cut {
        match &self.audience {
            Audience::All => Cut::even(1),
            Audience::Members(recipients) => recipients.cut,
        }
    }

    pub fn duplicates(&self) -> u32 {
        match &self.audience {
            Audience::All => 0,
            Audience::Members(recipients) => recipients.duplicates,
        }
    }

    /// Restores the batches and the count of duplicates of an earlier run of the same job.
    pub fn resume(&mut self, cut: Cut, duplicates: u32) {
        if let Audience::Members(recipients) = &mut self.audience {
            recipients.duplicates = duplicates;
            if recipients.cut != cut {
                recipients.cut_anew(cut);
            }
        }
    }

    /// Cuts batches of at most [`SMALL_BATCH`] recipients. If the borders are kept, each batch is
    /// cut separately.
    pub fn split_again(&mut self, borders: Borders) {
        if let Audience::Members(recipients) = &mut self.audience
            && recipients.cut.batch_size > SMALL_BATCH
        {
            recipients.cut_anew(match borders {
                Borders::Free => Cut::even(SMALL_BATCH),
                Borders::Kept => Cut::parts_of(recipients.cut.batch_size, SMALL_BATCH),
            });
        }
    }

    /// The SHA-256, in hexadecimal, of what is sent and to whom. No other job has the same.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.opening());
        if let Audience::Members(recipients) = &self.audience {
            hash.update(b",");
            hash.update(&recipients.json);
        }
        let digits = hash.finalize().into_iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
        digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
    }

    /// The whole job as a message's body.
    pub fn body(&self) -> Vec<u8> {
        self.body_for(0..self.batch_count())
    }

    /// The job with only the recipients of this batch, as the body of a message.
    pub fn request_body(&self, batch: u32) -> Vec<u8> {
        self.body_for(std::iter::once(batch))
    }

    /// The job with only the recipients of these batches, as the body of a message.
    ///
    /// # Panics
    /// If `batches` is empty for an audience of members.
    pub fn body_for(&self, batches: impl Iterator<Item = u32>) -> Vec<u8> {
        self.with_recipients(self.opening(), "ToMembers_Account", batches)
    }

    /// The fields that all batches share, as JSON without the closing brace. They are written from
    /// the parsed values, so only what was understood is sent.
    fn opening(&self) -> Vec<u8> {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct SharedFields<'a> {
            group_id: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            topic_id: Option<&'a str>,
            content: &'a str,
        }
        let Self { group_id, topic_id, content, .. } = self;
        let mut json =
            serde_json::to_vec(&SharedFields { group_id, topic_id: topic_id.as_deref(), content })
                .expect("text is always JSON");
        json.pop();
        json
    }

    /// Completes a JSON object with the recipients of these batches in `field`. For an audience of
    /// all, the object has no such field.
    ///
    /// # Panics
    /// If `batches` is empty for an audience of members. A request without recipients would be a
    /// broadcast.
    pub fn with_recipients(
        &self,
        opening: Vec<u8>,
        field: &str,
        batches: impl Iterator<Item = u32>,
    ) -> Vec<u8> {
        let mut body = opening;
        if let Audience::Members(recipients) = &self.audience {
            body.extend_from_slice(format!(",\"{field}\":[").as_bytes());
            let before = body.len();
            for batch in batches {
                if body.len() > before {
                    body.push(b',');
                }
                body.extend_from_slice(&recipients.json[recipients.range(batch)]);
            }
            assert!(body.len() > before, "a list of recipients must never become empty");
            body.push(b']');
        }
        body.push(b'}');
        body
    }
}

/// Everything that a message's properties and headers say about its job.
#[derive(Debug, Clone)]
pub struct Envelope {
    /// The job id: the message's `message_id`, or a generated one.
    pub job_id: String,
    pub identity: Identity,
    pub reply_to: ReplyTo,
    pub correlation_id: Option<String>,
    /// 0 to 9. Jobs with a higher priority go first.
    pub priority: u8,
    /// How often the job was dead-lettered before.
    pub earlier_deaths: u32,
    /// How often the job was parked since it was last dead-lettered.
    pub parkings: u32,
    /// How often the message went back to the queue, as counted by the broker.
    pub redeliveries: u32,
    /// Whether an earlier delivery of the job has made its record.
    pub has_earlier_record: bool,
    /// Why the broker has given the job up, if it has.
    pub given_up: Option<String>,
    /// Whether the job has already ended and only its result is still to be published.
    pub owes_result: bool,
    pub delivery: DeliveryPromise,
    pub deadline: Option<jiff::Timestamp>,
    pub not_before: Option<jiff::Timestamp>,
    pub trace: TraceContext,
    pub received_at: jiff::Timestamp,
}

/// Where a job's id comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// The producer set it. A second message with this id is the same job.
    Given,
    /// The daemon made it for one delivery of a message without an id.
    Generated,
}

/// Where the result goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplyTo {
    Nowhere,
    /// The app's own `results_queue`.
    Configured(String),
    /// A queue that the producer named.
    Named(String),
    /// The producer's direct reply-to address: it exists only while the producer is connected.
    Direct(String),
    /// The producer named this queue, but results may not go there.
    Refused(String),
}

/// What to do with a batch whose outcome is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeliveryPromise {
    /// Send it again.
    #[default]
    AtLeastOnce,
    /// Report it as unknown.
    AtMostOnce,
}

/// Headers of a dead letter besides `groupcast-attempt`. A shovel may bring them back with the job.
/// They do not affect how it is sent.
pub const DEAD_LETTER_HEADERS: [&str; 6] = [
    "groupcast-error-kind",
    "groupcast-error-code",
    "groupcast-error-info",
    "groupcast-status",
    "groupcast-job-id",
    "groupcast-died-at",
];

impl Envelope {
    /// Whether an earlier delivery of the job may have made calls that are not recorded.
    pub fn is_perhaps_called(&self) -> bool {
        self.redeliveries > 0 || self.has_earlier_record
    }
}

/// Header of a parked job: how often it was parked.
pub const PARKED_HEADER: &str = "groupcast-parked";
/// Header of a job that the broker has given up: the reason. The job has it while a replica passes
/// it on to the replica that has the app's jobs.
pub const GIVEN_UP_HEADER: &str = "groupcast-given-up";
/// Header of a parked job that has ended and whose result is still to be published. The value is
/// `result`.
pub const OWED_HEADER: &str = "groupcast-owed";
/// Header of a result in `.unrouted`: the queue that it was meant for.
pub const REPLY_TO_HEADER: &str = "groupcast-reply-to";
/// Header of a job: the daemon makes no call for it after this time.
pub const DEADLINE_HEADER: &str = "groupcast-deadline";
/// Header of a dead letter: how often the job was dead-lettered.
pub const ATTEMPT_HEADER: &str = "groupcast-attempt";

/// Header that `broker::wire` adds to a message whose properties cannot all be read. It says what
/// is missing.
pub const UNREADABLE_HEADER: &str = "groupcast-unreadable";

/// Second header of such a message. It marks that the message differs from the one that the broker
/// has. The daemon never publishes it.
pub const ALTERED_HEADER: &str = "x-groupcast-altered";

/// W3C trace context, copied to the result.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceContext {
    pub traceparent: Option<String>,
    pub tracestate: Option<String>,
}

/// Why a job is rejected, and the ids that could still be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The field, property or header at fault.
    pub field: String,
    pub reason: String,
    pub group_id: Option<String>,
    pub topic_id: Option<String>,
}

impl fmt::Display for Rejection {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.field, self.reason)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::accept::split::Splitter;

    fn job(recipients: &[String], batch_size: u32) -> Job {
        let mut splitter = Splitter::new(batch_size, 0);
        recipients.iter().for_each(|recipient| splitter.push(recipient));
        let audience = Audience::Members(splitter.finish());
        Job { group_id: "g".into(), topic_id: None, content: "c".into(), audience }
    }

    fn bodies(job: &Job) -> Vec<Vec<u8>> {
        (0..job.batch_count()).map(|batch| job.request_body(batch)).collect()
    }

    proptest! {
        #[test]
        fn a_job_takes_on_the_batches_of_an_earlier_run(
            recipients in prop::collection::vec("[a-c\"\\\\é,]{1,3}", 1..40),
            now in 1u32..9,
            then in 1u32..9,
        ) {
            let mut resumed = job(&recipients, now);
            resumed.resume(Cut::even(then), 7);
            let earlier = job(&recipients, then);
            prop_assert_eq!(bodies(&resumed), bodies(&earlier));
            prop_assert_eq!(resumed.recipients_in(0), earlier.recipients_in(0));
            prop_assert_eq!(resumed.fingerprint(), earlier.fingerprint());
            prop_assert_eq!(resumed.duplicates(), 7);
        }
    }

    #[test]
    fn other_recipients_or_everybody_make_another_fingerprint() {
        let fingerprint = |names: &[&str]| {
            job(&names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>(), 2).fingerprint()
        };
        let everybody = Job { audience: Audience::All, ..job(&["a".to_owned()], 2) }.fingerprint();
        let all = [
            fingerprint(&["a"]),
            fingerprint(&["b"]),
            fingerprint(&["a", "b"]),
            fingerprint(&["b", "a"]),
            everybody,
        ];
        assert_eq!(all.iter().collect::<std::collections::HashSet<_>>().len(), all.len());
    }
}
