//! The statistics of the calls. A call counts once its request is complete. `calls` is always
//! `accepted` plus `refused` plus the discarded messages.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{deliveries::DeliveryCounts, messages::MessageCounts, verdict::SandboxAnswer};

#[derive(Debug, Default, Clone, Serialize)]
pub struct Stats {
    pub calls: u64,
    /// Calls whose notification was delivered, whatever the caller was told.
    pub accepted: u64,
    pub refused: u64,
    /// Answers by `ErrorCode`; 0 is success.
    pub by_code: BTreeMap<i64, u64>,
    /// Faults on demand by kind.
    pub by_fault: BTreeMap<&'static str, u64>,
    /// Most calls that arrived in any one second.
    pub max_in_1s: usize,
    /// Most calls of one command that were accepted in any one second.
    pub max_accepted_in_1s: usize,
    #[serde(flatten)]
    pub deliveries: DeliveryCounts,
    #[serde(flatten)]
    pub messages: MessageCounts,
}

#[derive(Debug, Default)]
pub struct CallTally {
    pub calls: u64,
    pub accepted: u64,
    by_code: BTreeMap<i64, u64>,
    by_fault: BTreeMap<&'static str, u64>,
}

impl CallTally {
    pub fn record(&mut self, answer: &SandboxAnswer) {
        if let Some(code) = answer.code() {
            *self.by_code.entry(code).or_default() += 1;
        }
        if let SandboxAnswer::Faulty(fault) = answer {
            *self.by_fault.entry(fault.name()).or_default() += 1;
        }
    }

    /// The statistics without the values that other modules count.
    pub fn stats(&self) -> Stats {
        Stats {
            calls: self.calls,
            accepted: self.accepted,
            by_code: self.by_code.clone(),
            by_fault: self.by_fault.clone(),
            ..Stats::default()
        }
    }
}
