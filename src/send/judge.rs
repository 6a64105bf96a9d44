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
    random::MessageNumbers,
};
use crate::{
    api::{
        classify::{Answer, Verdict},
        codes::Class,
        command::{self, ApiCommand},
    },
    clock,
    config::App,
    delay,
    job::{
        Audience, DeliveryPromise,
        outcome::{BatchProgress, Fault},
    },
};

/// The vendor's clock and its window may differ from ours by this.
const DEDUP_MARGIN: Duration = Duration::from_secs(30);

/// What a call has shown about its message.
enum Fate {
    Delivered,
    NotDelivered,
    /// It may have been delivered.
    InDoubt(Fault),
    /// Nothing new.
    AsBefore,
}

fn fate_of_message(
    verdict: &Verdict,
    request: Request,
    may_be_repeat: bool,
    promise: DeliveryPromise,
) -> Fate {
    match verdict {
        Verdict::Sent => Fate::Delivered,
        Verdict::Failed { .. } if request == Request::NotSent => Fate::AsBefore,
        Verdict::Failed { fault, .. } if verdict.may_have_had_effect() => {
            Fate::InDoubt(fault.clone())
        }
        // An earlier call may have delivered it. But the vendor recognises repeated messages before
        // it counts those of a group, or it has dropped this one: a new message may be the second,
        // an old one may be lost.
        Verdict::Failed { class: Class::GroupRateLimited, .. }
            if may_be_repeat && promise == DeliveryPromise::AtLeastOnce =>
        {
            Fate::NotDelivered
        }
        Verdict::Failed { .. } if may_be_repeat => Fate::AsBefore,
        Verdict::Failed { .. } => Fate::NotDelivered,
    }
}

/// For how long a repeat of the batch's message may still be sent. A vendor that knows no repeated
/// messages allows none.
pub(super) fn repeatable_for(
    command: &dyn ApiCommand,
    progress: &BatchProgress,
    config: &App,
) -> Duration {
    let (Some(window), Some(sent_at)) = (command.dedup_window(), progress.message_sent_at) else {
        return Duration::ZERO;
    };
    let age: Duration = clock::now().duration_since(sent_at).try_into().unwrap_or(Duration::MAX);
    window.saturating_sub(DEDUP_MARGIN + config.request_timeout).saturating_sub(age)
}

impl Gate {
    /// Whether the vendor would discard a repeat of the batch's message.
    pub fn may_repeat_now(&self, progress: &BatchProgress) -> bool {
        let config = self.config.borrow();
        !repeatable_for(command::of(&config.command), progress, &config).is_zero()
    }

    /// Decides what follows from the answer to a batch's call, which was granted at `granted_at`.
    pub fn decide(
        &self,
        submission: &Submission,
        batches: &mut Batches,
        (batch, granted_at, numbers): (u32, Instant, &MessageNumbers),
        answer: Answer,
    ) -> Decision {
        let config = self.config.borrow().clone();
        let command = command::of(&config.command);
        let Submission { job, envelope, .. } = submission;
        let request = match answer {
            Answer::NotSent { .. } => Request::NotSent,
            _ => Request::Sent,
        };
        if let (Answer::Api { message, .. }, Audience::All) = (&answer, &job.audience)
            && command.stores_messages(&job.group_id)
        {
            batches.get_mut(batch).message = *message;
        }
        let verdict = command.judge(answer).on_batch_of(job.recipients_in(batch));
        let state = &mut *self.lock();
        let now = Instant::now();
        let attempts = batches.count(batch, request, &verdict, &state.idle);
        let blame = state.breaker.judge(&verdict, &job.group_id, granted_at, now);
        let refused_since = state.breaker.refused_since(&job.group_id);
        let group_refused_for = refused_since.map_or(Duration::ZERO, |since| now - since);
        if let Verdict::Failed { class, fault } = &verdict {
            match (class, command.calls_per_second_per_group()) {
                (Class::RateLimited, _) => self.settings.pacer.slow_down(now),
                (Class::GroupRateLimited, Some(limit)) => {
                    self.group_pace.slow_down(&job.group_id, limit, delay::jitter(), now);
                }
                _ => {}
            }
            let (job_id, code, info) = (&envelope.job_id, fault.code, &fault.info);
            debug!(job_id, batch, code, info, "a call failed");
        }
        if blame == Blame::UserSig {
            self.settings.api.renew_user_sig();
        }
        let has_numbers = command.dedup_window().is_some();
        let is_repeat = has_numbers && batches.get(batch).doubt.is_some();
        let repeated_code = batches.get(batch).doubt.as_ref().and_then(|doubt| doubt.code);
        let may_be_repeat = has_numbers && batches.may_be_repeat(batch);
        let repeatable_for = repeatable_for(command, batches.get(batch), &config);
        let fate = fate_of_message(&verdict, request, may_be_repeat, envelope.delivery);
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
                is_repeat,
                repeated_code,
                repeatable_for,
            },
        );
        match fate {
            Fate::Delivered => {}
            Fate::NotDelivered => {
                let epoch = batches.get(batch).message_epoch;
                state.used_numbers.spend(numbers, batch, epoch);
                batches.begin_next_message(batch);
            }
            Fate::InDoubt(fault) => {
                batches.get_mut(batch).doubt.get_or_insert(fault);
            }
            // Nothing was sent, so the vendor does not know the message yet.
            Fate::AsBefore if !may_be_repeat => batches.get_mut(batch).message_sent_at = None,
            Fate::AsBefore => {}
        }
        batches.set_state(batch, decision.state());
        self.announce_condition(state, now);
        decision
    }
}
