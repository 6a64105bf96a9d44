//! Judges the answer to a call: whose fault is it, as the app's other calls show, and what follows
//! for the batch.

use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use super::{
    Submission,
    batches::{Batches, Request},
    breaker::Blame,
    decision::{Circumstances, Decision, decide},
    gate::Gate,
};
use crate::{
    api::{
        classify::{Answer, Verdict, classify},
        codes::Class,
    },
    delay,
};

impl Gate {
    /// Decides what follows from the answer to a batch's call, which was granted at `granted_at`.
    pub fn decide(
        &self,
        submission: &Submission,
        batches: &mut Batches,
        (batch, granted_at): (u32, Instant),
        answer: Answer,
    ) -> Decision {
        let Submission { job, envelope, .. } = submission;
        let request = match answer {
            Answer::NotSent { .. } => Request::NotSent,
            _ => Request::Sent,
        };
        let verdict = classify(answer).on_batch_of(job.recipients_in(batch));
        let state = &mut *self.lock();
        let now = Instant::now();
        let attempts = batches.count(batch, request, &verdict, &state.idle);
        let blame = state.breaker.judge(&verdict, &job.group_id, granted_at, now);
        let refused_since = state.breaker.refused_since(&job.group_id);
        let group_refused_for = refused_since.map_or(Duration::ZERO, |since| now - since);
        if let Verdict::Failed { class, fault } = &verdict {
            if *class == Class::RateLimited {
                self.settings.pacer.slow_down(now);
            }
            let (job_id, code, info) = (&envelope.job_id, fault.code, &fault.info);
            debug!(job_id, batch, code, info, "a call failed");
        }
        if blame == Blame::UserSig {
            self.settings.api.renew_user_sig();
        }
        let config = self.config.borrow().clone();
        let decision = decide(
            verdict,
            &Circumstances {
                blame,
                promise: envelope.delivery,
                attempts,
                group_refused_for,
                policy: &config.retry,
                hold: config.retry.hold.min(state.held_at_most),
                supervision: self.settings.supervision,
                jitter: delay::jitter(),
            },
        );
        batches.set_state(batch, decision.state());
        self.announce_condition(state, now);
        decision
    }
}
