//! Which calls are accepted, refused, affected by faults and counted, without a socket.

use hyper::Method;
use proptest::prelude::*;

use super::*;
use crate::{
    api::user_sig::SignedClaims,
    sandbox::{fault::FaultRule, settings::PUBLIC_KEY},
};

const PATH: &str = "/v4/group_open_http_svc/send_group_system_notification";
const BODY: &str = r#"{"GroupId":"g","Content":"c","ToMembers_Account":["a"]}"#;
const UNKNOWN_GROUP: &str = r#"{"GroupId":"unknown","Content":"c"}"#;

fn query() -> String {
    let wall_clock = ArrivalTime::now().unix_seconds();
    let claims = SignedClaims {
        sdk_app_id: 1_400_000_000,
        identifier: "administrator",
        time: wall_clock,
        expire: 3600,
    };
    let user_sig = claims.sign(PUBLIC_KEY);
    format!(
        "sdkappid=1400000000&identifier=administrator&usersig={user_sig}&random=1&contenttype=json"
    )
}

fn call(body: &str) -> Call<'_> {
    Call::read(&Method::POST, PATH, &query(), Ok(body.as_bytes()))
}

fn code(state: &mut SandboxState, body: &str) -> Option<i64> {
    state.judge(&call(body), ArrivalTime::now()).answer.code()
}

fn state(calls_per_second: u32) -> SandboxState {
    SandboxState::new(SandboxSettings { calls_per_second, ..SandboxSettings::default() })
}

fn error(code: i64) -> InjectedFault {
    InjectedFault::Error { code, info: String::new() }
}

#[test]
fn a_good_call_is_accepted_and_received() {
    let mut state = state(200);
    assert_eq!(code(&mut state, BODY), Some(0));
    assert_eq!(state.inbox.calls(Some("g")).len(), 1);
    let stats = state.stats();
    assert_eq!(
        (stats.calls, stats.accepted, stats.refused, stats.deliveries.distinct_deliveries),
        (1, 1, 0, 1)
    );
}

#[test]
fn the_caller_is_checked_before_the_body() {
    let mut state = state(200);
    let query = query().replace("contenttype=json", "");
    let verdict =
        state.judge(&Call::read(&Method::POST, PATH, &query, Ok(b"no JSON")), ArrivalTime::now());
    assert_eq!(verdict.answer.code(), Some(60002));
    assert_eq!(code(&mut state, "no JSON"), Some(60003));
    assert_eq!(code(&mut state, UNKNOWN_GROUP), Some(10010));
    assert_eq!((state.stats().refused, state.inbox.calls(None).len()), (3, 0));
}

#[test]
fn over_the_limit_calls_are_refused_with_the_code_of_the_settings() {
    let mut state = state(2);
    state.settings.limit_code = 10006;
    let codes: Vec<_> = (0..4).filter_map(|_| code(&mut state, BODY)).collect();
    assert_eq!(codes, [0, 0, 10006, 10006]);
    let stats = state.stats();
    assert_eq!((stats.max_in_1s, stats.max_accepted_in_1s, stats.by_code[&10006]), (4, 2, 2));
}

#[test]
fn a_refused_call_does_not_count_against_the_limit() {
    let mut state = state(1);
    assert_eq!(code(&mut state, UNKNOWN_GROUP), Some(10010));
    assert_eq!(code(&mut state, BODY), Some(0));
}

#[test]
fn without_a_limit_everything_is_accepted() {
    let mut state = state(0);
    for _ in 0..1000 {
        assert_eq!(code(&mut state, BODY), Some(0));
    }
}

#[test]
fn a_fault_prevents_the_delivery_unless_it_comes_after_the_effect() {
    let mut state = state(200);
    state.faults.add(FaultRule { calls: Some(1), ..error(10002).into() }).unwrap();
    state
        .faults
        .add(FaultRule { calls: Some(1), after_effect: true, ..InjectedFault::Reset.into() })
        .unwrap();
    assert_eq!((code(&mut state, BODY), state.stats().accepted), (Some(10002), 0));
    assert_eq!((code(&mut state, BODY), state.stats().accepted), (None, 1));
    assert_eq!((code(&mut state, BODY), state.stats().accepted), (Some(0), 2));
    let stats = state.stats();
    assert_eq!((stats.by_fault["error"], stats.by_fault["reset"]), (1, 1));
    assert_eq!(stats.deliveries.repeated_recipients, 1);
}

#[test]
fn an_app_wide_fault_hides_even_a_refusal() {
    let mut state = state(200);
    state.faults.add(FaultRule { app_wide: true, ..error(60020).into() }).unwrap();
    assert_eq!(code(&mut state, UNKNOWN_GROUP), Some(60020));
}

#[test]
fn a_reset_forgets_calls_and_faults_but_not_the_settings() {
    let mut state = state(7);
    state.faults.add(InjectedFault::Hang.into()).unwrap();
    code(&mut state, BODY);
    state.reset();
    assert_eq!(
        (state.stats().calls, state.stats().max_in_1s, state.faults.rules().len()),
        (0, 0, 0)
    );
    assert_eq!(state.settings.calls_per_second, 7);
}

proptest! {
    #[test]
    fn no_second_has_more_accepted_calls_than_the_limit(limit in 1u32..20, gaps_ms in prop::collection::vec(0u64..200, 1..100)) {
        let mut state = state(limit);
        let call = call(BODY);
        let mut now = ArrivalTime::now();
        let mut accepted_at = Vec::new();
        for gap in gaps_ms {
            now.instant += Duration::from_millis(gap);
            let free = accepted_at.iter().filter(|&&at| now.instant - at < Duration::from_secs(1)).count() < limit as usize;
            let accepted = state.judge(&call, now).answer == SandboxAnswer::Accepted;
            prop_assert_eq!(accepted, free);
            if accepted {
                accepted_at.push(now.instant);
            }
        }
        prop_assert!(state.stats().max_accepted_in_1s <= limit as usize);
    }
}
