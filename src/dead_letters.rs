//! Takes the dead letters of an app one by one, to show, redrive or remove them.
//!
//! A redrive removes a letter only after the broker has confirmed its copy. A crash in between
//! leaves both. The daemon answers the second copy of a job with a `message_id` from its record.

use std::time::Duration;

use jiff::Timestamp;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use serde::{Deserialize, Serialize, de::IgnoredAny};

use crate::{
    accept::envelope,
    amqp::{as_number, as_text},
    broker::{
        BrokerError, Routing,
        browse::{Browsed, Browser},
        confirmed::Nacked,
        connection::Connector,
        kept::{kept_headers, kept_properties},
        queues,
    },
    clock,
    job::{ATTEMPT_HEADER, DEADLINE_HEADER},
};

/// The kind of letters that the broker made, for example of jobs that it delivered too often.
pub const UNDELIVERABLE: &str = "undeliverable";
/// The kind of rejected jobs, which fail in the same way every time.
pub const INVALID: &str = "invalid";
/// The kind of jobs whose deadline has passed.
pub const EXPIRED: &str = "expired";

/// The dead letters of an app as they were when this was opened.
pub struct DeadLetters {
    app: String,
    queue: Browser,
}

/// A letter that was taken. It is then left, removed or redriven.
pub struct Letter {
    message: Browsed,
    pub summary: Summary,
}

/// What a letter says about itself. Missing values are `null`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    pub job_id: Option<String>,
    pub group_id: Option<String>,
    /// The number of recipients that are still to be notified; `null` for all members.
    pub recipients: Option<usize>,
    pub status: Option<String>,
    pub kind: String,
    pub code: Option<i64>,
    pub info: Option<String>,
    pub died_at: Option<Timestamp>,
    pub attempt: Option<i64>,
    pub bytes: usize,
}

/// Selects letters. Without a condition it selects all.
#[derive(Debug, Clone, Default)]
pub struct LetterFilter {
    pub job_id: Option<String>,
    pub group_id: Option<String>,
    pub code: Option<i64>,
    pub kind: Option<String>,
    /// Dead-lettered at least this long ago.
    pub older_than: Option<Duration>,
    /// Dead-lettered at most this long ago.
    pub newer_than: Option<Duration>,
}

/// Whether a redriven job keeps its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deadline {
    Kept,
    Dropped,
}

/// How many letters were redriven, and how many were left in the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Redriven {
    pub sent_again: u32,
    pub left: u32,
}

impl DeadLetters {
    pub async fn open(connector: &Connector, app: &str) -> Result<Self, BrokerError> {
        Ok(Self { app: app.to_owned(), queue: Browser::open(connector, queues::dead(app)).await? })
    }

    /// How many letters are not taken yet.
    pub fn left(&self) -> u32 {
        self.queue.left()
    }

    /// Takes the next letter. Letters that arrive after `open` are not included.
    pub async fn next(&mut self) -> Result<Option<Letter>, BrokerError> {
        let next = self.queue.next().await?;
        Ok(next.map(|message| Letter {
            summary: Summary::of(message.body(), message.properties()),
            message,
        }))
    }

    /// Publishes a job to its jobs queue, so that it is sent at the app's pace, and removes its
    /// letter.
    pub async fn redrive(&self, letter: Letter, deadline: Deadline) -> Result<(), BrokerError> {
        let jobs = queues::jobs(&self.app);
        let refused = |why: String| Err(BrokerError::lost("send a dead letter again", why));
        match self
            .queue
            .publish(&jobs, letter.body(), redriven(letter.properties(), deadline))
            .await?
        {
            Ok(Routing::Routed) => self.remove(letter).await,
            Ok(Routing::NoSuchQueue) => refused(format!("there is no queue {jobs}")),
            Err(Nacked) => refused(format!("{jobs} takes no more; it may be full")),
        }
    }

    /// Leaves a letter in the queue.
    pub async fn leave(&self, letter: Letter) -> Result<(), BrokerError> {
        self.queue.leave(letter.message).await
    }

    pub async fn remove(&self, letter: Letter) -> Result<(), BrokerError> {
        self.queue.remove(letter.message).await
    }

    /// Gives back the letters that were not removed.
    pub async fn close(self) {
        self.queue.close().await;
    }
}

/// Redrives all selected letters that have a chance. Calls `each` for every letter.
pub async fn redrive(
    letters: &mut DeadLetters,
    filter: &LetterFilter,
    deadline: Deadline,
    mut each: impl FnMut(),
) -> Result<Redriven, BrokerError> {
    let mut redriven = Redriven::default();
    while let Some(letter) = letters.next().await? {
        each();
        if filter.should_redrive(&letter.summary, deadline) {
            letters.redrive(letter, deadline).await?;
            redriven.sent_again += 1;
        } else {
            letters.leave(letter).await?;
            redriven.left += 1;
        }
    }
    Ok(redriven)
}

impl Letter {
    pub fn body(&self) -> &[u8] {
        self.message.body()
    }

    pub fn properties(&self) -> &BasicProperties {
        self.message.properties()
    }
}

