//! Decides what follows for a batch from the answer to its call. Pure: the verdict and the
//! circumstances in, a decision out.

use std::time::Duration;

use crate::{
    api::{
        classify::Verdict,
        codes::{self, Class, Effect},
    },
    config::Retry,
    delay,
    job::{
        DeliveryPromise,
        outcome::{BatchOutcome, BatchState, FailureKind, Fault},
    },
    send::breaker::Blame,
};

/// The delay after a rate-limited answer. After it, the API's own window has passed.
const AFTER_RATE_LIMIT: Duration = Duration::from_secs(1);
/// How often a failure that the vendor does not document is tried. If it is temporary, it passes
/// within these attempts.
const ATTEMPTS_AT_UNDOCUMENTED: u32 = 5;
/// How often a batch is tried if its group alone gets a fault of the account. The job is parked
/// between the attempts.
const ATTEMPTS_OF_A_GROUP: u32 = 5;

/// The attempts of a batch so far.
#[derive(Debug, Clone, Copy)]
pub struct Attempts {
    /// Attempts, including this one. Rate-limited answers and refusals of the batch size do not
    /// count.
    pub count: u32,
    /// Time since the first attempt. Neither the app's idle time nor a rate limit before the first
    /// attempt counts.
    pub since_first: Duration,
    /// Time since the first answer to the batch in the present run of its job.
    pub held: Duration,
}

/// Whether a user waits for the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Supervision {
    /// The daemon. Long waits do no harm. A fault of the account pauses the app and ends no job.
    Unattended,
    /// A user waits at a terminal. The job fails if it would have to wait for long, or until an
    /// operator mends a fault.
    Attended,
}

/// What to do with a batch now.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    Ended(BatchOutcome),
    Again {
        after: Duration,
    },
    /// Again as soon as a call may start: the batch is not to blame.
    AgainAtOnce,
    /// Again when the app works again.
    WhenResumed,
    /// Again, but later than the daemon may hold the job.
    Park,
    /// The recipients again, in smaller batches.
    Split,
}

impl Decision {
    /// The state of the batch after this decision.
    pub fn state(&self) -> BatchState {
        match self {
            Self::Ended(outcome) => BatchState::Ended(outcome.clone()),
            Self::Again { .. }
            | Self::AgainAtOnce
            | Self::WhenResumed
            | Self::Park
            | Self::Split => BatchState::Open,
        }
    }
}

/// What a decision depends on, besides the verdict.
pub struct Circumstances<'a> {
    /// Whose fault the failure is, judged by the app's other calls too.
    pub blame: Blame,
    pub promise: DeliveryPromise,
    pub attempts: Attempts,
    /// How long the group has been getting faults of the account.
    pub group_refused_for: Duration,
    pub policy: &'a Retry,
    /// How long a batch may fail before its job is parked.
    pub hold: Duration,
    pub supervision: Supervision,
    /// From 0 to 1.
    pub jitter: f64,
    /// Whether an earlier call for the same message may have had its effect, so that the vendor may
    /// discard this one. Never for a command without numbers.
    pub is_repeat: bool,
    /// The `ErrorCode` of that earlier call's answer.
    pub repeated_code: Option<i64>,
    /// For how long a repeat of this message is surely discarded by the vendor if it has the
    /// message already.
    pub repeatable_for: Duration,
}

impl Circumstances<'_> {
    /// Whether the call may have notified its recipients, and the job forbids to repeat it after
    /// `delay`.
    fn forbid_repeat(&self, verdict: &Verdict, delay: Duration) -> bool {
        self.promise == DeliveryPromise::AtMostOnce
            && verdict.may_have_had_effect()
            && delay >= self.repeatable_for
    }

    fn backoff(&self) -> Duration {
        let Retry { first_delay, max_delay, .. } = *self.policy;
        delay::after_attempt(self.attempts.count, first_delay, max_delay, self.jitter)
    }
}

