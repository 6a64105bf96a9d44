//! How a job's batches stand and how they ended: what `send` finds out and `settle` tells and
//! remembers.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What a result tells of an error's text, in characters.
pub const MAX_INFO_CHARS: usize = 2000;

/// What a result tells of a batch that has expired.
pub const DEADLINE_PASSED: &str = "the deadline passed";

/// What went wrong with a call, as the result tells it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fault {
    /// The API's `ErrorCode`.
    pub code: Option<i64>,
    /// The HTTP status of an answer without one.
    pub http_status: Option<u16>,
    pub info: String,
}

impl Fault {
    /// What it is known by; its text may differ each time.
    pub fn cause(&self) -> (Option<i64>, Option<u16>) {
        (self.code, self.http_status)
    }
}

/// Why a batch was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FailureKind {
    /// The API refused this job.
    Job,
    /// Passing faults did not pass in time.
    Transient,
    /// The deadline passed before a call.
    Expired,
    /// The broker has given the job up.
    Undeliverable,
}

/// How one batch ended. `attempts` leaves out answers that only said "slow down".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BatchOutcome {
    /// The API accepted it.
    Sent,
    Failed {
        kind: FailureKind,
        fault: Fault,
        attempts: u32,
    },
    /// It may have been sent, and the job forbids to send it again.
    Unknown {
        fault: Fault,
        attempts: u32,
    },
}

/// How one batch stands.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BatchProgress {
    /// Requests sent, rate-limited ones too.
    pub calls: u32,
    /// Attempts that counted; answers that only said "slow down" do not.
    pub attempts: u32,
    /// When the first attempt came back, or later by as much as the app was idle since: that is no
    /// time of failing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_attempt_at: Option<Timestamp>,
    /// Until when idle time is left out of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_attempt_at: Option<Timestamp>,
    pub state: BatchState,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum BatchState {
    /// It is yet to be sent, or to be sent again.
    #[default]
    Open,
    /// A call that must not be repeated is about to be made.
    Intended,
    Ended(BatchOutcome),
}

impl BatchProgress {
    /// The daemon ended before it recorded whether it had made a call that must not be repeated:
    /// the outcome is unknown.
    pub fn conclude_intent(&mut self) {
        if self.state == BatchState::Intended {
            let fault = Fault {
                code: None,
                http_status: None,
                info: "the daemon ended during the call".into(),
            };
            self.calls += 1;
            self.attempts += 1;
            self.state =
                BatchState::Ended(BatchOutcome::Unknown { fault, attempts: self.attempts });
        }
    }

    pub fn outcome(&self) -> Option<&BatchOutcome> {
        match &self.state {
            BatchState::Ended(outcome) => Some(outcome),
            BatchState::Open | BatchState::Intended => None,
        }
    }
}

/// How a job ended: one outcome a batch, in order.
#[derive(Debug, Clone)]
pub struct Report {
    pub batches: Vec<BatchOutcome>,
    /// Requests sent, rate-limited ones too.
    pub calls: u64,
}

impl Report {
    /// Of batches that have all ended.
    pub fn of(batches: Vec<BatchProgress>) -> Self {
        let calls = batches.iter().map(|batch| u64::from(batch.calls)).sum();
        let outcome = |batch: BatchProgress| match batch.state {
            BatchState::Ended(outcome) => Some(outcome),
            BatchState::Open | BatchState::Intended => None,
        };
        Self { batches: batches.into_iter().filter_map(outcome).collect(), calls }
    }
}
