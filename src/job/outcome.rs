//! The progress and the outcome of a job's batches. `send` finds them out, and `settle` reports and
//! records them.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::DeliveryPromise;

/// The maximum length of an error text in a result, in characters.
pub const MAX_INFO_CHARS: usize = 2000;

/// The error text in a result for an expired batch.
pub const DEADLINE_PASSED: &str = "the deadline passed";

/// The error text in a result for a cancelled batch.
pub const JOB_CANCELLED: &str = "the job was cancelled";

/// What went wrong with a call, as the result reports it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fault {
    /// The API's `ErrorCode`.
    pub code: Option<i64>,
    /// The HTTP status of an answer without an `ErrorCode`.
    pub http_status: Option<u16>,
    pub info: String,
}

impl Fault {
    /// A fault that no answer of the API caused.
    pub fn of_job(info: &str) -> Self {
        Self { code: None, http_status: None, info: info.to_owned() }
    }

    /// What identifies the cause. The text may differ each time.
    pub fn cause(&self) -> (Option<i64>, Option<u16>) {
        (self.code, self.http_status)
    }
}

/// Why a batch was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FailureKind {
    /// The API refused this job.
    Job,
    /// Transient faults did not end in time.
    Transient,
    /// The deadline passed before a call.
    Expired,
    /// The broker has given the job up.
    Undeliverable,
    /// An operator has cancelled the job.
    Cancelled,
}

/// What identifies a message that the vendor keeps, together with its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MessageId {
    pub seq: u64,
    /// Seconds since the Unix epoch, by the vendor's clock.
    pub time: i64,
}

/// How one batch ended. `attempts` leaves out rate-limited answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BatchOutcome {
    /// The API accepted it.
    Sent,
    Failed {
        kind: FailureKind,
        fault: Fault,
        attempts: u32,
    },
    /// It may have been sent, and the job forbids sending it again.
    Unknown {
        fault: Fault,
        attempts: u32,
    },
}

impl BatchOutcome {
    /// Why the batch was given up; `None` if it was not, or if its outcome is unknown.
    pub fn failure_kind(&self) -> Option<FailureKind> {
        match self {
            Self::Failed { kind, .. } => Some(*kind),
            Self::Sent | Self::Unknown { .. } => None,
        }
    }
}

/// The progress of one batch.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BatchProgress {
    /// Requests sent, including rate-limited ones.
    pub calls: u32,
    /// Attempts, without rate-limited ones.
    pub attempts: u32,
    /// When the first attempt was answered, moved forward by the app's idle time since then. Idle
    /// time does not count as time of failing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_attempt_at: Option<Timestamp>,
    /// The time up to which `first_attempt_at` leaves out idle time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_attempt_at: Option<Timestamp>,
    /// How often the batch has gone on as a new message, because the vendor surely did not deliver
    /// the one before.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub message_epoch: u32,
    /// When the present message was first sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_sent_at: Option<Timestamp>,
    /// What came back from the first call of the present message that may have had its effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doubt: Option<Fault>,
    /// Only of a message to all members that the vendor keeps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<MessageId>,
    pub state: BatchState,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum BatchState {
    /// It is still to be sent, or to be sent again.
    #[default]
    Open,
    /// A call that must not be repeated is about to be made.
    Intended,
    Ended(BatchOutcome),
}

impl BatchProgress {
    /// Opens a batch with an intended call again. The daemon ended before it recorded whether it
    /// made that call.
    pub fn conclude_intent(&mut self) {
        if self.state == BatchState::Intended {
            let info = "the daemon ended during the call".into();
            self.calls += 1;
            self.attempts += 1;
            self.state = BatchState::Open;
            self.doubt.get_or_insert(Fault { code: None, http_status: None, info });
        }
    }

    /// Ends the batch without a further call. If an earlier call may have had its effect, and the
    /// job forbids to repeat it, the outcome is unknown.
    pub fn end(&mut self, kind: FailureKind, fault: Fault, promise: DeliveryPromise) {
        let attempts = self.attempts;
        self.state = BatchState::Ended(match (&self.doubt, promise) {
            (Some(doubt), DeliveryPromise::AtMostOnce) => {
                BatchOutcome::Unknown { fault: doubt.clone(), attempts }
            }
            (None, _) | (_, DeliveryPromise::AtLeastOnce) => {
                BatchOutcome::Failed { kind, fault, attempts }
            }
        });
    }

    /// The present message was surely not delivered. The batch goes on with a new one.
    pub fn begin_next_message(&mut self) {
        self.message_epoch += 1;
        self.message_sent_at = None;
        self.doubt = None;
    }

    pub fn outcome(&self) -> Option<&BatchOutcome> {
        match &self.state {
            BatchState::Ended(outcome) => Some(outcome),
            BatchState::Open | BatchState::Intended => None,
        }
    }
}

/// How a job ended: one outcome for each batch, in order.
#[derive(Debug, Clone)]
pub struct Report {
    pub batches: Vec<BatchOutcome>,
    /// Requests sent, including rate-limited ones.
    pub calls: u64,
    /// Only of a job to all members, if the vendor keeps its message.
    pub message: Option<MessageId>,
}

impl Report {
    /// The report on batches that have all ended.
    pub fn of(batches: Vec<BatchProgress>) -> Self {
        let calls = batches.iter().map(|batch| u64::from(batch.calls)).sum();
        let message = batches.first().and_then(|batch| batch.message);
        let outcome = |batch: BatchProgress| match batch.state {
            BatchState::Ended(outcome) => Some(outcome),
            BatchState::Open | BatchState::Intended => None,
        };
        Self { batches: batches.into_iter().filter_map(outcome).collect(), calls, message }
    }
}
