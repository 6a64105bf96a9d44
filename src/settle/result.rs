//! The one result of a job, as the JSON that goes to the reply queue.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::job::{
    Audience, Envelope, Job, Rejection,
    outcome::{BatchOutcome, FailureKind, Fault, MAX_INFO_CHARS, MessageId, Report},
};

/// A job's result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobResult {
    pub job_id: String,
    pub app: String,
    /// The API call that the app uses.
    #[serde(default = "first_command")]
    pub command: String,
    pub status: Status,
    /// `null` if the job was rejected and the field could not be read.
    pub group_id: Option<String>,
    pub topic_id: Option<String>,
    /// `null` for a rejected job.
    pub audience: Option<AudienceKind>,
    /// `null` for an audience of all and for a rejected job.
    pub recipients: Option<RecipientCounts>,
    /// `null` for a rejected job.
    pub batches: Option<BatchCounts>,
    /// Requests sent to the API, rate-limited ones too.
    pub calls: u64,
    /// Batches that were not sent, those with the same cause together.
    pub errors: Vec<ErrorEntry>,
    /// What identifies the message in its group. `null` unless the job was for all members and the
    /// API keeps its message.
    #[serde(default)]
    pub message: Option<MessageId>,
    /// Whether this repeats the recorded result of an earlier copy of the job.
    pub duplicate: bool,
    /// RFC 3339, UTC, milliseconds.
    pub received_at: String,
    /// RFC 3339, UTC, milliseconds.
    pub finished_at: String,
}

/// Whose result it is.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    pub app: &'a str,
    pub command: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The API accepted every batch. It does not say who was online.
    Sent,
    /// Some batches were sent.
    Partial,
    /// Nothing is known to be sent.
    Failed,
    /// The job is invalid; no call was made.
    Rejected,
    /// The deadline passed before any batch was accepted.
    Expired,
    /// An operator cancelled the job before any batch was accepted.
    Cancelled,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Partial => "partial",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AudienceKind {
    Members,
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct RecipientCounts {
    /// As in the job, duplicates included.
    pub requested: u32,
    pub duplicates: u32,
    pub sent: u32,
    pub failed: u32,
    pub unknown: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct BatchCounts {
    pub total: u32,
    pub sent: u32,
    pub failed: u32,
    pub unknown: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorEntry {
    /// Which batches, counted from 0.
    pub batches: Vec<u32>,
    /// `null` for an audience of all and for a rejected job.
    pub recipients: Option<u32>,
    pub kind: ErrorKind,
    /// The API's `ErrorCode`.
    pub code: Option<i64>,
    /// The HTTP status of an answer that had no `ErrorCode`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_status: Option<u16>,
    pub info: String,
    /// Leaves out answers that only said "slow down".
    pub attempts: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ErrorKind {
    /// The job is not valid.
    Invalid,
    /// The API refused this job.
    Job,
    /// Retries are exhausted.
    Transient,
    /// The deadline passed.
    Expired,
    /// The broker has given the job up.
    Undeliverable,
    /// An operator cancelled the job.
    Cancelled,
    /// It may have been sent, and the job forbids to send it again.
    Unknown,
}

impl ErrorKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Job => "job",
            Self::Transient => "transient",
            Self::Expired => "expired",
            Self::Undeliverable => "undeliverable",
            Self::Cancelled => "cancelled",
            Self::Unknown => "unknown",
        }
    }
}

impl From<FailureKind> for ErrorKind {
    fn from(kind: FailureKind) -> Self {
        match kind {
            FailureKind::Job => Self::Job,
            FailureKind::Transient => Self::Transient,
            FailureKind::Expired => Self::Expired,
            FailureKind::Undeliverable => Self::Undeliverable,
            FailureKind::Cancelled => Self::Cancelled,
        }
    }
}

impl JobResult {
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("a result is always JSON")
    }

    pub fn rejected(
        Origin { app, command }: Origin,
        envelope: &Envelope,
        rejection: &Rejection,
        finished_at: Timestamp,
    ) -> Self {
        let error = ErrorEntry {
            batches: Vec::new(),
            recipients: None,
            kind: ErrorKind::Invalid,
            code: None,
            http_status: None,
            info: shortened(&rejection.to_string()),
            attempts: 0,
        };
        Self {
            job_id: envelope.job_id.clone(),
            app: app.to_owned(),
            command: command.to_owned(),
            status: Status::Rejected,
            group_id: rejection.group_id.clone(),
            topic_id: rejection.topic_id.clone(),
            audience: None,
            recipients: None,
            batches: None,
            calls: 0,
            errors: vec![error],
            message: None,
            duplicate: false,
            received_at: rfc3339(envelope.received_at),
            finished_at: rfc3339(finished_at),
        }
    }

    pub fn finished(
        Origin { app, command }: Origin,
        envelope: &Envelope,
        job: &Job,
        report: &Report,
        finished_at: Timestamp,
    ) -> Self {
        let (audience, recipients) = match &job.audience {
            Audience::All => (AudienceKind::All, None),
            Audience::Members(list) => {
                let given = RecipientCounts {
                    requested: list.requested(),
                    duplicates: list.duplicates(),
                    ..Default::default()
                };
                (AudienceKind::Members, Some(count_recipients(given, job, report)))
            }
        };
        let batches = count_batches(report);
        Self {
            job_id: envelope.job_id.clone(),
            app: app.to_owned(),
            command: command.to_owned(),
            status: status(batches, report),
            group_id: Some(job.group_id.clone()),
            topic_id: job.topic_id.clone(),
            audience: Some(audience),
            recipients,
            batches: Some(batches),
            calls: report.calls,
            errors: group_errors(job, report),
            message: report.message,
            duplicate: false,
            received_at: rfc3339(envelope.received_at),
            finished_at: rfc3339(finished_at),
        }
    }
}

