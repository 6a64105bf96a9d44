//! What follows an attempt that did not succeed. Pure: the policy, the attempts and a jitter in, a decision out.

use std::time::Duration;

use super::{
    classify::Verdict,
    codes::{Class, Effect},
};
use crate::{
    config::Retry,
    delay,
    job::DeliveryPromise,
    outcome::{FailureKind, Fault},
};

/// An answer that said "slow down" is asked again after the API's own window has passed.
const AFTER_RATE_LIMIT: Duration = Duration::from_secs(1);
/// What nobody documented passes within so many attempts, or not at all.
const ATTEMPTS_AT_UNDOCUMENTED: u32 = 5;

/// Where a batch stands in its attempts.
#[derive(Debug, Clone, Copy)]
pub struct Attempts {
    /// Attempts that counted, this one included; answers that only said "slow down" do not.
    pub count: u32,
    /// Time since the first of them. Faults of the account do not count, and no wait that the API asked for.
    pub since_first: Duration,
    /// Time that the batch has been failing since the job was taken up.
    pub held: Duration,
}

/// Whether somebody waits for the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Supervision {
    /// The daemon: long waits are no harm, and a fault of the account pauses the app, and ends no job.
    Unattended,
    /// Somebody at a terminal: neither a long wait nor a fault that somebody has to mend is waited for.
    Attended,
}

/// What to do with a batch now.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    Sent,
    Again {
        after: Duration,
    },
    /// Again, and not so soon that the job could be held until then.
    Park,
    /// Its recipients again, in smaller batches.
    Split,
    Failed(FailureKind, Fault),
    Unknown(Fault),
}

/// What follows for a batch that is itself to blame, or the moment. `jitter` is from 0 to 1.
pub fn decide(
    verdict: Verdict,
    promise: DeliveryPromise,
    attempts: Attempts,
    policy: &Retry,
    supervision: Supervision,
    jitter: f64,
) -> Next {
    let Verdict::Failed { class, fault } = verdict else { return Next::Sent };
    let backoff = delay::after_attempt(attempts.count, policy.first_delay, policy.max_delay, jitter);
    let later = |after: Duration, fault: Fault| match supervision {
        _ if attempts.held + after <= policy.hold => Next::Again { after },
        Supervision::Unattended => Next::Park,
        Supervision::Attended => Next::Failed(FailureKind::Transient, fault),
    };
    let for_a_while = |after: Duration, fault: Fault| match attempts.since_first + after > policy.give_up_after {
        true => Next::Failed(FailureKind::Transient, fault),
        false => later(after, fault),
    };
    match (class, promise) {
        (Class::Transient(Effect::Unknown) | Class::TransientOrJob, DeliveryPromise::AtMostOnce) => Next::Unknown(fault),
        (Class::RateLimited, _) => later(AFTER_RATE_LIMIT, fault),
        (Class::Transient(Effect::None | Effect::Unknown), _) => for_a_while(backoff, fault),
        (Class::TransientOrJob, _) if attempts.count < ATTEMPTS_AT_UNDOCUMENTED => for_a_while(backoff, fault),
        (Class::TransientOrJob | Class::Job | Class::JobOrConfiguration, _) => Next::Failed(FailureKind::Job, fault),
        // Only where somebody waits: the daemon pauses the app.
        (Class::Credential | Class::CredentialOrJob | Class::Account, _) => Next::Failed(FailureKind::Job, fault),
        (Class::TooManyRecipients, _) => Next::Split,
    }
}

#[cfg(test)]
mod tests {
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

    fn next(class: Class, promise: DeliveryPromise, since_first_seconds: u64) -> Next {
        let fault = Fault { code: None, http_status: None, info: String::new() };
        let since_first = Duration::from_secs(since_first_seconds);
        let attempts = Attempts { count: 3, since_first, held: since_first.min(Duration::from_secs(50)) };
        decide(Verdict::Failed { class, fault }, promise, attempts, &policy(), Supervision::Unattended, 0.5)
    }

    #[test]
    fn whose_fault_it_is_decides_what_happens() {
        use DeliveryPromise::{AtLeastOnce, AtMostOnce};
        let after = |seconds| Next::Again { after: Duration::from_secs(seconds) };
        let is_failed = |next: Next, expected| matches!(next, Next::Failed(kind, _) if kind == expected);
        assert_eq!(next(Class::Transient(Effect::Unknown), AtLeastOnce, 1), after(2));
        assert!(matches!(next(Class::Transient(Effect::Unknown), AtMostOnce, 1), Next::Unknown(_)));
        assert_eq!(next(Class::Transient(Effect::None), AtMostOnce, 1), after(2));
        assert_eq!(next(Class::RateLimited, AtMostOnce, 1), after(1));
        for of_the_job in [Class::Job, Class::JobOrConfiguration] {
            assert!(is_failed(next(of_the_job, AtLeastOnce, 1), FailureKind::Job));
        }
        assert_eq!(next(Class::TooManyRecipients, AtMostOnce, 24 * 3600), Next::Split);
        assert_eq!(next(Class::Transient(Effect::None), AtLeastOnce, 24 * 3600 - 3), after(2));
        assert!(is_failed(next(Class::Transient(Effect::None), AtLeastOnce, 24 * 3600), FailureKind::Transient));
    }

    #[test]
    fn who_would_wait_longer_than_a_job_is_held_is_parked_unless_somebody_waits() {
        let next = |class, held, supervision| {
            let fault = Fault { code: None, http_status: None, info: String::new() };
            let held = Duration::from_secs(held);
            let attempts = Attempts { count: 3, since_first: held, held };
            decide(Verdict::Failed { class, fault }, DeliveryPromise::AtLeastOnce, attempts, &policy(), supervision, 0.5)
        };
        let class = Class::Transient(Effect::None);
        assert!(matches!(next(class, 58, Supervision::Unattended), Next::Again { .. }));
        assert_eq!(next(class, 59, Supervision::Unattended), Next::Park);
        assert_eq!(next(Class::RateLimited, 60, Supervision::Unattended), Next::Park);
        let told = next(Class::Transient(Effect::None), 59, Supervision::Attended);
        assert!(matches!(told, Next::Failed(FailureKind::Transient, _)));
    }

    #[test]
    fn a_rate_limit_never_ends_a_job() {
        assert!(matches!(next(Class::RateLimited, DeliveryPromise::AtMostOnce, 1_000_000), Next::Again { .. }));
    }

    #[test]
    fn what_nobody_documented_is_tried_a_few_times_and_then_the_jobs_fault() {
        let after = |count| {
            let fault = Fault { code: Some(60_099), http_status: None, info: String::new() };
            let attempts = Attempts { count, since_first: Duration::ZERO, held: Duration::ZERO };
            let verdict = Verdict::Failed { class: Class::TransientOrJob, fault };
            decide(verdict, DeliveryPromise::AtLeastOnce, attempts, &policy(), Supervision::Unattended, 0.5)
        };
        assert!(matches!(after(ATTEMPTS_AT_UNDOCUMENTED - 1), Next::Again { .. }));
        assert!(matches!(after(ATTEMPTS_AT_UNDOCUMENTED), Next::Failed(FailureKind::Job, _)));
    }
}
