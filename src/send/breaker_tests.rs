use std::time::Duration;

use super::{
    groups::{GROUPS_OF_A_BREAK, TRIALS, TRIED_WITHIN},
    *,
};
use crate::api::codes::Effect;

const PROBE_FIRST: Duration = Duration::from_secs(5);

fn breaker(supervision: Supervision) -> Breaker {
    clock::simulated::start_at(jiff::Timestamp::UNIX_EPOCH);
    Breaker::new(waits(), supervision, Instant::now())
}

fn waits() -> Waits {
    Waits {
        outage: (Duration::from_millis(500), Duration::from_secs(30)),
        pause: (PROBE_FIRST, Duration::from_secs(300)),
    }
}

fn failed(class: Class, code: Option<i64>) -> Verdict {
    Verdict::Failed { class, fault: Fault { code, http_status: None, info: String::new() } }
}

fn no_key() -> Verdict {
    failed(Class::Credential, Some(70009))
}

fn unreachable() -> Verdict {
    failed(Class::Transient(Effect::None), None)
}

/// Judges the answer to a call that ended at once.
fn judge(breaker: &mut Breaker, verdict: &Verdict, group: &str) -> Blame {
    breaker.judge(verdict, group, Instant::now(), Instant::now())
}

fn allowed(breaker: &Breaker) -> Allowed {
    breaker.allowed(256, Instant::now())
}

/// Answers the next probe with `verdict`. Returns how long the breaker waited before the probe.
async fn probe(breaker: &mut Breaker, verdict: &Verdict) -> Duration {
    let start = Instant::now();
    let Allowed::ProbeAt(at) = allowed(breaker) else { panic!("{:?}", allowed(breaker)) };
    tokio::time::sleep_until(at).await;
    assert_eq!(allowed(breaker), Allowed::Probe);
    breaker.probe_leaves();
    assert_eq!(allowed(breaker), Allowed::Nothing);
    breaker.judge_probe(verdict, Instant::now());
    at - start
}

#[tokio::test(start_paused = true)]
async fn until_a_call_is_accepted_they_go_one_at_a_time_and_again_after_a_quiet_minute() {
    let mut breaker = breaker(Supervision::Unattended);
    assert_eq!(allowed(&breaker), Allowed::Calls { in_flight: 1 });
    judge(&mut breaker, &failed(Class::RateLimited, Some(60007)), "g");
    assert_eq!(
        allowed(&breaker),
        Allowed::Calls { in_flight: 1 },
        "a gateway may say that of anybody"
    );
    judge(&mut breaker, &Verdict::Sent, "g");
    assert_eq!(allowed(&breaker), Allowed::Calls { in_flight: 256 });
    tokio::time::advance(PROVEN_FOR).await;
    assert_eq!(allowed(&breaker), Allowed::Calls { in_flight: 1 });
    judge(&mut breaker, &failed(Class::Job, Some(10010)), "g");
    assert_eq!(
        allowed(&breaker),
        Allowed::Calls { in_flight: 256 },
        "whose job is refused is known"
    );
}

#[tokio::test(start_paused = true)]
async fn a_fault_of_the_account_pauses_the_app_until_a_probe_is_not_refused() {
    let mut breaker = breaker(Supervision::Unattended);
    let expired = failed(Class::Account, Some(60020));
    assert_eq!(judge(&mut breaker, &expired, "g"), Blame::App);
    assert!(breaker.condition().is_paused());
    let mut waits = Vec::new();
    for _ in 0..9 {
        waits.push(probe(&mut breaker, &expired).await);
    }
    assert!(waits[0] >= PROBE_FIRST && waits[0] <= PROBE_FIRST * 5 / 4, "{waits:?}");
    assert!(waits.windows(2).take(5).all(|pair| pair[1] > pair[0] * 3 / 2), "they grow: {waits:?}");
    assert!(
        waits[8] >= Duration::from_secs(300) && waits[8] <= Duration::from_secs(375),
        "up to a limit: {waits:?}"
    );
    probe(&mut breaker, &unreachable()).await;
    probe(&mut breaker, &failed(Class::RateLimited, Some(60007))).await;
    assert!(breaker.condition().is_paused(), "neither says that the account is in order");
    probe(&mut breaker, &failed(Class::Job, Some(10010))).await;
    assert_eq!(*breaker.condition(), Condition::Working);
    assert_eq!(allowed(&breaker), Allowed::Calls { in_flight: 1 });
}

