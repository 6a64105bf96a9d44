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

/// Where a batch stands in its attempts.
#[derive(Debug, Clone, Copy)]
pub struct Attempts {
    /// Attempts that counted, this one included; answers that only said "slow down" do not.
    pub count: u32,
    /// Time since the first of them. Faults of the account do not count.
    pub since_first: Duration,
    /// Time that the batch has been failing since the job was taken up.
    pub held: Duration,
    pub others: Others,
}

/// How calls for other batches of the app fared since the batch was first refused in this way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    Accepted,
    Unknown,
}

/// Whether somebody waits for the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Supervision {
    /// The daemon: long waits are no harm, and a fault of the account is not the job's, so never its end.
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
    Failed(FailureKind, Fault),
    Unknown(Fault),
}

/// `jitter` is from 0 to 1.
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
        (Class::Transient(Effect::Unknown), DeliveryPromise::AtMostOnce) => Next::Unknown(fault),
        (Class::RateLimited, _) => for_a_while(AFTER_RATE_LIMIT, fault),
        (Class::Transient(Effect::None | Effect::Unknown), _) => for_a_while(backoff, fault),
        (Class::CredentialOrJob, _) if attempts.others == Others::Accepted => Next::Failed(FailureKind::Job, fault),
        (Class::Credential | Class::CredentialOrJob | Class::Account, _) => match supervision {
            Supervision::Unattended => later(backoff, fault),
            Supervision::Attended => Next::Failed(FailureKind::Job, fault),
        },
        (Class::Job | Class::JobOrConfiguration | Class::TooManyRecipients, _) => Next::Failed(FailureKind::Job, fault),
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
        next_with(class, promise, since_first_seconds, Others::Unknown, Supervision::Unattended)
    }

    fn next_with(class: Class, promise: DeliveryPromise, seconds: u64, others: Others, supervision: Supervision) -> Next {
        let fault = Fault { code: None, http_status: None, info: String::new() };
        let since_first = Duration::from_secs(seconds);
        let attempts = Attempts { count: 3, since_first, held: since_first.min(Duration::from_secs(50)), others };
        decide(Verdict::Failed { class, fault }, promise, attempts, &policy(), supervision, 0.5)
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
        for of_the_job in [Class::Job, Class::JobOrConfiguration, Class::TooManyRecipients] {
            assert!(is_failed(next(of_the_job, AtLeastOnce, 1), FailureKind::Job));
        }
        assert_eq!(next(Class::Transient(Effect::None), AtLeastOnce, 24 * 3600 - 3), after(2));
        assert!(is_failed(next(Class::Transient(Effect::None), AtLeastOnce, 24 * 3600), FailureKind::Transient));
    }

    #[test]
    fn who_would_wait_longer_than_a_job_is_held_is_parked_unless_somebody_waits() {
        let next = |class, held, supervision| {
            let fault = Fault { code: None, http_status: None, info: String::new() };
            let held = Duration::from_secs(held);
            let attempts = Attempts { count: 3, since_first: held, held, others: Others::Unknown };
            decide(Verdict::Failed { class, fault }, DeliveryPromise::AtLeastOnce, attempts, &policy(), supervision, 0.5)
        };
        for class in [Class::Transient(Effect::None), Class::Account] {
            assert!(matches!(next(class, 58, Supervision::Unattended), Next::Again { .. }));
            assert_eq!(next(class, 59, Supervision::Unattended), Next::Park);
        }
        assert_eq!(next(Class::RateLimited, 60, Supervision::Unattended), Next::Park);
        let told = next(Class::Transient(Effect::None), 59, Supervision::Attended);
        assert!(matches!(told, Next::Failed(FailureKind::Transient, _)));
    }

    #[test]
    fn a_fault_of_the_account_never_ends_a_job() {
        for of_the_account in [Class::Credential, Class::CredentialOrJob, Class::Account] {
            assert!(matches!(next(of_the_account, DeliveryPromise::AtMostOnce, 1_000_000), Next::Again { .. }));
        }
    }

    #[test]
    fn a_user_id_is_to_blame_if_other_calls_are_accepted_in_the_meantime() {
        let next = |others, supervision| next_with(Class::CredentialOrJob, DeliveryPromise::AtLeastOnce, 1, others, supervision);
        assert!(matches!(next(Others::Accepted, Supervision::Unattended), Next::Failed(FailureKind::Job, _)));
        assert!(matches!(next(Others::Unknown, Supervision::Unattended), Next::Again { .. }));
        assert!(matches!(next(Others::Unknown, Supervision::Attended), Next::Failed(FailureKind::Job, _)));
    }
}
