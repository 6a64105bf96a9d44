//! One attempt of one batch: its intent if the job needs one, the call, the decision, the record.
//! At the moment of its writing the call asks once more whether it may be made.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::time::Instant;
use tracing::Span;

use super::{
    Decision,
    gate::Grant,
    job::{Attempted, SendingJob},
    judge::repeatable_for,
};
use crate::{
    api::{call::AtWrite, classify::Answer, command},
    clock,
    job::{
        DeliveryPromise,
        outcome::{BatchProgress, BatchState, FailureKind},
    },
    pace::{GroupSlot, SendSlot},
    progress::{Entry, store::StoreLost},
    subscribe::lease::Lease,
};

impl SendingJob<'_> {
    /// Makes the call, decides what follows and records it.
    pub(super) async fn attempt(&self, grant: Grant) -> Attempted {
        let Grant { batch, granted_at, slot, group_slot, room } = grant;
        let decision = match self.end_late_repeat(batch) {
            Some(decision) => {
                slot.unused();
                self.record(batch).await.map(|()| decision)
            }
            None => self.call_and_record(batch, granted_at, (slot, group_slot)).await,
        };
        Attempted { batch, decision, room: Some(room) }
    }

    async fn call_and_record(
        &self,
        batch: u32,
        granted_at: Instant,
        (slot, group_slot): (SendSlot, GroupSlot),
    ) -> Result<Decision, StoreLost> {
        let span = self.batches().span_of_call(batch, self.submission);
        let (body, epoch_changed) = self.request_body(batch);
        if let Err(error) = self.record_intent(batch, epoch_changed).await {
            // The store may have recorded the intent before it failed.
            self.not_called(batch);
            self.record(batch).await?;
            return Err(error);
        }
        let permission = Permission {
            may_start: self.gate.settings.may_start.clone(),
            lease: self.submission.lease.clone(),
            calls_ended: self.calls_ended.clone(),
            entry: self.submission.entry.clone(),
            deadline: self.deadline,
            repeat_until: self.repeat_until(batch),
            slot,
            group_slot,
        };
        let on_write = move || permission.use_up(Instant::now());
        let answer = self.gate.settings.api.call(body, Box::new(on_write)).await;
        note_answer(&span, &answer);
        // A span ends when its last handle is dropped.
        drop(span);
        let decision = match answer {
            Answer::Withdrawn => {
                self.not_called(batch);
                Decision::AgainAtOnce
            }
            answer => {
                let (call, batches) = ((batch, granted_at, &self.numbers), &mut *self.batches());
                let decision = self.gate.decide(self.submission, batches, call, answer);
                if batches.job_has_ended() {
                    self.end_calls();
                }
                decision
            }
        };
        self.record(batch).await?;
        Ok(decision)
    }

    /// Ends a batch that must not be repeated, because the vendor might no longer recognise the
    /// repeat.
    fn end_late_repeat(&self, batch: u32) -> Option<Decision> {
        let is_late = self.repeat_until(batch).is_some_and(|until| until <= Instant::now());
        let doubt = self.batches().get(batch).doubt.clone().filter(|_| is_late)?;
        Some(Decision::Ended(self.batches().end(batch, FailureKind::Transient, doubt)))
    }

    /// Until when a call for the batch may be written, if it repeats one that may have had its
    /// effect and the job forbids a second effect.
    fn repeat_until(&self, batch: u32) -> Option<Instant> {
        if self.submission.envelope.delivery == DeliveryPromise::AtLeastOnce {
            return None;
        }
        let batches = self.batches();
        let progress = batches.get(batch);
        progress.doubt.as_ref()?;
        let config = self.gate.config.borrow();
        let left = repeatable_for(command::of(&config.command), progress, &config);
        Some(Instant::now() + left)
    }

    /// The body of the batch's next call, and whether its message has another epoch than before.
    fn request_body(&self, batch: u32) -> (Vec<u8>, bool) {
        let mut batches = self.batches();
        let may_be_repeat = batches.may_be_repeat(batch);
        let progress = batches.get_mut(batch);
        let config = self.gate.config.borrow().clone();
        let command = command::of(&config.command);
        let job = &self.submission.job;
        if command.dedup_window().is_none() {
            return (command.body(job, batch, 0), false);
        }
        let before = progress.message_epoch;
        let now = Instant::now();
        let used = &mut self.gate.lock().used_numbers;
        progress.message_epoch = used.take(&self.numbers, batch, before, may_be_repeat, now);
        progress.message_sent_at.get_or_insert_with(clock::now);
        let number = self.numbers.number(batch, progress.message_epoch);
        (command.body(job, batch, number), progress.message_epoch != before)
    }

    /// Records what must be known if the daemon ends during the call: that a call which must not
    /// be repeated may have been made, or which message it was.
    async fn record_intent(&self, batch: u32, epoch_changed: bool) -> Result<(), StoreLost> {
        let must_not_repeat = self.submission.envelope.delivery == DeliveryPromise::AtMostOnce;
        let Some(entry) = &self.submission.entry else { return Ok(()) };
        if !must_not_repeat && !epoch_changed {
            return Ok(());
        }
        let progress = self.batches().get(batch).clone();
        let state = if must_not_repeat { BatchState::Intended } else { progress.state };
        entry.record_batch(batch, &BatchProgress { state, ..progress }).await
    }

    /// The call for the batch was not made.
    fn not_called(&self, batch: u32) {
        let mut batches = self.batches();
        batches.set_state(batch, BatchState::Open);
        if batches.get(batch).doubt.is_none() {
            batches.get_mut(batch).message_sent_at = None;
        }
    }

    /// Records how a batch stands, if the job has a record.
    pub(super) async fn record(&self, batch: u32) -> Result<(), StoreLost> {
        let Some(entry) = &self.submission.entry else { return Ok(()) };
        let progress = self.batches().get(batch).clone();
        entry.record_batch(batch, &progress).await
    }
}

/// What a call needs at the moment of its writing, which may be a connection's handshake after it
/// was started.
struct Permission {
    may_start: Arc<dyn Fn() -> bool + Send + Sync>,
    lease: Lease,
    /// The job wants no further call.
    calls_ended: Arc<AtomicBool>,
    entry: Option<Entry>,
    deadline: Option<Instant>,
    /// Later, the vendor might deliver a repeat a second time.
    repeat_until: Option<Instant>,
    slot: SendSlot,
    group_slot: GroupSlot,
}

impl Permission {
    fn use_up(self, now: Instant) -> AtWrite {
        let is_cancelled = self.entry.as_ref().is_some_and(Entry::is_cancelled);
        let wanted = !is_cancelled && !self.calls_ended.load(Ordering::Relaxed);
        let allowed = wanted && self.lease.allows_calls() && (self.may_start)();
        let is_past = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if !allowed || is_past(self.deadline) || is_past(self.repeat_until) {
            return AtWrite::Withdraw;
        }
        self.slot.written(now);
        self.group_slot.written(now);
        AtWrite::Send
    }
}

/// Writes on a call's span what came back.
fn note_answer(span: &Span, answer: &Answer) {
    match answer {
        Answer::Api { http_status, code, .. } => {
            span.record("groupcast.code", code).record("http.response.status_code", http_status);
        }
        Answer::Foreign { http_status, .. } => {
            span.record("http.response.status_code", http_status);
        }
        Answer::Dropped { .. } | Answer::NotSent { .. } | Answer::NoAnswer { .. } => {}
        Answer::Withdrawn => {
            span.record("groupcast.withdrawn", true);
            return;
        }
    }
    span.record("otel.status_code", if answer.is_accepted() { "OK" } else { "ERROR" });
}