#[tokio::test(start_paused = true)]
async fn a_refused_user_sig_is_made_anew_once_and_then_the_app_pauses() {
    let mut breaker = breaker(Supervision::Unattended);
    judge(&mut breaker, &Verdict::Sent, "g");
    let started_before = Instant::now();
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(judge(&mut breaker, &no_key(), "g"), Blame::UserSig);
    assert_eq!(allowed(&breaker), Allowed::Calls { in_flight: 1 });
    assert_eq!(breaker.judge(&no_key(), "h", started_before, Instant::now()), Blame::OldUserSig);
    assert_eq!(judge(&mut breaker, &no_key(), "g"), Blame::App);
    let Condition::Paused(why) = breaker.condition() else { panic!("{:?}", breaker.condition()) };
    assert!(
        why.code == Some(70009)
            && why.reason.contains("another key")
            && why.advice.contains("secret_key"),
        "{why:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_new_key_that_is_accepted_is_the_end_of_it() {
    let mut breaker = breaker(Supervision::Unattended);
    assert_eq!(judge(&mut breaker, &no_key(), "g"), Blame::UserSig);
    judge(&mut breaker, &Verdict::Sent, "g");
    tokio::time::advance(RENEWED_FOR).await;
    assert_eq!(judge(&mut breaker, &no_key(), "g"), Blame::UserSig, "rotated once more");
}

#[tokio::test(start_paused = true)]
async fn too_many_failed_signatures_are_followed_by_a_quiet_minute() {
    let mut breaker = breaker(Supervision::Unattended);
    let too_many = failed(Class::Account, Some(codes::TOO_MANY_FAILED_SIGNATURES));
    judge(&mut breaker, &too_many, "g");
    assert!(probe(&mut breaker, &too_many).await >= Duration::from_secs(60));
    assert!(probe(&mut breaker, &no_key()).await >= Duration::from_secs(60));
    assert!(probe(&mut breaker, &no_key()).await < Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn a_changed_configuration_is_tried_at_once_but_not_before_the_vendors_silence_is_over() {
    let mut expired = breaker(Supervision::Unattended);
    judge(&mut expired, &failed(Class::Account, Some(60020)), "g");
    expired.reconfigured(waits(), Instant::now());
    assert_eq!(allowed(&expired), Allowed::Probe);

    let mut silenced = breaker(Supervision::Unattended);
    judge(&mut silenced, &failed(Class::Account, Some(codes::TOO_MANY_FAILED_SIGNATURES)), "g");
    silenced.reconfigured(waits(), Instant::now());
    assert_eq!(allowed(&silenced), Allowed::ProbeAt(Instant::now() + Duration::from_secs(60)));
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_left_before_the_configuration_changed_is_followed_by_another_at_once() {
    let mut breaker = breaker(Supervision::Unattended);
    let expired = failed(Class::Account, Some(60020));
    judge(&mut breaker, &expired, "g");
    tokio::time::advance(PROBE_FIRST * 2).await;
    breaker.probe_leaves();
    breaker.reconfigured(waits(), Instant::now());
    assert_eq!(allowed(&breaker), Allowed::Nothing, "one at a time");
    breaker.judge_probe(&expired, Instant::now());
    assert_eq!(allowed(&breaker), Allowed::Probe);
    breaker.probe_leaves();
    breaker.judge_probe(&expired, Instant::now());
    assert!(
        matches!(allowed(&breaker), Allowed::ProbeAt(at) if at >= Instant::now() + PROBE_FIRST)
    );
}

#[tokio::test(start_paused = true)]
async fn five_groups_in_a_row_with_the_same_refusal_are_not_to_blame() {
    let mut breaker = breaker(Supervision::Unattended);
    let refused = failed(Class::JobOrConfiguration, Some(10007));
    for group in ["a", "b", "c", "d", "d", "d"] {
        assert_eq!(judge(&mut breaker, &refused, group), Blame::Batch);
    }
    judge(&mut breaker, &Verdict::Sent, "e");
    for group in ["a", "b", "c", "d"] {
        assert_eq!(
            judge(&mut breaker, &refused, group),
            Blame::Batch,
            "what is sent in between breaks the row"
        );
    }
    judge(&mut breaker, &failed(Class::JobOrConfiguration, Some(11000)), "x");
    for group in ["a", "b", "c", "d"] {
        assert_eq!(judge(&mut breaker, &refused, group), Blame::Batch, "another code does too");
    }
    assert_eq!(judge(&mut breaker, &refused, "e"), Blame::AppOrBatch);
    assert_eq!(
        allowed(&breaker),
        Allowed::Calls { in_flight: 1 },
        "others are tried before the app pauses"
    );
    assert!(
        breaker.prefers_other_groups() && breaker.has_refused("e") && !breaker.has_refused("f")
    );
    for group in ["f", "g"] {
        assert_eq!(*breaker.condition(), Condition::Working);
        assert_eq!(judge(&mut breaker, &refused, group), Blame::AppOrBatch);
    }
    assert!(breaker.condition().is_paused());
}

/// Pauses the app: five groups and those tried after them get the same refusal.
fn pause_over(breaker: &mut Breaker, refused: &Verdict) {
    for group in 0..GROUPS_OF_A_BREAK as u32 + TRIALS {
        judge(breaker, refused, &group.to_string());
    }
    assert!(breaker.condition().is_paused());
}

#[tokio::test(start_paused = true)]
async fn five_groups_are_one_producers_mistake_if_another_one_is_accepted_after_them() {
    let mut breaker = breaker(Supervision::Unattended);
    let refused = failed(Class::JobOrConfiguration, Some(10007));
    for round in 0..8 {
        for group in 0..5 {
            judge(&mut breaker, &refused, &format!("{round}-{group}"));
        }
        assert!(breaker.waits_for_another_group().is_some());
        judge(&mut breaker, &Verdict::Sent, "good");
        assert_eq!(
            (breaker.waits_for_another_group(), breaker.condition()),
            (None, &Condition::Working)
        );
    }
    let started = Instant::now();
    tokio::time::advance(Duration::from_millis(1)).await;
    for group in 0..5 {
        judge(&mut breaker, &refused, &group.to_string());
    }
    for group in 5..50 {
        assert_eq!(
            breaker.judge(&refused, &group.to_string(), started, Instant::now()),
            Blame::AppOrBatch
        );
    }
    assert_eq!(
        *breaker.condition(),
        Condition::Working,
        "what left together with the five is no trial"
    );
}

#[tokio::test(start_paused = true)]
async fn if_no_other_group_comes_the_app_pauses_all_the_same() {
    let mut breaker = breaker(Supervision::Unattended);
    for group in ["a", "b", "c", "d", "e"] {
        judge(&mut breaker, &failed(Class::TransientOrJob, Some(60099)), group);
    }
    assert_eq!(breaker.waits_for_another_group(), Some(Instant::now() + TRIED_WITHIN));
    breaker.no_other_group_came(Instant::now());
    assert!(breaker.condition().is_paused());
}

#[tokio::test(start_paused = true)]
async fn each_probe_that_passes_lets_twice_as_many_jobs_be_tried() {
    let mut breaker = breaker(Supervision::Unattended);
    let refused = failed(Class::JobOrConfiguration, Some(10007));
    pause_over(&mut breaker, &refused);
    let mut tried = Vec::new();
    for _ in 0..8 {
        probe(&mut breaker, &failed(Class::Job, Some(10010))).await;
        let trials = (1..).find(|number| {
            judge(&mut breaker, &refused, &format!("more-{number}"));
            breaker.condition().is_paused()
        });
        tried.push(trials.unwrap());
    }
    assert_eq!(tried, [4, 8, 16, 32, 64, 64, 64, 64]);
}

#[tokio::test(start_paused = true)]
async fn what_a_probe_gets_while_all_is_well_is_no_evidence() {
    let mut breaker = breaker(Supervision::Unattended);
    let refused = failed(Class::JobOrConfiguration, Some(10007));
    pause_over(&mut breaker, &refused);
    probe(&mut breaker, &refused).await;
    assert_eq!(
        *breaker.condition(),
        Condition::Working,
        "nobody knows yet what it gets: a job is tried"
    );
    for group in ["u", "v", "w", "x"] {
        judge(&mut breaker, &refused, group);
    }
    assert!(breaker.condition().is_paused());
    probe(&mut breaker, &refused).await;
    assert!(breaker.condition().is_paused(), "and the next time not");
    probe(&mut breaker, &refused).await;
    judge(&mut breaker, &Verdict::Sent, "good");
    for _ in 0..3 {
        pause_over(&mut breaker, &refused);
        probe(&mut breaker, &refused).await;
        assert_eq!(*breaker.condition(), Condition::Working, "it is known now");
        judge(&mut breaker, &Verdict::Sent, "good");
    }
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_gets_another_answer_than_usual_keeps_the_app_paused() {
    let mut breaker = breaker(Supervision::Unattended);
    let refused = failed(Class::JobOrConfiguration, Some(10007));
    pause_over(&mut breaker, &refused);
    probe(&mut breaker, &failed(Class::Job, Some(10010))).await;
    judge(&mut breaker, &Verdict::Sent, "good");
    pause_over(&mut breaker, &refused);
    for _ in 0..4 {
        probe(&mut breaker, &refused).await;
        assert!(breaker.condition().is_paused());
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_that_alone_meets_a_fault_of_the_account_pauses_the_app_once() {
    for class in [Class::Account, Class::Credential] {
        let mut breaker = breaker(Supervision::Unattended);
        let filtered = Verdict::Failed {
            class,
            fault: Fault { code: None, http_status: Some(403), info: String::new() },
        };
        judge(&mut breaker, &Verdict::Sent, "good");
        let early = Instant::now();
        tokio::time::advance(Duration::from_millis(1)).await;
        if class == Class::Credential {
            assert_eq!(judge(&mut breaker, &filtered, "bad"), Blame::UserSig);
        }
        assert_eq!(judge(&mut breaker, &filtered, "bad"), Blame::App);
        breaker.judge(&Verdict::Sent, "good", early, Instant::now());
        probe(&mut breaker, &failed(Class::Job, Some(10010))).await;
        assert_eq!(
            judge(&mut breaker, &filtered, "bad"),
            Blame::App,
            "what left before it says nothing"
        );
        probe(&mut breaker, &failed(Class::Job, Some(10010))).await;
        judge(&mut breaker, &Verdict::Sent, "good");
        for _ in 0..9 {
            tokio::time::advance(Duration::from_secs(100)).await;
            assert_eq!(judge(&mut breaker, &filtered, "bad"), Blame::Group);
            assert_eq!(*breaker.condition(), Condition::Working);
        }
        if class == Class::Account {
            assert_eq!(
                judge(&mut breaker, &filtered, "worse"),
                Blame::AppOrBatch,
                "another group may be alone too"
            );
            assert_eq!(*breaker.condition(), Condition::Working);
            assert_eq!(judge(&mut breaker, &filtered, "good"), Blame::AppOrBatch);
            assert!(breaker.condition().is_paused(), "but not the next one");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_undocumented_refusal_is_the_groups_until_five_have_it() {
    let mut breaker = breaker(Supervision::Unattended);
    for (class, code) in [(Class::CredentialOrJob, 70999), (Class::TransientOrJob, 60099)] {
        let undocumented = failed(class, Some(code));
        if class == Class::CredentialOrJob {
            assert_eq!(judge(&mut breaker, &undocumented, "a"), Blame::UserSig);
        }
        for group in ["a", "b", "c", "d"] {
            assert_eq!(judge(&mut breaker, &undocumented, group), Blame::Batch);
        }
        assert_eq!(judge(&mut breaker, &undocumented, "e"), Blame::AppOrBatch);
        judge(&mut breaker, &Verdict::Sent, "a");
    }
}

#[tokio::test(start_paused = true)]
async fn five_transport_failures_in_a_row_are_an_outage_and_any_answer_ends_it() {
    let mut breaker = breaker(Supervision::Unattended);
    judge(&mut breaker, &Verdict::Sent, "g");
    (0..4).for_each(|_| assert_eq!(judge(&mut breaker, &unreachable(), "g"), Blame::Batch));
    judge(&mut breaker, &failed(Class::Transient(Effect::Unknown), Some(10002)), "g");
    (0..4).for_each(|_| assert_eq!(judge(&mut breaker, &unreachable(), "g"), Blame::Batch));
    assert_eq!(
        *breaker.condition(),
        Condition::Working,
        "an answer of the API is no transport failure"
    );
    judge(&mut breaker, &unreachable(), "g");
    assert!(matches!(breaker.condition(), Condition::Outage(_)));
    let first = probe(&mut breaker, &unreachable()).await;
    assert!(first < Duration::from_secs(1), "{first:?}");
    for _ in 0..8 {
        probe(&mut breaker, &unreachable()).await;
    }
    assert!(probe(&mut breaker, &unreachable()).await >= Duration::from_secs(30));
    probe(&mut breaker, &failed(Class::Job, Some(10010))).await;
    assert_eq!(allowed(&breaker), Allowed::Calls { in_flight: 1 });
    judge(&mut breaker, &unreachable(), "g");
    assert!(matches!(breaker.condition(), Condition::Outage(_)), "the first sign is enough");
    assert!(probe(&mut breaker, &unreachable()).await >= Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn a_fault_of_the_account_behind_an_outage_pauses_the_app() {
    let mut breaker = breaker(Supervision::Unattended);
    (0..5).for_each(|_| assert_eq!(judge(&mut breaker, &unreachable(), "g"), Blame::Batch));
    for _ in 0..8 {
        probe(&mut breaker, &unreachable()).await;
    }
    let expired = failed(Class::Account, Some(60020));
    probe(&mut breaker, &expired).await;
    assert!(breaker.condition().is_paused());
    let first = probe(&mut breaker, &expired).await;
    assert!(
        first <= PROBE_FIRST * 5 / 4,
        "the waits of the outage are no measure for the pause: {first:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn where_somebody_waits_nothing_is_paused() {
    let mut breaker = breaker(Supervision::Attended);
    assert_eq!(judge(&mut breaker, &no_key(), "g"), Blame::UserSig);
    assert_eq!(judge(&mut breaker, &no_key(), "g"), Blame::Batch);
    (0..9).for_each(|_| assert_eq!(judge(&mut breaker, &unreachable(), "g"), Blame::Batch));
    assert_eq!(allowed(&breaker), Allowed::Calls { in_flight: 1 });
}
