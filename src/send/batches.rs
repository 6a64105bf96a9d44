//! The progress of one job's batches while the daemon sends them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use tokio::{sync::watch, time::Instant};
use tracing::Span;

use super::{Advance, Attempts, Submission, idle::IdleTimes};
use crate::{
    api::{
        classify::Verdict,
        codes::{Class, end_of_job},
    },
    clock,
    job::{
        DeliveryPromise,
        outcome::{
            BatchOutcome, BatchProgress, BatchState, DEADLINE_PASSED, FailureKind, Fault,
            JOB_CANCELLED, Report,
        },
    },
    telemetry::spans,
};

pub(super) struct Batches {
    batches: Vec<BatchProgress>,
    /// Since when each open batch has been failing, from its first answer.
    failing: BTreeMap<u32, Instant>,
    /// The spans of open batches that had a call.
    spans: BTreeMap<u32, Span>,
    /// How many have ended, and have their outcome recorded.
    ended: Arc<AtomicU32>,
    advance: Option<watch::Sender<Advance>>,
    promise: DeliveryPromise,
    /// Batches whose call an earlier delivery of the job may have made without recording it.
    perhaps_called: BTreeSet<u32>,
    /// How all open batches of the job end: a refusal that each of them would get too, or because
    /// the job is cancelled.
    ends_with: Option<(FailureKind, Fault)>,
}

/// Whether any part of a request left the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Sent,
    NotSent,
}

impl Batches {
    /// The progress from earlier runs. `may_repeat` says whether a call that may have had its
    /// effect can be repeated without a second effect.
    pub fn of(submission: &Submission, may_repeat: impl Fn(&BatchProgress) -> bool) -> Self {
        let promise = submission.envelope.delivery;
        let mut batches = vec![BatchProgress::default(); submission.job.batch_count() as usize];
        for (batch, progress) in &submission.batches {
            if let Some(known) = batches.get_mut(*batch as usize) {
                known.clone_from(progress);
                known.conclude_intent();
                if let (Some(doubt), DeliveryPromise::AtMostOnce) = (known.doubt.clone(), promise)
                    && known.outcome().is_none()
                    && !may_repeat(known)
                {
                    known.end(FailureKind::Transient, doubt, promise);
                }
            }
        }
        let ended = batches.iter().filter(|batch| batch.outcome().is_some()).count() as u32;
        let advance = submission.advance.clone();
        let (failing, spans) = (BTreeMap::new(), BTreeMap::new());
        let ends_with = batches.iter().find_map(|batch| end_of_job(batch.outcome()?));
        let ended = Arc::new(ended.into());
        let mut batches = Self {
            batches,
            failing,
            spans,
            ended,
            advance,
            promise,
            perhaps_called: BTreeSet::new(),
            ends_with,
        };
        // With `at-most-once`, the intent of each call is recorded.
        if submission.envelope.is_perhaps_called() && promise == DeliveryPromise::AtLeastOnce {
            batches.perhaps_called = batches.unsent().collect();
        }
        batches.report_advance(batches.ended.load(Ordering::Relaxed));
        batches
    }

    /// The number of ended batches, which the gate reads too.
    pub fn ended(&self) -> Arc<AtomicU32> {
        self.ended.clone()
    }

