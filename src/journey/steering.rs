//! Shows the state of an app's pipeline, and lets an operator pause it.

use std::time::Duration;

use tokio::time::Instant;

use super::Pipeline;
use crate::{
    clock,
    journey::failures::JobFailure,
    send::{
        HeldJob,
        condition::{Condition, Trouble},
    },
};

impl Pipeline {
    /// The waits of the app's wait queues.
    pub fn waits(&self) -> &[Duration] {
        &self.park
    }

    /// Takes no jobs until an operator resumes the app or the process restarts. Calls in flight
    /// finish, and unfinished jobs go back to the queue.
    pub fn pause(&self) {
        self.halted
            .send_if_modified(|since| since.is_none() && since.replace(clock::now()).is_none());
    }

    pub fn resume(&self) {
        self.halted.send_replace(None);
    }

    pub fn is_paused_by_operator(&self) -> bool {
        self.halted.borrow().is_some()
    }

    /// The app's condition, including a pause by an operator.
    pub fn condition_now(&self) -> Condition {
        let condition = self.dispatcher.condition().borrow().clone();
        match *self.halted.borrow() {
            Some(since) if !condition.is_paused() => Condition::Paused(Trouble {
                since,
                code: None,
                http_status: None,
                reason: "paused by an operator".into(),
                info: String::new(),
                advice: "resume it on the status page; a restart of the daemon resumes it too",
            }),
            Some(_) | None => condition,
        }
    }

    /// The jobs that are being sent.
    pub fn held(&self) -> Vec<HeldJob> {
        self.dispatcher.held()
    }

    /// The last jobs that ended with an error, the newest first.
    pub fn failures(&self) -> Vec<JobFailure> {
        self.failures.last()
    }

    /// The configured rate.
    pub fn calls_per_second_limit(&self) -> u32 {
        self.pacer.limit()
    }

    /// The pacer's present rate.
    pub fn calls_per_second(&self) -> f64 {
        self.pacer.rate(Instant::now())
    }

    /// Calls that have left so far.
    pub fn calls_so_far(&self) -> u64 {
        self.pacer.calls_so_far()
    }

    /// The most calls that left in any second so far.
    pub fn calls_max_1s(&self) -> usize {
        self.pacer.most_in_one_second()
    }

    /// Sets the gauges that mirror the present state.
    pub fn mirror(&self) {
        let throttled = self.dispatcher.groups_throttled();
        self.meter.mirror(&self.pacer, throttled, &self.condition_now());
    }
}
