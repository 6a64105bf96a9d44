//! One attempt of one batch: its intent if it needs one, then the call, which at the moment of its
//! writing asks once more whether it may be made.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::Span;

use crate::{
    api::{
        call::{Api, AtWrite},
        classify::Answer,
    },
    job::outcome::BatchProgress,
    pace::SendSlot,
    progress::{Entry, store::StoreLost},
    subscribe::lease::Lease,
};

/// One call, and before it the record of the intent if it must not be repeated.
pub(super) async fn call<A: Api>(
    api: &A,
    batch: u32,
    body: Vec<u8>,
    intent: Option<(Entry, BatchProgress)>,
    permission: Permission,
) -> Result<Answer, StoreLost> {
    if let Some((entry, progress)) = intent {
        entry.note(batch, &progress).await?;
    }
    Ok(api.call(body, move || permission.use_up(Instant::now())).await)
}

/// What a call needs at the moment of its writing, which may be a connection's handshake after it
/// was started.
pub(super) struct Permission {
    pub may_start: Arc<dyn Fn() -> bool + Send + Sync>,
    pub lease: Lease,
    pub deadline: Option<Instant>,
    pub slot: SendSlot,
}

impl Permission {
    fn use_up(self, now: Instant) -> AtWrite {
        let allowed = self.lease.allows_calls() && (self.may_start)();
        if !allowed || self.deadline.is_some_and(|deadline| deadline <= now) {
            return AtWrite::Withdraw;
        }
        self.slot.written(now);
        AtWrite::Send
    }
}

/// Writes on a call's span what came back.
pub fn note_answer(span: &Span, answer: &Answer) {
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
