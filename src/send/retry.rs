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

/// A batch is tried no longer than this, and not again once its job was held for [`HELD_AT_MOST`]: by default the broker takes
/// deliveries away that are held for 30 minutes.
const TRIED_AT_MOST: Duration = Duration::from_secs(15 * 60);
const HELD_AT_MOST: Duration = Duration::from_secs(25 * 60);

/// Where a batch stands in its attempts.
#[derive(Debug, Clone, Copy)]
pub struct Attempts {
    /// Attempts that counted, this one included; answers that only said "slow down" do not.
    pub count: u32,
    /// Time since the first of them.
    pub since_first: Duration,
    /// Time since the job was taken up.
    pub held: Duration,
    pub others: Others,
}

/// How calls for other batches of the app fared since the first attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    Accepted,
    Unknown,
}

/// What follows a fault of the account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnAccountFault {
    /// It is not the job's fault, so never its end: somebody has to act, however long that takes.
    KeepTrying,
    /// Somebody waits for the answer.
    Fail,
}

/// What to do with a batch now.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    Sent,
    Again { after: Duration },
    Failed(FailureKind, Fault),
    Unknown(Fault),
}

/// `jitter` is from 0 to 1.
pub fn decide(
    verdict: Verdict,
    promise: DeliveryPromise,
    attempts: Attempts,
    policy: &Retry,
    on_account_fault: OnAccountFault,
    jitter: f64,
) -> Next {
    let Verdict::Failed { class, fault } = verdict else { return Next::Sent };
    let again = |after: Duration, fault: Fault| {
        let give_up_after = policy.give_up_after.min(TRIED_AT_MOST);
        if attempts.since_first + after > give_up_after || attempts.held + after > HELD_AT_MOST {
            Next::Failed(FailureKind::Transient, fault)
        } else {
            Next::Again { after }
        }
    };
    let backoff = delay::after_attempt(attempts.count, policy.first_delay, policy.max_delay, jitter);
    match (class, promise) {
        (Class::Transient(Effect::Unknown), DeliveryPromise::AtMostOnce) => Next::Unknown(fault),
        (Class::RateLimited, _) => again(AFTER_RATE_LIMIT, fault),
        (Class::Transient(Effect::None | Effect::Unknown), _) => again(backoff, fault),
        (Class::CredentialOrJob, _) if attempts.others == Others::Accepted => Next::Failed(FailureKind::Job, fault),
        (Class::Credential | Class::CredentialOrJob | Class::Account, _) => match on_account_fault {
            OnAccountFault::KeepTrying => Next::Again { after: backoff },
            OnAccountFault::Fail => Next::Failed(FailureKind::Job, fault),
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
        next_with(class, promise, since_first_seconds, Others::Unknown, OnAccountFault::KeepTrying)
    }

    fn next_with(class: Class, promise: DeliveryPromise, seconds: u64, others: Others, on_account_fault: OnAccountFault) -> Next {
        let fault = Fault { code: None, http_status: None, info: String::new() };
        let time = Duration::from_secs(seconds);
        let attempts = Attempts { count: 3, since_first: time, held: time, others };
        decide(Verdict::Failed { class, fault }, promise, attempts, &policy(), on_account_fault, 0.5)
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
        assert!(is_failed(next(Class::Transient(Effect::None), AtLeastOnce, 3600), FailureKind::Transient));
    }

    #[test]
    fn a_fault_of_the_account_never_ends_a_job() {
        for of_the_account in [Class::Credential, Class::CredentialOrJob, Class::Account] {
            assert!(matches!(next(of_the_account, DeliveryPromise::AtMostOnce, 1_000_000), Next::Again { .. }));
        }
    }

    #[test]
    fn a_user_id_is_to_blame_if_other_calls_are_accepted_in_the_meantime() {
        let next = |others, on_account_fault| {
            next_with(Class::CredentialOrJob, DeliveryPromise::AtLeastOnce, 1, others, on_account_fault)
        };
        assert!(matches!(next(Others::Accepted, OnAccountFault::KeepTrying), Next::Failed(FailureKind::Job, _)));
        assert!(matches!(next(Others::Unknown, OnAccountFault::KeepTrying), Next::Again { .. }));
        assert!(matches!(next(Others::Unknown, OnAccountFault::Fail), Next::Failed(FailureKind::Job, _)));
    }
}