/// Decides what follows for the batch.
pub fn decide(verdict: Verdict, circumstances: &Circumstances) -> Decision {
    let Circumstances { blame, attempts, group_refused_for, policy, .. } = circumstances;
    let waited_enough = attempts.since_first > policy.give_up_after;
    match blame {
        Blame::OldUserSig | Blame::UserSig => Decision::AgainAtOnce,
        Blame::App => Decision::WhenResumed,
        Blame::Group if attempts.count < ATTEMPTS_OF_A_GROUP && !waited_enough => Decision::Park,
        // Whatever the blame, a job with `at-most-once` does not repeat a call that may have
        // notified its recipients. Any other batch should not be the first to be tried when the app
        // works again, so it is parked. It is not tried for ever.
        Blame::AppOrBatch
            if !circumstances.forbid_repeat(&verdict, circumstances.backoff())
                && !waited_enough
                && *group_refused_for <= policy.give_up_after =>
        {
            Decision::Park
        }
        Blame::Batch | Blame::Group | Blame::AppOrBatch => of_the_batch(verdict, circumstances),
    }
}

/// Decides what follows if the batch itself or a temporary fault is to blame.
fn of_the_batch(verdict: Verdict, circumstances: &Circumstances) -> Decision {
    let Circumstances { promise, attempts, policy, hold, supervision, is_repeat, .. } =
        circumstances;
    let backoff = circumstances.backoff();
    let forbid_repeat = circumstances.forbid_repeat(&verdict, backoff);
    let Verdict::Failed { class, fault } = verdict else {
        return Decision::Ended(BatchOutcome::Sent);
    };
    let failed = |kind, fault: Fault| {
        Decision::Ended(BatchOutcome::Failed { kind, fault, attempts: attempts.count })
    };
    let unknown =
        |fault| Decision::Ended(BatchOutcome::Unknown { fault, attempts: attempts.count });
    // Nobody documents how the vendor answers a message that it discards as repeated.
    // The code that the first call got too says something else.
    let may_be_answer_to_repeat = *is_repeat
        && fault.code != circumstances.repeated_code
        && fault.code.is_some_and(codes::may_be_answer_to_repeat);
    let later = |after: Duration, fault: Fault| match supervision {
        _ if attempts.held + after <= *hold => Decision::Again { after },
        Supervision::Unattended => Decision::Park,
        Supervision::Attended => failed(FailureKind::Transient, fault),
    };
    let for_a_while =
        |after: Duration, fault: Fault| match attempts.since_first + after > policy.give_up_after {
            true => failed(FailureKind::Transient, fault),
            false => later(after, fault),
        };
    match class {
        _ if forbid_repeat || may_be_answer_to_repeat => unknown(fault),
        // The vendor may have dropped the repeat of a message that it has delivered.
        Class::GroupRateLimited if *is_repeat && *promise == DeliveryPromise::AtMostOnce => {
            unknown(fault)
        }
        Class::GroupRateLimited => for_a_while(AFTER_RATE_LIMIT, fault),
        Class::RateLimited => later(AFTER_RATE_LIMIT, fault),
        Class::Transient(Effect::None | Effect::Unknown) => for_a_while(backoff, fault),
        Class::TransientOrJob if attempts.count < ATTEMPTS_AT_UNDOCUMENTED => {
            for_a_while(backoff, fault)
        }
        Class::TransientOrJob | Class::Job | Class::JobOrConfiguration => {
            failed(FailureKind::Job, fault)
        }
        // Only if a user waits, or if the breaker does not blame the app alone.
        Class::Credential | Class::CredentialOrJob | Class::Account => {
            failed(FailureKind::Job, fault)
        }
        Class::TooManyRecipients => Decision::Split,
    }
}

#[cfg(test)]
mod tests {
    use DeliveryPromise::{AtLeastOnce, AtMostOnce};

    use super::*;

    fn policy() -> Retry {
        Retry {
            first_delay: Duration::from_millis(500),
            max_delay: Duration::from_secs(30),
            hold: Duration::from_secs(60),
            park: Vec::new(),
            give_up_after: Duration::from_secs(24 * 3600),
        }
    }

    fn failed(class: Class) -> Verdict {
        Verdict::Failed {
            class,
            fault: Fault { code: None, http_status: None, info: String::new() },
        }
    }

