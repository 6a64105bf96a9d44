//! The condition of an app's calls, in words for the log, `/readyz` and the metrics.

use jiff::Timestamp;

/// Whether the daemon can make calls for an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// The daemon takes jobs and sends them.
    Working,
    /// The daemon cannot reach the API. Jobs wait, and single probes find out when it answers
    /// again.
    Outage(Trouble),
    /// The account or the configuration is at fault. The daemon takes no jobs, and single probes
    /// find out when the fault is gone.
    Paused(Trouble),
}

/// What is wrong, since when, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    pub since: Timestamp,
    /// The API's `ErrorCode`, if it answered with one.
    pub code: Option<i64>,
    /// The HTTP status of an answer without one.
    pub http_status: Option<u16>,
    /// In plain words, without the API's own text.
    pub reason: String,
    /// What the API or the network said.
    pub info: String,
    pub advice: &'static str,
}

impl Condition {
    /// Why the app is paused, if it is.
    pub fn pause(&self) -> Option<&Trouble> {
        match self {
            Self::Paused(why) => Some(why),
            Self::Working | Self::Outage(_) => None,
        }
    }

    pub fn is_paused(&self) -> bool {
        matches!(self, Self::Paused(_))
    }
}
