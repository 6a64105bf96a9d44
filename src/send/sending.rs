//! A job while it is sent: how each batch stands, and what keeps the job from ending.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use tokio::{sync::oneshot, time::Instant};
use tracing::Span;

use super::{
    Advance, Attempts, Ending, HeldJob, Submission, Unfinished, counted::Count, idle::IdleTimes,
    waiting::instant_of,
};
use crate::{
    api::{classify::Verdict, codes::Class},
    clock,
    job::{
        DeliveryPromise,
        outcome::{
            BatchOutcome, BatchProgress, BatchState, DEADLINE_PASSED, FailureKind, Fault, Report,
        },
    },
    progress::Entry,
    telemetry::spans,
};

pub(super) struct Sending {
    pub submission: Submission,
    pub course: Course,
    pub taken_up: Instant,
    pub deadline: Option<Instant>,
    /// Work on its batches that is not yet recorded.
    pub under_way: Count,
    batches: Vec<BatchProgress>,
    /// Since when batches that are tried again have been failing.
    failing: BTreeMap<u32, Instant>,
    /// Of batches that have been called for and have no outcome yet.
    spans: BTreeMap<u32, Span>,
    /// Batches that do not yet count as ended.
    open: u32,
    done: oneshot::Sender<Result<Ending, Unfinished>>,
}

/// What becomes of the job.
#[derive(Debug)]
pub(super) enum Course {
    Sending,
    /// It has to wait for longer than it may be held. No further call starts.
    Parking,
    /// Its batches are too large. No further call starts.
    Splitting,
    /// No further call starts, and nobody but another delivery of it goes on.
    Abandoned(Unfinished),
}

/// Whether any of a request left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Sent,
    NotSent,
}

impl Sending {
    pub fn new(
        mut submission: Submission,
        done: oneshot::Sender<Result<Ending, Unfinished>>,
        now: Instant,
    ) -> Self {
        let mut batches = vec![BatchProgress::default(); submission.job.batch_count() as usize];
        for (batch, progress) in std::mem::take(&mut submission.batches) {
            if let Some(known) = batches.get_mut(batch as usize) {
                *known = progress;
                known.conclude_intent();
            }
        }
        let open = batches.iter().filter(|batch| batch.outcome().is_none()).count() as u32;
        let deadline = submission.envelope.deadline.map(|at| instant_of(at, now));
        let sending = Self {
            submission,
            course: Course::Sending,
            taken_up: now,
            deadline,
            under_way: Count::default(),
            batches,
            failing: BTreeMap::new(),
            spans: BTreeMap::new(),
            open,
            done,
        };
        sending.tell();
        sending
    }

    pub fn held(&self) -> HeldJob {
        let Submission { job, envelope, .. } = &self.submission;
        let batches = self.batches.len() as u32;
        HeldJob {
            job_id: envelope.job_id.clone(),
            group_id: job.group_id.clone(),
            batches,
            batches_ended: batches - self.open,
        }
    }

    /// The batches that are to be sent.
    pub fn unsent(&self) -> impl Iterator<Item = u32> {
        (0..)
            .zip(&self.batches)
            .filter(|(_, batch)| batch.outcome().is_none())
            .map(|(index, _)| index)
    }

    pub fn batch(&self, batch: u32) -> &BatchProgress {
        &self.batches[batch as usize]
    }

    pub fn set_state(&mut self, batch: u32, state: BatchState) {
        if let BatchState::Ended(_) = state {
            self.failing.remove(&batch);
            self.spans.remove(&batch);
        }
        self.batches[batch as usize].state = state;
    }

    /// The span of a call that is about to be made.
    pub fn span_of_call(&mut self, batch: u32) -> Span {
        let Submission { job, span, .. } = &self.submission;
        if span.is_disabled() {
            return Span::none();
        }
        let attempt = self.batches[batch as usize].calls + 1;
        let of_batch = self
            .spans
            .entry(batch)
            .or_insert_with(|| spans::of_batch(span, batch, job.recipients_in(batch)));
        spans::of_call(of_batch, attempt)
    }

    /// The record to make before a call that must not be repeated.
    pub fn intend(&self, batch: u32) -> Option<(Entry, BatchProgress)> {
        match (self.submission.envelope.delivery, &self.submission.entry) {
            (DeliveryPromise::AtMostOnce, Some(entry)) => {
                let progress =
                    BatchProgress { state: BatchState::Intended, ..self.batch(batch).clone() };
                Some((entry.clone(), progress))
            }
            (DeliveryPromise::AtLeastOnce, _) | (_, None) => None,
        }
    }

    pub fn is_sending(&self) -> bool {
        matches!(self.course, Course::Sending)
    }

    pub fn has_begun(&self) -> bool {
        self.under_way.present() > 0
            || self.batches.iter().any(|batch| *batch != BatchProgress::default())
    }

