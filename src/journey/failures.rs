//! The last jobs of an app that ended with an error, for the status page.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use serde::Serialize;

use crate::{
    api::codes,
    settle::result::{ErrorKind, JobResult, Status},
};

const KEPT: usize = 20;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JobFailure {
    pub at: String,
    pub job_id: String,
    pub group_id: Option<String>,
    pub status: Status,
    pub kind: ErrorKind,
    pub code: Option<i64>,
    pub info: String,
    pub advice: &'static str,
}

/// The newest job comes first.
#[derive(Default)]
pub struct Failures(Mutex<VecDeque<JobFailure>>);

impl Failures {
    /// Remembers a result if it reports an error. A cancelled job is none.
    pub fn note(&self, result: &JobResult) {
        let mut errors = result.errors.iter();
        let Some(error) = errors.find(|error| error.kind != ErrorKind::Cancelled) else { return };
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.truncate(KEPT - 1);
        kept.push_front(JobFailure {
            at: result.finished_at.clone(),
            job_id: result.job_id.clone(),
            group_id: result.group_id.clone(),
            status: result.status,
            kind: error.kind,
            code: error.code,
            info: error.info.clone(),
            advice: advice(error.kind, error.code),
        });
    }

    pub fn last(&self) -> Vec<JobFailure> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

fn advice(kind: ErrorKind, code: Option<i64>) -> &'static str {
    match (kind, code.and_then(codes::find)) {
        (_, Some(entry)) => entry.advice,
        (ErrorKind::Invalid, None) => {
            "correct the job where it is made; its dead letter has the original bytes"
        }
        (ErrorKind::Expired, None) => {
            "send it again with `groupcast dead redrive --without-deadline`, if it still matters"
        }
        (ErrorKind::Transient, None) => {
            "send it again with `groupcast dead redrive` when the API works"
        }
        (ErrorKind::Undeliverable, None) => {
            "mend what the error names, then send it again with `groupcast dead redrive`"
        }
        (ErrorKind::Cancelled, None) => {
            "an operator cancelled it; publish it again if it is wanted"
        }
        (ErrorKind::Unknown, None) => "ask a recipient; nothing sends it again by itself",
        (ErrorKind::Job, None) => {
            "read what the API said, and look for the code in the vendor's newest list"
        }
    }
}
