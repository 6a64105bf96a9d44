//! The contents of the status page at this moment.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    Shown, ShownApp,
    readiness::{self, Readiness},
};
use crate::{journey::failures::JobFailure, send::HeldJob, subscribe::consume::Subscribed};

/// If there are more jobs, the page shows those with the most calls left.
const MAX_JOBS: usize = 20;

#[derive(Debug, Serialize)]
pub struct StatusReport {
    version: &'static str,
    /// Whether there is a token, so that actions are possible.
    actions: bool,
    #[serde(flatten)]
    readiness: Readiness,
    /// By the name of the app.
    activity: BTreeMap<String, Activity>,
}

/// What an app is doing.
#[derive(Debug, Serialize)]
struct Activity {
    /// The app is idle, or this replica stands by while another has the jobs. The broker does not
    /// say which.
    no_job_yet: bool,
    paused_by_operator: bool,
    calls_per_second_limit: u32,
    /// The current rate limit. It is lower after answers that say "slow down".
    calls_per_second_allowed: f64,
    /// Calls sent in each of the last seconds, the oldest first.
    calls: Vec<u32>,
    /// Messages in the jobs queue that are not delivered to a consumer; `null` if not known.
    jobs_waiting: Option<u32>,
    /// Messages in the wait queues: parked and scheduled jobs.
    jobs_parked: Option<u32>,
    dead_letters: Option<u32>,
    results_unrouted: Option<u32>,
    jobs_held: usize,
    calls_left: u64,
    /// Time until the held jobs are sent, if the API accepts every call.
    eta_seconds: Option<f64>,
    jobs: Vec<ShownJob>,
    failures: Vec<JobFailure>,
}

#[derive(Debug, Serialize)]
struct ShownJob {
    #[serde(flatten)]
    job: HeldJob,
    eta_seconds: Option<f64>,
}

/// How many messages were in an app's queues at the last count, if known.
#[derive(Debug, Clone, Copy, Default)]
pub struct Queues {
    pub jobs: Option<u32>,
    /// In all wait queues together.
    pub waiting: Option<u32>,
    pub dead: Option<u32>,
    pub unrouted: Option<u32>,
}

impl StatusReport {
    pub async fn of(shown: &Shown, actions: bool, calls: &[Vec<u32>], queues: &[Queues]) -> Self {
        let mut activity = BTreeMap::new();
        for ((app, calls), queues) in shown.apps.iter().zip(calls).zip(queues) {
            activity.insert(app.name.clone(), Activity::of(app, calls.clone(), *queues).await);
        }
        Self {
            version: env!("CARGO_PKG_VERSION"),
            actions,
            readiness: readiness::of(shown),
            activity,
        }
    }
}

impl Activity {
    async fn of(app: &ShownApp, calls: Vec<u32>, queues: Queues) -> Self {
        let mut held = app.pipeline.held();
        held.sort_by_key(|job| std::cmp::Reverse(left(job)));
        let rate = app.pipeline.calls_per_second();
        let seconds = |calls: u64| (rate > 0.0).then(|| calls as f64 / rate);
        let calls_left = held.iter().map(left).sum();
        let jobs_held = held.len();
        let etas: Vec<Option<f64>> = held
            .iter()
            .take(MAX_JOBS)
            .map(|job| seconds(calls_until_done(left(job), &held)))
            .collect();
        Self {
            no_job_yet: matches!(*app.subscribed.borrow(), Subscribed::NoJobYet),
            paused_by_operator: app.pipeline.is_paused_by_operator(),
            calls_per_second_limit: app.pipeline.calls_per_second_limit(),
            calls_per_second_allowed: rate,
            calls,
            jobs_waiting: queues.jobs,
            jobs_parked: queues.waiting,
            dead_letters: queues.dead,
            results_unrouted: queues.unrouted,
            jobs_held,
            calls_left,
            eta_seconds: seconds(calls_left),
            jobs: held
                .into_iter()
                .zip(etas)
                .map(|(job, eta_seconds)| ShownJob { job, eta_seconds })
                .collect(),
            failures: app.pipeline.failures(),
        }
    }
}

fn left(job: &HeldJob) -> u64 {
    u64::from(job.batches - job.batches_ended)
}

/// Jobs take turns. When a job with `of_this` calls left is done, each other job has made as many
/// calls, or all of its own.
fn calls_until_done(of_this: u64, held: &[HeldJob]) -> u64 {
    held.iter().map(|job| left(job).min(of_this)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_job_is_done_long_before_the_large_ones_that_it_takes_turns_with() {
        let job = |batches| HeldJob {
            job_id: String::new(),
            group_id: String::new(),
            batches,
            batches_ended: 0,
        };
        let held = [job(1000), job(400), job(1)];
        let until_done: Vec<u64> =
            held.iter().map(|job| calls_until_done(left(job), &held)).collect();
        assert_eq!(until_done, [1401, 801, 3]);
    }
}