    pub fn have_all_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed) as usize == self.batches.len()
    }

    /// Whether the outcome of one batch has ended the whole job: the API has refused it, or it is
    /// cancelled.
    pub fn job_has_ended(&self) -> bool {
        self.ends_with.is_some()
    }

    /// The batches that are still to be sent.
    pub fn unsent(&self) -> impl Iterator<Item = u32> {
        let unsent = |(_, batch): &(u32, &BatchProgress)| batch.outcome().is_none();
        (0..).zip(&self.batches).filter(unsent).map(|(index, _)| index)
    }

    pub fn get(&self, batch: u32) -> &BatchProgress {
        &self.batches[batch as usize]
    }

    /// Whether an earlier call for the batch's present message may have had its effect.
    pub fn may_be_repeat(&self, batch: u32) -> bool {
        self.get(batch).doubt.is_some() || self.perhaps_called.contains(&batch)
    }

    /// The batch's present message was surely not delivered. The batch goes on with a new one.
    pub fn begin_next_message(&mut self, batch: u32) {
        self.perhaps_called.remove(&batch);
        self.get_mut(batch).begin_next_message();
    }

    pub fn get_mut(&mut self, batch: u32) -> &mut BatchProgress {
        &mut self.batches[batch as usize]
    }

    /// Ends a batch without a further call.
    pub fn end(&mut self, batch: u32, kind: FailureKind, fault: Fault) -> BatchOutcome {
        let promise = self.promise;
        let progress = self.get_mut(batch);
        progress.end(kind, fault, promise);
        let outcome = progress.outcome().cloned().expect("it has just ended");
        self.set_state(batch, BatchState::Ended(outcome.clone()));
        outcome
    }

    pub fn set_state(&mut self, batch: u32, state: BatchState) {
        if let BatchState::Ended(outcome) = &state {
            if self.ends_with.is_none() {
                self.ends_with = end_of_job(outcome);
            }
            self.failing.remove(&batch);
            self.spans.remove(&batch);
        }
        self.batches[batch as usize].state = state;
    }

    /// The span of a call that is about to be made, as a child of the batch's span.
    pub fn span_of_call(&mut self, batch: u32, Submission { job, span, .. }: &Submission) -> Span {
        if span.is_disabled() {
            return Span::none();
        }
        let attempt = self.batches[batch as usize].calls + 1;
        let new = || spans::of_batch(span, batch, job.recipients_in(batch));
        spans::of_call(self.spans.entry(batch).or_insert_with(new), attempt)
    }

    pub fn have_begun(&self) -> bool {
        self.batches.iter().any(|batch| *batch != BatchProgress::default())
    }

    /// Counts a call that has ended, and returns the attempts of its batch.
    pub fn count(
        &mut self,
        batch: u32,
        request: Request,
        verdict: &Verdict,
        idle: &IdleTimes,
    ) -> Attempts {
        let (now, wall) = (Instant::now(), clock::now());
        let progress = &mut self.batches[batch as usize];
        let failing_since = *self.failing.entry(batch).or_insert(now);
        progress.calls += u32::from(request == Request::Sent);
        match verdict {
            Verdict::Failed {
                class: Class::RateLimited | Class::GroupRateLimited | Class::TooManyRecipients,
                ..
            } => {}
            Verdict::Failed { .. } | Verdict::Sent => progress.attempts += 1,
        }
        let since_first = progress.failing_for(idle, wall);
        // Move the first attempt forward by the idle time, which does not count as failing.
        progress.first_attempt_at = since_first.and_then(|since| wall.checked_sub(since).ok());
        match verdict {
            Verdict::Failed { class: Class::RateLimited, .. } => {}
            Verdict::Failed { .. } | Verdict::Sent => {
                progress.first_attempt_at.get_or_insert(wall);
            }
        }
        progress.last_attempt_at = progress.first_attempt_at.and(Some(wall));
        Attempts {
            count: progress.attempts,
            since_first: since_first.unwrap_or_default(),
            held: now - failing_since,
        }
    }

    /// Counts a batch whose outcome is recorded.
    pub fn count_ended(&self) {
        self.report_advance(self.ended.fetch_add(1, Ordering::Relaxed) + 1);
    }

    /// Ends the job as cancelled, unless it ends otherwise. Returns the batch whose end says so.
    pub fn cancel(&mut self) -> Option<u32> {
        if self.job_has_ended() {
            return None;
        }
        let fault = Fault::of_job(JOB_CANCELLED);
        self.ends_with = Some((FailureKind::Cancelled, fault.clone()));
        // A batch whose call may have had its effect can end as unknown, which does not say why.
        let batch = self
            .unsent()
            .find(|batch| self.get(*batch).doubt.is_none())
            .or_else(|| self.unsent().next())?;
        self.end(batch, FailureKind::Cancelled, fault);
        Some(batch)
    }

    /// Ends the batches that have no outcome: as the job ends, or because its deadline has passed.
    pub fn end_unsent(&mut self) {
        let expired = || (FailureKind::Expired, Fault::of_job(DEADLINE_PASSED));
        let (kind, fault) = self.ends_with.clone().unwrap_or_else(expired);
        for batch in self.batches.iter_mut().filter(|batch| batch.outcome().is_none()) {
            batch.end(kind, fault.clone(), self.promise);
        }
        let ended = self.batches.len() as u32;
        self.ended.store(ended, Ordering::Relaxed);
        self.report_advance(ended);
    }

    pub fn into_report(self) -> Report {
        Report::of(self.batches)
    }

    /// The batches that have progress.
    pub fn into_touched(self) -> Vec<(u32, BatchProgress)> {
        let is_touched =
            |(_, progress): &(u32, BatchProgress)| *progress != BatchProgress::default();
        (0..).zip(self.batches).filter(is_touched).collect()
    }

    fn report_advance(&self, ended: u32) {
        if let Some(advance) = &self.advance {
            advance.send_replace(Advance { ended, batches: self.batches.len() as u32 });
        }
    }
}