/// Results of the first edition do not name their command.
fn first_command() -> String {
    "send_group_system_notification".to_owned()
}

fn rfc3339(moment: Timestamp) -> String {
    format!("{moment:.3}")
}

fn shortened(info: &str) -> String {
    info.chars().take(MAX_INFO_CHARS).collect()
}

fn count_batches(report: &Report) -> BatchCounts {
    let mut counts = BatchCounts { total: report.batches.len() as u32, ..Default::default() };
    for outcome in &report.batches {
        match outcome {
            BatchOutcome::Sent => counts.sent += 1,
            BatchOutcome::Failed { .. } => counts.failed += 1,
            BatchOutcome::Unknown { .. } => counts.unknown += 1,
        }
    }
    counts
}

fn count_recipients(mut counts: RecipientCounts, job: &Job, report: &Report) -> RecipientCounts {
    for (batch, outcome) in (0..).zip(&report.batches) {
        let recipients = job.recipients_in(batch).unwrap_or(0);
        match outcome {
            BatchOutcome::Sent => counts.sent += recipients,
            BatchOutcome::Failed { .. } => counts.failed += recipients,
            BatchOutcome::Unknown { .. } => counts.unknown += recipients,
        }
    }
    counts
}

fn status(counts: BatchCounts, report: &Report) -> Status {
    let any = |kind| report.batches.iter().any(|outcome| outcome.failure_kind() == Some(kind));
    match counts {
        BatchCounts { total, sent, .. } if sent == total => Status::Sent,
        BatchCounts { sent: 1.., .. } => Status::Partial,
        _ if any(FailureKind::Cancelled) => Status::Cancelled,
        BatchCounts { unknown: 0, .. } if any(FailureKind::Expired) => Status::Expired,
        _ => Status::Failed,
    }
}

fn group_errors(job: &Job, report: &Report) -> Vec<ErrorEntry> {
    let mut errors: Vec<ErrorEntry> = Vec::new();
    for (batch, outcome) in (0..).zip(&report.batches) {
        let (kind, fault, attempts) = match outcome {
            BatchOutcome::Sent => continue,
            BatchOutcome::Failed { kind, fault, attempts } => {
                (ErrorKind::from(*kind), fault, *attempts)
            }
            BatchOutcome::Unknown { fault, attempts } => (ErrorKind::Unknown, fault, *attempts),
        };
        let Fault { code, http_status, info } = fault;
        // The texts of one cause may differ, for example by the number of a request. The entry
        // keeps the first one.
        let same = |error: &&mut ErrorEntry| {
            (error.kind, error.code, error.http_status) == (kind, *code, *http_status)
        };
        match errors.iter_mut().find(same) {
            Some(error) => {
                error.batches.push(batch);
                error.recipients =
                    error.recipients.zip(job.recipients_in(batch)).map(|(sum, more)| sum + more);
                error.attempts = error.attempts.max(attempts);
            }
            None => errors.push(ErrorEntry {
                batches: vec![batch],
                recipients: job.recipients_in(batch),
                kind,
                code: *code,
                http_status: *http_status,
                info: shortened(info),
                attempts,
            }),
        }
    }
    errors
}

#[cfg(test)]
#[path = "result_tests.rs"]
mod tests;