    fn attempts(count: u32, since_first_seconds: u64) -> Attempts {
        let since_first = Duration::from_secs(since_first_seconds);
        Attempts { count, since_first, held: since_first.min(Duration::from_secs(50)) }
    }

    fn in_these(
        blame: Blame,
        promise: DeliveryPromise,
        attempts: Attempts,
        change: impl FnOnce(Circumstances<'static>) -> Circumstances<'static>,
    ) -> Circumstances<'static> {
        static POLICY: std::sync::LazyLock<Retry> = std::sync::LazyLock::new(policy);
        change(Circumstances {
            blame,
            promise,
            attempts,
            group_refused_for: Duration::ZERO,
            policy: &POLICY,
            hold: POLICY.hold,
            supervision: Supervision::Unattended,
            jitter: 0.5,
            is_repeat: false,
            repeated_code: None,
            repeatable_for: Duration::ZERO,
        })
    }

    fn next(class: Class, promise: DeliveryPromise, since_first_seconds: u64) -> Decision {
        decide(
            failed(class),
            &in_these(Blame::Batch, promise, attempts(3, since_first_seconds), |same| same),
        )
    }

    fn is_failed(decision: &Decision, expected: FailureKind) -> bool {
        matches!(decision, Decision::Ended(BatchOutcome::Failed { kind, .. }) if *kind == expected)
    }

    fn is_unknown(decision: &Decision) -> bool {
        matches!(decision, Decision::Ended(BatchOutcome::Unknown { .. }))
    }

    #[test]
    fn whose_fault_it_is_decides_what_happens() {
        let after = |seconds| Decision::Again { after: Duration::from_secs(seconds) };
        assert_eq!(next(Class::Transient(Effect::Unknown), AtLeastOnce, 1), after(2));
        assert_eq!(next(Class::Transient(Effect::None), AtMostOnce, 1), after(2));
        assert_eq!(next(Class::RateLimited, AtMostOnce, 1), after(1));
        for of_the_job in [Class::Job, Class::JobOrConfiguration] {
            assert!(is_failed(&next(of_the_job, AtLeastOnce, 1), FailureKind::Job));
        }
        assert_eq!(next(Class::TooManyRecipients, AtMostOnce, 24 * 3600), Decision::Split);
        assert_eq!(next(Class::Transient(Effect::None), AtLeastOnce, 24 * 3600 - 3), after(2));
        assert!(is_failed(
            &next(Class::Transient(Effect::None), AtLeastOnce, 24 * 3600),
            FailureKind::Transient
        ));
    }

    #[test]
    fn what_may_have_had_its_effect_is_not_sent_again_where_that_is_forbidden_whoever_is_to_blame()
    {
        for class in [Class::Transient(Effect::Unknown), Class::TransientOrJob] {
            assert!(is_unknown(&next(class, AtMostOnce, 1)));
            let perhaps_the_app =
                in_these(Blame::AppOrBatch, AtMostOnce, attempts(1, 1), |same| same);
            assert!(is_unknown(&decide(failed(class), &perhaps_the_app)));
        }
    }

    #[test]
    fn a_batch_waits_while_the_app_may_be_to_blame_and_not_for_ever() {
        let refused = |blame, attempts, group_refused_for| {
            let change = |same| Circumstances {
                group_refused_for: Duration::from_secs(group_refused_for),
                ..same
            };
            decide(
                failed(Class::JobOrConfiguration),
                &in_these(blame, AtLeastOnce, attempts, change),
            )
        };
        assert_eq!(refused(Blame::App, attempts(9, 1_000_000), 0), Decision::WhenResumed);
        assert_eq!(refused(Blame::UserSig, attempts(9, 1_000_000), 0), Decision::AgainAtOnce);
        assert_eq!(refused(Blame::AppOrBatch, attempts(9, 24 * 3600), 24 * 3600), Decision::Park);
        assert!(is_failed(
            &refused(Blame::AppOrBatch, attempts(1, 24 * 3600 + 1), 0),
            FailureKind::Job
        ));
        assert!(is_failed(
            &refused(Blame::AppOrBatch, attempts(1, 0), 24 * 3600 + 1),
            FailureKind::Job
        ));
        assert_eq!(
            refused(Blame::Group, attempts(ATTEMPTS_OF_A_GROUP - 1, 24 * 3600), 0),
            Decision::Park
        );
        assert!(is_failed(
            &refused(Blame::Group, attempts(ATTEMPTS_OF_A_GROUP, 0), 0),
            FailureKind::Job
        ));
    }