    pub fn is_overdue(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Counts a call that came back, and says where its batch stands.
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
            Verdict::Failed { class: Class::RateLimited | Class::TooManyRecipients, .. } => {}
            Verdict::Failed { .. } | Verdict::Sent => progress.attempts += 1,
        }
        let since_first = progress.failing_for(idle, wall);
        // From now on it counts from a moment that leaves the idle time out.
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

    /// A batch counts as ended from now on.
    pub fn ended(&mut self) {
        self.open -= 1;
        self.tell();
    }

    /// Ends what has no outcome: its time is over.
    pub fn expire(&mut self) {
        for batch in &mut self.batches {
            if batch.outcome().is_none() {
                let fault = Fault { code: None, http_status: None, info: DEADLINE_PASSED.into() };
                let kind = FailureKind::Expired;
                batch.state = BatchState::Ended(BatchOutcome::Failed {
                    kind,
                    fault,
                    attempts: batch.attempts,
                });
            }
        }
        self.open = 0;
        self.tell();
    }

    pub fn is_done(&self) -> bool {
        self.under_way.present() == 0 && (self.open == 0 || !self.is_sending())
    }

    /// Hands over how it ended. Nobody listens if the work on the delivery was given up.
    pub fn finish(self) {
        let touched = |batches: Vec<BatchProgress>| {
            (0..)
                .zip(batches)
                .filter(|(_, progress)| *progress != BatchProgress::default())
                .collect()
        };
        let _ = self.done.send(match self.course {
            _ if self.open == 0 => Ok(Ending::Finished(Report::of(self.batches))),
            Course::Parking | Course::Sending => Ok(Ending::Parked(touched(self.batches))),
            Course::Splitting => Ok(Ending::TooLarge(touched(self.batches))),
            Course::Abandoned(why) => Err(why),
        });
    }

    fn tell(&self) {
        if let Some(told) = &self.submission.told {
            let batches = self.batches.len() as u32;
            told.send_replace(Advance { ended: batches - self.open, batches });
        }
    }
}

impl BatchProgress {
    /// How long it has been failing, without the time in which the app was idle.
    pub(super) fn failing_for(&self, idle: &IdleTimes, now: Timestamp) -> Option<Duration> {
        let first = self.first_attempt_at?;
        let since_first: Duration = now.duration_since(first).try_into().unwrap_or_default();
        Some(since_first.saturating_sub(idle.since(self.last_attempt_at.unwrap_or(first), now)))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use lapin::BasicProperties;

    use super::*;
    use crate::{
        accept::envelope,
        api::codes::Effect,
        config::Replies,
        job::{Audience, Job},
        subscribe::lease::Lease,
    };

    pub fn sending() -> Sending {
        let job = Job {
            group_id: "g".into(),
            topic_id: None,
            opening: b"{".to_vec(),
            audience: Audience::All,
        };
        let (envelope, _) = envelope::read(
            &BasicProperties::default(),
            "a",
            None,
            &Replies::anywhere(),
            clock::now(),
        );
        let submission = Submission {
            job: Arc::new(job),
            envelope: Arc::new(envelope),
            lease: Lease::unlimited(),
            entry: None,
            batches: Vec::new(),
            told: None,
            span: Span::none(),
        };
        Sending::new(submission, oneshot::channel().0, Instant::now())
    }

    pub fn failed(class: Class) -> Verdict {
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
            let mut sending = sending();
            let hours = |hours: u64| tokio::time::advance(Duration::from_secs(3600 * hours));
            let transient = failed(Class::Transient(Effect::None));
            sending.count(0, Request::Sent, &failed(class), &idle);
            hours(1).await;
            for _ in 0..2 {
                idle.begin(clock::now());
                hours(25).await;
                assert_eq!(
                    sending.batch(0).failing_for(&idle, clock::now()).unwrap().as_secs(),
                    3600,
                    "{class:?}"
                );
                idle.end(clock::now());
            }
            let attempts = sending.count(0, Request::Sent, &transient, &idle);
            assert_eq!((attempts.since_first.as_secs(), attempts.count), (3600, 2), "{class:?}");
            hours(2).await;
            let attempts = sending.count(0, Request::Sent, &transient, &idle);
            assert_eq!(
                (attempts.since_first.as_secs(), attempts.count),
                (3 * 3600, 3),
                "{class:?}"
            );
            // Another process, from the record: it knows nothing of the time before its first job.
            let mut others = IdleTimes::new();
            hours(30).await;
            others.end(clock::now());
            hours(1).await;
            let record = sending.batch(0).clone();
            assert_eq!(
                record.failing_for(&others, clock::now()).unwrap().as_secs(),
                4 * 3600,
                "{class:?}"
            );
        }
    }
}
