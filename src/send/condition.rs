//! What may be called for an app now, in words for whoever looks: the log, `/readyz`, the metrics.

use jiff::Timestamp;

/// How an app's calls fare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Jobs are taken and sent.
    Working,
    /// The API cannot be reached: jobs wait, single probes look whether it can.
    Outage(Trouble),
    /// A fault of the account or the configuration: no jobs are taken, single probes look whether
    /// it is mended.
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