impl Summary {
    fn of(body: &[u8], properties: &BasicProperties) -> Self {
        /// The parts of a job's body that the summary shows, as far as it has them.
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct LetterBody {
            group_id: Option<String>,
            #[serde(rename = "ToMembers_Account")]
            to_members_account: Option<Vec<IgnoredAny>>,
        }
        let body_bytes = body.len();
        let body: Option<LetterBody> = serde_json::from_slice(body).ok();
        let recipients =
            body.as_ref().and_then(|body| body.to_members_account.as_ref()).map(Vec::len);
        let header = |name: &str| properties.headers().as_ref()?.inner().get(name);
        let text = |name: &str| header(name).and_then(as_text);
        let named = properties.message_id().as_ref().map(|id| id.as_str().to_owned());
        Self {
            job_id: text("groupcast-job-id").or(named),
            recipients: recipients.filter(|count| *count > 0),
            group_id: body.and_then(|body| body.group_id),
            status: text("groupcast-status"),
            kind: text("groupcast-error-kind").unwrap_or_else(|| UNDELIVERABLE.to_owned()),
            code: header("groupcast-error-code").and_then(as_number),
            info: text("groupcast-error-info"),
            died_at: text("groupcast-died-at")
                .and_then(|at| at.parse().ok())
                .or_else(|| died_at_the_brokers(properties)),
            attempt: header(ATTEMPT_HEADER).and_then(as_number),
            bytes: body_bytes,
        }
    }
}

impl LetterFilter {
    pub fn matches(&self, letter: &Summary) -> bool {
        let age = letter
            .died_at
            .map(|at| clock::now().duration_since(at).try_into().unwrap_or(Duration::ZERO));
        let same = |wanted: &Option<String>, found: Option<&String>| {
            wanted.is_none() || wanted.as_ref() == found
        };
        same(&self.job_id, letter.job_id.as_ref())
            && same(&self.group_id, letter.group_id.as_ref())
            && same(&self.kind, Some(&letter.kind))
            && (self.code.is_none() || self.code == letter.code)
            && self.older_than.is_none_or(|least| age.is_some_and(|age| age >= least))
            && self.newer_than.is_none_or(|most| age.is_some_and(|age| age <= most))
    }

    /// Like `matches`, but without letters that would fail again. These are invalid jobs, unless
    /// the filter asks for them, and expired jobs that keep their deadline.
    pub fn should_redrive(&self, letter: &Summary, deadline: Deadline) -> bool {
        let has_a_chance = match letter.kind.as_str() {
            INVALID => self.kind.as_deref() == Some(INVALID),
            EXPIRED => deadline == Deadline::Dropped,
            _ => true,
        };
        has_a_chance && self.matches(letter)
    }
}

/// The properties of a redriven job: what its producer set, its id, even a generated one, and how
/// often it was dead-lettered.
fn redriven(properties: &BasicProperties, deadline: Deadline) -> BasicProperties {
    let mut headers = kept_headers(properties);
    let noted =
        |name: &str| properties.headers().as_ref().and_then(|headers| headers.inner().get(name));
    if let Some(attempt) = noted(ATTEMPT_HEADER) {
        headers.insert(ATTEMPT_HEADER.into(), attempt.clone());
    }
    if deadline == Deadline::Dropped {
        headers = without(headers, DEADLINE_HEADER);
    }
    let redriven = kept_properties(properties).with_headers(headers).with_delivery_mode(2);
    match noted("groupcast-job-id").and_then(as_text) {
        // Another program may have written the header. With an invalid id the job would be
        // rejected.
        Some(id)
            if redriven.message_id().is_none() && envelope::objection_to_job_id(&id).is_none() =>
        {
            redriven.with_message_id(id.as_str().into())
        }
        _ => redriven,
    }
}

fn without(headers: FieldTable, unwanted: &str) -> FieldTable {
    let mut kept = FieldTable::default();
    for (name, value) in headers.inner() {
        if name.as_str() != unwanted {
            kept.insert(name.clone(), value.clone());
        }
    }
    kept
}

/// When the broker dead-lettered the job, according to its `x-death` header.
fn died_at_the_brokers(properties: &BasicProperties) -> Option<Timestamp> {
    let AMQPValue::FieldArray(deaths) = properties.headers().as_ref()?.inner().get("x-death")?
    else {
        return None;
    };
    let AMQPValue::FieldTable(last) = deaths.as_slice().first()? else { return None };
    match last.inner().get("time")? {
        AMQPValue::Timestamp(seconds) => Timestamp::from_second(i64::try_from(*seconds).ok()?).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redriven_id(noted: &str) -> Option<String> {
        let mut headers = FieldTable::default();
        headers.insert("groupcast-job-id".into(), AMQPValue::LongString(noted.into()));
        let redriven = redriven(&BasicProperties::default().with_headers(headers), Deadline::Kept);
        redriven.message_id().as_ref().map(|id| id.as_str().to_owned())
    }

    #[test]
    fn an_id_that_another_program_wrote_goes_along_only_if_a_job_can_have_it() {
        assert_eq!(redriven_id("order-42").as_deref(), Some("order-42"));
        assert_eq!(redriven_id(&"x".repeat(248)).map(|id| id.len()), Some(248));
        for noted in ["x".repeat(249), "x".repeat(300), "é".repeat(200), " ".into(), "a\nb".into()]
        {
            assert_eq!(redriven_id(&noted), None, "{noted:?}");
        }
    }
}