impl BatchProgress {
    /// How long the batch has been failing, without the time in which the app was idle.
    pub(super) fn failing_for(&self, idle: &IdleTimes, now: Timestamp) -> Option<Duration> {
        let first = self.first_attempt_at?;
        let since_first: Duration = now.duration_since(first).try_into().unwrap_or_default();
        Some(since_first.saturating_sub(idle.since(self.last_attempt_at.unwrap_or(first), now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::codes::Effect;

    fn batches() -> Batches {
        let (failing, spans) = (BTreeMap::new(), BTreeMap::new());
        let batches = vec![BatchProgress::default()];
        Batches {
            batches,
            failing,
            spans,
            ended: Arc::default(),
            advance: None,
            promise: DeliveryPromise::default(),
            perhaps_called: BTreeSet::new(),
            ends_with: None,
        }
    }

    fn failed(class: Class) -> Verdict {
        Verdict::Failed {
            class,
            fault: Fault { code: None, http_status: None, info: String::new() },
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_of_a_pause_does_not_count_towards_giving_up_whatever_the_batch_was_answered()
    {
        for class in [Class::Account, Class::Credential, Class::Transient(Effect::None)] {
            clock::simulated::start_at(jiff::Timestamp::UNIX_EPOCH);
            let mut idle = IdleTimes::new();
            idle.end(clock::now());
            let mut batches = batches();
            let hours = |hours: u64| tokio::time::advance(Duration::from_secs(3600 * hours));
            let transient = failed(Class::Transient(Effect::None));
            batches.count(0, Request::Sent, &failed(class), &idle);
            hours(1).await;
            for _ in 0..2 {
                idle.begin(clock::now());
                hours(25).await;
                assert_eq!(
                    batches.get(0).failing_for(&idle, clock::now()).unwrap().as_secs(),
                    3600,
                    "{class:?}"
                );
                idle.end(clock::now());
            }
            let attempts = batches.count(0, Request::Sent, &transient, &idle);
            assert_eq!((attempts.since_first.as_secs(), attempts.count), (3600, 2), "{class:?}");
            hours(2).await;
            let attempts = batches.count(0, Request::Sent, &transient, &idle);
            assert_eq!(
                (attempts.since_first.as_secs(), attempts.count),
                (3 * 3600, 3),
                "{class:?}"
            );
            // Another process reads the record. It knows nothing of the time before its first job.
            let mut others = IdleTimes::new();
            hours(30).await;
            others.end(clock::now());
            hours(1).await;
            let record = batches.get(0).clone();
            assert_eq!(
                record.failing_for(&others, clock::now()).unwrap().as_secs(),
                4 * 3600,
                "{class:?}"
            );
        }
    }
}
