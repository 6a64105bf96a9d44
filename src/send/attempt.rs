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
};
use crate::{
    api::{call::AtWrite, classify::Answer},
    job::{
        DeliveryPromise,
        outcome::{BatchProgress, BatchState},
    },
    pace::SendSlot,
    progress::store::StoreLost,
    subscribe::lease::Lease,
};

impl SendingJob<'_> {
    /// Makes the call, decides what follows and records it.
    pub(super) async fn attempt(&self, grant: Grant) -> Attempted {
        let Grant { batch, granted_at, slot, room } = grant;
        let decision = self.call_and_record(batch, granted_at, slot).await;
        Attempted { batch, decision, room: Some(room) }
    }

    async fn call_and_record(
        &self,
        batch: u32,
        granted_at: Instant,
        slot: SendSlot,
    ) -> Result<Decision, StoreLost> {
        let span = self.batches().span_of_call(batch, self.submission);
        self.record_intent(batch).await?;
        let permission = Permission {
            may_start: self.gate.settings.may_start.clone(),
            lease: self.submission.lease.clone(),
            calls_ended: self.calls_ended.clone(),
            deadline: self.deadline,
            slot,
        };
        let body = self.submission.job.request_body(batch);
        let on_write = move || permission.use_up(Instant::now());
        let answer = self.gate.settings.api.call(body, Box::new(on_write)).await;
        note_answer(&span, &answer);
        // A span ends when its last handle is dropped.
        drop(span);
        let decision = match answer {
            Answer::Withdrawn => {
                self.batches().set_state(batch, BatchState::Open);
                Decision::AgainAtOnce
            }
            answer => {
                let (call, batches) = ((batch, granted_at), &mut *self.batches());
                let decision = self.gate.decide(self.submission, batches, call, answer);
                if batches.job_is_refused() {
                    self.end_calls();
                }
                decision
            }
        };
        self.record(batch).await?;
        Ok(decision)
    }

    /// Before a call that must not be repeated.
    async fn record_intent(&self, batch: u32) -> Result<(), StoreLost> {
        match (&self.submission.entry, self.submission.envelope.delivery) {
            (Some(entry), DeliveryPromise::AtMostOnce) => {
                let progress = self.batches().get(batch).clone();
                entry
                    .record_batch(batch, &BatchProgress { state: BatchState::Intended, ..progress })
                    .await
            }
            (None, _) | (_, DeliveryPromise::AtLeastOnce) => Ok(()),
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
    deadline: Option<Instant>,
    slot: SendSlot,
}

impl Permission {
    fn use_up(self, now: Instant) -> AtWrite {
        let wanted = !self.calls_ended.load(Ordering::Relaxed);
        let allowed = wanted && self.lease.allows_calls() && (self.may_start)();
        if !allowed || self.deadline.is_some_and(|deadline| deadline <= now) {
            return AtWrite::Withdraw;
        }
        self.slot.written(now);
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
        Answer::NotSent { .. } | Answer::NoAnswer { .. } => {}
        Answer::Withdrawn => {
            span.record("groupcast.withdrawn", true);
            return;
        }
    }
    span.record("otel.status_code", if answer.is_accepted() { "OK" } else { "ERROR" });
}
