//! A job that has passed every check. Only `accept` makes one, so a [`Job`] can only be valid.
//!
//! Recipients stay compact: one buffer of JSON strings, cut at the batch borders, which goes into
//! request bodies as it is. Invariant: an audience of members has at least one recipient in each
//! batch, so no batch can become a broadcast.

pub mod outcome;

use std::{fmt, ops::Range};

use sha2::{Digest, Sha256};

/// As many recipients as the API takes in one call by each of the vendor's documents: one says 500,
/// another 50.
pub const SMALL_BATCH: u32 = 50;

/// What to send and to whom.
#[derive(Debug, Clone)]
pub struct Job {
    pub group_id: String,
    pub topic_id: Option<String>,
    /// The members of the request body that every batch shares, as JSON without the closing brace.
    pub opening: Vec<u8>,
    pub audience: Audience,
}

#[derive(Debug, Clone)]
pub enum Audience {
    /// Every member of the group: one call without a recipient list.
    All,
    Members(Recipients),
}

/// Whether batches that are cut anew have to end where the present ones end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Borders {
    Free,
    Kept,
}

/// How recipients are cut into batches: in their order, each of so many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// The most recipients of a batch.
    pub batch_size: u32,
    /// The size of the batches before the job was split again, if no batch may go beyond one of
    /// those.
    pub within: Option<u32>,
}

/// Recipients without duplicates, in the order given, cut into batches.
#[derive(Debug, Clone)]
pub struct Recipients {
    /// `"a","b","c"`: JSON strings with commas between.
    pub(crate) json: Vec<u8>,
    /// Where each batch ends in `json`.
    pub(crate) batch_ends: Vec<u32>,
    pub(crate) cut: Cut,
    pub(crate) distinct: u32,
    pub(crate) duplicates: u32,
}

impl Recipients {
    /// Recipients asked for, duplicates included.
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

    /// Cuts the batches anew.
    fn cut_anew(&mut self, cut: Cut) {
        let commas = commas_between_strings(&self.json);
        let last_of_batch = commas.zip(1u32..).filter(|(_, count)| cut.is_start(*count));
        self.batch_ends =
            last_of_batch.map(|(comma, _)| comma as u32).chain([self.json.len() as u32]).collect();
        self.cut = cut;
    }
}

impl Cut {
    /// Batches of this size one after the other.
    pub fn even(batch_size: u32) -> Self {
        Self { batch_size, within: None }
    }

    /// Each batch of `size` in parts of about the same size, as few as do not exceed `most`.
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

    /// Which batch has a recipient, who is counted from 0.
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

/// Where the commas are that stand outside the strings.
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

    /// Takes on the batches of an earlier run of the same job, and what was counted then.
    pub fn resume(&mut self, cut: Cut, duplicates: u32) {
        if let Audience::Members(recipients) = &mut self.audience {
            recipients.duplicates = duplicates;
            if recipients.cut != cut {
                recipients.cut_anew(cut);
            }
        }
    }

    /// Cuts batches of [`SMALL_BATCH`] recipients at most. If the borders are kept, each batch is
    /// cut by itself.
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

    /// What is to be sent and to whom, as a number that no other job has: SHA-256 in hexadecimal.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(&self.opening);
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

    /// The API's request body for one batch.
    pub fn request_body(&self, batch: u32) -> Vec<u8> {
        self.body_for(std::iter::once(batch))
    }

    /// The job with only the recipients of these batches: a request body, or the body of a dead
    /// letter.
    ///
    /// # Panics
    /// If an audience of members would be left with nobody: that body would mean everybody.
    pub fn body_for(&self, batches: impl Iterator<Item = u32>) -> Vec<u8> {
        let mut body = self.opening.clone();
        if let Audience::Members(recipients) = &self.audience {
            body.extend_from_slice(b",\"ToMembers_Account\":[");
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

/// Everything about a job that its message's properties and headers say.
#[derive(Debug, Clone)]
pub struct Envelope {
    /// The job id: the message's `message_id`, or a generated one.
    pub job_id: String,
    pub identity: Identity,
    pub reply_to: ReplyTo,
    pub correlation_id: Option<String>,
    /// 0 to 9; a higher one is served first.
    pub priority: u8,
    /// How often the job was dead-lettered before.
    pub earlier_deaths: u32,
    /// How often the job was parked since.
    pub parkings: u32,
    /// How often the message went back to the queue.
    pub redeliveries: u32,
    /// Why the broker has given the job up, if it has.
    pub given_up: Option<String>,
    /// Whether the job has ended before and only its result is still to be published.
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
    /// The producer's: a second message with it is the same job.
    Given,
    /// Made here for one delivery of a message without an id.
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
    /// The producer named this queue, which no producer may make the daemon write to.
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

/// Headers that a dead letter carries beside `groupcast-attempt`. A shovel may bring them back with
/// the job; they say nothing about how to send it.
pub const DEAD_LETTER_HEADERS: [&str; 6] = [
    "groupcast-error-kind",
    "groupcast-error-code",
    "groupcast-error-info",
    "groupcast-status",
    "groupcast-job-id",
    "groupcast-died-at",
];

/// Header of a parked job: how often it was parked.
pub const PARKED_HEADER: &str = "groupcast-parked";
/// Header of a job that the broker has given up, while it is passed on to the replica that has the
/// app's jobs: why.
pub const GIVEN_UP_HEADER: &str = "groupcast-given-up";
/// Header of a parked job that has ended and only owes its result: the value is `result`.
pub const OWED_HEADER: &str = "groupcast-owed";
/// Header of a result in `.unrouted`: the queue that it was meant for.
pub const REPLY_TO_HEADER: &str = "groupcast-reply-to";
/// Header of a job: after this moment no call is made for it.
pub const DEADLINE_HEADER: &str = "groupcast-deadline";
/// Header of a dead letter: how often the job was dead-lettered.
pub const ATTEMPT_HEADER: &str = "groupcast-attempt";

/// Header that this side of the connection adds to a message whose properties cannot all be read.
/// It says what is missing.
pub const UNREADABLE_HEADER: &str = "groupcast-unreadable";

/// Header beside it while the message is here: what the broker has is another message. It is never
/// published.
pub const ALTERED_HEADER: &str = "x-groupcast-altered";

/// W3C trace context, copied to the result.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceContext {
    pub traceparent: Option<String>,
    pub tracestate: Option<String>,
}

/// Why a job is refused, and what of it could be read.
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
        Job { group_id: "g".into(), topic_id: None, opening: b"{\"x\":0".to_vec(), audience }
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
