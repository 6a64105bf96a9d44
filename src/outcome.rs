//! How a job's batches ended: what `send` finds out and `settle` tells.

/// What a result tells of an error's text, in characters.
pub const MAX_INFO_CHARS: usize = 2000;

/// What went wrong with a call, as the result tells it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fault {
    /// The API's `ErrorCode`.
    pub code: Option<i64>,
    /// The HTTP status of an answer without one.
    pub http_status: Option<u16>,
    pub info: String,
}

/// Why a batch was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// The API refused this job.
    Job,
    /// Passing faults did not pass in time.
    Transient,
    /// The deadline passed before a call.
    Expired,
}

/// How one batch ended. `attempts` leaves out answers that only said "slow down".
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// How a job ended: one outcome a batch, in order.
#[derive(Debug, Clone)]
pub struct Report {
    pub batches: Vec<BatchOutcome>,
    /// Requests sent, rate-limited ones too.
    pub calls: u64,
}