    #[test]
    fn who_would_wait_longer_than_a_job_is_held_is_parked_unless_somebody_waits() {
        let next = |class, held, supervision| {
            let held = Duration::from_secs(held);
            let attempts = Attempts { count: 3, since_first: held, held };
            decide(
                failed(class),
                &in_these(Blame::Batch, AtLeastOnce, attempts, |same| Circumstances {
                    supervision,
                    ..same
                }),
            )
        };
        let class = Class::Transient(Effect::None);
        assert!(matches!(next(class, 58, Supervision::Unattended), Decision::Again { .. }));
        assert_eq!(next(class, 59, Supervision::Unattended), Decision::Park);
        assert_eq!(next(Class::RateLimited, 60, Supervision::Unattended), Decision::Park);
        assert!(is_failed(&next(class, 59, Supervision::Attended), FailureKind::Transient));
    }

    #[test]
    fn where_the_vendor_discards_repeats_an_unknown_outcome_is_repeated_in_time() {
        let class = Class::Transient(Effect::Unknown);
        let next = |repeatable_for| {
            decide(
                failed(class),
                &in_these(Blame::Batch, AtMostOnce, attempts(3, 1), |same| Circumstances {
                    repeatable_for: Duration::from_secs(repeatable_for),
                    ..same
                }),
            )
        };
        assert_eq!(next(3), Decision::Again { after: Duration::from_secs(2) });
        assert!(is_unknown(&next(2)));
    }

    #[test]
    fn an_undocumented_refusal_of_a_repeat_may_be_the_answer_to_a_repeated_message() {
        let refused = |code, is_repeat| {
            let fault = Fault { code: Some(code), http_status: None, info: String::new() };
            decide(
                Verdict::Failed { class: Class::JobOrConfiguration, fault },
                &in_these(Blame::Batch, AtLeastOnce, attempts(2, 1), |same| Circumstances {
                    is_repeat,
                    repeated_code: Some(10_998),
                    ..same
                }),
            )
        };
        assert!(is_unknown(&refused(10_999, true)) && is_unknown(&refused(10_024, true)));
        assert!(is_failed(&refused(10_999, false), FailureKind::Job));
        assert!(is_failed(&refused(10_998, true), FailureKind::Job));
        assert!(is_failed(&refused(10_010, true), FailureKind::Job));
    }

    #[test]
    fn a_dropped_message_goes_again_and_is_unknown_only_as_an_at_most_once_repeat() {
        let class = Class::GroupRateLimited;
        let again = Decision::Again { after: AFTER_RATE_LIMIT };
        let next = |promise, is_repeat, since_first| {
            decide(
                failed(class),
                &in_these(Blame::Batch, promise, attempts(1, since_first), |same| Circumstances {
                    is_repeat,
                    ..same
                }),
            )
        };
        assert_eq!(next(AtMostOnce, false, 1), again);
        assert_eq!(next(AtLeastOnce, true, 1), again);
        assert!(is_unknown(&next(AtMostOnce, true, 1)));
        assert!(is_failed(&next(AtLeastOnce, false, 24 * 3600), FailureKind::Transient));
    }

    #[test]
    fn a_rate_limit_never_ends_a_job() {
        assert!(matches!(next(Class::RateLimited, AtMostOnce, 1_000_000), Decision::Again { .. }));
    }

    #[test]
    fn what_nobody_documented_is_tried_a_few_times_and_then_the_jobs_fault() {
        let after = |count| {
            decide(
                failed(Class::TransientOrJob),
                &in_these(Blame::Batch, AtLeastOnce, attempts(count, 0), |same| same),
            )
        };
        assert!(matches!(after(ATTEMPTS_AT_UNDOCUMENTED - 1), Decision::Again { .. }));
        assert!(is_failed(&after(ATTEMPTS_AT_UNDOCUMENTED), FailureKind::Job));
    }
}
